"""The kernels for accelerators, run by their interpreter, against blockwise attention in XLA.

Blockwise attention itself is compared with the definition in tests/test_attention.py.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld import attention
from ringworld.attention import attend, pallas_gpu, pallas_tpu
from ringworld.attention import ring as rotation
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.layout import zigzag_order
from ringworld.attention.mask import Reach, Where, key_bounds, reach, window
from ringworld.attention.online import Partial, empty_partial, finish
from ringworld.attention.tiles import (
    Grads,
    Kernel,
    Saved,
    cut,
    cut_keys,
    cut_queries,
    zero_grads,
)
from ringworld.mesh import make_mesh, named_sharding

B, T, N, H, TILE = 2, 96, 4, 16, 16
XLA = replace(BLOCKWISE, tile=TILE)
KERNELS = {
    "tpu": pallas_tpu.make_tpu_kernel(TILE, interpret=True),
    "gpu": pallas_gpu.make_gpu_kernel(TILE, interpret=True),
}
# The same sums of at most T float32 terms in another order: sqrt(T) 2^-23 = 1.2e-6, twice for the
# two steps of a running softmax. Errors are compared with the largest number of the array, or 1.
TOLERANCE = 2.4e-6

every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@pytest.fixture(autouse=True)
def no_mesh() -> Iterator[None]:
    """A kernel is the program of one device: within a ring it knows of no mesh."""
    with jax.set_mesh(None):
        yield


def one_document() -> Where:
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Where(positions, np.ones_like(positions))


def packed() -> Where:
    """A row of four documents and padding, one of two; no border is a tile's."""
    where = one_document()
    for row, starts in enumerate([[0, 30, 33, 69, 87], [0, 57]]):
        for segment, start in enumerate(starts, start=1):
            where.segments[row, start:] = segment % 5
            where.positions[row, start:] = np.arange(T - start)
    return where


def dealt(where: Where) -> Where:
    order = zigzag_order(T, 4)
    return jax.tree.map(lambda x: x[:, order], where)


def through_a_window(where: Where) -> Where:
    return replace(where, span=window(where, 21))


ROWS = {
    "one": one_document(),
    "packed": packed(),
    "zigzag": dealt(packed()),
    "window": through_a_window(packed()),
}


def draw(kv_heads: int, width: int = H) -> tuple[np.ndarray, ...]:
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(0)
    heads = (N, kv_heads, kv_heads, N)
    return tuple(rng.standard_normal((B, T, n, width)).astype(np.float32) for n in heads)


def outcome(
    kernel: Kernel, name: str, arrays: tuple[np.ndarray, ...], causal: bool = True
) -> tuple[Partial, Grads]:
    """What a kernel makes of two shards of keys: partial results and gradients."""
    where = ROWS[name]
    return run(kernel)(*arrays, reach(where, causal), Where(where.positions, where.segments))


@cache
def run(kernel: Kernel) -> Any:
    """Compiled once for all masks of a shape."""

    @jax.jit
    def forward_and_backward(q: Any, k: Any, v: Any, dout: Any, seen: Reach, where: Where) -> Any:
        groups = q.shape[2] // k.shape[2]
        queries = cut_queries(q, seen, groups, TILE, 0.5)
        shards = [
            cut_keys(
                k[:, part], v[:, part], jax.tree.map(itemgetter((slice(None), part)), where), TILE
            )
            for part in (slice(T // 2, T), slice(T // 2))
        ]
        partials, grads = empty_partial(queries.q), None
        for keys in shards:
            partials = kernel.forward(queries, keys, partials)
        out, lse = finish(partials)
        dout = cut(dout, groups, TILE)
        saved = Saved(dout, lse, (out * dout.astype(jnp.float32)).sum(-1))
        for keys in shards:
            grads = kernel.backward(queries, keys, saved, grads or zero_grads(queries, keys))
        return partials, grads

    return forward_and_backward


def assert_close(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(jnp.isneginf(a), jnp.isneginf(b))
        a, b = (np.where(jnp.isneginf(x), 0, x) for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


@every_kernel
@pytest.mark.parametrize(("name", "kv_heads"), [*((name, 2) for name in ROWS), ("packed", 1)])
def test_its_forward_and_backward_equal_those_of_plain_xla(
    kernel: Kernel, name: str, kv_heads: int
) -> None:
    found, wanted = (outcome(each, name, draw(kv_heads)) for each in (kernel, XLA))
    assert_close(found, wanted)


@every_kernel
def test_without_causality_every_key_of_the_segment_counts(kernel: Kernel) -> None:
    found, wanted = (outcome(each, "packed", draw(2), causal=False) for each in (kernel, XLA))
    assert_close(found, wanted)


@every_kernel
def test_a_pair_of_tiles_that_the_mask_empties_is_not_read(kernel: Kernel) -> None:
    """0 x NaN is NaN: a masked read of the second half would show."""
    q, k, v, dout = draw(2)
    where = one_document()
    where.segments[:, T // 2 :] = 2
    k[:, T // 2 :] = v[:, T // 2 :] = np.nan
    (q, k, v, dout), where = jax.tree.map(jnp.asarray, ((q, k, v, dout), where))
    queries = cut_queries(q, reach(where, False), 2, TILE, 0.5)
    keys = cut_keys(k, v, where, TILE)
    partials = jax.jit(kernel.forward)(queries, keys, empty_partial(queries.q))
    half = T // TILE // 2
    assert np.isfinite(partials.value[:, :half]).all()
    assert np.isnan(partials.value[:, half:]).all()
    lse = jnp.zeros_like(partials.max)
    saved = Saved(cut(dout, 2, TILE), lse, lse)
    dq, dk, dv = jax.jit(kernel.backward)(queries, keys, saved, zero_grads(queries, keys))
    assert all(np.isfinite(x[:, :half]).all() for x in (dq, dk, dv))
    assert np.isnan(dq[:, half:]).all()


@every_kernel
def test_bfloat16_goes_in_and_float32_sums_come_out(kernel: Kernel) -> None:
    arrays = tuple(x.astype(jnp.bfloat16) for x in draw(kv_heads=N))
    found, wanted = (outcome(each, "packed", arrays) for each in (kernel, XLA))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == jnp.float32
        a, b = (np.where(jnp.isneginf(x), 0, x) for x in (a, b))
        # Weights are rounded to bfloat16, 2^-8, at another running maximum; their sums are not.
        assert np.abs(a - b).max() <= 2**-8 * max(np.abs(b).max(), 1.0)


def pass_both(where: Where, impl: Any) -> Callable[..., Any]:
    """The output of q, k and v, and the gradients of dout."""

    def run(q: Any, k: Any, v: Any, dout: Any) -> Any:
        out, pull = jax.vjp(partial(attend, where=where, impl=impl), q, k, v)
        return out, *pull(dout)

    return jax.jit(run)


@every_kernel
@pytest.mark.parametrize(("length", "width"), [(1, 16), (45, 12)])
def test_lengths_and_widths_that_tiles_do_not_divide_lose_nothing(
    kernel: Kernel, length: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xla", kernel)
    arrays = [jnp.asarray(x[:, :length]) for x in draw(2, width)]
    where = jax.tree.map(lambda x: jnp.asarray(x[:, :length]), packed())
    assert_close(pass_both(where, "xla")(*arrays), pass_both(where, "dense")(*arrays))


@every_kernel
@pytest.mark.parametrize(("ring", "name"), [(4, "packed"), (2, "zigzag")])
def test_a_ring_of_it_equals_the_definition(
    kernel: Kernel, ring: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter loses track of what varies over a mesh. The compiler does not need it to.

    Without it the ring cannot count its hops, so here it goes all the way round.
    """
    monkeypatch.setattr(jax, "shard_map", partial(jax.shard_map, check_vma=False))
    monkeypatch.setattr(rotation, "count_hops", lambda *_: jnp.int32(ring - 1))
    monkeypatch.setitem(attention.KERNELS, "xla", kernel)
    *arrays, dout = draw(2)

    def run(impl: Any) -> Any:
        mesh = make_mesh(seq=ring)
        heads, rows = (
            named_sharding(mesh, "batch", "seq", "heads", None),
            named_sharding(mesh, "batch", "seq"),
        )
        with jax.set_mesh(mesh):
            where = jax.device_put(ROWS[name], rows)
            return jax.device_get(pass_both(where, impl)(*jax.device_put((*arrays, dout), heads)))

    assert_close(run("xla"), run("dense"))


@pytest.mark.gpu
@pytest.mark.parametrize("tile", [TILE, pallas_gpu.GPU_TILE])
@pytest.mark.parametrize("name", ROWS)
def test_a_gpu_attends_as_the_definition_says(
    name: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xla", pallas_gpu.make_gpu_kernel(tile))
    arrays, where = jax.tree.map(jnp.asarray, (draw(2), ROWS[name]))
    found, wanted = (pass_both(where, impl)(*arrays) for impl in ("xla", "dense"))
    # A GPU's exp2 is right to 2^-22, and so is its exp.
    assert_close(found, wanted, TOLERANCE + 2 * 2**-22)


# ---- what Triton is given


def test_only_tiles_at_the_ends_of_a_walk_are_masked() -> None:
    where = jax.tree.map(lambda x: jnp.asarray(x[:1]), one_document())
    queries = cut_queries(jnp.zeros((1, T, 1, H)), reach(where, True), 1, TILE, 1.0)
    keys = key_bounds(cut_keys(*jnp.zeros((2, 1, T, 1, H)), where, TILE).where)
    bounds = partial(pallas_gpu.find_runs, queries.bounds, keys)
    # First live, first whole, after the whole, after the last live: all but the diagonal is whole.
    wanted = [[0, 1, 1, 1], *([0, 0, i, i + 1] for i in range(1, 6))]
    assert bounds(over_keys=True, full=True)[0, :, 0].tolist() == wanted
    wanted = [*([i, i + 1, 6, 6] for i in range(5)), [5, 6, 6, 6]]
    assert bounds(over_keys=False, full=True)[0, :, 0].tolist() == wanted
    masked = [[0, i + 1, i + 1, i + 1] for i in range(6)]
    assert bounds(over_keys=True, full=False)[0, :, 0].tolist() == masked


@pytest.mark.parametrize(("width", "dtype"), [(128, "bfloat16"), (80, "float32")])
def test_a_million_tokens_lower_to_three_programs_and_nothing_larger_than_the_queries(
    width: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation has a translation for Triton, and a ring has its types right.

    It does not prove that Triton compiles the programs, nor that a GPU runs them as they say.
    """
    monkeypatch.setitem(attention.KERNELS, "xla", pallas_gpu.make_gpu_kernel())
    length, ring = 2**20, 4
    mesh = make_mesh(seq=ring)

    def array(dtype: str, *sizes: int) -> jax.ShapeDtypeStruct:
        sharding = named_sharding(mesh, *("batch", "seq", "heads", None)[: 2 + len(sizes)])
        return jax.ShapeDtypeStruct((1, length, *sizes), dtype, sharding=sharding)

    q, k, row = array(dtype, 2, width), array(dtype, 1, width), array("int32")
    with jax.set_mesh(mesh):
        both = jax.jit(lambda where, *arrays: pass_both(where, "xla")(*arrays))
        lowered = both.trace(Where(row, row), q, k, k, q).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    names = re.findall(r'name = "(\w+)", num_stages', text)
    assert set(names) == {"forward_tile", "backward_queries", "backward_keys"}
    numbers, floats = (
        max(math.prod(map(int, sizes.split("x"))) for sizes in re.findall(kind, text))
        for kind in (r"tensor<([\dx]+)xu?i\d+>", r"tensor<([\dx]+)xb?f\d+>")
    )
    pairs = (length // ring // pallas_gpu.GPU_TILE) ** 2
    assert numbers <= length < pairs
    assert floats == math.prod(q.shape)
