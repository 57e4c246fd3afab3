"""Rows cut into tiles, and what a kernel does with a device's tiles.

A kernel attends with tiles of queries to one shard of keys: `see` adds to a running softmax,
`pull` adds to the gradients, which it recomputes from the *global* log-sum-exp and output, as the
ring needs. Letters here: I query tiles, J key tiles, t and s their lengths, G query heads that read
one key head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Ends, Reach, Where, ends_of_queries, pad_segments
from ringworld.attention.online import Partial
from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class Queries:
    """Tiles of queries `q` `[B, I, K, G, t, H]`, what they see `[B, I, t]`, its ends `[B, I]`.

    The queries are scaled so that a product with a key is a score in bits.
    """

    q: Leaf
    reach: Reach
    ends: Ends


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
    """One implementation for one device: how long its tiles are, and its two passes.

    see(queries, keys, partial)         the partial result after these keys too
    pull(queries, keys, saved, grads)   the gradients with the share of these keys added
    """

    tile: int
    see: Callable[[Queries, Keys, Partial], Partial]
    pull: Callable[[Queries, Keys, Saved, Grads], Grads]


# How many tiles look at all others at once: 64 x 4,096 pairs of tiles for a million tokens.
TOGETHER = 64


def span(live: Bool[Array, "*walks J"]) -> tuple[Int[Array, "*walks"], Int[Array, "*walks"]]:
    """The first tile of each walk that is live, and the one after the last; 0, 0 when none is."""
    first, past = jnp.argmax(live, -1), live.shape[-1] - jnp.argmax(live[..., ::-1], -1)
    return first.astype(jnp.int32), jnp.where(live.any(-1), past, 0).astype(jnp.int32)


def look_along(
    look: Callable[[Ends, Ends], Array], queries: Ends, keys: Ends, *, keys_walk: bool
) -> Array:
    """`look(queries, keys)` `[B, ...]` of every tile that stays, as `[B, tiles, ...]`.

    Either queries `[B, I]` stay and keys `[B, J]` walk, or the other way round: `look` is given one
    tile that stays, `[B, 1]`, and all that walk. Never I x J of anything: TOGETHER x J.
    """
    stay, walk = (queries, keys) if keys_walk else (keys, queries)

    def look_once(tile: Ends) -> Array:
        tile = jax.tree.map(lambda x: x[:, None], tile)
        return look(tile, walk) if keys_walk else look(walk, tile)

    tiles = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), stay)
    return jnp.moveaxis(lax.map(look_once, tiles, batch_size=TOGETHER), 0, 1)


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
    return Queries(cut(q * scale, groups, tile), reach, ends_of_queries(reach))


def cut_keys(
    k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], where: Where, tile: int
) -> Keys:
    """Keys and values cut into tiles, with where they stand; what they see stays behind."""
    tile = min(tile, k.shape[1])
    stands = Where(cut_rows(where.positions, tile), cut_rows(where.segments, tile))
    return Keys(cut(k, 1, tile)[:, :, :, 0], cut(v, 1, tile)[:, :, :, 0], stands)


def join(x: Float[Array, "B I K G t H"], length: int) -> Float[Array, "B T N H"]:
    """The inverse of `cut`: tiles put together again, without their padding."""
    B, tiles, K, G, tile, H = x.shape
    x = x.transpose(0, 1, 4, 2, 3, 5).reshape(B, tiles * tile, K * G, H)
    return x[:, :length]


def no_grads(queries: Queries, keys: Keys) -> Grads:
    """No share of dq, dk and dv yet: float32 zeros that live where these queries and keys do."""
    q, k, v = (jnp.zeros_like(x, jnp.float32) for x in (queries.q, keys.k, keys.v))
    return q, k, v
