"""Attention to pages: the last rows of full attention, wherever the pages lie, on any ring."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention.dense import attend_dense
from ringworld.attention.mask import Where, window
from ringworld.attention.paged import PAGES_AT_ONCE, Pages, attend_chunk, attend_rows, quantize
from ringworld.mesh import make_mesh, named_sharding

MESHES = [{}, {"seq": 4}, {"data": 2, "seq": 2, "tensor": 2}]
PAGE, COUNT, COLUMNS = 4, 12, 4 * PAGES_AT_ONCE  # tokens of a page over the ring, pages, columns
ENDLESS = 1 << 30


def lay(
    keys: np.ndarray, values: np.ndarray, tables: list[list[int]], lengths: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """A pool of one layer behind an empty one, with the first tokens of each row in its pages."""
    pool = np.full((2, 2, COUNT, keys.shape[2], PAGE, keys.shape[3]), 9, np.float32)
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        for i in range(length):
            for part, x in zip(pool, (keys, values), strict=True):
                part[1, table[i // PAGE], :, i % PAGE] = x[row, i]
    return pool[0], pool[1]


def run(shape: dict[str, int], attend: Any, arrays: list[Any], axis: str | None) -> Any:
    """`attend(q, k, v, pages, ...)` on a mesh."""
    mesh = make_mesh(**shape)
    heads, keys = (named_sharding(mesh, None, axis, name, None) for name in ("heads", "kv_heads"))
    pool = named_sharding(mesh, None, None, "kv_heads", "seq", None)
    with jax.set_mesh(mesh):
        q, k, v, held, *rest = arrays
        placed = [jax.device_put(q, heads), *(jax.device_put(x, keys) for x in (k, v))]
        pages = Pages(*(jax.device_put(x, pool) for x in held), None, None)
        out, pages = jax.jit(attend)(*placed, pages, *rest)
        return np.asarray(out), np.asarray(pages.k)


@pytest.mark.parametrize("size", [ENDLESS, 5])
@pytest.mark.parametrize("shape", MESHES, ids=["1", "ring4", "2x1x2x2"])
def test_one_token_of_each_row_sees_its_row_and_no_other(
    shape: dict[str, int], size: int, rng: np.random.Generator
) -> None:
    """Rows of 13, 1 and 30 tokens; the first and the last share two pages; one row is idle."""
    q, k, v = (rng.standard_normal((4, 30, n, 8), np.float32) for n in (4, 2, 2))
    k[0, :8], v[0, :8] = k[2, :8], v[2, :8]
    tables, lengths = [[5, 2, 7, 1], [3], [5, 2, 4, 6, 8, 9, 10, 11], []], [13, 1, 30, 0]
    where = Where(np.tile(np.arange(30, dtype=np.int32), (4, 1)), np.ones((4, 30), np.int32))
    where = Where(where.positions, where.segments, window(where, size))
    where = jax.tree.map(jnp.asarray, where)
    wanted = attend_dense(*map(jnp.asarray, (q, k, v)), where, is_causal=True)
    last = np.asarray(lengths, np.int32) - 1
    new = [np.take_along_axis(x, np.maximum(last, 0)[:, None, None, None], 1) for x in (q, k, v)]
    table = np.zeros((4, COLUMNS), np.int32)
    for row, numbers in enumerate(tables):
        table[row, : len(numbers)] = numbers
    held = lay(k, v, tables, [n - 1 for n in (13, 1, 30)] + [0])

    def attend(q: Any, k: Any, v: Any, pages: Pages, layer: Any, table: Any, at: Any) -> Any:
        return attend_rows(q, k, v, pages, layer, table, at, size)

    out, pool = run(shape, attend, [*new, held, np.int32(1), table, last], None)
    for row in range(3):
        # Sums of 8 products of numbers near 1, in float32, in another order.
        np.testing.assert_allclose(out[row, 0], wanted[row, last[row]], atol=2e-6)
        page = pool[1, tables[row][last[row] // PAGE], :, last[row] % PAGE]
        np.testing.assert_array_equal(page, k[row, last[row]])
    assert not out[3].any()
    np.testing.assert_array_equal(pool[0], held[0][0])


@pytest.mark.parametrize("size", [ENDLESS, 5])
@pytest.mark.parametrize("shape", MESHES, ids=["1", "ring4", "2x1x2x2"])
def test_a_chunk_sees_the_pages_before_it_and_itself(
    shape: dict[str, int], size: int, rng: np.random.Generator
) -> None:
    q, k, v = (rng.standard_normal((1, 20, n, 8), np.float32) for n in (4, 2, 2))
    where = Where(np.arange(20, dtype=np.int32)[None], np.ones((1, 20), np.int32))
    where = Where(where.positions, where.segments, window(where, size))
    where = jax.tree.map(jnp.asarray, where)
    wanted = attend_dense(*map(jnp.asarray, (q, k, v)), where, is_causal=True)[0, 12:16]
    numbers = [5, 2, 7, 1, 3]
    table = np.zeros(COLUMNS, np.int32)
    table[:5] = numbers
    held = lay(k, v, [numbers], [12])
    new = [x[:, 12:16] for x in (q, k, v)]

    def attend(q: Any, k: Any, v: Any, pages: Pages, layer: Any, table: Any, at: Any) -> Any:
        return attend_chunk(q, k, v, pages, layer, table, at, size)

    out, pool = run(shape, attend, [*new, held, np.int32(1), table, np.int32(12)], "seq")
    np.testing.assert_allclose(out[0], wanted, atol=2e-6)  # as above
    np.testing.assert_array_equal(pool[1, 1].swapaxes(0, 1), k[0, 12:16])


def test_int8_keeps_a_number_to_half_a_step_of_its_scale(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 3, 16), np.float32)
    x[0] = 0
    small, scale = quantize(jnp.asarray(x))
    assert small.dtype == jnp.int8
    error = np.abs(np.asarray(small, np.float32) * np.asarray(scale)[..., None] - x)
    assert (error <= np.asarray(scale)[..., None] / 2 * 1.0001).all()
    assert np.abs(x).max() / 127 == pytest.approx(float(scale.max()))
