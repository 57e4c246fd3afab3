"""The four sources of the nano recipes: books, recall, clips, film."""

import numpy as np

from ringworld.data.clips import clip_example, film_example
from ringworld.data.corpus import Corpus
from ringworld.data.example import Example
from ringworld.data.mix import Source
from ringworld.data.needle import draw_needles, longest_needles, recall_example, room
from ringworld.data.text import draw_passage, passage_example
from ringworld.data.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary


def make_sources(
    corpus: Corpus, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> dict[str, Source]:
    """Each source draws one example of at most `longest` tokens.

    Recall lengths are drawn evenly over their logarithm from a quarter of the longest, so that each
    stage sees the lengths it is for, and has up to 16 needles.
    """

    def books(rng: np.random.Generator, longest: int) -> Example:
        length = int(rng.integers(longest // 4, longest))
        return passage_example(draw_passage(rng, corpus.books, length), tokenizer)

    def recall(rng: np.random.Generator, longest: int) -> Example:
        length = int(np.exp(rng.uniform(np.log(longest / 4), np.log(longest + 1))))
        needles = draw_needles(rng, int(rng.integers(1, 1 + longest_needles(length))))
        passage = draw_passage(rng, corpus.books, room(length, needles, tokenizer))
        return recall_example(rng, passage, needles, tokenizer)

    def clips(rng: np.random.Generator, longest: int) -> Example:
        clip = corpus.clips[int(rng.integers(len(corpus.clips)))]
        return clip_example(rng, clip, tokenizer, vocabulary)

    def film(rng: np.random.Generator, longest: int) -> Example:
        runs = corpus.film.learned_runs
        run = runs[int(rng.integers(len(runs)))]
        most = (longest - 4) // vocabulary.frame_length
        start = int(rng.integers(max(len(run) - most, 0) + 1))
        return film_example(run[start : start + most], tokenizer, vocabulary)

    return {"books": books, "recall": recall, "clips": clips, "film": film}
