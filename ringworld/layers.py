"""Primitives of a decoder on the mesh: projection, norm, chunks of tokens, embedding.

Weights come gathered (see `params.gather`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ringworld.mesh import spec

# Tokens whose MLP features exist at one time on a device. Each chunk adds to the float32 gradients
# of the weights: at 2048 tokens that is 512 FLOPs for each byte of them that moves, and an H100
# computes about 300 in that time. 2048 x 11008 bfloat16 features (LWM's MLP) are 43 MiB.
MLP_CHUNK = 2048


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


def contract(subscripts: str, x: Array, w: Array, *features: str | None) -> Array:
    """`einsum(x, w)` in x's dtype; rows and tokens stay where x has them.

    `features` names the logical axes of the result after `[B, T]`.
    """
    out_sharding = PartitionSpec(*placed_rows(x), *spec(*features))
    return jnp.einsum(subscripts, x, w.astype(x.dtype), out_sharding=out_sharding)


def rms_norm(
    x: Float[Array, "... D"], gain: Float[Array, "D"], eps: float
) -> Float[Array, "... D"]:
    """x / sqrt(mean(x^2) + eps) * gain, the mean in float32."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (wide * scale * gain.astype(jnp.float32)).astype(x.dtype)


def over_tokens(
    f: Callable[..., Array], x: Float[Array, "B T D"], weights: tuple[Array, ...]
) -> Float[Array, "B T D"]:
    """`f(tokens [T, D], *weights)`, a function of single tokens, of all the tokens of `x`.

    Each device goes through its own tokens, `MLP_CHUNK` at a time, and the parts of results that
    stand for its part of the features are summed over `tensor`.
    Source: Liu and Abbeel, "Blockwise Parallel Transformer" (arXiv 2305.19370).
    """
    rows = PartitionSpec(*placed_rows(x), None)
    over = (*token_axes(x), "tensor")

    def local(x: Array, *weights: Array) -> Array:
        # Each device adds part of every sum, from its part of the features, and has a gradient of
        # its own of all that it reads. One sum over devices follows the last chunk; left to
        # autodiff, the sums would stand in the loop.
        x, *parts = (vary(a, over) for a in (x, *weights))
        return lax.psum(_in_chunks(lambda tokens: f(tokens, *parts), x), "tensor")

    places = (rows, *(jax.typeof(w).sharding.spec for w in weights))
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
    table: Float[Array, "V D"], ids: Int[Array, "B T"], keep: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The table's rows at `ids` where `keep` is true, and 0 elsewhere.

    The table's rows are divided over `tensor`: each device looks up what it holds, and the parts
    are summed. (A plain gather of a divided table makes the compiler replicate it.)
    """

    over = token_axes(ids)

    def local(table: Array, ids: Array, keep: Array) -> Array:
        table = vary(table, over)
        own = ids - lax.axis_index("tensor") * table.shape[0]
        held = keep & (own >= 0) & (own < table.shape[0])
        found = jnp.where(held[..., None], table[jnp.where(held, own, 0)], 0)
        return lax.psum(found, "tensor")

    rows = PartitionSpec(*placed_rows(ids))
    places = (jax.typeof(table).sharding.spec, rows, rows)
    return jax.shard_map(local, in_specs=places, out_specs=PartitionSpec(*rows, None))(
        table, ids, keep
    )
