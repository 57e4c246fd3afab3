"""RingAttention: keys travel, queries stay.

Each device of the `seq` axis holds one shard of the row. In R ring steps the keys and values visit
every device, and with them their positions and segments, so the mask is always a comparison of two
short vectors; a zig-zag row is then nothing but another order of the positions.

    step 0:   device r sees its own keys          step i:   device r sees the keys of device r - i

The forward makes at most R - 1 rotations, and stops when no device would see anything more: in
contiguous rows of short documents after one or two. Each rotation asks for the next shard before
the current one is used, so that the transfer can hide behind the computing. The backward goes round
once more with the global log-sum-exp; dK and dV travel in float32 beside the keys they belong to,
and then home.
Source: Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers" (arXiv 2310.01889).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ringworld.attention.mask import Reach, Where, key_bounds, may_see, query_bounds, reach
from ringworld.attention.online import Partial, empty_partial, finish
from ringworld.attention.tiles import (
    Grads,
    Kernel,
    Keys,
    Queries,
    Saved,
    cut_keys,
    cut_queries,
    join_tiles,
    zero_grads,
)
from ringworld.params import Leaf

Tree = TypeVar("Tree")

# Numbers of q of the heads whose gradients are summed at one time: 256 MiB in float32. What travels
# of dk and dv has two places, so a round of attention without groups takes six times as much.
AT_ONCE = 1 << 26
# The names under which a checkpoint policy can keep what the backward needs of the ring.
SAVED = ("attention_out", "attention_lse")


def rotate(tree: Tree, axis: str, stride: int = 1) -> Tree:
    """Every device hands what it holds to the one `stride` places on."""
    size = lax.axis_size(axis)
    turn = [(i, (i + stride) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, turn), tree)


def send_home(tree: Tree, hops: Int[Array, ""], axis: str) -> Tree:
    """What travelled `hops` places goes on to where it began, or back, whichever is nearer."""
    size = lax.axis_size(axis)
    on = jnp.where(2 * hops > size, size - hops, 0)
    back = jnp.where(2 * hops > size, 0, hops)
    tree = lax.fori_loop(0, on, lambda _, tree: rotate(tree, axis), tree)
    return lax.fori_loop(0, back, lambda _, tree: rotate(tree, axis, -1), tree)


def count_hops(queries: Reach, keys: Where, axis: str) -> Int[Array, ""]:
    """How many rotations bring every device all the keys that its queries see: 0 to R - 1.

    From the bounds of each device's shard, which all of them exchange; the same number everywhere.
    """
    size, here = lax.axis_size(axis), lax.axis_index(axis)
    leaves, shape = jax.tree.flatten(key_bounds(keys))
    everywhere = lax.all_gather(jnp.stack([x.astype(jnp.int32) for x in leaves]), axis, axis=1)
    live = may_see(query_bounds(queries), jax.tree.unflatten(shape, everywhere)).any(-1)
    away = jnp.where(live, (here - jnp.arange(size)) % size, 0).max()
    # A set has another order in every process, and the processes must compile one program.
    return lax.pmax(away, tuple(sorted(jax.typeof(away).manual_axis_type.varying)))


def _forward(
    queries: Queries, keys: Keys, hops: Int[Array, ""], kernel: Kernel, axis: str | None
) -> tuple[Float[Array, "B I K G t H"], Float[Array, "B I K G t"]]:
    """The output and the log-sum-exp of each query, float32."""
    partials = empty_partial(queries.q)
    if axis is None:
        return finish(kernel.forward(queries, keys, partials))

    def step(_: Array, carry: tuple[Keys, Partial]) -> tuple[Keys, Partial]:
        here, partials = carry
        coming = rotate(here, axis)
        return coming, kernel.forward(queries, here, partials)

    last, partials = lax.fori_loop(0, hops, step, (keys, partials))
    return finish(kernel.forward(queries, last, partials))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend_tiles(
    queries: Queries, keys: Keys, hops: Int[Array, ""], kernel: Kernel, axis: str | None
) -> Float[Array, "B I K G t H"]:
    out, _ = _forward(queries, keys, hops, kernel, axis)
    return out.astype(queries.q.dtype)


def _attend_tiles_forward(
    queries: Queries, keys: Keys, hops: Int[Array, ""], kernel: Kernel, axis: str | None
) -> tuple[Array, tuple[Queries, Keys, Leaf, Array, Array]]:
    out, lse = _forward(queries, keys, hops, kernel, axis)
    out = checkpoint_name(out.astype(queries.q.dtype), SAVED[0])
    return out, (queries, keys, hops, out, checkpoint_name(lse, SAVED[1]))


def _backward_round(
    queries: Queries, keys: Keys, saved: Saved, hops: Int[Array, ""], kernel: Kernel, axis: str
) -> Grads:
    """The gradients of one round: dq at home, dk and dv sent home.

    dk and dv travel one step late, at the start of the step that adds to them: a kernel that
    computes dq first does so meanwhile.
    """

    def step(_: Array, carry: tuple[Keys, Grads]) -> tuple[Keys, Grads]:
        here, (dq, dk, dv) = carry
        coming, (dk, dv) = rotate(here, axis), rotate((dk, dv), axis)
        return coming, kernel.backward(queries, here, saved, (dq, dk, dv))

    last, (dq, dk, dv) = lax.fori_loop(0, hops, step, (keys, zero_grads(queries, keys)))
    dk, dv = rotate((dk, dv), axis)
    dq, dk, dv = kernel.backward(queries, last, saved, (dq, dk, dv))
    return dq, *send_home((dk, dv), hops, axis)


def _attend_tiles_backward(
    kernel: Kernel,
    axis: str | None,
    residuals: tuple[Queries, Keys, Leaf, Array, Array],
    dout: Float[Array, "B I K G t H"],
) -> tuple[Queries, Keys, None]:
    """dS = P * (dout V - delta) with P from the global log-sum-exp, summed round the ring."""
    queries, keys, hops, out, lse = residuals
    saved = Saved(dout, lse, jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1))

    def pull(queries: Queries, keys: Keys, saved: Saved) -> Grads:
        if axis is None:
            grads = kernel.backward(queries, keys, saved, zero_grads(queries, keys))
        else:
            grads = _backward_round(queries, keys, saved, hops, kernel, axis)
        return _narrow(grads, queries, keys)

    dq, dk, dv = _some_heads_at_a_time(pull, queries, keys, saved)
    no_reach = jax.tree.map(lambda _: None, (queries.reach, queries.bounds))
    return Queries(dq, *no_reach), Keys(dk, dv, Where(None, None)), None


def _narrow(grads: Grads, queries: Queries, keys: Keys) -> Grads:
    """The gradients in the types of q, k and v."""
    dq, dk, dv = grads
    # Scores are in bits: a change of one bit is a change of ln 2 in the exponent of e.
    dq, dk = dq * math.log(2), dk * math.log(2)
    return dq.astype(queries.q.dtype), dk.astype(keys.k.dtype), dv.astype(keys.v.dtype)


def _some_heads_at_a_time(
    pull: Callable[[Queries, Keys, Saved], Grads], queries: Queries, keys: Keys, saved: Saved
) -> Grads:
    """`pull` of all heads, so many key heads at a time that a device has room for their sums."""
    heads = keys.k.shape[2]
    most = max(1, AT_ONCE * heads // queries.q.size)
    group = next(n for n in range(min(most, heads), 0, -1) if heads % n == 0)
    if group == heads:
        return pull(queries, keys, saved)

    def step(n: Array, grads: Grads) -> Grads:
        def some(x: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, n * group, group, axis=2)

        found = pull(
            replace(queries, q=some(queries.q)),
            replace(keys, k=some(keys.k), v=some(keys.v)),
            jax.tree.map(some, saved),
        )
        return jax.tree.map(
            lambda x, part: lax.dynamic_update_slice_in_dim(x, part, n * group, axis=2),
            grads,
            found,
        )

    nothing = jax.tree.map(jnp.zeros_like, (queries.q, keys.k, keys.v))
    return lax.fori_loop(0, heads // group, step, nothing)


_attend_tiles.defvjp(_attend_tiles_forward, _attend_tiles_backward)


def score_scale(head_width: int) -> float:
    """What turns a product of query and key into a score in bits: log2 e / sqrt(H)."""
    return math.log2(math.e) * head_width**-0.5


def attend_ring(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    where: Where,
    is_causal: bool,
    kernel: Kernel,
    axis: str | None,
) -> Float[Array, "B T N H"]:
    """Attention of this device's queries to the keys of the whole ring; all sizes are local.

    `axis` names the mesh axis of the ring inside `shard_map`; `None` is a ring of one device:
    blockwise attention.
    """
    # The mask depends on nothing that layers change. Left to itself, the backward of a scan over
    # layers takes all of it, T x T, out of the scan; tied to the queries, it is made tile by tile.
    q, where = lax.optimization_barrier((q, where))
    seen = reach(where, is_causal)
    hops = jnp.zeros((), jnp.int32) if axis is None else count_hops(seen, where, axis)
    scale = score_scale(q.shape[-1])
    queries = cut_queries(q, seen, q.shape[2] // k.shape[2], kernel.tile, scale)
    keys = cut_keys(k, v, where, kernel.tile)
    return join_tiles(_attend_tiles(queries, keys, hops, kernel, axis), q.shape[1])
