"""Attention of a few new tokens to a cache that is divided along the sequence.

Each device of the ring attends to its own part of the cache and the parts are merged by their
log-sum-exp:  out = sum_r exp(lse_r - lse) out_r.  Per layer and token that moves N (H + 2) numbers,
where turning the cache round the ring would move all of it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ringworld.attention.block import Keys, Queries, cut, cut_where, join, see
from ringworld.attention.mask import Where
from ringworld.attention.online import Partial, finish, finite, nothing_seen


def merge_ring(part: Partial, axis: str) -> Partial:
    """The attention over the keys of every device of the ring, known to all of them."""
    top = lax.pmax(part.max, axis)
    keep = jnp.exp(part.max - finite(top))
    return Partial(
        top, lax.psum(part.sum * keep, axis), lax.psum(part.value * keep[..., None], axis)
    )


def attend_cache(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    queries: Where,
    keys: Where,
    axis: str | None,
) -> Float[Array, "B T N H"]:
    """Causal attention of new tokens, which every device of the ring holds, to the ring's cache.

    `axis` names the ring inside `shard_map`, where S is the local length; `None` is one device.
    """
    length, head_width, groups = q.shape[1], q.shape[-1], q.shape[2] // k.shape[2]
    tiles = Queries(cut(q * head_width**-0.5, groups), cut_where(queries))
    cache = Keys(cut(k, 1)[:, :, :, 0], cut(v, 1)[:, :, :, 0], cut_where(keys))
    if axis is None:
        seen = see(tiles, cache, nothing_seen(tiles.q), causal=True)
    else:
        start = jax.tree.map(
            lambda x: lax.pcast(x, axis, to="varying"), nothing_seen(tiles.q)
        )
        seen = merge_ring(see(tiles, cache, start, causal=True), axis)
    return join(finish(seen)[0].astype(q.dtype), length)
