"""Who sees whom, as data: two short integer vectors per row instead of a T x T array.

A key is seen by a query when both lie in the same segment and the key does not come later:

    sees[t, s] = (segment[t] == segment[s] > 0)  and  (position[t] >= position[s])

Positions and segments travel with the tokens, so the rule holds in any order of the row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ringworld.params import Weight, node


@node
class Where:
    """Where each token of a row stands: `positions` and `segments`, both `[B, T]` int32.

    A position is an index within the token's segment. Segment 0 is padding, which neither sees nor
    is seen.
    """

    positions: Weight
    segments: Weight


def sees(queries: Where, keys: Where, causal: bool) -> Bool[Array, "*batch T S"]:
    """The mask between the queries' rows `[..., T]` and the keys' rows `[..., S]`."""
    together = queries.segments[..., :, None] == keys.segments[..., None, :]
    seen = together & (queries.segments[..., :, None] > 0)
    if not causal:
        return seen
    return seen & (queries.positions[..., :, None] >= keys.positions[..., None, :])


def _last(where: Where) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """The greatest (segment, position) of each row, segments first."""
    segment = where.segments.max(-1)
    there = where.segments == segment[..., None]
    return segment, jnp.where(there, where.positions, -1).max(-1)


def _first(where: Where) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """The least (segment, position) of each row, padding left out."""
    most = jnp.iinfo(jnp.int32).max
    segment = jnp.where(where.segments > 0, where.segments, most).min(-1)
    there = where.segments == segment[..., None]
    return segment, jnp.where(there, where.positions, most).min(-1)


def may_see(queries: Where, keys: Where, causal: bool) -> Bool[Array, ""]:
    """False only when no query sees any key, judged in O(T + S) from the ends of both.

    A pair that sees has one segment and, causally, (segment, position) of the query at or after the
    key's; so nothing is seen when the last query comes before the first key in that order, or when
    the segments of the two do not overlap.
    """
    query_segment, query_position = _last(queries)
    key_segment, key_position = _first(keys)
    overlap = (keys.segments.max(-1) >= _first(queries)[0]) & (query_segment >= key_segment)
    if causal:
        overlap &= (query_segment > key_segment) | (query_position >= key_position)
    return jnp.any(overlap)


def sees_all(queries: Where, keys: Where, causal: bool) -> Bool[Array, ""]:
    """True only when every query sees every key, so that the tile needs no mask."""
    one = (queries.segments.min(-1) == queries.segments.max(-1)) & (queries.segments.min(-1) > 0)
    one &= (keys.segments.min(-1) == queries.segments.min(-1)) & (
        keys.segments.max(-1) == queries.segments.min(-1)
    )
    if causal:
        one &= queries.positions.min(-1) >= keys.positions.max(-1)
    return jnp.all(one)


def pad_where(where: Where, pad: int) -> Where:
    """The rows with `pad` tokens of padding behind them."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, pad))), where)
