"""Keys and values of what was read, divided along the sequence as training divides it.

A cache has room for S tokens. Prefill fills the places of the prompt in the ring's order; a new
token's keys are written into the place that its position has in that order. Nothing is ever moved.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention import attend, attend_new
from ringworld.attention.mask import Where
from ringworld.layers import rms_norm
from ringworld.mesh import axis_size, has_mesh, spec
from ringworld.models.llama import Block, block_specs, read, write
from ringworld.models.world import World, WorldWeights, embed_tokens
from ringworld.params import Weight, gather, node


@node
class Cache:
    """Keys and values `[L, B, S, K, H]` and where each token stands, `[B, S]`."""

    k: Weight
    v: Weight
    where: Where


def prefill(
    weights: WorldWeights,
    tokens: Int[Array, "B S"],
    vision: Bool[Array, "B S"],
    where: Where,
    c: World,
) -> tuple[Float[Array, "B S D"], Cache]:
    """The residual stream of whole rows, padded behind the prompt, and the cache they fill."""

    def layer(x: Array, w: Block) -> tuple[Array, tuple[Array, Array]]:
        w = gather(w, block_specs(c.llama))
        q, k, v = read(x, w, where.positions, c.llama)
        return write(x, attend(q, k, v, where), w, c.llama), (k, v)

    x, (k, v) = lax.scan(layer, embed_tokens(weights, tokens, vision, c), weights.blocks)
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps), Cache(k, v, where)


def extend(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    places: Int[Array, "B T"],
    c: World,
) -> tuple[Float[Array, "B T D"], Cache]:
    """The residual stream of a few new tokens, and the cache with them written at `places`."""

    def layer(
        x: Array, held: tuple[Block, tuple[Array, Array]]
    ) -> tuple[Array, tuple[Array, Array]]:
        w, cached = held
        w = gather(w, block_specs(c.llama))
        q, k, v = read(x, w, where.positions, c.llama)
        attended = attend_new(q, (k, v), where, cached, cache.where)
        return write(x, attended, w, c.llama), (k, v)

    x = embed_tokens(weights, tokens, vision, c)
    x, (k, v) = lax.scan(layer, x, (weights.blocks, (cache.k, cache.v)))
    cache = _write(cache, Cache(k, v, where), places)
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps), cache


def _write(cache: Cache, new: Cache, places: Int[Array, "B T"]) -> Cache:
    if not has_mesh():
        return _write_local(cache, new, places, None)
    axis = "seq" if axis_size("seq") > 1 else None
    held, coming = (
        Cache(keys, keys, Where(rows, rows))
        for keys, rows in (
            (spec("layers", "batch", axis, "kv_heads", None), spec("batch", axis))
            for axis in ("seq", None)
        )
    )
    return jax.shard_map(
        partial(_write_local, axis=axis),
        in_specs=(held, coming, spec("batch", None)),
        out_specs=held,
    )(cache, new, places)


def _write_local(cache: Cache, new: Cache, places: Int[Array, "B T"], axis: str | None) -> Cache:
    """Each device writes the places that it holds; the others fall off its end."""
    size = cache.where.positions.shape[1]
    local = places - (0 if axis is None else lax.axis_index(axis) * size)
    local = jnp.where((local >= 0) & (local < size), local, size)
    row = jnp.arange(places.shape[0])[:, None]

    def put(held: Array, coming: Array) -> Array:
        return held.at[row, local].set(coming, mode="drop")

    return Cache(
        jax.vmap(put)(cache.k, new.k),
        jax.vmap(put)(cache.v, new.v),
        jax.tree.map(put, cache.where, new.where),
    )
