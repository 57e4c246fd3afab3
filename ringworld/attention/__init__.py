"""Attention. `attend` is the only door; the rooms behind it are

mask      who sees whom, as data             dense     the definition, and the oracle
online    the running softmax and its merge  tiles     what a kernel is given, and gives
block     the kernel in plain XLA            ring      keys travel, queries stay
pallas_*  the kernels for accelerators       balance  which order suits a batch
ulysses   heads are exchanged for tokens     layout    the order of a row over the ring
paged     new tokens against pages of keys
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ringworld.attention import pallas_gpu, pallas_tpu
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.dense import attend_dense
from ringworld.attention.mask import Where
from ringworld.attention.ring import attend_ring
from ringworld.attention.tiles import Kernel
from ringworld.attention.ulysses import attend_exchanged
from ringworld.errors import InputError
from ringworld.mesh import axis_size, mesh_is_set, platform, shard, spec

Implementation = Literal["dense", "xla", "tpu", "gpu"]
KERNELS: dict[str, Kernel] = {
    "xla": BLOCKWISE,
    "tpu": pallas_tpu.make_tpu_kernel(),
    "gpu": pallas_gpu.make_gpu_kernel(),
}
# A TPU's compiler hides the ring's transfers behind the Pallas kernel, and not behind XLA's tiles.
# The kernel for GPUs has not been timed on one: it has to be asked for.
BEST = {"tpu": "tpu"}


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

    K divides N: query head n reads key head n // (N / K). A token sees its segment as far as its
    span reaches (`where.span`), and with `causal` nothing later than itself. One that sees nothing
    (padding) gives 0.

    Under a mesh the arrays are divided [B/(data,fsdp), T/seq, N/tensor, H], and keys travel round
    the `seq` axis. Arrays divided [B/(data,fsdp), T/(seq,tensor), N, H] exchange tokens for heads
    over `tensor` first (Ulysses). The numbers are the same whatever the mesh, and whatever the
    order of the tokens in the row. `impl=None` is the best kernel for the platform; "dense"
    computes every score at once, for tests. Raises InputError, before anything is computed, when
    shapes or types do not fit each other, or when the kernel asked for cannot run here.
    """
    _check_arrays(q, k, v)
    _check_where(where, q)
    kernel = _choose(impl)
    if not mesh_is_set():  # a program that has set no mesh has one device: nothing is divided
        if impl == "dense":
            return attend_dense(q, k, v, where, causal)
        return attend_ring(q, k, v, where, causal, kernel, None)
    if impl == "dense":
        return _attend_whole_rows(q, k, v, where, causal)
    ring = partial(attend_ring, is_causal=causal, kernel=kernel, axis=_ring_axis())
    if "tensor" in _divided(q)[1]:
        exchanged = partial(attend_exchanged, attend=ring, axis="tensor")
        heads, rows = PartitionSpec(*_divided(q)), PartitionSpec(*_divided(where.segments))
        return jax.shard_map(exchanged, in_specs=(heads, heads, heads, rows), out_specs=heads)(
            q, k, v, where
        )
    heads, keys = spec("batch", "seq", "heads", None), spec("batch", "seq", "kv_heads", None)
    rows = spec("batch", "seq")
    q = _put(q, "batch", "seq", "heads", None)
    k, v = (_put(x, "batch", "seq", "kv_heads", None) for x in (k, v))
    where = jax.tree.map(lambda x: _put(x, "batch", "seq"), where)
    return jax.shard_map(ring, in_specs=(heads, keys, keys, rows), out_specs=heads)(q, k, v, where)


def _divided(x: Array) -> list[tuple[str, ...]]:
    """The mesh axes that divide each axis of `x`."""
    return _list_axes(jax.typeof(x).sharding.spec, x.ndim)


def _list_axes(divided: PartitionSpec, ndim: int) -> list[tuple[str, ...]]:
    given = [*divided, *(None for _ in range(ndim))][:ndim]
    return [() if axes is None else (axes,) if isinstance(axes, str) else axes for axes in given]


def _put(x: Array, *logical: str | None) -> Array:
    """`x` divided along its logical axes, where that moves nothing: axes of one device may differ.

    Raises InputError where it would.
    """
    wanted = spec(*logical)
    pairs = zip(_divided(x), _list_axes(wanted, x.ndim), strict=True)
    if any(axis_size(axis) > 1 for held, axes in pairs for axis in {*held} ^ {*axes}):
        raise InputError(
            f"an array for attention is {jax.typeof(x)} and has to be divided {tuple(wanted)}: "
            "shard it, as ringworld.mesh.shard does"
        )
    return shard(x, *logical)


def _ring_axis() -> str | None:
    """The mesh axis of the ring; None where it is a ring of one device."""
    return "seq" if axis_size("seq") > 1 else None


def _check_arrays(q: Array, k: Array, v: Array) -> None:
    """Raise InputError unless these are queries, keys and values of the same rows."""
    if any(x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating) for x in (q, k, v)):
        kinds = ", ".join(f"{x.dtype} {x.shape}" for x in (q, k, v))
        raise InputError(
            f"q, k and v are {kinds}: give floating-point arrays [batch, tokens, heads, head width]"
        )
    if k.shape != v.shape:
        raise InputError(f"k is {k.shape} and v is {v.shape}: give a value for every key")
    if (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise InputError(
            f"q is {q.shape} and k is {k.shape}: only their third size, the number of heads, may "
            "differ; give the same rows, tokens and head width"
        )
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise InputError(
            f"{k.shape[2]} key heads do not divide {q.shape[2]} query heads: choose a multiple"
        )


def _check_where(where: Where, q: Array) -> None:
    """Raise InputError unless `where` says of each token of `q` where it stands."""
    given = {"positions": where.positions, "segments": where.segments}
    if where.span is not None:
        given |= {"span.first": where.span.first, "span.stop": where.span.stop}
    for name, x in given.items():
        if x.shape != q.shape[:2]:
            raise InputError(
                f"{name} is {x.shape} and q is {q.shape}: give a number for each token, "
                f"{q.shape[:2]}; q is [batch, tokens, heads, head width], so swap axes 1 and 2 of "
                "arrays [batch, heads, tokens, head width]"
            )
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise InputError(f"{name} is an array of {x.dtype}: give int32")


def _choose(impl: Implementation | None) -> Kernel:
    """The kernel asked for, or else the platform's own, or else the one for every platform."""
    here = platform()
    if impl not in (None, "dense", *KERNELS):
        raise InputError(
            f"there is no attention kernel {impl!r}: use dense, {', '.join(KERNELS)}, or leave "
            "impl out"
        )
    if impl in KERNELS and impl not in ("xla", here):
        raise InputError(
            f"the {impl} kernel cannot run on this platform, {here}: leave impl out, or say xla"
        )
    return KERNELS[impl if impl in KERNELS else BEST.get(here, "xla")]


def _attend_whole_rows(q: Array, k: Array, v: Array, where: Where, is_causal: bool) -> Array:
    heads = ("batch", None, "heads", None)
    rows = jax.tree.map(lambda x: shard(x, "batch", None), where)
    q, k, v = (shard(x, *heads) for x in (q, k, v))
    out = attend_dense(q, k, v, rows, is_causal)
    return shard(out, "batch", "seq", "heads", None)
