"""The kernel for every platform: blockwise attention in plain XLA, tile by tile.

A pair of tiles that the mask empties is skipped, one that it leaves whole is not masked. Memory is
that of one tile's scores, forward and backward. The loop goes over rows, then key heads, then
tiles: the scores of one pair fit a core's cache, and each row skips by its own mask.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.attention.mask import Bounds, key_bounds, may_see, sees, sees_all
from ringworld.attention.online import Partial, finite, merge
from ringworld.attention.tiles import Grads, Kernel, Keys, Queries, Saved, live_range
from ringworld.mesh import platform

# 256 was the fastest of 128, 256 and 512 for heads of 64 on a 2-core CPU.
TILE = 256


def _loop_over_queries(body: Callable[..., Any], queries: Queries, sums: Any) -> Any:
    """`sums = body(sums, b, h, i)` for each query tile i of each key head h of each row b.

    The body reads and writes single tiles of whole arrays: no array of a head's size is made.
    """
    B, tiles, heads = queries.q.shape[:3]

    def step(n: Array, sums: Any) -> Any:
        return body(sums, n // (heads * tiles), n // tiles % heads, n % tiles)

    return lax.fori_loop(0, B * heads * tiles, step, sums)


def _tile_start(place: tuple[Array, ...], axes: int) -> tuple[Array, ...]:
    """The indices where a tile begins, all int32: slices want one type, with 64-bit numbers too."""
    return tuple(jnp.asarray(n, jnp.int32) for n in (*place, *(0,) * (axes - len(place))))


def _at(tree: Any, *place: Array) -> Any:
    """Every array at an index of its leading axes."""

    def pick(x: Array) -> Array:
        first, rest = _tile_start(place, x.ndim), x.shape[len(place) :]
        return lax.dynamic_slice(x, first, (*(1,) * len(place), *rest)).reshape(rest)

    return jax.tree.map(pick, tree)


def _put(tree: Any, tile: Any, *place: Array) -> Any:
    """The arrays with a tile written at an index of their leading axes."""

    def put(x: Array, y: Array) -> Array:
        tile = y.reshape(*(1,) * len(place), *y.shape)
        return lax.dynamic_update_slice(x, tile, _tile_start(place, x.ndim))

    return jax.tree.map(put, tree, tile)


def _queries_at(queries: Queries, b: Array, h: Array, i: Array) -> Queries:
    q = widen(_at(queries.q, b, i, h))
    return Queries(q, _at(queries.reach, b, i), _at(queries.bounds, b, i))


def _keys_at(keys: Keys, b: Array, h: Array, j: Array) -> Keys:
    k, v = widen(_at((keys.k, keys.v), b, j, h))
    return Keys(k, v, _at(keys.where, b, j))


def widen(tree: Any) -> Any:
    """The arrays as float32 on a CPU, whose product of bfloat16 has no float32 sum; others as is.

    A product of two bfloat16 numbers is exact in float32: nothing is lost.
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree) if platform() == "cpu" else tree


def _choose(queries: Bounds, keys: Bounds) -> Int[Array, ""]:
    """0: the pair is empty, 1: it needs the mask, 2: it is whole."""
    live = may_see(queries, keys).astype(jnp.int32)
    return live + live * sees_all(queries, keys).astype(jnp.int32)


def _stack_heads(tree: Any) -> Any:
    """Tiles `[G, t, ...]` as rows `[G*t, ...]`, which the cores of a CPU share evenly.

    XLA divides the work on scores along their first axis: of three query heads one core has two.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def forward_tile(
    partial: Partial, scores: Float[Array, "rows s"], v: Float[Array, "s H"]
) -> Partial:
    """The partial result after one more tile of keys, from its masked scores."""
    top = scores.max(-1)
    weights = jnp.exp2(scores - finite(top)[..., None])
    value = jnp.einsum("rs,sh->rh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return merge(partial, Partial(top, weights.sum(-1), value))


def _forward_pass(queries: Queries, keys: Keys, partials: Partial) -> Partial:
    """The partial results with these keys merged in; `partials` has the tiles of the queries."""
    bounds = key_bounds(keys.where)

    def body(partials: Partial, b: Array, h: Array, i: Array) -> Partial:
        tile, before = _queries_at(queries, b, h, i), _at(partials, b, i, h)
        q, groups = _stack_heads(tile.q), len(tile.q)

        def step(j: Array, partial: Partial) -> Partial:
            near = _keys_at(keys, b, h, j)

            def whole() -> Float[Array, "rows s"]:
                return jnp.einsum("rh,sh->rs", q, near.k, preferred_element_type=jnp.float32)

            def masked() -> Float[Array, "rows s"]:
                seen = jnp.tile(sees(tile.reach, near.where), (groups, 1))
                return jnp.where(seen, whole(), -jnp.inf)

            return lax.switch(
                _choose(tile.bounds, _at(bounds, b, j)),
                (
                    lambda: partial,
                    lambda: forward_tile(partial, masked(), near.v),
                    lambda: forward_tile(partial, whole(), near.v),
                ),
            )

        near = live_range(may_see(tile.bounds, _at(bounds, b)))
        after = lax.fori_loop(*near, step, _stack_heads(before))
        after = jax.tree.map(lambda x, old: x.reshape(old.shape), after, before)
        return _put(partials, after, b, i, h)

    return _loop_over_queries(body, queries, partials)


def _backward_tile(
    queries: Queries,
    keys: Keys,
    saved: Saved,
    dout: Float[Array, "H G t"],
    scores: Float[Array, "s G t"],
) -> tuple[Float[Array, "H G t"], Float[Array, "s H"], Float[Array, "s H"]]:
    """One pair's share of dq, dk and dv, from its masked scores, keys first; `dout` is transposed.

    With keys first no product needs a transposed tile of scores, which costs a CPU as much as a
    product; what is transposed is dq, q and dout, once for all keys.
    """
    narrow = queries.q.dtype
    weights = jnp.exp2(scores - finite(saved.lse))
    dweights = jnp.einsum("sh,hgt->sgt", keys.v, dout, preferred_element_type=jnp.float32)
    dscores = (weights * (dweights - saved.delta)).astype(narrow)
    dv = jnp.einsum(
        "sgt,gth->sh", weights.astype(narrow), saved.dout, preferred_element_type=jnp.float32
    )
    dk = jnp.einsum("sgt,gth->sh", dscores, queries.q, preferred_element_type=jnp.float32)
    dq = jnp.einsum("hs,sgt->hgt", keys.k.T, dscores, preferred_element_type=jnp.float32)
    return dq, dk, dv


def _backward_pass(queries: Queries, keys: Keys, saved: Saved, grads: Grads) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    bounds = key_bounds(keys.where)
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0, 0, 0]), grads[1:])

    def body(grads: Grads, b: Array, h: Array, i: Array) -> Grads:
        tile, known = _queries_at(queries, b, h, i), widen(_at(saved, b, i, h))
        q, dout = (jnp.moveaxis(x, -1, 0) for x in (tile.q, known.dout))

        def step(j: Array, sums: Grads) -> Grads:
            near = _keys_at(keys, b, h, j)

            def whole() -> Float[Array, "s G t"]:
                return jnp.einsum("sh,hgt->sgt", near.k, q, preferred_element_type=jnp.float32)

            def masked() -> Float[Array, "s G t"]:
                seen = sees(tile.reach, near.where).T[:, None]
                return jnp.where(seen, whole(), -jnp.inf)

            # The sums stay outside: a branch that held them would copy them at every step.
            more = lax.switch(
                _choose(tile.bounds, _at(bounds, b, j)),
                (
                    lambda: (jnp.zeros_like(sums[0]), *nothing),
                    lambda: _backward_tile(tile, near, known, dout, masked()),
                    lambda: _backward_tile(tile, near, known, dout, whole()),
                ),
            )
            dk, dv = jax.tree.map(jnp.add, _at(sums[1:], b, j, h), more[1:])
            return sums[0] + more[0], *_put(sums[1:], (dk, dv), b, j, h)

        dq = jnp.moveaxis(_at(grads[0], b, i, h), -1, 0)
        near = live_range(may_see(tile.bounds, _at(bounds, b)))
        dq, dk, dv = lax.fori_loop(*near, step, (dq, *grads[1:]))
        return _put(grads[0], jnp.moveaxis(dq, 0, -1), b, i, h), dk, dv

    return _loop_over_queries(body, queries, grads)


BLOCKWISE = Kernel(TILE, _forward_pass, _backward_pass)
