"""The sources of the nano recipes: books, recall and echo of text, clips and film of vision."""

import numpy as np

from ringworld.data.books import draw_passage, echo_example, passage_example
from ringworld.data.example import Example
from ringworld.data.packing.mix import Source
from ringworld.data.samples import Film, Shelf
from ringworld.tasks.clips import CodedClip, clip_example, video_alone
from ringworld.tasks.needle import count_haystack, draw_needles, max_needles, recall_example
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

# Tokens that hold one needle, its question, the answer, and a sentence or two of a book.
SHORTEST_RECALL = 160
TEXT = ("books", "recall", "echo")
VISION = ("clips", "film")


def text_sources(shelf: Shelf, tokenizer: Tokenizer) -> dict[str, Source]:
    """Passages of books, needles hidden in them with a question for each, and shuffled echoes.

    Lengths of recall are drawn evenly over their logarithm from a quarter of the longest, so that
    each stage sees the lengths it is for. Half of the examples have one needle, the others as many
    as fit, up to 16.
    """

    def books(rng: np.random.Generator, longest: int) -> Example:
        length = int(rng.integers(longest // 4, longest))
        return passage_example(draw_passage(rng, shelf.books, length), tokenizer)

    def recall(rng: np.random.Generator, longest: int) -> Example:
        least = max(longest / 4, SHORTEST_RECALL)
        length = int(np.exp(rng.uniform(np.log(least), np.log(longest + 1))))
        most = 1 if rng.random() < 0.5 else max_needles(length)
        needles = draw_needles(rng, int(rng.integers(1, 1 + most)))
        passage = draw_passage(rng, shelf.books, count_haystack(length, needles, tokenizer))
        return recall_example(rng, passage, needles, tokenizer)

    def echo(rng: np.random.Generator, longest: int) -> Example:
        length = int(rng.integers(8, longest // 2))
        return echo_example(rng, draw_passage(rng, shelf.books, length), tokenizer)

    return dict(zip(TEXT, (books, recall, echo), strict=True))


def vision_sources(
    film: Film, clips: list[CodedClip], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> dict[str, Source]:
    """Clips of moving shapes in every form of chat, and stretches of the film."""

    def shapes(rng: np.random.Generator, longest: int) -> Example:
        clip = clips[int(rng.integers(len(clips)))]
        return clip_example(rng, clip, tokenizer, vocabulary)

    def scenes(rng: np.random.Generator, longest: int) -> Example:
        runs = film.learned_runs
        run = runs[int(rng.integers(len(runs)))]
        most = (longest - 4) // vocabulary.frame_length
        start = int(rng.integers(max(len(run) - most, 0) + 1))
        return video_alone(run[start : start + most], tokenizer, vocabulary)

    return dict(zip(VISION, (shapes, scenes), strict=True))
