"""The key-value cache, divided along the sequence as training divides it; prefill and one step.

A cache has room for S tokens, dealt to the ring in stripes. Prefill runs chunk by chunk: each
device writes its tokens of a chunk behind those it has. A decoded token is written into the place
that its position has in that order. Nothing is ever moved.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ringworld.attention import attend_new
from ringworld.attention.mask import Where
from ringworld.layers import rms_norm
from ringworld.mesh import axis_size, shard, spec
from ringworld.models.llama import COMPUTE, Block, layer
from ringworld.models.world import World, WorldWeights, embed_tokens
from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class Cache:
    """Keys and values `[L, B, S, K, H]` and where each token stands, `[B, S]`."""

    k: Leaf
    v: Leaf
    where: Where


def empty_cache(rows: int, places: int, c: World) -> Cache:
    """A cache of `places` tokens a row that holds nothing: all of it is padding."""
    shape = (c.llama.layers, rows, places, c.llama.kv_heads, c.llama.head_width)

    def keys() -> Array:
        nothing = jnp.zeros(shape, COMPUTE[c.llama.dtype])
        return shard(nothing, "layers", "batch", "seq", "kv_heads", None)

    def rows_of_zeros() -> Array:
        return shard(jnp.zeros((rows, places), jnp.int32), "batch", "seq")

    # Four arrays that share nothing: a step may write into each of them.
    return Cache(keys(), keys(), Where(rows_of_zeros(), rows_of_zeros()))


KeysValues = tuple[Array, Array]  # keys and values of all layers
# put(held, new, layer): the array `held` of all layers `[L, B, S, ...]` with the new tokens of one.
Writer = Callable[[Array, Array, Array], Array]


def forward_cached(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    put: Writer,
    c: World,
) -> tuple[Float[Array, "B T D"], Cache]:
    """The residual stream of new tokens after the last layer, and the cache that holds them too.

    `put` writes each layer's keys and values into the cache before attention reads it, in places
    that `cache.where` still calls padding. Reads follow writes, so XLA makes no copy.
    """

    def body(carry: tuple[Array, KeysValues], held: tuple[Block, Array]) -> tuple[Any, None]:
        (x, (ks, vs)), (w, i) = carry, held

        def attend(q: Array, k: Array, v: Array, where: Where) -> tuple[Array, KeysValues]:
            cached = put(ks, k, i), put(vs, v, i)
            return attend_new(q, (k, v), where, cached, cache.where, layer=i), cached

        return layer(x, w, where, attend, c.llama), None

    start = (embed_tokens(weights, tokens, vision, c), (cache.k, cache.v))
    layers = jnp.arange(c.llama.layers, dtype=jnp.int32)
    (x, (k, v)), _ = lax.scan(body, start, (weights.blocks, layers))
    one = jnp.int32(0)
    stands = jax.tree.map(lambda held, new: put(held[None], new, one)[0], cache.where, where)
    return x, Cache(k, v, stands)


def prefill_chunk(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    start: Int[Array, ""],
    last: Int[Array, "B"],
    c: World,
) -> tuple[Float[Array, "B D"], Cache]:
    """The normed residual stream of each row's token at position `last`, and the longer cache.

    The tokens are one chunk in stripes, which each device writes into its own places from `start`
    on. A chunk that is not full ends in padding, and what the cache holds in those places stays.
    The stream is 0 in a row whose token at `last` is not in this chunk.
    """
    put = _write_chunk(where, start)
    x, cache = forward_cached(weights, cache, tokens, vision, where, put, c)
    picked = rms_norm(_pick(x, where, last)[:, None], weights.heads.norm, c.llama.norm_eps)
    return picked[:, 0], cache


def prefill_rows(
    weights: WorldWeights,
    tokens: Int[Array, "B S"],
    vision: Bool[Array, "B S"],
    where: Where,
    last: Int[Array, "B"],
    chunk: int,
    c: World,
) -> tuple[Float[Array, "B D"], Cache]:
    """The normed residual stream of each row's token at position `last`, and the rows' cache.

    Rows are dealt in stripes. They go through `prefill_chunk` in order, `chunk` tokens at a time
    (which divides S), so that no activation is longer than a chunk.
    """
    own_places = chunk // axis_size("seq")

    def step(
        carry: tuple[Array, Cache], chunk: tuple[Array, Array, Array, Where]
    ) -> tuple[tuple[Array, Cache], None]:
        (x, cache), (i, tokens, vision, where) = carry, chunk
        found, cache = prefill_chunk(weights, cache, tokens, vision, where, i * own_places, last, c)
        return (x + found, cache), None

    rows, places = tokens.shape
    chunks = jax.tree.map(lambda x: _cut_chunks(x, places // chunk), (tokens, vision, where))
    nothing = shard(jnp.zeros((rows, c.llama.model), COMPUTE[c.llama.dtype]), None, None)
    start = (nothing, empty_cache(rows, places, c))
    steps = jnp.arange(places // chunk, dtype=jnp.int32)
    (x, cache), _ = lax.scan(step, start, (steps, *chunks))
    return x, cache


def grow_cache(cache: Cache, places: int) -> Cache:
    """The cache with `places` places a row: each device adds some at the end of its own part."""
    more = places // axis_size("seq")

    def local(cache: Cache) -> Cache:
        def pad(x: Array, axis: int) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, more - x.shape[axis])
            return jnp.pad(x, widths)

        stands = jax.tree.map(partial(pad, axis=1), cache.where)
        return Cache(pad(cache.k, 2), pad(cache.v, 2), stands)

    held = _specs("seq")
    return jax.shard_map(local, in_specs=(held,), out_specs=held)(cache)


def truncate_cache(cache: Cache, length: Int[Array, ""]) -> Cache:
    """The cache without the tokens at positions from `length` on: their places are padding."""
    where = cache.where
    kept = jnp.where(where.positions < length, where.segments, 0)
    return replace(cache, where=replace(where, segments=kept))


def decode_step(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    places: Int[Array, "B T"],
    c: World,
) -> tuple[Float[Array, "B T D"], Cache]:
    """The normed residual stream of a few new tokens, and the cache with them at `places`."""
    x, cache = forward_cached(weights, cache, tokens, vision, where, _write_at(places), c)
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps), cache


def _specs(axis: str | None) -> Cache:
    keys, rows = spec("layers", "batch", axis, "kv_heads", None), spec("batch", axis)
    return Cache(keys, keys, Where(rows, rows))


def _cut_chunks(x: Shaped[Array, "B S"], count: int) -> Shaped[Array, "n B S/n"]:
    """Chunks of a dealt row: of each device's tokens the first part, the second, and so on."""

    def local(x: Array) -> Array:
        return x.reshape(x.shape[0], count, -1).swapaxes(0, 1)

    cut = spec(None, "batch", "seq")
    return jax.shard_map(local, in_specs=spec("batch", "seq"), out_specs=cut)(x)


def _pick(x: Float[Array, "B T D"], where: Where, last: Int[Array, "B"]) -> Float[Array, "B D"]:
    """Each row's token at position `last` on every device, or 0 if it is not among these."""
    picked = (where.positions == last[:, None]) & (where.segments > 0)
    return jnp.einsum("bs,bsd->bd", picked.astype(x.dtype), x, out_sharding=spec(None, None))


def _write_chunk(where: Where, start: Int[Array, ""]) -> Writer:
    """Write a chunk from each device's place `start` on, but for its padding."""

    def local(held: Array, new: Array, layer: Array, real: Array, start: Array) -> Array:
        first = (layer, 0, start, *[0] * (held.ndim - 3))
        there = lax.dynamic_slice(held, first, (1, *new.shape))
        mask = real.reshape(1, *real.shape, *[1] * (held.ndim - 3))
        return lax.dynamic_update_slice(held, jnp.where(mask, new[None], there), first)

    return _on_every_device(
        local, "seq", (where.segments > 0, start), (spec("batch", "seq"), spec())
    )


def _write_at(places: Int[Array, "B T"]) -> Writer:
    """Write tokens that every device has: each those whose places it holds."""

    def local(held: Array, new: Array, layer: Array, places: Array) -> Array:
        size = held.shape[2]
        own = places - lax.axis_index("seq") * size
        own = jnp.where((own >= 0) & (own < size), own, size)  # the others fall off its end
        row = jnp.arange(places.shape[0], dtype=jnp.int32)[:, None]
        return held.at[layer, row, own].set(new, mode="drop")

    return _on_every_device(local, None, (places,), (spec("batch", None),))


def _on_every_device(
    local: Callable[..., Array], seq: str | None, rest: tuple[Array, ...], specs: Sequence[Any]
) -> Writer:
    """Run `local(held, new, layer, *rest)` on every device, for new tokens divided along `seq`."""

    def put(held: Array, new: Array, layer: Array) -> Array:
        heads = ("kv_heads", None)[: new.ndim - 2]
        there, coming = spec("layers", "batch", "seq", *heads), spec("batch", seq, *heads)
        return jax.shard_map(local, in_specs=(there, coming, spec(), *specs), out_specs=there)(
            held, new, layer, *rest
        )

    return put
