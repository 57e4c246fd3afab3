"""What attention never does, for any pack, any span and any order of the row: properties.

One program on a ring of four serves every example: packs, spans and orders are data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention import attend
from ringworld.attention.mask import (
    Span,
    Where,
    block_stops,
    causal,
    causal_by_block,
    causal_with_prefix,
    everything,
    window,
)
from ringworld.mesh import make_mesh, named_sharding

RING, TILE = 4, 4
T, N, K, H = 64, 4, 2, 8
# Rounding in float32 sums of T = 64 terms in another order: sqrt(T) 2^-23 = 1e-6, for each of two
# results that are compared. Errors are shares of the largest number of the array, or of 1.
TOLERANCE = 2e-6

Arrays = tuple[np.ndarray, ...]


@pytest.fixture(autouse=True, scope="module")
def many_tiles(set_tile: Callable[[int], None]) -> None:
    set_tile(TILE)


@cache
def program() -> Any:
    def run(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
        out, pull = jax.vjp(partial(attend, where=where, causal=False, impl="xla"), q, k, v)
        return out, *pull(dout)

    return jax.jit(run)


def run(arrays: Arrays, where: Where) -> Arrays:
    """The output, dq, dk and dv of one row, [T, heads, H], on the ring."""
    mesh = make_mesh(seq=RING)
    with jax.set_mesh(mesh):
        heads, rows = (
            named_sharding(mesh, *axes)
            for axes in (("batch", "seq", "heads", None), ("batch", "seq"))
        )
        placed = jax.device_put([x[None] for x in arrays], heads)
        found = jax.device_get(program()(*placed, jax.device_put(where, rows)))
    return tuple(x[0] for x in found)


def draw(seed: int) -> Arrays:
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((T, n, H), np.float32) for n in (N, K, K, N))


def visible(where: Where) -> np.ndarray:
    """The mask from its definition, [T, T]."""
    position, segment = where.positions[0], where.segments[0]
    first, past = where.span.first[0], where.span.stop[0]
    together = (segment[:, None] == segment) & (segment[:, None] > 0)
    return together & (first[:, None] <= position) & (position < past[:, None])


@dataclass(frozen=True)
class Pack:
    """Documents of these lengths from these places on; between them is padding."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def where(self) -> Where:
        """Positions and segments as they are written."""
        positions, segments = np.zeros((2, 1, T), np.int32)
        for segment, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True), 1):
            positions[0, start : start + length] = np.arange(length)
            segments[0, start : start + length] = segment
        return Where(positions, segments)


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """One to nine documents, anywhere."""
    cuts = draw(st.lists(st.integers(0, T), min_size=2, max_size=10, unique=True))
    cuts = sorted(cuts)
    starts = tuple(cuts[:-1])
    lengths = tuple(
        draw(st.integers(1, end - start)) for start, end in zip(starts, cuts[1:], strict=True)
    )
    return Pack(starts, lengths)


@st.composite
def spans(draw: st.DrawFn, where: Where) -> Span:
    """One of the masks with a name, two of them at once, or any interval for every token."""
    size = draw(st.integers(1, 20))
    frames = where.positions // size
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    first, length = rng.integers(-3, T, (2, 1, T), np.int32)
    named = {
        "everything": everything(where),
        "causal": causal(where),
        "window": window(where, size),
        "prefix": causal_with_prefix(where, size),
        "frames": causal_by_block(where, block_stops(where, frames)),
        "any": Span(first, first + length),
    }
    one, other = (draw(st.sampled_from(sorted(named))) for _ in range(2))
    return named[one] & named[other]


@st.composite
def rows(draw: st.DrawFn) -> Where:
    """A pack with spans, its tokens in any order."""
    where = draw(packs()).where
    spanned = Where(where.positions, where.segments, draw(spans(where)))
    return permute(spanned, draw(orders()))


def orders() -> st.SearchStrategy[np.ndarray]:
    """Any permutation of the row."""
    return st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).permutation(T))


def permute(where: Where, order: np.ndarray) -> Where:
    return jax.tree.map(lambda x: x[:, order], where)


def assert_close(found: Arrays, wanted: Arrays) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1.0)
        assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


@settings(max_examples=60, deadline=None)
@given(where=rows(), token=st.integers(0, T - 1), seed=st.integers(0, 99))
def test_a_token_has_gradients_of_what_it_sees_and_of_nothing_else(
    where: Where, token: int, seed: int
) -> None:
    q, k, v, dout = draw(seed)
    alone = dout * (np.arange(T) == token)[:, None, None]
    out, dq, dk, dv = run((q, k, v, alone), where)
    seen = visible(where)[token]
    assert not dk[~seen].any() and not dv[~seen].any()
    assert np.abs(dv[seen]).min(initial=1) > 0
    # With one key its weight is 1 whatever the query; with more each has a gradient.
    assert seen.sum() < 2 or (dk[seen].any((1, 2)).all() and dq[token].any())
    assert not np.delete(dq, token, axis=0).any()
    assert out[token].any() == seen.any()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), pack=packs(), order=orders(), seed=st.integers(0, 99))
def test_a_document_has_the_same_numbers_whatever_stands_beside_it(
    data: st.DataObject, pack: Pack, order: np.ndarray, seed: int
) -> None:
    which = data.draw(st.integers(0, len(pack.starts) - 1))
    where = pack.where
    spanned = Where(where.positions, where.segments, data.draw(spans(where)))
    own = where.segments[0] == which + 1
    # Other documents, other numbers and other spans in every place that is not the document's.
    beside = data.draw(packs()).where
    others = Where(beside.positions, beside.segments, data.draw(spans(beside)))
    segments = np.where(own, T, others.segments)
    mixed = jax.tree.map(lambda x, y: np.where(own, x, y), spanned, others)
    mixed = Where(mixed.positions, segments, mixed.span)
    arrays = draw(seed)
    changed = tuple(
        np.where(own[:, None, None], x, 50 * y) for x, y in zip(arrays, draw(seed + 1), strict=True)
    )
    place = own[order]
    wanted = run(tuple(x[order] for x in arrays), permute(spanned, order))
    found = run(tuple(x[order] for x in changed), permute(mixed, order))
    found, wanted = (tuple(x[place] for x in arrays) for arrays in (found, wanted))
    # How far the ring turns for others decides in which order dk and dv are summed; out and dq are
    # the same to the bit.
    for x, y in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_array_equal(x, y)
    assert_close(found, wanted)


@settings(max_examples=40, deadline=None)
@given(where=rows(), order=orders(), seed=st.integers(0, 99))
def test_tokens_in_another_order_give_their_numbers_in_that_order(
    where: Where, order: np.ndarray, seed: int
) -> None:
    arrays = draw(seed)
    found = run(tuple(x[order] for x in arrays), permute(where, order))
    assert_close(found, tuple(x[order] for x in run(arrays, where)))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), length=st.integers(1, T), seed=st.integers(0, 99))
def test_a_document_gives_the_same_numbers_wherever_it_stands(
    data: st.DataObject, length: int, seed: int
) -> None:
    start = data.draw(st.integers(0, T - length))
    arrays = draw(seed)
    first, moved = Pack((0,), (length,)).where, Pack((start,), (length,)).where
    span = data.draw(spans(first))
    shifted = jax.tree.map(lambda x: np.roll(x, start, 1), span)
    wanted = run(arrays, Where(first.positions, first.segments, span))
    rolled = tuple(np.roll(x, start, 0) for x in arrays)
    found = run(rolled, Where(moved.positions, moved.segments, shifted))
    assert_close(found, tuple(np.roll(x, start, 0) for x in wanted))
