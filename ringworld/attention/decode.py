"""Attention of a few new tokens to a cache that is divided along the sequence.

Each device of the ring attends to its own part of the cache and the parts are merged by their
log-sum-exp:  out = sum_r 2^(lse_r - lse) out_r.  Per layer and token that moves N (H + 2) numbers,
where turning the cache round the ring would move all of it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ringworld.attention.mask import Where, reach
from ringworld.attention.online import Partial, finish, finite, nothing_seen
from ringworld.attention.ring import score_scale
from ringworld.attention.tiles import Kernel, cut_keys, cut_queries, join


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
    axis: str | None,
) -> Float[Array, "B T N H"]:
    """Attention of new tokens to the ring's cache and to each other.

    `new` and `cached` are keys and values. Every device of the ring holds the new tokens; `axis`
    names the ring inside `shard_map`, where S is the local length, and `None` is one device.
    """
    groups, scale = q.shape[2] // new[0].shape[2], score_scale(q.shape[-1])
    tiles = cut_queries(q, reach(queries, is_causal), groups, kernel.tile, scale)
    cache, own = cut_keys(*cached, keys, kernel.tile), cut_keys(*new, queries, kernel.tile)
    seen = nothing_seen(tiles.q)
    if axis is None:
        seen = kernel.see(tiles, cache, seen)
    else:
        seen = jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), seen)
        seen = merge_ring(kernel.see(tiles, cache, seen), axis)
    out, _ = finish(kernel.see(tiles, own, seen))
    return join(out.astype(q.dtype), q.shape[1])
