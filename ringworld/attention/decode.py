"""Attention of new tokens to a cache that is divided along the sequence: the cache never moves.

A few tokens, held by every device: each attends to its own part of the cache, and the parts are
merged by their log-sum-exp,  out = sum_r 2^(lse_r - lse) out_r.  Per layer and token that moves
N (H + 2) numbers, where turning the cache round the ring would move all of it.

A chunk of a long prompt, divided as the cache is: the queries go round the ring with what they know
so far, and come home having seen every part. Per layer and token that moves N (2H + 2) numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ringworld.attention.mask import Where, reach
from ringworld.attention.online import Partial, finish, finite, nothing_seen
from ringworld.attention.ring import rotate, score_scale
from ringworld.attention.tiles import Kernel, Keys, Queries, cut_keys, cut_queries, join


def merge_ring(part: Partial, axis: str) -> Partial:
    """The attention over the keys of every device of the ring, known to all of them."""
    top = lax.pmax(part.max, axis)
    keep = jnp.exp2(part.max - finite(top))
    return Partial(
        top, lax.psum(part.sum * keep, axis), lax.psum(part.value * keep[..., None], axis)
    )


Visit = Callable[[Kernel, Queries, Keys, Keys], Partial]


def stay(kernel: Kernel, queries: Queries, cache: Keys, own: Keys, axis: str) -> Partial:
    """What queries that every device of the ring holds know of its cache and of their own keys."""
    nothing = jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), nothing_seen(queries.q))
    return kernel.see(queries, own, merge_ring(kernel.see(queries, cache, nothing), axis))


def travel(kernel: Kernel, queries: Queries, cache: Keys, own: Keys, axis: str | None) -> Partial:
    """What divided queries know after a round past the cache and the keys of every device.

    Without an axis there is one device, and they have arrived.
    """

    def step(_: Array, carry: tuple[Queries, Partial]) -> tuple[Queries, Partial]:
        queries, seen = carry
        seen = kernel.see(queries, own, kernel.see(queries, cache, seen))
        return (queries, seen) if axis is None else rotate((queries, seen), axis)

    steps = 1 if axis is None else lax.axis_size(axis)
    return lax.fori_loop(0, steps, step, (queries, nothing_seen(queries.q)))[1]


def attend_cache(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    queries: Where,
    cached: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]],
    keys: Where,
    is_causal: bool,
    kernel: Kernel,
    visit: Visit,
) -> Float[Array, "B T N H"]:
    """Attention of new tokens to a cache and to each other, as they `stay` or `travel`.

    `new` and `cached` are keys and values; all sizes are local.
    """
    groups, scale = q.shape[2] // new[0].shape[2], score_scale(q.shape[-1])
    tiles = cut_queries(q, reach(queries, is_causal), groups, kernel.tile, scale)
    cache, own = cut_keys(*cached, keys, kernel.tile), cut_keys(*new, queries, kernel.tile)
    out, _ = finish(visit(kernel, tiles, cache, own))
    return join(out.astype(q.dtype), q.shape[1])
