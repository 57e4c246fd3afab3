"""Attention between a device's queries and one shard of keys, tile by tile.

Queries and keys are cut into tiles; a pair of tiles that the mask empties is skipped, one that it
leaves whole is not masked. Memory is that of one tile's scores, forward and backward. The backward
recomputes each tile's weights from the *global* log-sum-exp and output, as the ring needs.

Rows are walked one after another: a tile of one row fits a core's cache, and each row skips by its
own mask. Letters here: I query tiles, J key tiles, T and S their lengths.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ringworld.attention.mask import Where, may_see, pad_where, sees, sees_all
from ringworld.attention.online import Partial, finite, merge
from ringworld.params import Weight, node

# 256 was the fastest of 128, 256, 512 and 1024 for heads of 64 on a 2-core CPU.
TILE = 256


@node
class Queries:
    """Tiles of scaled queries: `q` `[B, I, K, G, T, H]`, and where they stand `[B, I, T]`."""

    q: Weight
    where: Where


@node
class Keys:
    """Tiles of keys and values: `k`, `v` `[B, J, K, S, H]`, and where each stands `[B, J, S]`."""

    k: Weight
    v: Weight
    where: Where


def tile_length(length: int) -> int:
    """How long the tiles of a shard of `length` tokens are: its own length when it is short."""
    return min(TILE, length)


def cut_where(where: Where) -> Where:
    """Rows `[B, T]` cut into tiles `[B, I, T/I]`, the last filled with padding."""
    length = where.segments.shape[1]
    tile = tile_length(length)
    padded = pad_where(where, -length % tile)
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, tile), padded)


def cut(x: Float[Array, "B T N H"], groups: int) -> Float[Array, "B I K G t H"]:
    """Heads `[B, T, N, H]` cut into tiles with query heads grouped by the key head they read."""
    B, length, N, H = x.shape
    tile = tile_length(length)
    x = jnp.pad(x, ((0, 0), (0, -length % tile), (0, 0), (0, 0)))
    x = x.reshape(B, -1, tile, N // groups, groups, H)
    return x.transpose(0, 1, 3, 4, 2, 5)


def cut_keys(k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], where: Where) -> Keys:
    """Keys and values cut into tiles."""
    return Keys(cut(k, 1)[:, :, :, 0], cut(v, 1)[:, :, :, 0], cut_where(where))


def join(x: Float[Array, "B I K G t H"], length: int) -> Float[Array, "B T N H"]:
    """The inverse of `cut`: tiles put together again, without their padding."""
    B, tiles, K, G, tile, H = x.shape
    x = x.transpose(0, 1, 4, 2, 3, 5).reshape(B, tiles * tile, K * G, H)
    return x[:, :length]


def _scores(q: Array, k: Array) -> Array:
    return jnp.einsum("kgth,ksh->kgts", q, k, preferred_element_type=jnp.float32)


def _masked(scores: Array, queries: Where, keys: Where, causal: bool) -> Array:
    return jnp.where(sees(queries, keys, causal)[None, None], scores, -jnp.inf)


def _choose(queries: Where, keys: Where, causal: bool) -> Array:
    """0: the tile is empty, 1: it needs the mask, 2: it is whole."""
    live = may_see(queries, keys, causal).astype(jnp.int32)
    return live + live * sees_all(queries, keys, causal).astype(jnp.int32)


def _see_tile(queries: Queries, keys: Keys, scores: Array) -> Partial:
    """The partial result of one pair of tiles, from its masked scores."""
    top = scores.max(-1)
    weights = jnp.exp(scores - finite(top)[..., None])
    value = jnp.einsum(
        "kgts,ksh->kgth",
        weights.astype(keys.v.dtype),
        keys.v,
        preferred_element_type=jnp.float32,
    )
    return Partial(top, weights.sum(-1), value)


def _select(keys: Keys, j: Array) -> Keys:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, j, keepdims=False), keys)


def see(queries: Queries, keys: Keys, partials: Partial, causal: bool) -> Partial:
    """What the queries know after these keys too. `partials` has the tiles of the queries."""
    return lax.map(lambda row: _see_row(row, causal), (queries, keys, partials))


def _see_row(row: tuple[Queries, Keys, Partial], causal: bool) -> Partial:
    """The key tiles of one row, walked for one query tile after another."""
    queries, keys, partials = row

    def walk(tile: tuple[Queries, Partial]) -> Partial:
        queries, partial = tile

        def step(j: Array, partial: Partial) -> Partial:
            near = _select(keys, j)

            def masked() -> Partial:
                scores = _masked(_scores(queries.q, near.k), queries.where, near.where, causal)
                return merge(partial, _see_tile(queries, near, scores))

            def whole() -> Partial:
                return merge(partial, _see_tile(queries, near, _scores(queries.q, near.k)))

            kind = _choose(queries.where, near.where, causal)
            return lax.switch(kind, (lambda: partial, masked, whole))

        return lax.fori_loop(0, keys.k.shape[0], step, partial)

    return lax.map(walk, (queries, partials))


@node
class Saved:
    """What the backward knows of a query tile: dout, the log-sum-exp, and delta = out . dout."""

    dout: Weight
    lse: Weight
    delta: Weight


Grads = tuple[Array, Array, Array]  # dq, dk, dv


def _pull_tile(queries: Queries, keys: Keys, saved: Saved, mask: Callable[[Array], Array]) -> Grads:
    """One pair's share of dq, dk, dv (float32), with respect to the scaled queries."""
    scores = mask(_scores(queries.q, keys.k))
    weights = jnp.exp(scores - finite(saved.lse)[..., None])
    dweights = jnp.einsum("kgth,ksh->kgts", saved.dout, keys.v, preferred_element_type=jnp.float32)
    dscores = (weights * (dweights - saved.delta[..., None])).astype(queries.q.dtype)
    weights = weights.astype(queries.q.dtype)
    wide = jnp.float32
    dv = jnp.einsum("kgts,kgth->ksh", weights, saved.dout, preferred_element_type=wide)
    dq = jnp.einsum("kgts,ksh->kgth", dscores, keys.k, preferred_element_type=wide)
    dk = jnp.einsum("kgts,kgth->ksh", dscores, queries.q, preferred_element_type=wide)
    return dq, dk, dv


def no_grads(queries: Queries, keys: Keys) -> Grads:
    """No share of dq, dk and dv yet: float32 zeros that live where these queries and keys do."""
    q, k, v = (jnp.zeros_like(x, jnp.float32) for x in (queries.q, keys.k, keys.v))
    return q, k, v


def pull(queries: Queries, keys: Keys, saved: Saved, grads: Grads, causal: bool) -> Grads:
    """`grads` with this shard's share added: dq `[B, I, K, G, T, H]`, dk and dv `[B, J, K, S, H]`.

    They are float32 sums, with respect to the scaled queries.
    """
    return lax.map(lambda row: _pull_row(row, causal), (queries, keys, saved, grads))


def _pull_row(row: tuple[Queries, Keys, Saved, Grads], causal: bool) -> Grads:
    """The key tiles of one row, walked for one query tile after another."""
    queries, keys, saved, (dq, dk, dv) = row

    def walk(sums: tuple[Array, Array], tile: tuple[Queries, Saved, Array]) -> tuple[Any, Array]:
        queries, saved, dq = tile

        def step(j: Array, sums: Grads) -> Grads:
            near = _select(keys, j)

            def masked() -> Grads:
                return _pull_tile(
                    queries, near, saved, lambda s: _masked(s, queries.where, near.where, causal)
                )

            def whole() -> Grads:
                return _pull_tile(queries, near, saved, lambda s: s)

            def empty() -> Grads:
                return no_grads(queries, near)

            kind = _choose(queries.where, near.where, causal)
            more_q, more_k, more_v = lax.switch(kind, (empty, masked, whole))
            sum_q, sum_k, sum_v = sums
            return sum_q + more_q, sum_k.at[j].add(more_k), sum_v.at[j].add(more_v)

        dq, dk, dv = lax.fori_loop(0, keys.k.shape[0], step, (dq, *sums))
        return (dk, dv), dq

    (dk, dv), dq = lax.scan(walk, (dk, dv), (queries, saved, dq))
    return dq, dk, dv
