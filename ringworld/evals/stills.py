"""Still pictures drawn from words, and what the codec leaves of true ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ringworld.chat.ask import draw_pictures
from ringworld.evals.config import Shapes
from ringworld.evals.proportion import Proportion
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shape_language import caption_still
from ringworld.tasks.shapes import Scene, draw, freeze_scene
from ringworld.tasks.still_judge import chance_of_still, score_still
from ringworld.weights.model import Model


@dataclass(frozen=True, kw_only=True)
class StillFigures:
    """How many pictures of `things` things were right as wholes, and the shares of right parts."""

    things: int
    whole: Proportion
    colour: float
    shape: float
    place: float

    def __str__(self) -> str:
        """The counts in a line."""
        return (
            f"{self.things}: whole {self.whole}; colour {self.colour:.2f}, shape {self.shape:.2f}, "
            f"place {self.place:.2f}"
        )


def freeze_scenes(scenes: Sequence[Scene]) -> list[Scene]:
    """A still of each scene, from its first frame, its second and so on in turn."""
    return [
        freeze_scene(scene, i % FRAMES_A_CLIP, frames=FRAMES_A_CLIP)
        for i, scene in enumerate(scenes)
    ]


def draw_true(stills: Sequence[Scene], size: int) -> UInt8[np.ndarray, "n Y X 3"]:
    """The stills as they are, `size` x `size` pixels."""
    return np.concatenate([draw(still, frames=1, size=size) for still in stills])


def draw_stills(
    model: Model, stills: Sequence[Scene], wanted: Shapes
) -> list[UInt8[np.ndarray, "Y X 3"]]:
    """What a model draws of the words of stills."""
    return draw_pictures(
        model,
        [caption_still(still) for still in stills],
        guidance=wanted.guidance,
        sampling=wanted.sampling,
        seed=wanted.seed,
    )


def judge_stills(
    pictures: Sequence[UInt8[np.ndarray, "Y X 3"]] | UInt8[np.ndarray, "n Y X 3"],
    stills: Sequence[Scene],
    *,
    max_things: int,
) -> StillFigures:
    """The figures of pictures, each of which should show the still beside it."""
    scores = [score_still(each, still) for each, still in zip(pictures, stills, strict=True)]
    things = [thing for score in scores for thing in score.things]
    chance = np.mean([chance_of_still(still, max_things=max_things) for still in stills])
    return StillFigures(
        things=len(stills[0].things),
        whole=Proportion(sum(score.exact for score in scores), len(scores), float(chance)),
        colour=float(np.mean([thing.colour for thing in things])),
        shape=float(np.mean([thing.shape for thing in things])),
        place=float(np.mean([thing.place for thing in things])),
    )
