"""Attention to keys that lie in pages: a row is a table of page numbers, walked a few at a time.

All rows share one pool. A page holds the keys and values of consecutive tokens of a row: `page` of
them on each device of the ring, device r the r-th part. Page i of a row begins at position
i * ring * page, so the table alone says where every key stands, and rows that begin with the same
tokens can have the same pages. A row is never gathered, and no page is moved.

New tokens are written into their pages first, and are then read like all others. Tokens of several
rows, one each, are held by every device: each attends to its part of the pages, and the parts are
merged by their log-sum-exp. A chunk of a prompt is divided over the ring as a page is: its queries
go round with their partial results and come home having seen every part. Per layer and token that
moves N (H + 2) numbers, or twice as many, where turning the pages would move all keys.

A row's numbers depend on its own tokens only: masked keys add exact zeros.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ringworld.attention.block import forward_tile, widen
from ringworld.attention.online import Partial, empty_partial, finish, finite, merge
from ringworld.attention.ring import rotate, score_scale
from ringworld.mesh import spec
from ringworld.params import Leaf, pytree_dataclass

P = ParamSpec("P")
Attended = tuple[Array, "Pages"]
AXIS = "seq"
# Rows that are walked at one time: of 16 rows of 512 tokens 4 take half the time of 1, and as long
# as all, and rows of different lengths wait for each other in fours only.
ROWS_AT_ONCE = 4
# Pages of a row that are read at one time. A chunk's attention to 2,048 tokens took 5.6 ms with 512
# tokens a step, and 8.9 with 128.
PAGES_AT_ONCE = 2


@pytree_dataclass
class Pages:
    """A pool: keys and values of all layers, `[L, P, K, page, H]`, the page divided over the ring.

    Where they are int8, `k_scale` and `v_scale` `[L, P, K, page]` are the float32 scale of each
    token and head; elsewhere None. Page 0 takes what belongs to no row.
    """

    k: Leaf
    v: Leaf
    k_scale: Leaf
    v_scale: Leaf


def pages_spec(pages: Pages) -> Pages:
    """How the mesh divides each array of the pool."""
    keys, scales = spec(None, None, "kv_heads", AXIS, None), spec(None, None, "kv_heads", AXIS)
    kept = None if pages.k_scale is None else scales
    return Pages(keys, keys, kept, kept)


def quantize(x: Float[Array, "*rows H"]) -> tuple[Int[Array, "*rows H"], Float[Array, "*rows"]]:
    """Vectors as int8 and their float32 scale: the greatest number of each becomes 127."""
    wide = x.astype(jnp.float32)
    scale = jnp.abs(wide).max(-1) / 127
    return jnp.round(wide / jnp.where(scale > 0, scale, 1)[..., None]).astype(jnp.int8), scale


def _encode(pages: Pages, k: Float[Array, "*rows H"], v: Float[Array, "*rows H"]) -> Pages:
    """Keys and values as the pool keeps them."""
    if pages.k_scale is None:
        return Pages(k.astype(pages.k.dtype), v.astype(pages.v.dtype), None, None)
    (k, k_scale), (v, v_scale) = quantize(k), quantize(v)
    return Pages(k, v, k_scale, v_scale)


def _decode(x: Shaped[Array, "*rows H"], scale: Array | None) -> Float[Array, "*rows H"]:
    """Keys or values as the arithmetic takes them."""
    return widen(x) if scale is None else x.astype(jnp.float32) * scale[..., None]


def _write_chunk(
    pages: Pages,
    new: tuple[Float[Array, "1 T K H"], Float[Array, "1 T K H"]],
    layer: Int[Array, ""],
    number: Int[Array, ""],
    offset: Int[Array, ""],
) -> Pages:
    """The pool with consecutive tokens in one page, from `offset` of this device's part on."""
    chunk = _encode(pages, *(x[0].swapaxes(0, 1) for x in new))

    def put(held: Array, new: Array) -> Array:
        begin = (layer, number, 0, offset, 0)[: held.ndim]
        return lax.dynamic_update_slice(held, new[None, None], begin)

    return jax.tree.map(put, pages, chunk)


def _write_rows(
    pages: Pages,
    new: tuple[Float[Array, "B 1 K H"], Float[Array, "B 1 K H"]],
    layer: Int[Array, ""],
    numbers: Int[Array, "B"],
    offsets: Int[Array, "B"],
) -> Pages:
    """The pool with one token of each row."""
    tokens = _encode(pages, *(x[:, 0] for x in new))
    return jax.tree.map(
        lambda held, new: held.at[layer, numbers, :, offsets].set(new), pages, tokens
    )


def _merge_ring(part: Partial) -> Partial:
    """The attention over the keys of every device of the ring, on each of them."""
    top = lax.pmax(part.max, AXIS)
    keep = jnp.exp2(part.max - finite(top))
    sums = jnp.concatenate([part.value, part.sum[..., None]], -1) * keep[..., None]
    sums = lax.psum(sums, AXIS)  # in one array, as in `_send_queries`
    return Partial(top, sums[..., -1], sums[..., :-1])


def _on_the_mesh(seq: str | None) -> Callable[[Callable[P, Attended]], Callable[P, Attended]]:
    """Run a function on every device: new tokens are divided along `seq`, pages as they are."""

    def wrap(local: Callable[..., Attended]) -> Callable[..., Attended]:
        @wraps(local)
        def run(q: Array, k: Array, v: Array, pages: Pages, *rest: Any) -> Attended:
            tokens, keys = spec(None, seq, "heads", None), spec(None, seq, "kv_heads", None)
            held, (*placed, window) = pages_spec(pages), rest
            return jax.shard_map(
                lambda *args: local(*args, window),
                in_specs=(tokens, keys, keys, held, *(spec() for _ in placed)),
                out_specs=(tokens, held),
            )(q, k, v, pages, *placed)

        return run

    return wrap


def _find_positions(i: Array, count: int, page: int) -> Int[Array, "count page"]:
    """The positions that this device holds of pages `i count` to `(i + 1) count` of a row."""
    index = i * count + jnp.arange(count, dtype=jnp.int32)
    first = index * lax.axis_size(AXIS) + lax.axis_index(AXIS)
    return first[:, None] * page + jnp.arange(page, dtype=jnp.int32)


def _walk_rows(
    q: Float[Array, "B K G H"],
    pages: Pages,
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    positions: Int[Array, "B"],
    window: int,
) -> Partial:
    """Attention of one token of each row to this device's part of the rows, some pages at a time.

    The pages walked are those of the row that has most; a key that a row does not see adds zeros.
    """
    page, (ring, own) = pages.k.shape[3], (lax.axis_size(AXIS), lax.axis_index(AXIS))
    stop = (positions.max() - own * page) // (ring * page) + 1
    first = jnp.where(positions >= 0, positions - window + 1, positions.max()).min()

    def step(i: Array, part: Partial) -> Partial:
        numbers = lax.dynamic_slice_in_dim(table, i * PAGES_AT_ONCE, PAGES_AT_ONCE, 1)
        near = jax.tree.map(lambda x: x[layer, numbers], pages)
        k, v = _decode(near.k, near.k_scale), _decode(near.v, near.v_scale)
        at = _find_positions(i, PAGES_AT_ONCE, page)
        here = positions[:, None, None]
        seen = ((at <= here) & (at > here - window))[:, :, None, None]
        scores = jnp.einsum("bkgh,bjksh->bjkgs", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(seen, scores, -jnp.inf)
        top = scores.max((1, 4))
        weights = jnp.exp2(scores - finite(top)[:, None, ..., None])
        value = jnp.einsum(
            "bjkgs,bjksh->bjkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return merge(part, Partial(top, weights.sum((1, 4)), value.sum(1)))

    start = jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), empty_partial(q))
    first = jnp.maximum(first, 0) // (ring * page) // PAGES_AT_ONCE
    return lax.fori_loop(first, -(-stop // PAGES_AT_ONCE), step, start)


@_on_the_mesh(None)
def attend_rows(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B 1 K H"],
    v: Float[Array, "B 1 K H"],
    pages: Pages,
    layer: Int[Array, ""],
    table: Int[Array, "B M"],
    positions: Int[Array, "B"],
    window: int,
) -> tuple[Float[Array, "B 1 N H"], Pages]:
    """Attention of one new token of each row to its row, and the pool with these tokens.

    A token sees the last `window` positions up to its own. The M page numbers of a row, a multiple
    of PAGES_AT_ONCE, are 0 where it has no page. A row at position -1 is none: it gives 0.
    """
    heads, page = pages.k.shape[2:4]
    ring, own = lax.axis_size(AXIS), lax.axis_index(AXIS)
    part = positions % (ring * page)
    number = jnp.take_along_axis(table, positions[:, None] // (ring * page), 1, mode="clip")[:, 0]
    here = (positions >= 0) & (part // page == own)
    pages = _write_rows(pages, (k, v), layer, jnp.where(here, number, 0), part % page)
    rows, _, all_heads, width = q.shape
    tiles = widen(q * score_scale(width)).reshape(rows, heads, all_heads // heads, width)

    size = ROWS_AT_ONCE if rows % ROWS_AT_ONCE == 0 else 1

    def walk(some: tuple[Array, Array, Array]) -> Partial:
        q, table, positions = some
        return _walk_rows(q, pages, layer, table, positions, window)

    some = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (tiles, table, positions))
    parts = jax.tree.map(lambda x: lax.collapse(x, 0, 2), lax.map(walk, some))
    parts = _merge_ring(parts)
    return finish(parts)[0].astype(q.dtype).reshape(q.shape), pages


def _walk_chunk(
    queries: tuple[Array, Array, Partial],
    pages: Pages,
    layer: Int[Array, ""],
    table: Int[Array, "M"],
    window: int,
) -> Partial:
    """The partial results of a chunk's queries with this device's part of the row merged in.

    `queries` are their tiles `[K, G T, H]`, their positions `[T]` in order, and what they have
    seen so far. Pages are walked some at a time, and those at the end singly: the scores of one
    head fit a core's cache.
    """
    tiles, positions, partials = queries
    page, (ring, own) = pages.k.shape[3], (lax.axis_size(AXIS), lax.axis_index(AXIS))
    groups = tiles.shape[1] // len(positions)
    low, high = positions[0], positions[-1]
    stop = (high - own * page) // (ring * page) + 1
    first = jnp.maximum(low - window + 1, 0) // (ring * page)

    def walk(head: tuple[Array, Partial, Array]) -> Partial:
        q, before, h = head

        def step(count: int, i: Array, part: Partial) -> Partial:
            numbers = lax.dynamic_slice_in_dim(table, i * count, count)
            near = jax.tree.map(lambda x: lax.collapse(x[layer, numbers, h], 0, 2), pages)
            k, v = _decode(near.k, near.k_scale), _decode(near.v, near.v_scale)
            at = _find_positions(i, count, page).ravel()

            def whole() -> Float[Array, "rows s"]:
                return jnp.einsum("rh,sh->rs", q, k, preferred_element_type=jnp.float32)

            def masked() -> Float[Array, "rows s"]:
                seen = (at <= positions[:, None]) & (at > positions[:, None] - window)
                return jnp.where(jnp.tile(seen, (groups, 1)), whole(), -jnp.inf)

            return lax.cond(
                (at[-1] <= low) & (at[0] > high - window),
                lambda: forward_tile(part, whole(), v),
                lambda: forward_tile(part, masked(), v),
            )

        many = stop // PAGES_AT_ONCE
        after = lax.fori_loop(first // PAGES_AT_ONCE, many, partial(step, PAGES_AT_ONCE), before)
        rest = jnp.maximum(first, many * PAGES_AT_ONCE)
        return lax.fori_loop(rest, stop, partial(step, 1), after)

    return lax.map(walk, (tiles, partials, jnp.arange(tiles.shape[0], dtype=jnp.int32)))


def _send_queries(
    tiles: Float[Array, "K rows H"], part: Partial
) -> tuple[Float[Array, "K rows H"], Partial]:
    """Queries and their partial results, to the next device of the ring, as one array.

    Several transfers at one time can take all threads of a CPU with virtual devices, and wait for
    each other for ever.
    """
    width, sums = tiles.shape[-1], (part.max[..., None], part.sum[..., None])
    packed = jnp.concatenate([tiles.astype(jnp.float32), part.value, *sums], -1)
    packed = rotate(packed, AXIS)
    coming = Partial(packed[..., -2], packed[..., -1], packed[..., width:-2])
    return packed[..., :width].astype(tiles.dtype), coming


@_on_the_mesh(AXIS)
def attend_chunk(
    q: Float[Array, "1 T N H"],
    k: Float[Array, "1 T K H"],
    v: Float[Array, "1 T K H"],
    pages: Pages,
    layer: Int[Array, ""],
    table: Int[Array, "M"],
    start: Int[Array, ""],
    window: int,
) -> tuple[Float[Array, "1 T N H"], Pages]:
    """Attention of a chunk of one row, divided over the ring, and the pool with the chunk.

    It begins at position `start` and lies in one page: on a ring it is a whole page. The page
    numbers of the row are as many as for `attend_rows`.
    """
    heads, page = pages.k.shape[2:4]
    ring, own = lax.axis_size(AXIS), lax.axis_index(AXIS)
    _, length, all_heads, width = q.shape
    number = table[start // (ring * page)]
    pages = _write_chunk(pages, (k, v), layer, number, start % page)
    tiles = widen(q[0] * score_scale(width)).reshape(length, heads, all_heads // heads, width)
    tiles = tiles.transpose(1, 2, 0, 3).reshape(heads, -1, width)

    def visit(hop: Array, queries: tuple[Array, Partial]) -> tuple[Array, Partial]:
        first = start + (own - hop) % ring * length
        positions = first + jnp.arange(length, dtype=jnp.int32)
        seen = _walk_chunk((queries[0], positions, queries[1]), pages, layer, table, window)
        return (queries[0], seen) if ring == 1 else _send_queries(queries[0], seen)

    part = lax.fori_loop(0, ring, visit, (tiles, empty_partial(tiles)))[1]
    out = finish(part)[0].reshape(heads, -1, length, width).transpose(2, 0, 1, 3)
    return out.reshape(q.shape).astype(q.dtype), pages
