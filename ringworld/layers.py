"""Primitives of a decoder on the mesh: projection, norm, chunks of tokens, embedding.

Weights come gathered (see `params.gather`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ringworld.mesh import platform, spec
from ringworld.params import Adapted, Int8, Matrix, partitions

# Tokens whose MLP features exist at one time on a device. Each chunk adds to the float32 gradients
# of the weights: at 2048 tokens that is 512 FLOPs for each byte of them that moves, and an H100
# computes about 300 in that time. 2048 x 11008 bfloat16 features (LWM's MLP) are 43 MiB.
MLP_CHUNK = 2048
# The parts of an int8 matrix that a CPU multiplies apart, for so many rows at most. With one row a
# layer of SmolLM2-135M takes 0.33 ms on two cores in two parts, and 0.45 ms in one.
INPUT_PARTS, FEW_ROWS = 2, 32


def placed_rows(x: Array) -> tuple[Any, Any]:
    """The mesh axes that divide the rows and the tokens of `x` `[B, T, ...]`."""
    batch, seq, *_ = (*jax.typeof(x).sharding.spec, None, None)
    return batch, seq


def token_axes(x: Array) -> tuple[str, ...]:
    """The mesh axes that divide the rows and the tokens of `x` `[B, T, ...]`, as one list."""
    return _axes(PartitionSpec(*placed_rows(x)))


def vary(x: Array, axes: tuple[str, ...]) -> Array:
    """`x` within `shard_map`, each device along `axes` with a gradient of its own.

    Their sum is left to the gather that made `x`, or else follows here.
    """
    held = jax.typeof(x).manual_axis_type
    parts = tuple(axis for axis in axes if axis in held.reduced)
    alike = tuple(axis for axis in axes if axis not in held.reduced | held.varying)
    return lax.pcast(lax.pcast(x, parts, to="varying"), alike, to="varying")


def product(
    subscripts: str,
    x: Array,
    w: Matrix,
    *,
    out_sharding: PartitionSpec | None = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """`einsum(x, w)`, multiplied in x's dtype; the result has it too, or the `dtype` that is given.

    `subscripts` ends in the outputs of the matrix, as "td,df->tf" does. The values of an `Int8` are
    cast as they are read, and its scales applied to the result; to the result of an `Adapted` its
    adapter's is added.
    """
    how: dict[str, Any] = {"out_sharding": out_sharding, "preferred_element_type": dtype}
    if isinstance(w, Adapted):
        plain = product(subscripts, x, w.base, out_sharding=out_sharding, dtype=dtype)
        added = _low_rank(subscripts, x, w, out_sharding)
        return plain + w.scale * added.astype(plain.dtype)
    if isinstance(w, Int8):
        found = _cast_product(subscripts, x, w.values, how)
        return (found.astype(jnp.float32) * w.scales).astype(found.dtype)
    return jnp.einsum(subscripts, x, w.astype(x.dtype), **how)


def _cast_product(subscripts: str, x: Array, values: Array, how: dict[str, Any]) -> Array:
    """`einsum(x, values)` of int8 values, cast as they are read.

    A CPU multiplies few rows by a matrix in one thread, and by a batch of matrices in one each. So
    the values go through it in parts, whose products are summed.
    """
    wide = values.astype(x.dtype)
    given, out = subscripts.split("->")
    of_x, of_w = given.split(",")
    axis, whole = of_x.find(of_w[0]), jax.typeof(values).sharding.spec.partitions[0] is None
    inputs = math.prod(n for letter, n in zip(of_w, values.shape, strict=True) if letter not in out)
    is_few = axis >= 0 and whole and x.size // inputs <= FEW_ROWS
    if platform() != "cpu" or not is_few or len(values) % INPUT_PARTS:
        return jnp.einsum(subscripts, x, wide, **how)
    x = x.reshape(*x.shape[:axis], INPUT_PARTS, -1, *x.shape[axis + 1 :])
    wide = wide.reshape(INPUT_PARTS, -1, *values.shape[1:])
    place = how["out_sharding"]
    spread = None if place is None else PartitionSpec(None, *place)
    in_parts = f"{of_x[:axis]}z{of_x[axis:]},z{of_w}->z{out}"
    return jnp.einsum(in_parts, x, wide, **how | {"out_sharding": spread}).sum(0)


def _low_rank(subscripts: str, x: Array, w: Adapted, out_sharding: PartitionSpec | None) -> Array:
    """(x A) B: "btd,dnh->btnh" goes by way of "btr"."""
    given, out = subscripts.split("->")
    of_x, of_w = given.split(",")
    outputs = "".join(letter for letter in of_w if letter in out)
    inputs = "".join(letter for letter in of_w if letter not in out)
    rows = out.removesuffix(outputs)
    narrow = None if out_sharding is None else PartitionSpec(*out_sharding[: len(rows)], None)
    low = product(f"{of_x},{inputs}r->{rows}r", x, w.a, out_sharding=narrow)
    return product(f"{rows}r,r{outputs}->{out}", low, w.b, out_sharding=out_sharding)


def contract(subscripts: str, x: Array, w: Matrix, *features: str | None) -> Array:
    """`product(x, w)`; rows and tokens stay where x has them.

    `features` names the logical axes of the result after `[B, T]`.
    """
    out_sharding = PartitionSpec(*placed_rows(x), *spec(*features))
    return product(subscripts, x, w, out_sharding=out_sharding)


def rms_norm(
    x: Float[Array, "... D"], gain: Float[Array, "D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * gain, the mean in float32."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32)).astype(x.dtype)


def over_tokens(
    f: Callable[..., Array], x: Float[Array, "B T D"], weights: tuple[Matrix, ...]
) -> Float[Array, "B T D"]:
    """`f(tokens [T, D], *weights)`, a function of single tokens, of all the tokens of `x`.

    Each device goes through its own tokens, `MLP_CHUNK` at a time, and the parts of results that
    stand for its part of the features are summed over `tensor`.
    Source: Liu and Abbeel, "Blockwise Parallel Transformer" (arXiv 2305.19370).
    """
    rows = PartitionSpec(*placed_rows(x), None)
    over = (*token_axes(x), "tensor")

    def local(x: Array, *weights: Matrix) -> Array:
        # Each device adds part of every sum, from its part of the features, and has a gradient of
        # its own of all that it reads. One sum over devices follows the last chunk; left to
        # autodiff, the sums would stand in the loop.
        x, *parts = jax.tree.map(lambda a: vary(a, over), (x, *weights))
        return lax.psum(_in_chunks(lambda tokens: f(tokens, *parts), x), "tensor")

    places = (rows, *partitions(weights))
    return jax.shard_map(local, in_specs=places, out_specs=rows)(x, *weights)


def _in_chunks(f: Callable[[Array], Array], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """`f` of all tokens, CHUNK at a time, forward and backward.

    Chunks are of equal length, so there are fewer tokens of padding than chunks.
    """
    tokens = x.reshape(-1, x.shape[-1])
    count = -(-len(tokens) // MLP_CHUNK)
    if count <= 1:
        return f(tokens).reshape(x.shape)
    padded = jnp.pad(tokens, ((0, -len(tokens) % count), (0, 0)))
    chunks = padded.reshape(count, -1, x.shape[-1])
    done = lax.map(jax.checkpoint(f, prevent_cse=False), chunks)
    return done.reshape(padded.shape)[: len(tokens)].reshape(x.shape)


def _axes(place: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that divide an array of this partition."""
    parts = ((part,) if isinstance(part, str) else part or () for part in place)
    return tuple(axis for part in parts for axis in part)


def embed(
    table: Array | Int8, ids: Int[Array, "B T"], keep: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The rows of a table [V, D] at `ids` where `keep` is true, and 0 elsewhere.

    The table's rows are divided over `tensor`: each device looks up what it holds, and the parts
    are summed. (A plain gather of a divided table makes the compiler replicate it.)
    """
    over = token_axes(ids)

    def local(table: Array | Int8, ids: Array, keep: Array) -> Array:
        table = jax.tree.map(lambda x: vary(x, over), table)
        count = len(table.values if isinstance(table, Int8) else table)
        own = ids - lax.axis_index("tensor") * count
        held = keep & (own >= 0) & (own < count)
        own = jnp.where(held, own, 0)
        if isinstance(table, Int8):
            found = table.values[own].astype(jnp.float32) * table.scales[own][..., None]
        else:
            found = table[own]
        return lax.psum(jnp.where(held[..., None], found, 0), "tensor")

    rows = PartitionSpec(*placed_rows(ids))
    places = (partitions(table), rows, rows)
    return jax.shard_map(local, in_specs=places, out_specs=PartitionSpec(*rows, None))(
        table, ids, keep
    )
