"""The pieces of a decoder layer, a few lines each. Weights come gathered (see `params.gather`)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ringworld.mesh import has_mesh, spec


def placed_rows(x: Array) -> tuple[Any, Any]:
    """The mesh axes that divide the rows and the tokens of `x` `[B, T, ...]`."""
    batch, seq, *_ = (*jax.typeof(x).sharding.spec, None, None)
    return batch, seq


def contract(subscripts: str, x: Array, w: Array, *features: str | None) -> Array:
    """`einsum(x, w)` in x's dtype; rows and tokens stay where x has them.

    `features` names the logical axes of the result after `[B, T]`.
    """
    out_sharding = PartitionSpec(*placed_rows(x), *spec(*features)) if has_mesh() else None
    return jnp.einsum(subscripts, x, w.astype(x.dtype), out_sharding=out_sharding)


def rms_norm(
    x: Float[Array, "B T D"], gain: Float[Array, "D"], eps: float
) -> Float[Array, "B T D"]:
    """x / sqrt(mean(x^2) + eps) * gain, the mean in float32."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32)).astype(x.dtype)


def swiglu(
    x: Float[Array, "B T D"],
    w_gate: Float[Array, "D F"],
    w_up: Float[Array, "D F"],
    w_down: Float[Array, "F D"],
) -> Float[Array, "B T D"]:
    """(silu(x W_gate) * x W_up) W_down. Source: Shazeer, "GLU variants" (arXiv 2002.05202)."""
    gate = contract("btd,df->btf", x, w_gate, "mlp")
    up = contract("btd,df->btf", x, w_up, "mlp")
    return contract("btf,fd->btd", jax.nn.silu(gate) * up, w_down, None)


def _look_up(
    table: Float[Array, "V D"],
    ids: Int[Array, "B T"],
    keep: Bool[Array, "B T"],
    axis: str | None,
) -> Float[Array, "B T D"]:
    """The rows that this device's part of the table holds, 0 elsewhere, summed over `axis`."""
    first = 0 if axis is None else lax.axis_index(axis) * table.shape[0]
    local = ids - first
    held = keep & (local >= 0) & (local < table.shape[0])
    rows = jnp.where(held[..., None], table[jnp.where(held, local, 0)], 0)
    return rows if axis is None else lax.psum(rows, axis)


def embed(
    table: Float[Array, "V D"], ids: Int[Array, "B T"], keep: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The table's rows at `ids` where `keep` is true, and 0 elsewhere.

    The table's rows are divided over `tensor`: each device looks up what it holds, and the parts
    are summed. (A plain gather of a divided table makes the compiler replicate it.)
    """
    if not has_mesh():
        return _look_up(table, ids, keep, None)
    rows = PartitionSpec(*placed_rows(ids))
    return jax.shard_map(
        partial(_look_up, axis="tensor"),
        in_specs=(spec("vocab", None), rows, rows),
        out_specs=PartitionSpec(*rows, None),
    )(table, ids, keep)
