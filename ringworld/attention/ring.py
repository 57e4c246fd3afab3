"""RingAttention: keys travel, queries stay.

Each device of the `seq` axis holds one shard of the row. In R ring steps the keys and values visit
every device, and with them their positions and segments, so the mask is always a comparison of two
short vectors; a zig-zag row is then nothing but another order of the positions.

    step 0:   device r sees its own keys          step i:   device r sees the keys of device r - i

The forward makes R - 1 rotations. Each asks for the next shard before the current one is used, so
that the transfer can hide behind the computing. The backward goes round once more with the global
log-sum-exp; dK and dV travel in float32 beside the keys they belong to, and end at home.
Source: Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers" (arXiv 2310.01889).
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ringworld.attention.block import (
    Grads,
    Keys,
    Queries,
    Saved,
    cut,
    cut_keys,
    cut_where,
    join,
    no_grads,
    pull,
    see,
)
from ringworld.attention.mask import Where
from ringworld.attention.online import Partial, finish, nothing_seen

Tree = TypeVar("Tree")

# The names under which a checkpoint policy can keep what the backward needs of the ring.
SAVED = ("attention_out", "attention_lse")


def rotate(tree: Tree, axis: str | None) -> Tree:
    """Every device hands what it holds to the next one; without a ring, nothing moves."""
    if axis is None:
        return tree
    size = lax.axis_size(axis)
    turn = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, turn), tree)


def ring_size(axis: str | None) -> int:
    """How many devices stand on the ring; 1 without a ring."""
    return 1 if axis is None else lax.axis_size(axis)


def _forward(
    queries: Queries, keys: Keys, causal: bool, axis: str | None
) -> tuple[Float[Array, "B I K G T H"], Float[Array, "B I K G T"]]:
    """The output and the log-sum-exp of each query, float32."""

    def step(carry: tuple[Keys, Partial], _: None) -> tuple[tuple[Keys, Partial], None]:
        here, partials = carry
        coming = rotate(here, axis)
        return (coming, see(queries, here, partials, causal)), None

    start = (keys, nothing_seen(queries.q))
    (last, partials), _ = lax.scan(step, start, length=ring_size(axis) - 1)
    return finish(see(queries, last, partials, causal))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend_tiles(
    queries: Queries, keys: Keys, causal: bool, axis: str | None
) -> Float[Array, "B I K G T H"]:
    out, _ = _forward(queries, keys, causal, axis)
    return out.astype(queries.q.dtype)


def _attend_tiles_forward(
    queries: Queries, keys: Keys, causal: bool, axis: str | None
) -> tuple[Array, tuple[Queries, Keys, Array, Array]]:
    out, lse = _forward(queries, keys, causal, axis)
    out = checkpoint_name(out.astype(queries.q.dtype), SAVED[0])
    return out, (queries, keys, out, checkpoint_name(lse, SAVED[1]))


def _attend_tiles_backward(
    causal: bool,
    axis: str | None,
    residuals: tuple[Queries, Keys, Array, Array],
    dout: Float[Array, "B I K G T H"],
) -> tuple[Queries, Keys]:
    """dS = P * (dout V - delta) with P from the global log-sum-exp, summed round the ring."""
    queries, keys, out, lse = residuals
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), -1)
    saved = Saved(dout, lse, delta)

    def step(carry: tuple[Keys, Grads], _: None) -> tuple[tuple[Keys, Grads], None]:
        here, grads = carry
        coming = rotate(here, axis)
        dq, dk, dv = pull(queries, here, saved, grads, causal)
        return (coming, (dq, *rotate((dk, dv), axis))), None

    start = (keys, no_grads(queries, keys))
    (last, grads), _ = lax.scan(step, start, length=ring_size(axis) - 1)
    dq, dk, dv = pull(queries, last, saved, grads, causal)
    dk, dv = rotate((dk, dv), axis)
    still = Where(None, None)
    return (
        Queries(dq.astype(queries.q.dtype), still),
        Keys(dk.astype(keys.k.dtype), dv.astype(keys.v.dtype), still),
    )


_attend_tiles.defvjp(_attend_tiles_forward, _attend_tiles_backward)


def attend_ring(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    where: Where,
    causal: bool,
    axis: str | None,
) -> Float[Array, "B T N H"]:
    """Attention of this device's queries to the keys of the whole ring; all sizes are local.

    `axis` names the mesh axis of the ring inside `shard_map`; `None` is a ring of one device:
    blockwise attention.
    """
    # The mask depends on nothing that layers change. Left to itself, the backward of a scan over
    # layers takes all of it, T x T, out of the scan; tied to the queries, it is made tile by tile.
    q, where = lax.optimization_barrier((q, where))
    length, head_width, groups = q.shape[1], q.shape[-1], q.shape[2] // k.shape[2]
    tiles = Queries(cut(q * head_width**-0.5, groups), cut_where(where))
    return join(_attend_tiles(tiles, cut_keys(k, v, where), causal, axis), length)
