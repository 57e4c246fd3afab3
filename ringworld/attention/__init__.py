"""Attention. `attend` is the only door; the rooms behind it are

mask      who sees whom, as data             dense    the definition, and the oracle
online    the running softmax and its merge  block    tiles of one device, forward and backward
ring      keys travel, queries stay          layout   the order of a row over the ring
decode    new tokens against a divided cache
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
from jaxtyping import Array, Float

from ringworld.attention.decode import attend_cache
from ringworld.attention.dense import attend_dense
from ringworld.attention.mask import Where
from ringworld.attention.ring import attend_ring
from ringworld.errors import InputError
from ringworld.mesh import axis_size, has_mesh, shard, spec

Implementation = Literal["dense", "ring"]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    where: Where,
    *,
    causal: bool = True,
    impl: Implementation | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of every token of each row to the tokens that it sees.

    K divides N: query head n reads key head n // (N / K). Under a mesh the arrays are divided
    [B/(data,fsdp), T/seq, N/tensor, H] and keys travel round the `seq` axis; the numbers are the
    same whatever the mesh, and whatever the order of the tokens in the row. A token that sees
    nothing (padding) gives 0. `impl=None` is the ring; "dense" computes every score at once, for
    tests. Raises InputError when the heads do not divide.
    """
    if q.shape[2] % k.shape[2]:
        raise InputError(
            f"{k.shape[2]} key heads do not divide {q.shape[2]} query heads: choose a multiple"
        )
    if impl == "dense":
        return _attend_whole_rows(q, k, v, where, causal)
    axis = "seq" if axis_size("seq") > 1 else None
    local = partial(attend_ring, causal=causal, axis=axis)
    return _over_mesh(local, q, k, v, where)


def attend_new(
    q: Float[Array, "B T N H"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    queries: Where,
    cached: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]],
    keys: Where,
) -> Float[Array, "B T N H"]:
    """Causal attention of a few new tokens to each other and to a cache of keys and values.

    The cache is divided [B/(data,fsdp), S/seq, K/tensor, H] and stays where it is; the new tokens
    are not divided along the sequence, and each device attends with them to its part.
    """
    if not has_mesh():
        return attend_cache(q, new, queries, cached, keys, None)
    tokens, token_keys = spec("batch", None, "heads", None), spec("batch", None, "kv_heads", None)
    cache = spec("batch", "seq", "kv_heads", None)
    axis = "seq" if axis_size("seq") > 1 else None
    return jax.shard_map(
        partial(attend_cache, axis=axis),
        in_specs=(tokens, token_keys, spec("batch", None), cache, spec("batch", "seq")),
        out_specs=tokens,
    )(q, new, queries, cached, keys)


def _attend_whole_rows(q: Array, k: Array, v: Array, where: Where, causal: bool) -> Array:
    heads = ("batch", None, "heads", None)
    rows = jax.tree.map(lambda x: shard(x, "batch", None), where)
    q, k, v = (shard(x, *heads) for x in (q, k, v))
    out = attend_dense(q, k, v, rows, causal)
    return shard(out, "batch", "seq", "heads", None)


def _over_mesh(
    local: Callable[[Array, Array, Array, Where], Array], q: Array, k: Array, v: Array, where: Where
) -> Array:
    """`local` on each device's part; the same on one device when there is no mesh."""
    if not has_mesh():
        return local(q, k, v, where)
    heads, keys = spec("batch", "seq", "heads", None), spec("batch", "seq", "kv_heads", None)
    return jax.shard_map(
        local, in_specs=(heads, keys, keys, spec("batch", "seq")), out_specs=heads
    )(q, k, v, where)
