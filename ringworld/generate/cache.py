"""Keys and values of what was read, divided along the sequence as training divides it.

A cache has room for S tokens, dealt to the ring in stripes. A prompt is read chunk by chunk: each
device writes its tokens of a chunk behind those it has. A new token is written into the place that
its position has in that order. Nothing is ever moved.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ringworld.attention import attend_new
from ringworld.attention.mask import Where
from ringworld.layers import rms_norm
from ringworld.mesh import axis_size, has_mesh, shard, spec
from ringworld.models.llama import COMPUTE, Block, block_specs, narrow, read, scan_layers, write
from ringworld.models.world import World, WorldWeights, embed_tokens
from ringworld.params import Weight, gather, node


@node
class Cache:
    """Keys and values `[L, B, S, K, H]` and where each token stands, `[B, S]`."""

    k: Weight
    v: Weight
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


def run_new(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    c: World,
) -> tuple[Float[Array, "B T D"], Cache]:
    """The residual stream of new tokens after the last layer, and a cache of them alone."""

    def layer(x: Array, held: tuple[Block, Array]) -> tuple[Array, tuple[Array, Array]]:
        w, i = held
        w = gather(w, block_specs(c.llama))
        q, k, v = read(x, w, where.positions, c.llama)
        seen, cached = narrow(where, c.llama), (cache.k, cache.v)
        attended = attend_new(q, (k, v), seen, cached, cache.where, layer=i)
        return write(x, attended, w, c.llama), (k, v)

    x = embed_tokens(weights, tokens, vision, c)
    x, (k, v) = scan_layers(layer, x, weights.blocks, jnp.arange(c.llama.layers, dtype=jnp.int32))
    return x, Cache(k, v, where)


def prefill(
    weights: WorldWeights,
    tokens: Int[Array, "B S"],
    vision: Bool[Array, "B S"],
    where: Where,
    last: Int[Array, "B"],
    chunk: int,
    c: World,
) -> tuple[Float[Array, "B D"], Cache]:
    """The residual stream of each row's token at position `last`, and the cache of the rows.

    Rows are dealt in stripes and read `chunk` tokens at a time (which divides S), in order: no
    activation is longer than a chunk.
    """
    own_places = chunk // axis_size("seq")

    def read_chunk(
        carry: tuple[Array, Cache], chunk: tuple[Array, Array, Array, Where]
    ) -> tuple[tuple[Array, Cache], None]:
        (picked, cache), (i, tokens, vision, where) = carry, chunk
        x, new = run_new(weights, cache, tokens, vision, where, c)
        return (picked + _pick(x, where, last), _append(cache, new, i * own_places)), None

    rows, places = tokens.shape
    chunks = jax.tree.map(lambda x: _cut_chunks(x, places // chunk), (tokens, vision, where))
    nothing = shard(jnp.zeros((rows, c.llama.model), COMPUTE[c.llama.dtype]), None, None)
    start = (nothing, empty_cache(rows, places, c))
    steps = jnp.arange(places // chunk, dtype=jnp.int32)
    (picked, cache), _ = lax.scan(read_chunk, start, (steps, *chunks))
    x = rms_norm(picked[:, None], weights.heads.norm, c.llama.norm_eps)
    return x[:, 0], cache


def read_on(
    weights: WorldWeights,
    cache: Cache,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    start: Int[Array, ""],
    last: Int[Array, "B"],
    c: World,
) -> tuple[Float[Array, "B D"], Cache]:
    """The normed residual stream at position `last`, 0 if it is not here, and the longer cache.

    The tokens are one chunk in stripes, which each device writes from its own place `start` on. Of
    a chunk that is not full the rest is padding, and what the cache holds there stays.
    """
    x, new = run_new(weights, cache, tokens, vision, where, c)
    picked = rms_norm(_pick(x, where, last)[:, None], weights.heads.norm, c.llama.norm_eps)
    return picked[:, 0], _append(cache, new, start)


def widen(cache: Cache, places: int) -> Cache:
    """The cache with room for `places` tokens a row: each device adds to the end of its part."""
    more = places // axis_size("seq")

    def local(cache: Cache) -> Cache:
        def pad(x: Array, axis: int) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, more - x.shape[axis])
            return jnp.pad(x, widths)

        stands = jax.tree.map(partial(pad, axis=1), cache.where)
        return Cache(pad(cache.k, 2), pad(cache.v, 2), stands)

    if not has_mesh():
        return local(cache)
    held = _specs("seq")
    return jax.shard_map(local, in_specs=(held,), out_specs=held)(cache)


def forget(cache: Cache, length: Int[Array, ""]) -> Cache:
    """The cache without the tokens at positions from `length` on: their places are padding."""
    where = cache.where
    kept = jnp.where(where.positions < length, where.segments, 0)
    return replace(cache, where=replace(where, segments=kept))


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
    x, new = run_new(weights, cache, tokens, vision, where, c)
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps), _write(cache, new, places)


def _specs(axis: str | None) -> Cache:
    keys, rows = spec("layers", "batch", axis, "kv_heads", None), spec("batch", axis)
    return Cache(keys, keys, Where(rows, rows))


def _cut_chunks(x: Shaped[Array, "B S"], count: int) -> Shaped[Array, "n B S/n"]:
    """Chunks of a dealt row: of each device's tokens the first part, the second, and so on."""

    def local(x: Array) -> Array:
        return x.reshape(x.shape[0], count, -1).swapaxes(0, 1)

    if not has_mesh():
        return local(x)
    cut = spec(None, "batch", "seq")
    return jax.shard_map(local, in_specs=spec("batch", "seq"), out_specs=cut)(x)


def _pick(x: Float[Array, "B T D"], where: Where, last: Int[Array, "B"]) -> Float[Array, "B D"]:
    """Each row's token at position `last` on every device, or 0 if it is not among these."""
    out = spec(None, None) if has_mesh() else None
    ends = (where.positions == last[:, None]) & (where.segments > 0)
    return jnp.einsum("bs,bsd->bd", ends.astype(x.dtype), x, out_sharding=out)


def _append(cache: Cache, new: Cache, start: Int[Array, ""]) -> Cache:
    """The cache with a chunk written from each device's place `start` on, but for its padding."""

    def local(cache: Cache, new: Cache, start: Array) -> Cache:
        real = new.where.segments > 0

        def put(held: Array, coming: Array, axis: int) -> Array:
            there = lax.dynamic_slice_in_dim(held, start, coming.shape[axis], axis)
            mask = real if axis == 1 else real[None, :, :, None, None]
            return lax.dynamic_update_slice_in_dim(
                held, jnp.where(mask, coming, there), start, axis
            )

        stands = jax.tree.map(partial(put, axis=1), cache.where, new.where)
        return Cache(put(cache.k, new.k, 2), put(cache.v, new.v, 2), stands)

    if not has_mesh():
        return local(cache, new, start)
    held = _specs("seq")
    return jax.shard_map(local, in_specs=(held, held, spec()), out_specs=held)(cache, new, start)


def _write(cache: Cache, new: Cache, places: Int[Array, "B T"]) -> Cache:
    if not has_mesh():
        return _write_local(cache, new, places, None)
    axis = "seq" if axis_size("seq") > 1 else None
    return jax.shard_map(
        partial(_write_local, axis=axis),
        in_specs=(_specs("seq"), _specs(None), spec("batch", None)),
        out_specs=_specs("seq"),
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
