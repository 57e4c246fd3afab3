"""The data of the nano recipes: books, recall, echo; clips, film, stills and questions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ringworld.data.books import draw_passage, echo_example, passage_example
from ringworld.data.example import Example
from ringworld.data.packing.mix import DrawExample, draw_examples
from ringworld.data.packing.rows import check_shares
from ringworld.data.samples import SampleFilm, Shelf, read_sample_film, read_shelf
from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.fetch import fetch
from ringworld.models.world import World
from ringworld.progress import Announce
from ringworld.recipes.held_out import measure_held_out
from ringworld.tasks.clips import (
    CLIP_FORMS,
    CodedClip,
    clip_example,
    draw_clips,
    reverse_clip,
    video_alone,
)
from ringworld.tasks.needle import count_haystack, draw_needles, max_needles, recall_example
from ringworld.tasks.stills import still_example
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.train.loop import Measure
from ringworld.train.model_stage import ModelData, ModelStage
from ringworld.vocab import Vocabulary
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.open import open_model

# Tokens that hold one needle, its question, the answer, and a sentence or two of a book.
SHORTEST_RECALL = 160
# The most needles that one question asks for.
MOST_TOGETHER = 4
TEXT = ("books", "recall", "echo")
CLIPS, PICTURES, QUESTIONS, FILM = "clips", "pictures", "questions", "film"
VISION = (CLIPS, FILM, PICTURES, QUESTIONS)
# The forms of a clip or a picture of which all are vision, then text.
ASKED = (0.0, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Samples(ModelData):
    """The sample books and the sample film, needles hidden in the first, and moving shapes.

    `clips` is how many clips of moving shapes there are, drawn from `seed`. Text and frames become
    tokens by the tokenizer and the codec of the model that a stage starts from.
    """

    clips: int
    """how many clips of moving shapes there are"""
    seed: int
    """draws the clips"""
    most_things: int = 3
    """the most things in a clip"""
    over_film: float = 0.2
    """the share of clips with a film frame as their ground; the others have a plain one"""
    forms: tuple[float, float, float] = CLIP_FORMS
    """how often a clip or a picture is text then vision, vision then text, and vision alone"""
    reversed: float = 0.0
    """the share of examples that show a clip in reverse, its motions too"""
    together: float = 0.0
    """the share of books with several needles whose questions ask for several at once"""

    def __post_init__(self) -> None:
        shares = (self.over_film, self.reversed, self.together)
        if not all(0 <= share <= 1 for share in shares):
            raise InputError(
                "over_film, reversed and together are shares: set each between 0 and 1"
            )
        if min(self.forms) < 0 or abs(sum(self.forms) - 1) > 1e-6:
            raise InputError(f"forms are {self.forms}: use three shares that add up to 1")

    def check(self, stage: ModelStage, source: Path | None) -> None:
        """Raise InputError when a share names no source."""
        check_shares(dict.fromkeys(TEXT + VISION), stage.shares)

    def measure(
        self, stage: ModelStage, source: Path, config: World, cache: Path, announce: Announce
    ) -> Measure:
        """The loss of the held-out books, and needles in them."""

        def read(tokenizer: Tokenizer) -> list[Int[np.ndarray, "_"]]:
            return read_shelf(tokenizer, cache, announce).held_out

        return measure_held_out(stage, source, config, read)

    def open(
        self, stage: ModelStage, source: Path, cache: Path, announce: Announce
    ) -> list[Example]:
        """The examples of a stage; books, film and clips as ids are kept in `cache`."""
        tokenizer = load_tokenizer(source)
        with first_goes_first():
            sources = dict[str, DrawExample]()
            if set(stage.shares) & set(TEXT):
                shelf = read_shelf(tokenizer, cache, announce)
                sources |= text_sources(shelf, tokenizer, self.together)
            if set(stage.shares) & set(VISION):
                codec = load_codec(source / CODEC)
                film = None
                if self.over_film or FILM in stage.shares:
                    film = read_sample_film(fetch("film"), codec, cache, announce)
                clips = draw_clips(
                    () if film is None else film.frames[~film.held_out],
                    codec,
                    self.clips,
                    self.seed,
                    cache,
                    announce,
                    self.over_film,
                    self.most_things,
                )
                vocabulary = open_model(source).config.vocabulary
                sources |= vision_sources(self, film, clips, tokenizer, vocabulary)
        return draw_examples(
            sources, stage.shares, tokens=stage.tokens, longest=stage.context, seed=stage.seed
        )


def text_sources(
    shelf: Shelf, tokenizer: Tokenizer, together: float = 0.0
) -> dict[str, DrawExample]:
    """Passages of books, needles hidden in them with a question for each, and shuffled echoes.

    Lengths of recall are drawn evenly over their logarithm from a quarter of the longest, so that
    each stage sees the lengths it is for. Half of the examples have one needle, the others as many
    as fit, up to 16. In the share `together` of those each question asks for two to four.
    """

    def books(rng: np.random.Generator, longest: int) -> Example:
        length = int(rng.integers(longest // 4, longest))
        return passage_example(draw_passage(rng, shelf.books, length), tokenizer)

    def recall(rng: np.random.Generator, longest: int) -> Example:
        least = max(longest / 4, SHORTEST_RECALL)
        length = int(np.exp(rng.uniform(np.log(least), np.log(longest + 1))))
        most = 1 if rng.random() < 0.5 else max_needles(length)
        needles = draw_needles(rng, int(rng.integers(1, 1 + most)))
        some = 1
        if together and len(needles) > 1 and rng.random() < together:
            some = int(rng.integers(2, 1 + MOST_TOGETHER))
        asked = [needles[i : i + some] for i in range(0, len(needles), some)]
        size = count_haystack(length, needles, tokenizer, asked=asked)
        passage = draw_passage(rng, shelf.books, size)
        return recall_example(rng, passage, asked, tokenizer)

    def echo(rng: np.random.Generator, longest: int) -> Example:
        length = int(rng.integers(8, longest // 2))
        return echo_example(rng, draw_passage(rng, shelf.books, length), tokenizer)

    return dict(zip(TEXT, (books, recall, echo), strict=True))


def vision_sources(
    data: Samples,
    film: SampleFilm | None,
    clips: list[CodedClip],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> dict[str, DrawExample]:
    """Clips of moving shapes and stills of them in every form of chat, and stretches of the film.

    The source of questions has clips and stills as often, each only ever asked about.
    """

    def draw_clip(rng: np.random.Generator) -> CodedClip:
        clip = clips[int(rng.integers(len(clips)))]
        backwards = data.reversed and rng.random() < data.reversed
        return reverse_clip(clip) if backwards else clip

    def shapes(rng: np.random.Generator, longest: int) -> Example:
        return clip_example(rng, draw_clip(rng), tokenizer, vocabulary, data.forms, longest)

    def pictures(rng: np.random.Generator, longest: int) -> Example:
        return still_example(rng, draw_clip(rng), tokenizer, vocabulary, data.forms, longest)

    def questions(rng: np.random.Generator, longest: int) -> Example:
        example = clip_example if rng.random() < 0.5 else still_example
        return example(rng, draw_clip(rng), tokenizer, vocabulary, ASKED, longest)

    sources: dict[str, DrawExample] = {CLIPS: shapes, PICTURES: pictures, QUESTIONS: questions}
    if film is None:
        return sources
    runs = film.learned_runs

    def scenes(rng: np.random.Generator, longest: int) -> Example:
        run = runs[int(rng.integers(len(runs)))]
        most = (longest - 4) // vocabulary.frame_length
        start = int(rng.integers(max(len(run) - most, 0) + 1))
        return video_alone(run[start : start + most], tokenizer, vocabulary)

    return sources | {FILM: scenes}
