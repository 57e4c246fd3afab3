"""One training example: a stream of text ids and image codes, and what to learn of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary, grid_ids


@dataclass(frozen=True)
class Example:
    """`tokens` int32 `[n]`, whether each is an image code, and the weight of predicting each.

    Weights are relative here; packing makes them count as one example.
    """

    tokens: Int[np.ndarray, "n"]
    vision: Bool[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.tokens)


def text(ids: Sequence[int] | Int[np.ndarray, "n"], weight: float) -> Example:
    """Text ids, each predicted with `weight`; 0 for what is given and not learned."""
    tokens = np.asarray(ids, np.int32)
    return Example(
        tokens, np.zeros(len(tokens), np.bool_), np.full(len(tokens), weight, np.float32)
    )


def document(ids: Sequence[int] | Int[np.ndarray, "n"], tokenizer: Tokenizer) -> Example:
    """A whole text, `<s> ids </s>`: every token and its end are learned.

    It begins at once with a tokenizer that has no first token.
    """
    parts = tokenizer.bos_ids, ids, [tokenizer.eos]
    whole = text(np.concatenate([np.asarray(part, np.int32) for part in parts]), 1.0)
    whole.weights[0] = 0.0  # nothing predicts it
    return whole


def open_frames(codes: Int[np.ndarray, "Z Q"], vocabulary: Vocabulary, weight: float) -> Example:
    """Frames of codes, each ended by `eof`: more may follow. `[Z, Q]` becomes Z (Q + 1) ids."""
    ends = np.full((len(codes), 1), vocabulary.eof)
    tokens = np.concatenate([codes, ends], axis=1).reshape(-1).astype(np.int32)
    return Example(tokens, np.ones(len(tokens), np.bool_), np.full(len(tokens), weight, np.float32))


def frames(codes: Int[np.ndarray, "Z Q"], vocabulary: Vocabulary, weight: float) -> Example:
    """A whole video: frames of codes, of which the last is ended by `eov`."""
    whole = open_frames(codes, vocabulary, weight)
    tokens = np.append(whole.tokens[:-1], np.int32(vocabulary.eov))
    return replace(whole, tokens=tokens)


def join(parts: Iterable[Example]) -> Example:
    """The parts one after another, as one example."""
    parts = list(parts)
    return Example(
        np.concatenate([p.tokens for p in parts]),
        np.concatenate([p.vision for p in parts]),
        np.concatenate([p.weights for p in parts]),
    )


def on_grid(example: Example, vocabulary: Vocabulary) -> Example:
    """The example as a model of this vocabulary reads it (`ringworld.vocab.grid_ids`)."""
    return replace(example, tokens=grid_ids(example.tokens, example.vision, vocabulary))
