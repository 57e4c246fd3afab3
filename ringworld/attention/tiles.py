"""Rows cut into tiles, and what a kernel does with a device's tiles.

A kernel attends with tiles of queries to one shard of keys: `forward` adds to a running softmax,
`backward` adds to the gradients, which it recomputes from the *global* log-sum-exp and output, as
the ring needs. Letters here: I query tiles, J key tiles, t and s their lengths, G query heads that
read one key head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Bounds, Reach, Where, pad_segments, query_bounds
from ringworld.attention.online import Partial
from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class Queries:
    """Tiles of queries `q` `[B, I, K, G, t, H]`, what they see `[B, I, t]`, its bounds `[B, I]`.

    The queries are scaled so that a product with a key is a score in bits.
    """

    q: Leaf
    reach: Reach
    bounds: Bounds


@pytree_dataclass
class Keys:
    """Tiles of keys and values: `k`, `v` `[B, J, K, s, H]`, and where each stands `[B, J, s]`."""

    k: Leaf
    v: Leaf
    where: Where


@pytree_dataclass
class Saved:
    """What the backward knows of the queries: dout, the log-sum-exp, and delta = out . dout."""

    dout: Leaf
    lse: Leaf
    delta: Leaf


Grads = tuple[Array, Array, Array]  # float32 dq, dk, dv; dq and dk before the scale of the scores


@dataclass(frozen=True)
class Kernel:
    """One implementation for one device: the tokens of its tiles, and its two passes.

    forward(queries, keys, partial)          the partial result with these keys merged in
    backward(queries, keys, saved, grads)    the gradients with the share of these keys added
    """

    tile: int
    forward: Callable[[Queries, Keys, Partial], Partial]
    backward: Callable[[Queries, Keys, Saved, Grads], Grads]


# How many tiles are compared with all others at once: 64 x 4,096 pairs for a million tokens.
TOGETHER = 64


def live_range(live: Bool[Array, "*tiles J"]) -> tuple[Int[Array, "*tiles"], Int[Array, "*tiles"]]:
    """The first live tile along the last axis, and the one after the last; 0, 0 when none is."""
    first, stop = jnp.argmax(live, -1), live.shape[-1] - jnp.argmax(live[..., ::-1], -1)
    return first.astype(jnp.int32), jnp.where(live.any(-1), stop, 0).astype(jnp.int32)


def compare_tiles(
    compare: Callable[[Bounds, Bounds], Array], queries: Bounds, keys: Bounds, *, over_keys: bool
) -> Array:
    """`compare(queries, keys)` `[B, ...]` for each outer tile, as `[B, tiles, ...]`.

    With `over_keys` the query tiles `[B, I]` are the outer loop and the key tiles `[B, J]` the
    inner one; else the other way round. `compare` is given one outer tile, `[B, 1]`, and all inner
    ones. The largest array has TOGETHER x J entries, never I x J.
    """
    outer, inner = (queries, keys) if over_keys else (keys, queries)

    def compare_one(tile: Bounds) -> Array:
        tile = jax.tree.map(lambda x: x[:, None], tile)
        return compare(tile, inner) if over_keys else compare(inner, tile)

    tiles = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), outer)
    return jnp.moveaxis(lax.map(compare_one, tiles, batch_size=TOGETHER), 0, 1)


def cut_rows(rows: Int[Array, "B T"], tile: int) -> Int[Array, "B I t"]:
    """A number a token cut into tiles, the last filled with 0, which is padding's segment."""
    return pad_segments(rows, -rows.shape[1] % tile).reshape(rows.shape[0], -1, tile)


def cut(x: Float[Array, "B T N H"], groups: int, tile: int) -> Float[Array, "B I K G t H"]:
    """Heads cut into tiles, with query heads grouped by the key head that they read."""
    B, length, N, H = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % tile), (0, 0), (0, 0)))
    x = x.reshape(B, -1, tile, N // groups, groups, H)
    return x.transpose(0, 1, 3, 4, 2, 5)


def cut_queries(
    q: Float[Array, "B T N H"], reach: Reach, groups: int, tile: int, scale: float
) -> Queries:
    """Scaled queries and what they see, cut into tiles."""
    tile = min(tile, q.shape[1])
    reach = jax.tree.map(lambda x: cut_rows(x, tile), reach)
    return Queries(cut(q * scale, groups, tile), reach, query_bounds(reach))


def cut_keys(
    k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], where: Where, tile: int
) -> Keys:
    """Keys and values cut into tiles, with where they stand; what they see stays behind."""
    tile = min(tile, k.shape[1])
    stands = Where(cut_rows(where.positions, tile), cut_rows(where.segments, tile))
    return Keys(cut(k, 1, tile)[:, :, :, 0], cut(v, 1, tile)[:, :, :, 0], stands)


def join_tiles(x: Float[Array, "B I K G t H"], length: int) -> Float[Array, "B T N H"]:
    """The inverse of `cut`: tiles put together again, without their padding."""
    B, tiles, K, G, tile, H = x.shape
    x = x.transpose(0, 1, 4, 2, 3, 5).reshape(B, tiles * tile, K * G, H)
    return x[:, :length]


def zero_grads(queries: Queries, keys: Keys) -> Grads:
    """Float32 zeros for dq, dk and dv, divided as these queries and keys are."""
    q, k, v = (jnp.zeros_like(x, jnp.float32) for x in (queries.q, keys.k, keys.v))
    return q, k, v
