"""What a model says about clips that it has not seen: short answers, and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ringworld.chat.ask import answer_questions
from ringworld.evals.proportion import Proportion
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shape_judge import chance_of_exact
from ringworld.tasks.shape_language import facts, parse_caption, possible_answers, questions
from ringworld.tasks.shapes import Scene, draw
from ringworld.text.template import DESCRIBE
from ringworld.weights.model import Model


@dataclass(frozen=True, kw_only=True)
class CaptionFigures:
    """How many captions of clips of `things` things were right as wholes, and what they state.

    A fact is the colour, the shape and the motion of one thing: `precision` is the share of stated
    facts that are true, `recall` the share of true ones that are stated, `f1` their harmonic mean.
    """

    things: int
    whole: Proportion
    precision: float
    recall: float
    f1: float

    def __str__(self) -> str:
        """The counts in a line."""
        return (
            f"{self.things}: whole {self.whole}; precision {self.precision:.2f}, "
            f"recall {self.recall:.2f}, F1 {self.f1:.2f}"
        )


def measure_answers(model: Model, scenes: dict[int, list[Scene]]) -> Proportion:
    """One question about each scene, answered greedily."""
    some = [scene for each in scenes.values() for scene in each]
    asked = [(pairs := questions(scene))[5 * i % len(pairs)] for i, scene in enumerate(some)]
    written = answer_questions(
        model, [question for question, _ in asked], encode_scenes(model, some)
    )
    chances = [1 / len(possible_answers(question)) for question, _ in asked]
    right = sum(words == truth for words, (_, truth) in zip(written, asked, strict=True))
    return Proportion(right, len(some), float(np.mean(chances)))


def measure_captions(model: Model, scenes: Sequence[Scene], *, max_things: int) -> CaptionFigures:
    """What the model says when it is asked to describe each scene, written greedily."""
    written = answer_questions(model, [DESCRIBE] * len(scenes), encode_scenes(model, scenes))
    return judge_captions(written, scenes, max_things=max_things)


def judge_captions(
    captions: Sequence[str], scenes: Sequence[Scene], *, max_things: int
) -> CaptionFigures:
    """The figures of captions, each of which should describe the scene beside it.

    A guess is the caption of a random scene of 1 to `max_things` things.
    """
    pairs = [(parse_caption(c), facts(scene)) for c, scene in zip(captions, scenes, strict=True)]
    stated, true = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    both = sum(len(said & shown) for said, shown in pairs)
    chance = np.mean([chance_of_exact(scene, max_things=max_things) for scene in scenes])
    exact = sum(said == shown for said, shown in pairs)
    return CaptionFigures(
        things=len(scenes[0].things),
        whole=Proportion(exact, len(pairs), float(chance)),
        precision=both / max(stated, 1),
        recall=both / true,
        f1=2 * both / (stated + true),
    )


def encode_scenes(model: Model, scenes: Sequence[Scene]) -> list[Int[np.ndarray, "_ Q"]]:
    """The codes of each scene's clip."""
    size = model.codec.config.size
    return [model.codec.encode(draw(scene, frames=FRAMES_A_CLIP, size=size)) for scene in scenes]
