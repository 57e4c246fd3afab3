"""The work that every peer is given: the same numbers, and the same count of what they cost.

Needs only the standard library and numpy, because peers read it in environments of their own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

Kind = Literal["plain", "packed", "gqa"]
HEADS, HEAD_WIDTH, GROUPED_KEY_HEADS = 8, 64, 2
# Documents of about 1K: any length between these, each as likely as another.
SHORTEST, LONGEST = 512, 1536
BACKWARD = 2.5  # of the forward: five products of matrices where it has two
SAMPLED_TOKENS = 16
GEMM_SIDE = 2048
GEMM_FLOPS = 2.0 * GEMM_SIDE**3


@dataclass(frozen=True, kw_only=True)
class Case:
    """Causal attention of one row of `length` tokens, float32.

    "plain" is one document, "packed" is documents of about 1K, "gqa" is one document with 8 query
    heads on 2 key heads. With `backward` the gradients of q, k and v are wanted too.
    """

    length: int
    kind: Kind
    backward: bool

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.length:,} {self.kind}, {'fwd+bwd' if self.backward else 'fwd'}"

    @property
    def key_heads(self) -> int:
        """How many heads the keys and values have."""
        return GROUPED_KEY_HEADS if self.kind == "gqa" else HEADS

    @property
    def documents(self) -> list[int]:
        """The lengths of the documents of the row."""
        return documents(self.length) if self.kind == "packed" else [self.length]

    @property
    def flops(self) -> float:
        """What the products of matrices cost, counted causally: half of each document's square."""
        return count_flops(self.documents, self.backward)


def documents(length: int, seed: int = 0) -> list[int]:
    """Documents of about 1K that fill a row of `length` tokens; the last one is cut."""
    draw, drawn, left = random.Random(seed), [], length
    while left:
        drawn.append(min(left, draw.randint(SHORTEST, LONGEST)))
        left -= drawn[-1]
    return drawn


def count_flops(lengths: Sequence[int], backward: bool) -> float:
    """4 S^2 / 2 N H of each document, and 3.5 times that with the gradients."""
    forward = sum(4 * n * n / 2 * HEADS * HEAD_WIDTH for n in lengths)
    return forward * (1 + BACKWARD) if backward else forward


def make_segments(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The segment and the position of each token of a row of documents, `[1, T]` int32."""
    starts = [0, *accumulate(lengths)]
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return segments[None].astype(np.int32), positions[None].astype(np.int32)


def make_arrays(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v and the cotangent of the output, `[1, T, heads, H]` float32, the same everywhere."""
    rng = np.random.default_rng(0)

    def draw(heads: int) -> np.ndarray:
        return rng.standard_normal((1, case.length, heads, HEAD_WIDTH), np.float32)

    return draw(HEADS), draw(case.key_heads), draw(case.key_heads), draw(HEADS)


def sample(arrays: Sequence[np.ndarray]) -> list[float]:
    """A few numbers of each result `[1, T, heads, H]`: on the same work all peers agree on them."""
    picked = []
    for x in arrays:
        tokens = np.linspace(0, x.shape[1] - 1, SAMPLED_TOKENS).astype(int)
        picked += [float(x[0, t, t % x.shape[2], t % x.shape[3]]) for t in tokens]
    return picked
