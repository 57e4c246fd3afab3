"""Attention of new tokens to a cache that is divided along the sequence: the cache never moves.

A few tokens, held by every device: each attends to its own part of the cache, and the parts are
merged by their log-sum-exp,  out = sum_r 2^(lse_r - lse) out_r.  Per layer and token that moves
N (H + 2) numbers, where turning the cache round the ring would move all of it.

A chunk of a long prompt, divided as the cache is: the queries go round the ring with what they know
so far, and come home having seen every part. Per layer and token that moves N (2H + 2) numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ringworld.attention.mask import Where, reach
from ringworld.attention.online import Partial, finish, finite, nothing_seen
from ringworld.attention.ring import rotate, score_scale
from ringworld.attention.tiles import Kernel, Queries, cut_keys, cut_queries, join


def merge_ring(part: Partial, axis: str) -> Partial:
    """The attention over the keys of every device of the ring, known to all of them."""
    top = lax.pmax(part.max, axis)
    keep = jnp.exp2(part.max - finite(top))
    return Partial(
        top, lax.psum(part.sum * keep, axis), lax.psum(part.value * keep[..., None], axis)
    )


def attend_cache(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    queries: Where,
    cached: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]],
    keys: Where,
    is_causal: bool,
    kernel: Kernel,
    axis: str,
) -> Float[Array, "B T N H"]:
    """Attention of new tokens to the ring's cache and to each other.

    `new` and `cached` are keys and values. Every device of the ring holds the new tokens; `axis`
    names the ring inside `shard_map`, where S is the local length.
    """
    groups, scale = q.shape[2] // new[0].shape[2], score_scale(q.shape[-1])
    tiles = cut_queries(q, reach(queries, is_causal), groups, kernel.tile, scale)
    cache, own = cut_keys(*cached, keys, kernel.tile), cut_keys(*new, queries, kernel.tile)
    nothing = jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), nothing_seen(tiles.q))
    seen = merge_ring(kernel.see(tiles, cache, nothing), axis)
    out, _ = finish(kernel.see(tiles, own, seen))
    return join(out.astype(q.dtype), q.shape[1])


def attend_chunk(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    queries: Where,
    cached: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]],
    keys: Where,
    is_causal: bool,
    kernel: Kernel,
    axis: str | None,
) -> Float[Array, "B T N H"]:
    """Attention of a chunk to the ring's cache and to the chunk; T and S are local lengths.

    `axis` names the ring inside `shard_map`; `None` is one device.
    """
    groups, scale = q.shape[2] // new[0].shape[2], score_scale(q.shape[-1])
    tiles = cut_queries(q, reach(queries, is_causal), groups, kernel.tile, scale)
    held = cut_keys(*cached, keys, kernel.tile), cut_keys(*new, queries, kernel.tile)

    def step(_: Array, carry: tuple[Queries, Partial]) -> tuple[Queries, Partial]:
        tiles, seen = carry
        for part in held:
            seen = kernel.see(tiles, part, seen)
        return (tiles, seen) if axis is None else rotate((tiles, seen), axis)

    steps = 1 if axis is None else lax.axis_size(axis)
    _, seen = lax.fori_loop(0, steps, step, (tiles, nothing_seen(tiles.q)))
    return join(finish(seen)[0].astype(q.dtype), q.shape[1])
