"""The pieces of a decoder layer, a few lines each. Weights come gathered (see `params.gather`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ringworld.mesh import has_mesh, spec

# Tokens whose MLP features exist at one time on a device. Each chunk adds to the float32 gradients
# of the weights: at 2048 tokens that is 512 FLOPs for each byte of them that moves, and an H100
# computes about 300 in that time. 2048 x 11008 bfloat16 features (LWM's MLP) are 43 MiB.
CHUNK = 2048


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
    x: Float[Array, "... D"], gain: Float[Array, "D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * gain, the mean in float32."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32)).astype(x.dtype)


def swiglu(
    x: Float[Array, "T D"],
    w_gate: Float[Array, "D F"],
    w_up: Float[Array, "D F"],
    w_down: Float[Array, "F D"],
) -> Float[Array, "T D"]:
    """(silu(x W_gate) * x W_up) W_down. Source: Shazeer, "GLU variants" (arXiv 2002.05202)."""
    gate, up = (jnp.einsum("td,df->tf", x, w.astype(x.dtype)) for w in (w_gate, w_up))
    return jnp.einsum("tf,fd->td", jax.nn.silu(gate) * up, w_down.astype(x.dtype))


def in_chunks(f: Callable[[Array], Array], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """`f`, a function of single tokens, of all of them: CHUNK at a time, forward and backward.

    Chunks are of equal length, so there are fewer tokens of padding than chunks. Source: Liu and
    Abbeel, "Blockwise Parallel Transformer" (arXiv 2305.19370).
    """
    tokens = x.reshape(-1, x.shape[-1])
    count = -(-len(tokens) // CHUNK)
    if count <= 1:
        return f(tokens).reshape(x.shape)
    padded = jnp.pad(tokens, ((0, -len(tokens) % count), (0, 0)))
    chunks = padded.reshape(count, -1, x.shape[-1])
    done = lax.map(jax.checkpoint(f, prevent_cse=False), chunks)
    return done.reshape(padded.shape)[: len(tokens)].reshape(x.shape)


def feed_forward(
    x: Float[Array, "B T D"],
    gain: Float[Array, "D"],
    w_gate: Float[Array, "D F"],
    w_up: Float[Array, "D F"],
    w_down: Float[Array, "F D"],
    eps: float,
) -> Float[Array, "B T D"]:
    """x + swiglu(rms_norm(x)), each device going through its own tokens in chunks."""

    def added(x: Array, gain: Array, *w: Array) -> Array:
        return in_chunks(lambda tokens: swiglu(rms_norm(tokens, gain, eps), *w), x)

    if not has_mesh():
        return x + added(x, gain, w_gate, w_up, w_down)
    rows = PartitionSpec(*placed_rows(x), None)
    places = (rows, spec(None), spec(None, "mlp"), spec(None, "mlp"), spec("mlp", None))

    def everywhere(x: Array, *w: Array) -> Array:
        # Each device adds part of every sum, from its part of the features, and has a gradient of
        # its own of all that it reads. One sum over devices follows the last chunk; left to
        # autodiff, the sums would stand in the loop.
        over = (*_axes(rows), "tensor")
        own = (
            lax.pcast(a, tuple(axis for axis in over if axis not in _axes(place)), to="varying")
            for a, place in zip((x, *w), places, strict=True)
        )
        return x + lax.psum(added(*own), "tensor")

    return jax.shard_map(everywhere, in_specs=places, out_specs=rows)(x, gain, w_gate, w_up, w_down)


def _axes(place: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that divide an array of this partition."""
    parts = ((part,) if isinstance(part, str) else part or () for part in place)
    return tuple(axis for part in parts for axis in part)


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
