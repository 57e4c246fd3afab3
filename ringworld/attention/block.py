"""The kernel for every platform: blockwise attention in plain XLA, tile by tile.

A pair of tiles that the mask empties is not visited, one that it leaves whole is not masked. Memory
is that of one tile's scores, forward and backward. Rows are walked one after another: a tile of one
row fits a core's cache, and each row skips by its own mask.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Ends, ends_of_keys, may_see, sees, sees_all
from ringworld.attention.online import Partial, finite, merge
from ringworld.attention.tiles import Grads, Kernel, Keys, Queries, Saved, no_grads

# 256 was the fastest of 128, 256, 512 and 1024 for heads of 64 on a 2-core CPU.
TILE = 256


def _scores(q: Array, k: Array) -> Array:
    return jnp.einsum("kgth,ksh->kgts", q, k, preferred_element_type=jnp.float32)


def _masked(scores: Array, queries: Queries, keys: Keys) -> Array:
    return jnp.where(sees(queries.reach, keys.where)[None, None], scores, -jnp.inf)


def _choose(queries: Ends, keys: Ends) -> Int[Array, ""]:
    """0: the pair is empty, 1: it needs the mask, 2: it is whole."""
    live = may_see(queries, keys).astype(jnp.int32)
    return live + live * sees_all(queries, keys).astype(jnp.int32)


def _span(live: Bool[Array, "J"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The first tile that is live, and the one after the last; 0 and 0 when none is."""
    first, past = jnp.argmax(live), live.shape[0] - jnp.argmax(live[::-1])
    return first.astype(jnp.int32), jnp.where(live.any(), past, 0).astype(jnp.int32)


def _at(tree: Any, j: Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, j, keepdims=False), tree)


def _see_tile(partial: Partial, scores: Array, v: Array) -> Partial:
    """The partial result after one more tile of keys, from its masked scores."""
    top = scores.max(-1)
    weights = jnp.exp2(scores - finite(top)[..., None])
    value = jnp.einsum(
        "kgts,ksh->kgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return merge(partial, Partial(top, weights.sum(-1), value))


def see(queries: Queries, keys: Keys, partials: Partial) -> Partial:
    """What the queries know after these keys too. `partials` has the tiles of the queries."""
    return lax.map(_see_row, (queries, keys, ends_of_keys(keys.where), partials))


def _see_row(row: tuple[Queries, Keys, Ends, Partial]) -> Partial:
    """The key tiles of one row, walked for one query tile after another."""
    queries, keys, ends, partials = row

    def walk(tile: tuple[Queries, Partial]) -> Partial:
        queries, partial = tile

        def step(j: Array, partial: Partial) -> Partial:
            near = _at(keys, j)

            def masked() -> Partial:
                scores = _masked(_scores(queries.q, near.k), queries, near)
                return _see_tile(partial, scores, near.v)

            def whole() -> Partial:
                return _see_tile(partial, _scores(queries.q, near.k), near.v)

            kind = _choose(queries.ends, _at(ends, j))
            return lax.switch(kind, (lambda: partial, masked, whole))

        return lax.fori_loop(*_span(may_see(queries.ends, ends)), step, partial)

    return lax.map(walk, (queries, partials))


def _pull_tile(
    queries: Queries, keys: Keys, saved: Saved, mask: Callable[[Array], Array]
) -> tuple[Float[Array, "K G t H"], Float[Array, "K s H"], Float[Array, "K s H"]]:
    """One pair's share of dq, dk and dv."""
    narrow, wide = queries.q.dtype, jnp.float32
    scores = mask(_scores(queries.q, keys.k))
    weights = jnp.exp2(scores - finite(saved.lse)[..., None])
    dweights = jnp.einsum("kgth,ksh->kgts", saved.dout, keys.v, preferred_element_type=wide)
    dscores = (weights * (dweights - saved.delta[..., None])).astype(narrow)
    dv = jnp.einsum(
        "kgts,kgth->ksh", weights.astype(narrow), saved.dout, preferred_element_type=wide
    )
    dq = jnp.einsum("kgts,ksh->kgth", dscores, keys.k, preferred_element_type=wide)
    dk = jnp.einsum("kgts,kgth->ksh", dscores, queries.q, preferred_element_type=wide)
    return dq, dk, dv


def pull(queries: Queries, keys: Keys, saved: Saved, grads: Grads) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    return lax.map(_pull_row, (queries, keys, ends_of_keys(keys.where), saved, grads))


def _pull_row(row: tuple[Queries, Keys, Ends, Saved, Grads]) -> Grads:
    """The key tiles of one row, walked for one query tile after another."""
    queries, keys, ends, saved, (dq, dk, dv) = row

    def walk(sums: tuple[Array, Array], tile: tuple[Queries, Saved, Array]) -> tuple[Any, Array]:
        queries, saved, dq = tile

        def step(j: Array, sums: Grads) -> Grads:
            near = _at(keys, j)

            def masked() -> Grads:
                return _pull_tile(queries, near, saved, lambda x: _masked(x, queries, near))

            def whole() -> Grads:
                return _pull_tile(queries, near, saved, lambda x: x)

            kind = _choose(queries.ends, _at(ends, j))
            more = lax.switch(kind, (lambda: no_grads(queries, near), masked, whole))
            return sums[0] + more[0], sums[1].at[j].add(more[1]), sums[2].at[j].add(more[2])

        dq, dk, dv = lax.fori_loop(*_span(may_see(queries.ends, ends)), step, (dq, *sums))
        return (dk, dv), dq

    (dk, dv), dq = lax.scan(walk, (dk, dv), (queries, saved, dq))
    return dq, dk, dv


BLOCKWISE = Kernel(TILE, see, pull)
