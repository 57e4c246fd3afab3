"""The kernel for every platform: blockwise attention in plain XLA, tile by tile.

A pair of tiles that the mask empties is not visited, one that it leaves whole is not masked. Memory
is that of one tile's scores, forward and backward. Rows are walked one after another, and in each
its key heads: the scores of one pair fit a core's cache, and each row skips by its own mask.
"""

from collections.abc import Callable
from dataclasses import replace
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

Tiles = tuple[Queries, Keys, Ends]  # the tiles of one key head, and the ends of its keys


def _walk_heads(
    walk: Callable[[Tiles, Any, Any], Any], queries: Queries, keys: Keys, known: Any, sums: Any
) -> Any:
    """`sums = walk(tiles, known, sums)` for one key head of one row after another.

    The tiles of a head are queries `[I, G, t, H]` and keys `[J, s, H]`; so is what `known` and
    `sums` hold. A head is taken out and its sums are put back in place: no array is turned.
    """

    def walk_row(row: tuple[Queries, Keys, Ends, Any, Any]) -> Any:
        queries, keys, ends, known, sums = row

        def walk_head(head: Array, sums: Any) -> Any:
            q, k, v, of_head = _widen(_at((queries.q, keys.k, keys.v, known), head, 1))
            tiles = replace(queries, q=q), replace(keys, k=k, v=v), ends
            more = walk(tiles, of_head, _at(sums, head, 1))
            return jax.tree.map(
                lambda x, y: lax.dynamic_update_index_in_dim(x, y, head, 1), sums, more
            )

        return lax.fori_loop(0, keys.k.shape[1], walk_head, sums)

    return lax.map(walk_row, (queries, keys, ends_of_keys(keys.where), known, sums))


def _widen(tree: Any) -> Any:
    """The arrays as float32 on a CPU, whose product of bfloat16 has no float32 sum; others as is.

    A product of two bfloat16 numbers is exact in float32: nothing is lost.
    """
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree) if platform() == "cpu" else tree


def _choose(queries: Ends, keys: Ends) -> Int[Array, ""]:
    """0: the pair is empty, 1: it needs the mask, 2: it is whole."""
    live = may_see(queries, keys).astype(jnp.int32)
    return live + live * sees_all(queries, keys).astype(jnp.int32)


def _at(tree: Any, j: Array, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, j, axis, keepdims=False), tree)


def _see_tile(partial: Partial, scores: Float[Array, "G t s"], v: Float[Array, "s H"]) -> Partial:
    """The partial result after one more tile of keys, from its masked scores."""
    top = scores.max(-1)
    weights = jnp.exp2(scores - finite(top)[..., None])
    value = jnp.einsum(
        "gts,sh->gth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return merge(partial, Partial(top, weights.sum(-1), value))


def see(queries: Queries, keys: Keys, partials: Partial) -> Partial:
    """What the queries know after these keys too. `partials` has the tiles of the queries."""
    return _walk_heads(lambda tiles, _, sums: _see_head(tiles, sums), queries, keys, (), partials)


def _see_head(tiles: Tiles, partials: Partial) -> Partial:
    """The key tiles of one head, walked for one query tile after another."""
    queries, keys, ends = tiles

    def walk(tile: tuple[Queries, Partial]) -> Partial:
        queries, partial = tile

        def step(j: Array, partial: Partial) -> Partial:
            near = _at(keys, j)

            def whole() -> Float[Array, "G t s"]:
                return jnp.einsum(
                    "gth,sh->gts", queries.q, near.k, preferred_element_type=jnp.float32
                )

            def masked() -> Float[Array, "G t s"]:
                return jnp.where(sees(queries.reach, near.where), whole(), -jnp.inf)

            return lax.switch(
                _choose(queries.ends, _at(ends, j)),
                (
                    lambda: partial,
                    lambda: _see_tile(partial, masked(), near.v),
                    lambda: _see_tile(partial, whole(), near.v),
                ),
            )

        return lax.fori_loop(*span(may_see(queries.ends, ends)), step, partial)

    return lax.map(walk, (queries, partials))


def _pull_tile(
    queries: Queries, keys: Keys, saved: Saved, scores: Float[Array, "s G t"]
) -> tuple[Float[Array, "H G t"], Float[Array, "s H"], Float[Array, "s H"]]:
    """One pair's share of dq, dk and dv, from its masked scores, keys first.

    With keys first no product needs a transposed tile of scores, which costs a CPU as much as a
    product; what is transposed is dq.
    """
    narrow = queries.q.dtype
    weights = jnp.exp2(scores - finite(saved.lse))
    dweights = jnp.einsum("sh,gth->sgt", keys.v, saved.dout, preferred_element_type=jnp.float32)
    dscores = (weights * (dweights - saved.delta)).astype(narrow)
    dv = jnp.einsum(
        "sgt,gth->sh", weights.astype(narrow), saved.dout, preferred_element_type=jnp.float32
    )
    dk = jnp.einsum("sgt,gth->sh", dscores, queries.q, preferred_element_type=jnp.float32)
    dq = jnp.einsum("hs,sgt->hgt", keys.k.T, dscores, preferred_element_type=jnp.float32)
    return dq, dk, dv


def pull(queries: Queries, keys: Keys, saved: Saved, grads: Grads) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    return _walk_heads(_pull_head, queries, keys, saved, grads)


def _pull_head(tiles: Tiles, saved: Saved, grads: Grads) -> Grads:
    """The key tiles of one head, walked for one query tile after another."""
    queries, keys, ends = tiles
    dq, dk, dv = grads
    no_keys = jnp.zeros_like(dk[0]), jnp.zeros_like(dv[0])

    def walk(sums: tuple[Array, Array], tile: tuple[Queries, Saved, Array]) -> tuple[Any, Array]:
        queries, saved, dq = tile

        def step(j: Array, sums: Grads) -> Grads:
            near = _at(keys, j)

            def whole() -> Float[Array, "s G t"]:
                return jnp.einsum(
                    "sh,gth->sgt", near.k, queries.q, preferred_element_type=jnp.float32
                )

            def masked() -> Float[Array, "s G t"]:
                seen = sees(queries.reach, near.where).T[:, None]
                return jnp.where(seen, whole(), -jnp.inf)

            # The sums stay outside: a branch that held them would copy them at every step.
            more = lax.switch(
                _choose(queries.ends, _at(ends, j)),
                (
                    lambda: (jnp.zeros_like(sums[0]), *no_keys),
                    lambda: _pull_tile(queries, near, saved, masked()),
                    lambda: _pull_tile(queries, near, saved, whole()),
                ),
            )
            return sums[0] + more[0], sums[1].at[j].add(more[1]), sums[2].at[j].add(more[2])

        first = (jnp.moveaxis(dq, -1, 0), *sums)
        dq, dk, dv = lax.fori_loop(*span(may_see(queries.ends, ends)), step, first)
        return (dk, dv), jnp.moveaxis(dq, 0, -1)

    (dk, dv), dq = lax.scan(walk, (dk, dv), (queries, saved, dq))
    return dq, dk, dv


BLOCKWISE = Kernel(TILE, see, pull)
