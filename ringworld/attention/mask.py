"""Who sees whom, as data: four short integer vectors per row instead of a T x T array.

A token stands at a position of its segment, and sees an interval of its own segment's positions:

    sees[t, s] = (segment[t] == segment[s] > 0)  and  (first[t] <= position[s] < stop[t])

Causal, prefix, window and frame-by-frame masks are intervals, and so is what two of them leave:
`span & span`. Positions and segments travel with the keys, so the rule holds in any order of the
row. Ordered by (segment, position), what a tile of queries may see is one interval too: two tiles
are compared by their bounds, in O(1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ringworld.params import Leaf, pytree_dataclass

FIRST, STOP = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@pytree_dataclass
class Span:
    """The positions that each token sees, `first <= position < stop`; both `[B, T]` int32."""

    first: Leaf
    stop: Leaf

    def __and__(self, other: "Span") -> "Span":
        """The positions that both let a token see."""
        xp = self.first.__array_namespace__()
        return Span(xp.maximum(self.first, other.first), xp.minimum(self.stop, other.stop))


@pytree_dataclass
class Where:
    """Where each token of a row stands: `positions` and `segments`, both `[B, T]` int32.

    A position is an index within the token's segment. Segment 0 is padding, which neither sees nor
    is seen. `span` narrows what a token sees of its segment; `None` narrows nothing.
    """

    positions: Leaf
    segments: Leaf
    span: Span | None = None


@pytree_dataclass
class Reach:
    """What each query sees: positions `first <= p < stop` of its segment; all `[..., T]` int32."""

    segments: Leaf
    first: Leaf
    stop: Leaf


def everything(where: Where) -> Span:
    """Every position of the segment."""
    same = 0 * where.positions
    return Span(same + FIRST, same + STOP)


def causal(where: Where) -> Span:
    """The token itself and what comes before it."""
    return Span(0 * where.positions + FIRST, where.positions + 1)


def window(where: Where, size: int) -> Span:
    """The last `size` positions, the token's own among them, and all that come after."""
    return Span(where.positions - (size - 1), 0 * where.positions + STOP)


def causal_with_prefix(where: Where, prefix: Any) -> Span:
    """As `causal`, but the first `prefix` positions (`[B, T]` or a number) are seen by all."""
    before = causal(where)
    return Span(before.first, before.stop.__array_namespace__().maximum(before.stop, prefix))


def causal_by_block(where: Where, stops: Any) -> Span:
    """As `causal`, but all tokens of a block see each other: frames of video.

    `stops` `[B, T]` is the position after the last of the token's block (see `block_stops`).
    """
    return causal_with_prefix(where, stops)


def block_stops(where: Where, blocks: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """The position after the last token of each token's block, for rows as they were written.

    A block is a run of equal numbers in `blocks` within a segment, such as the index of a frame.
    """
    length = blocks.shape[1]
    is_last = np.ones(blocks.shape, np.bool_)
    is_last[:, :-1] = (blocks[:, 1:] != blocks[:, :-1]) | (
        where.segments[:, 1:] != where.segments[:, :-1]
    )
    last = np.where(is_last, np.arange(length, dtype=np.int32), np.int32(length))
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return np.take_along_axis(where.positions, last, axis=1) + 1


def reach(where: Where, is_causal: bool) -> Reach:
    """What each token sees as a query: its own span, and the causal one where that is asked."""
    seen = causal(where) if is_causal else everything(where)
    if where.span is not None:
        seen = seen & where.span
    return Reach(where.segments, seen.first, seen.stop)


def sees(queries: Reach, keys: Where) -> Bool[Array, "*batch T S"]:
    """The mask between the queries `[..., T]` and the keys `[..., S]`."""
    segments, positions = queries.segments[..., :, None], keys.positions[..., None, :]
    together = (segments == keys.segments[..., None, :]) & (segments > 0)
    return (
        together & (queries.first[..., None] <= positions) & (positions < queries.stop[..., None])
    )


@pytree_dataclass
class Bounds:
    """The bounds of a tile in the order of (segment, position), each `[...]` int32.

    They run from (`low_segment`, `low`) to (`high_segment`, `high`), both included. A tile is
    `solid` when it is of one segment without padding, which the bounds leave out. Every query of a
    tile sees the positions from `inner_first` to before `inner_stop`; for keys these are not used.
    """

    low_segment: Leaf
    low: Leaf
    high_segment: Leaf
    high: Leaf
    solid: Leaf
    inner_first: Leaf
    inner_stop: Leaf


def _bounds(segments: Array, low: Array, high: Array) -> Bounds:
    real = segments > 0
    low_segment = jnp.where(real, segments, STOP).min(-1)
    high_segment = segments.max(-1)
    return Bounds(
        low_segment,
        jnp.where(segments == low_segment[..., None], low, STOP).min(-1),
        high_segment,
        jnp.where(segments == high_segment[..., None], high, FIRST).max(-1),
        real.all(-1) & (low_segment == high_segment),
        low.max(-1),
        high.min(-1) + 1,
    )


def query_bounds(queries: Reach) -> Bounds:
    """The bounds of what tiles of queries `[..., T]` see."""
    return _bounds(queries.segments, queries.first, queries.stop - 1)


def key_bounds(keys: Where) -> Bounds:
    """The bounds of tiles of keys `[..., S]`."""
    return _bounds(keys.segments, keys.positions, keys.positions)


def _at_or_after(
    segment: Array, position: Array, other_segment: Array, other: Array
) -> Bool[Array, "*batch"]:
    return (segment > other_segment) | ((segment == other_segment) & (position >= other))


def may_see(queries: Bounds, keys: Bounds) -> Bool[Array, "*batch"]:
    """False only when no query of a tile sees any key of the other: their intervals are apart."""
    return _at_or_after(
        keys.high_segment, keys.high, queries.low_segment, queries.low
    ) & _at_or_after(queries.high_segment, queries.high, keys.low_segment, keys.low)


def sees_all(queries: Bounds, keys: Bounds) -> Bool[Array, "*batch"]:
    """True only when every query sees every key, so that the pair needs no mask."""
    one = queries.solid & keys.solid & (queries.low_segment == keys.low_segment)
    return one & (queries.inner_first <= keys.low) & (keys.high < queries.inner_stop)


def pad_segments(tree: Any, pad: int) -> Any:
    """Rows `[B, T]` with `pad` tokens of padding behind them."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, pad))), tree)
