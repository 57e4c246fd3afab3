"""The kernel for TPUs, run by its interpreter, against blockwise attention in plain XLA."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld import attention
from ringworld.attention import attend
from ringworld.attention import ring as rotation
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.layout import zigzag_order
from ringworld.attention.mask import Where, reach, window
from ringworld.attention.online import Partial, finish, nothing_seen
from ringworld.attention.pallas_tpu import make_kernel
from ringworld.attention.tiles import Grads, Saved, cut, cut_keys, cut_queries, no_grads
from ringworld.mesh import make_mesh, named_sharding

B, T, N, H, TILE = 2, 32, 4, 8, 8
KERNEL = make_kernel(TILE, interpret=True)
# The same sums of at most T float32 terms in another order: sqrt(T) 2^-23 = 1e-6, twice for the two
# steps of a running softmax. Errors are compared with the largest number of the array, or with 1.
TOLERANCE = 2e-6


def one_document() -> Where:
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Where(positions, np.ones_like(positions))


def packed() -> Where:
    """A row of four documents and padding, one of two; no border is a tile's."""
    where = one_document()
    for row, starts in enumerate([[0, 10, 11, 23, 29], [0, 19]]):
        for segment, start in enumerate(starts, start=1):
            where.segments[row, start:] = segment % 5
            where.positions[row, start:] = np.arange(T - start)
    return where


def dealt(where: Where) -> Where:
    order = zigzag_order(T, 4)
    return jax.tree.map(lambda x: x[:, order], where)


def through_a_window(where: Where) -> Where:
    return replace(where, span=window(where, 5))


ROWS = {
    "one": one_document(),
    "packed": packed(),
    "zigzag": dealt(packed()),
    "window": through_a_window(packed()),
}


def draw(kv_heads: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(seed)
    heads = (N, kv_heads, kv_heads, N)
    return tuple(rng.standard_normal((B, T, n, H)).astype(np.float32) for n in heads)


def both(name: str, kv_heads: int, causal: bool = True) -> Any:
    """What each kernel makes of two shards of keys: partial results and gradients."""
    return [outcome(kernel)(*draw(kv_heads), ROWS[name], causal) for kernel in KERNELS]


@cache
def outcome(kernel: Any) -> Any:
    def run(q: Any, k: Any, v: Any, dout: Any, where: Where, causal: bool) -> Any:
        groups = q.shape[2] // k.shape[2]
        queries = cut_queries(q, reach(where, causal), groups, TILE, 0.5)
        halves = jax.tree.map(lambda x: (x[:, T // 2 :], x[:, : T // 2]), (k, v, where))
        shards = [
            cut_keys(*half, TILE)
            for half in jax.tree.transpose(
                jax.tree.structure((k, v, where)), jax.tree.structure((0, 0)), halves
            )
        ]
        partials, grads = nothing_seen(queries.q), None
        for keys in shards:
            partials = kernel.see(queries, keys, partials)
        out, lse = finish(partials)
        dout = cut(dout, groups, TILE)
        saved = Saved(dout, lse, (out * dout.astype(jnp.float32)).sum(-1))
        for keys in shards:
            grads = kernel.pull(queries, keys, saved, grads or no_grads(queries, keys))
        return partials, grads

    return jax.jit(run, static_argnums=5)


KERNELS = (KERNEL, replace(BLOCKWISE, tile=TILE))


def assert_close(found: Partial | Grads, wanted: Partial | Grads) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(jnp.isneginf(a), jnp.isneginf(b))
        a, b = (np.where(jnp.isneginf(x), 0, x) for x in (a, b))
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize(
    ("name", "kv_heads"), [*((name, 2) for name in ROWS), ("packed", 4), ("packed", 1)]
)
def test_it_sees_and_pulls_what_plain_xla_does(name: str, kv_heads: int) -> None:
    (partials, grads), (wanted, wanted_grads) = both(name, kv_heads)
    assert_close(partials, wanted)
    assert_close(grads, wanted_grads)


def test_without_causality_every_key_of_the_segment_counts() -> None:
    (partials, grads), (wanted, wanted_grads) = both("packed", 2, causal=False)
    assert_close(partials, wanted)
    assert_close(grads, wanted_grads)


def test_a_pair_of_tiles_that_the_mask_empties_is_not_read() -> None:
    """0 x NaN is NaN: a masked read of the second half would show."""
    q, k, v, dout = draw(2)
    where = one_document()
    where.segments[:, T // 2 :] = 2
    k[:, T // 2 :] = v[:, T // 2 :] = np.nan
    (q, k, v, dout), where = jax.tree.map(jnp.asarray, ((q, k, v, dout), where))
    queries = cut_queries(q, reach(where, False), 2, TILE, 0.5)
    keys = cut_keys(k, v, where, TILE)
    partials = jax.jit(KERNEL.see)(queries, keys, nothing_seen(queries.q))
    half = T // TILE // 2
    assert np.isfinite(partials.value[:, :half]).all()
    assert np.isnan(partials.value[:, half:]).all()
    lse = jnp.zeros_like(partials.max)
    saved = Saved(cut(dout, 2, TILE), lse, lse)
    dq, dk, dv = jax.jit(KERNEL.pull)(queries, keys, saved, no_grads(queries, keys))
    assert all(np.isfinite(x[:, :half]).all() for x in (dq, dk, dv))
    assert np.isnan(dq[:, half:]).all()


def test_bfloat16_goes_in_and_float32_sums_come_out() -> None:
    arrays = [x.astype(jnp.bfloat16) for x in draw(2)]
    found, wanted = (outcome(kernel)(*arrays, packed(), True) for kernel in KERNELS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == jnp.float32
        a, b = (np.where(jnp.isneginf(x), 0, x) for x in (a, b))
        # Weights are rounded to bfloat16, 2^-8, at another running maximum; their sums are not.
        assert np.abs(a - b).max() <= 2**-8 * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize("length", [1, 13])
def test_lengths_that_tiles_do_not_divide_lose_nothing(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xla", KERNEL)
    q, k, v, _ = (jnp.asarray(x[:, :length]) for x in draw(2))
    where = jax.tree.map(lambda x: jnp.asarray(x[:, :length]), packed())
    found = jax.jit(partial(attend, where=where))(q, k, v)
    wanted = attend(q, k, v, where, impl="dense")
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize(("ring", "name"), [(4, "packed"), (2, "zigzag")])
def test_a_ring_of_it_equals_the_definition(
    ring: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter loses track of what varies over a mesh. The compiler does not need it to.

    Without it the ring cannot count its hops, so here it goes all the way round.
    """
    monkeypatch.setattr(jax, "shard_map", partial(jax.shard_map, check_vma=False))
    monkeypatch.setattr(rotation, "count_hops", lambda *_: jnp.int32(ring - 1))
    monkeypatch.setitem(attention.KERNELS, "xla", KERNEL)
    *arrays, dout = draw(2)

    def run(impl: Any) -> Any:
        mesh = make_mesh(seq=ring)
        heads, rows = (
            named_sharding(mesh, "batch", "seq", "heads", None),
            named_sharding(mesh, "batch", "seq"),
        )
        with jax.set_mesh(mesh):
            where = jax.device_put(ROWS[name], rows)

            def pass_both(q: Any, k: Any, v: Any, dout: Any) -> Any:
                out, pull = jax.vjp(partial(attend, where=where, impl=impl), q, k, v)
                return out, *pull(dout)

            return jax.device_get(jax.jit(pass_both)(*jax.device_put((*arrays, dout), heads)))

    for a, b in zip(run("xla"), run("dense"), strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1.0)
