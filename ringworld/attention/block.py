"""The kernel for every platform: blockwise attention in plain XLA, tile by tile.

A pair of tiles that the mask empties is not visited, one that it leaves whole is not masked. Memory
is that of one tile's scores, forward and backward. Rows are walked one after another, and in each
its key heads: the scores of one pair fit a core's cache, and each row skips by its own mask.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.attention.mask import Ends, ends_of_keys, may_see, sees, sees_all
from ringworld.attention.online import Partial, finite, merge
from ringworld.attention.tiles import Grads, Kernel, Keys, Queries, Saved, span
from ringworld.mesh import platform

# 256 was the fastest of 128, 256 and 512 for heads of 64 on a 2-core CPU.
TILE = 256


def _walk(walk: Callable[..., Any], queries: Queries, sums: Any) -> Any:
    """`sums = walk(sums, b, h, i)` for each tile i of the queries of each key head h of each row b.

    What a walk reads and adds to are single tiles of whole arrays: none of a head's size is made.
    """
    B, tiles, heads = queries.q.shape[:3]

    def step(n: Array, sums: Any) -> Any:
        return walk(sums, n // (heads * tiles), n // tiles % heads, n % tiles)

    return lax.fori_loop(0, B * heads * tiles, step, sums)


def _first(place: tuple[Array, ...], axes: int) -> tuple[Array, ...]:
    """The indices of a tile's first number; of one type, as slices want them, in 64 bits too."""
    return tuple(jnp.asarray(n, jnp.int32) for n in (*place, *(0,) * (axes - len(place))))


def _at(tree: Any, *place: Array) -> Any:
    """What stands at a place of the leading axes of every array."""

    def pick(x: Array) -> Array:
        first, rest = _first(place, x.ndim), x.shape[len(place) :]
        return lax.dynamic_slice(x, first, (*(1,) * len(place), *rest)).reshape(rest)

    return jax.tree.map(pick, tree)


def _put(tree: Any, tile: Any, *place: Array) -> Any:
    """The arrays with a tile written at a place of their leading axes."""

    def put(x: Array, y: Array) -> Array:
        tile = y.reshape(*(1,) * len(place), *y.shape)
        return lax.dynamic_update_slice(x, tile, _first(place, x.ndim))

    return jax.tree.map(put, tree, tile)


def _queries_at(queries: Queries, b: Array, h: Array, i: Array) -> Queries:
    q = _widen(_at(queries.q, b, i, h))
    return Queries(q, _at(queries.reach, b, i), _at(queries.ends, b, i))


def _keys_at(keys: Keys, b: Array, h: Array, j: Array) -> Keys:
    k, v = _widen(_at((keys.k, keys.v), b, j, h))
    return Keys(k, v, _at(keys.where, b, j))


def _widen(tree: Any) -> Any:
    """The arrays as float32 on a CPU, whose product of bfloat16 has no float32 sum; others as is.

    A product of two bfloat16 numbers is exact in float32: nothing is lost.
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree) if platform() == "cpu" else tree


def _choose(queries: Ends, keys: Ends) -> Int[Array, ""]:
    """0: the pair is empty, 1: it needs the mask, 2: it is whole."""
    live = may_see(queries, keys).astype(jnp.int32)
    return live + live * sees_all(queries, keys).astype(jnp.int32)


def _stack_heads(tree: Any) -> Any:
    """Tiles `[G, t, ...]` as rows `[G*t, ...]`, which the cores of a CPU share evenly.

    XLA divides the work on scores along their first axis: of three query heads one core has two.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _see_tile(partial: Partial, scores: Float[Array, "rows s"], v: Float[Array, "s H"]) -> Partial:
    """The partial result after one more tile of keys, from its masked scores."""
    top = scores.max(-1)
    weights = jnp.exp2(scores - finite(top)[..., None])
    value = jnp.einsum("rs,sh->rh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return merge(partial, Partial(top, weights.sum(-1), value))


def see(queries: Queries, keys: Keys, partials: Partial) -> Partial:
    """What the queries know after these keys too. `partials` has the tiles of the queries."""
    ends = ends_of_keys(keys.where)

    def walk(partials: Partial, b: Array, h: Array, i: Array) -> Partial:
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
                _choose(tile.ends, _at(ends, b, j)),
                (
                    lambda: partial,
                    lambda: _see_tile(partial, masked(), near.v),
                    lambda: _see_tile(partial, whole(), near.v),
                ),
            )

        near = span(may_see(tile.ends, _at(ends, b)))
        after = lax.fori_loop(*near, step, _stack_heads(before))
        after = jax.tree.map(lambda x, old: x.reshape(old.shape), after, before)
        return _put(partials, after, b, i, h)

    return _walk(walk, queries, partials)


def _pull_tile(
    queries: Queries,
    keys: Keys,
    saved: Saved,
    dout: Float[Array, "H G t"],
    scores: Float[Array, "s G t"],
) -> tuple[Float[Array, "H G t"], Float[Array, "s H"], Float[Array, "s H"]]:
    """One pair's share of dq, dk and dv, from its masked scores, keys first; `dout` is turned.

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


def pull(queries: Queries, keys: Keys, saved: Saved, grads: Grads) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    ends = ends_of_keys(keys.where)
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0, 0, 0]), grads[1:])

    def walk(grads: Grads, b: Array, h: Array, i: Array) -> Grads:
        tile, known = _queries_at(queries, b, h, i), _widen(_at(saved, b, i, h))
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
                _choose(tile.ends, _at(ends, b, j)),
                (
                    lambda: (jnp.zeros_like(sums[0]), *nothing),
                    lambda: _pull_tile(tile, near, known, dout, masked()),
                    lambda: _pull_tile(tile, near, known, dout, whole()),
                ),
            )
            dk, dv = jax.tree.map(jnp.add, _at(sums[1:], b, j, h), more[1:])
            return sums[0] + more[0], *_put(sums[1:], (dk, dv), b, j, h)

        dq = jnp.moveaxis(_at(grads[0], b, i, h), -1, 0)
        near = span(may_see(tile.ends, _at(ends, b)))
        dq, dk, dv = lax.fori_loop(*near, step, (dq, *grads[1:]))
        return _put(grads[0], jnp.moveaxis(dq, 0, -1), b, i, h), dk, dv

    return _walk(walk, queries, grads)


BLOCKWISE = Kernel(TILE, see, pull)
