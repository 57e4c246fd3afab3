"""Attention of new tokens to a cache that is divided along the sequence: the cache never moves.

A few tokens, held by every device: each device attends to its own part of the cache, and the parts
are merged by their log-sum-exp,  out = sum_r 2^(lse_r - lse) out_r.  Per layer and token that moves
N (H + 2) numbers, where turning the cache round the ring would move all of it. So few have nothing
to compute and wait for memory: they read the cache as it lies, once, and no kernel's tiles are cut.

A chunk of a long prompt, divided as the cache is: the queries go round the ring with their partial
results, and come home having seen every part. Per layer and token that moves N (2H + 2) numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Where, key_bounds, may_see, query_bounds, reach, sees
from ringworld.attention.online import Partial, empty_partial, finish, finite, merge
from ringworld.attention.ring import rotate, score_scale
from ringworld.attention.tiles import (
    Kernel,
    Queries,
    cut_keys,
    cut_queries,
    cut_rows,
    join_tiles,
    live_range,
)

# Places of the cache that are read at one time: 512 keys of 3 heads of 64 are 0.4 MB of float32,
# which a core's cache keeps between the scores and the values.
PLACES = 512


def merge_ring(part: Partial, axis: str) -> Partial:
    """The attention over the keys of every device of the ring, on each of them."""
    top = lax.pmax(part.max, axis)
    keep = jnp.exp2(part.max - finite(top))
    return Partial(
        top, lax.psum(part.sum * keep, axis), lax.psum(part.value * keep[..., None], axis)
    )


def attend_places(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen: Bool[Array, "B T S"],
) -> Partial:
    """The partial result of a few scaled queries over these keys; `seen` is the mask.

    Each query stands in the columns of its key head, with 0 in those of the others: then all keys
    of a place are one vector `[K H]`, and one product reads them in the order of the memory. That
    is K times the arithmetic of a product for each head, which would have to turn the keys first.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    k, v = (x.reshape(B, S, K * H).astype(jnp.float32) for x in (k, v))
    heads = jnp.eye(K, dtype=jnp.float32)[:, None, :, None]
    wide = q.astype(jnp.float32).reshape(B, T, K, N // K, 1, H) * heads
    scores = jnp.einsum("btnf,bsf->btns", wide.reshape(B, T, N, K * H), k)
    scores = jnp.where(seen[:, :, None], scores, -jnp.inf)
    top = scores.max(-1)
    weights = jnp.exp2(scores - finite(top)[..., None])
    values = jnp.einsum("btns,bsf->btnf", weights, v).reshape(wide.shape[:4] + (K, H))
    own = jnp.einsum("btkgkh->btkgh", values)
    return Partial(top, weights.sum(-1), own.reshape(B, T, N, H))


def attend_few(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    queries: Where,
    cached: tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]],
    layer: Int[Array, ""],
    keys: Where,
    is_causal: bool,
    axis: str,
) -> Float[Array, "B T N H"]:
    """Attention of a few tokens, which every device of the ring holds, to a cache and each other.

    `cached` are the keys and values of all layers, of which one is read; all sizes are local. Of
    its places, runs of PLACES, no run is read before the first that is seen, nor behind the last.
    """
    seen, scaled = reach(queries, is_causal), q * score_scale(q.shape[-1])
    places = keys.positions.shape[1]
    size = PLACES if places % PLACES == 0 else places
    stands = jax.tree.map(lambda x: cut_rows(x, size), keys)
    bounds = jax.tree.map(lambda x: x[:, None], query_bounds(seen))
    first, stop = live_range(may_see(bounds, key_bounds(stands)).any(0))

    def step(j: Array, partial: Partial) -> Partial:
        def cut(x: Array) -> Array:
            sizes = (1, x.shape[1], size, *x.shape[3:])
            return lax.dynamic_slice(x, (layer, 0, j * size, 0, 0), sizes)[0]

        here = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, j, 1, keepdims=False), stands)
        return merge(
            partial, attend_places(scaled, cut(cached[0]), cut(cached[1]), sees(seen, here))
        )

    partial = jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), empty_partial(q))
    partial = merge_ring(lax.fori_loop(first, stop, step, partial), axis)
    out, _ = finish(merge(partial, attend_places(scaled, *new, sees(seen, queries))))
    return out.astype(q.dtype)


def attend_chunk(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    where: Where,
    cached: tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]],
    layer: Int[Array, ""],
    keys: Where,
    kernel: Kernel,
    axis: str | None,
    is_causal: bool,
) -> Float[Array, "B T N H"]:
    """As `attend_few` for a chunk that is divided over the ring of `axis`, by tiles of `kernel`."""
    groups, scale = q.shape[2] // new[0].shape[2], score_scale(q.shape[-1])
    tiles = cut_queries(q, reach(where, is_causal), groups, kernel.tile, scale)
    k, v = (lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in cached)
    cache, own = cut_keys(k, v, keys, kernel.tile), cut_keys(*new, where, kernel.tile)

    def step(_: Array, carry: tuple[Queries, Partial]) -> tuple[Queries, Partial]:
        tiles, partial = carry
        partial = kernel.forward(tiles, own, kernel.forward(tiles, cache, partial))
        return (tiles, partial) if axis is None else rotate((tiles, partial), axis)

    steps = 1 if axis is None else lax.axis_size(axis)
    partial = lax.fori_loop(0, steps, step, (tiles, empty_partial(tiles.q)))[1]
    return join_tiles(finish(partial)[0].astype(q.dtype), q.shape[1])
