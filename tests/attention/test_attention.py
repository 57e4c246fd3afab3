"""Every implementation of attention gives the numbers of its definition, and costs what it says."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh

from ringworld import attention
from ringworld.attention import attend
from ringworld.attention import ring as ring_module
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.layout import zigzag_order
from ringworld.attention.mask import (
    Where,
    key_bounds,
    may_see,
    query_bounds,
    reach,
    sees,
    sees_all,
)
from ringworld.attention.ring import count_hops
from ringworld.attention.tiles import Keys, Queries, zero_grads
from ringworld.errors import InputError
from ringworld.mesh import make_mesh, named_sharding, spec

B, T, N, H = 2, 128, 4, 8
TILE = 8
HEADS = {"mha": 4, "gqa": 2, "mqa": 1}
# Rounding in float32 sums of T = 128 terms adds up like a random walk: sqrt(T) 2^-23 = 1.4e-6.
# Errors are compared with the largest number of the array, or with 1, the size of the inputs.
TOLERANCE = 2e-6

Arrays = tuple[np.ndarray, ...]


@pytest.fixture(autouse=True, scope="module")
def many_tiles(set_tile: Callable[[int], None]) -> None:
    set_tile(TILE)


def one_document(length: int = T) -> Where:
    positions = np.tile(np.arange(length, dtype=np.int32), (B, 1))
    return Where(positions, np.ones_like(positions))


def packed(length: int = T) -> Where:
    """A row of five documents and padding, one of two long ones; no border is a tile's."""
    lengths = [[37, 1, 50, 3, 20], [75, 53]]
    positions, segments = np.zeros((2, B, length), np.int32)
    for row, pieces in enumerate(lengths):
        at = 0
        for segment, n in enumerate(pieces, start=1):
            n = min(n, length - at)
            positions[row, at : at + n] = np.arange(n)
            segments[row, at : at + n] = segment
            at += n
    return Where(positions, segments)


# What is set when nobody has set a mesh.
NO_MESH = Mesh(np.empty((), object), ())


def draw(length: int, kv_heads: int, seed: int = 0) -> Arrays:
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(seed)
    heads = (N, kv_heads, kv_heads, N)
    return tuple(rng.standard_normal((B, length, n, H)).astype(np.float32) for n in heads)


def visible(where: Where, causal: bool) -> np.ndarray:
    """The mask from its definition, [B, T, T]."""
    position, segment = where.positions, where.segments
    mask = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] > 0)
    return mask & (position[:, :, None] >= position[:, None, :]) if causal else mask


def definition(q: Any, k: Any, v: Any, dout: Any, where: Where, causal: bool) -> Arrays:
    """The output, dq, dk and dv in float64, written out by hand."""
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    kv_heads, scale = k.shape[2], H**-0.5
    k, v = (np.repeat(x, N // kv_heads, axis=2) for x in (k, v))
    mask = visible(where, causal)[:, None]
    scores = np.where(mask, np.einsum("btnh,bsnh->bnts", q, k) * scale, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    out = np.einsum("bnts,bsnh->btnh", weights, v)
    dweights = np.einsum("btnh,bsnh->bnts", dout, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
    dq = np.einsum("bnts,bsnh->btnh", dscores, k)
    dk = np.einsum("bnts,btnh->bsnh", dscores, q)
    dv = np.einsum("bnts,btnh->bsnh", weights, dout)
    dk, dv = (x.reshape(B, -1, kv_heads, N // kv_heads, H).sum(3) for x in (dk, dv))
    return out, dq, dk, dv


@cache
def compiled(impl: str, causal: bool) -> Callable[..., Any]:
    """The output and the gradients of one implementation; one compilation per shape and mesh."""

    def run(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
        f = partial(attend, where=where, causal=causal, impl=impl)
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(dout)

    return jax.jit(run)


def place(mesh: Mesh, arrays: Arrays, where: Where) -> tuple[Any, ...]:
    heads, rows = (
        named_sharding(mesh, *axes) for axes in (("batch", "seq", "heads", None), ("batch", "seq"))
    )
    return *jax.device_put(arrays, heads), jax.device_put(where, rows)


def run(impl: str, ring: int, arrays: Arrays, where: Where, causal: bool) -> Arrays:
    """The output, dq, dk and dv on a ring of so many devices; 0 is no mesh at all."""
    if ring == 0:
        with jax.set_mesh(NO_MESH):
            return jax.device_get(compiled(impl, causal)(*map(jnp.asarray, arrays), where))
    mesh = make_mesh(seq=ring)
    with jax.set_mesh(mesh):
        return jax.device_get(compiled(impl, causal)(*place(mesh, arrays, where)))


def assert_close(found: Arrays, wanted: Arrays) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1.0)
        assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


IMPLEMENTATIONS = {
    "dense": ("dense", 0),
    "blockwise": ("xla", 0),
    "ring2": ("xla", 2),
    "ring4": ("xla", 4),
    "ring8": ("xla", 8),
}


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize("rows", [packed, one_document], ids=["packed", "one"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_implementation_equals_the_definition_in_float64(
    name: str, heads: str, causal: bool, rows: Callable[[], Where], order: str
) -> None:
    impl, ring = IMPLEMENTATIONS[name]
    arrays, where = draw(T, HEADS[heads]), rows()
    if order == "zigzag":
        dealt = zigzag_order(T, ring or 4)
        where = jax.tree.map(lambda x: x[:, dealt], where)
    found = run(impl, ring, arrays, where, causal)
    assert_close(found, definition(*arrays, where, causal))
    padding = where.segments == 0
    for x in found:
        assert (x[padding] == 0).all()


@pytest.mark.parametrize("length", [1, 8, 13])
def test_lengths_that_tiles_do_not_divide_lose_nothing(length: int) -> None:
    arrays, where = draw(length, 2), one_document(length)
    assert_close(run("xla", 0, arrays, where, True), definition(*arrays, where, True))


def test_shards_that_tiles_do_not_divide_lose_nothing() -> None:
    length = 4 * 11
    arrays, where = draw(length, 2), packed(length)
    assert_close(run("xla", 4, arrays, where, True), definition(*arrays, where, True))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_row_of_padding_gives_zero_and_no_gradient(name: str) -> None:
    where = one_document()
    where.segments[1] = 0
    found = run(*IMPLEMENTATIONS[name], draw(T, 2), where, True)
    for x in found:
        assert np.isfinite(x).all()
        assert (x[1] == 0).all() and (x[0] != 0).any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_scores_of_a_thousand_do_not_overflow(name: str) -> None:
    q, k, v, dout = draw(T, 2)
    arrays, where = (30 * q, 30 * k, v, dout), packed()
    found, wanted = (
        run(*IMPLEMENTATIONS[name], arrays, where, True),
        definition(*arrays, where, True),
    )
    # A score of 1000 is rounded by 3e-5, and exp turns that into a relative error.
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a - b).max() <= 3e-4 * np.abs(b).max()


def test_bfloat16_heads_are_summed_in_float32() -> None:
    where, narrow = packed(), [x.astype(jnp.bfloat16) for x in draw(T, 2)]
    found = run("xla", 0, tuple(narrow), where, True)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    # Weights, scores' gradients and results are each rounded to 8 bits, 2^-9; sums are not, which
    # at 128 terms would be some 2^-5.
    for a, b in zip(found, definition(*narrow, where, True), strict=True):
        assert np.abs(a.astype(np.float64) - b).max() <= 2**-7 * np.abs(b).max()


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("ring", [1, 4])
def test_gradients_of_some_heads_at_a_time_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch, ring: int, heads: int
) -> None:
    arrays, where, mesh = draw(T, HEADS["mha"]), packed(), make_mesh(seq=ring)
    wanted, seen = run("xla", ring, arrays, where, True), []

    def zero(queries: Queries, keys: Keys) -> Any:
        seen.append(keys.k.shape[2])
        return zero_grads(queries, keys)

    monkeypatch.setattr(ring_module, "AT_ONCE", heads * B * T // ring * H)
    monkeypatch.setattr(ring_module, "zero_grads", zero)
    with jax.set_mesh(mesh):
        found = compiled.__wrapped__("xla", True)(*place(mesh, arrays, where))
    assert set(seen) == {heads}
    assert_close(jax.device_get(found), wanted)


@pytest.mark.parametrize("shape", [{"data": 2, "seq": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}])
def test_batch_and_heads_are_divided_without_a_change(shape: dict[str, int]) -> None:
    arrays, where, mesh = draw(T, 4), packed(), make_mesh(**shape)
    with jax.set_mesh(mesh):
        found = jax.device_get(compiled("xla", True)(*place(mesh, arrays, where)))
    assert_close(found, definition(*arrays, where, True))


# ---- the mask


def rows_of(length: int) -> st.SearchStrategy[Where]:
    """One row of any positions and segments, often of one segment: a tile that may be whole."""
    numbers = st.lists(st.integers(0, 3), min_size=length, max_size=length)
    alike = st.integers(0, 2).map(lambda segment: [segment] * length)
    return st.builds(
        lambda p, s: Where(np.array([p], np.int32), np.array([s], np.int32)),
        numbers,
        alike | numbers,
    )


@cache
def judged(causal: bool) -> Callable[..., Any]:
    return jax.jit(
        lambda q, k: (
            may_see(query_bounds(reach(q, causal)), key_bounds(k)),
            sees_all(query_bounds(reach(q, causal)), key_bounds(k)),
            sees(reach(q, causal), k),
        )
    )


@settings(max_examples=400, deadline=None)
@given(queries=rows_of(4), keys=rows_of(3), causal=st.booleans())
def test_no_live_tile_is_skipped_and_no_masked_tile_is_taken_whole(
    queries: Where, keys: Where, causal: bool
) -> None:
    may, whole, mask = judged(causal)(queries, keys)
    assert may or not mask.any()
    assert not whole or mask.all()


@settings(max_examples=100, deadline=None)
@given(where=rows_of(5), causal=st.booleans())
def test_the_mask_is_its_definition(where: Where, causal: bool) -> None:
    found = judged(causal)(where, where)[2]
    np.testing.assert_array_equal(found, visible(where, causal))


def test_tiles_of_the_future_and_of_other_documents_are_skipped() -> None:
    def tile(segment: int, start: int) -> Where:
        return Where(jnp.arange(start, start + 8)[None], jnp.full((1, 8), segment))

    assert not judged(True)(tile(1, 0), tile(1, 8))[0]
    assert not judged(True)(tile(2, 0), tile(1, 8))[0]
    assert not judged(False)(tile(1, 0), tile(2, 0))[0]
    assert judged(True)(tile(1, 8), tile(1, 0))[1]


def test_heads_that_do_not_divide_are_refused() -> None:
    q, k, v, _ = draw(8, 3)
    with pytest.raises(InputError, match="3 key heads do not divide 4 query heads"):
        attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), one_document(8))


def test_arrays_may_leave_out_the_axes_of_one_device() -> None:
    arrays, where, mesh = draw(T, 4), packed(), make_mesh(seq=2)
    with jax.set_mesh(mesh):
        *_, dout, rows = place(mesh, arrays, where)
        held = jax.device_put(arrays[:3], named_sharding(mesh, None, "seq"))
        found = jax.device_get(compiled("xla", True)(*held, dout, rows))
    assert_close(found, definition(*arrays, where, True))


def test_arrays_that_the_ring_does_not_divide_are_refused() -> None:
    (q, k, v, _), where = jax.tree.map(jnp.asarray, (draw(T, 4), packed()))
    with (
        jax.set_mesh(make_mesh(seq=2)),
        pytest.raises(InputError, match="128,4,8.*has to be divided.*seq.*: shard it"),
    ):
        attend(q, k, v, where)


# ---- what it costs


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Every equation of a jaxpr and of those within it, and how often a scan repeats it."""
    for eqn in jaxpr.eqns:
        yield eqn, times
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for sub in jaxprs_in_params(eqn.params):
            yield from equations(sub, inner)


def traced(f: Callable[..., Any], length: int, kv_heads: int = 2) -> Any:
    """The jaxpr of `f(q, k, v, where)` at this length, under the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        axes = ("batch", "seq", "heads", None)[: len(shape)]
        sharding = None if mesh.empty else named_sharding(jax.sharding.get_mesh(), *axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    q, k, v = (array((1, length, n, H), jnp.float32) for n in (N, kv_heads, kv_heads))
    where = Where(*(array((1, length), jnp.int32),) * 2)
    return jax.make_jaxpr(f)(q, k, v, where).jaxpr


def gradients(q: Any, k: Any, v: Any, where: Where) -> Any:
    out, pull = jax.vjp(lambda *x: attend(*x, where), q, k, v)
    return out, pull(out)


def sent_in_loops(jaxpr: Any) -> list[int]:
    """What one device hands on in each step of each loop that permutes, in the program's order."""
    return [
        size for eqn, _ in equations(jaxpr) if eqn.primitive.name == "while" and (size := sent(eqn))
    ]


def sent(loop: Any) -> int:
    """The bytes of the permutes of a loop's body, not of what stands in it."""
    return sum(
        x.aval.size * x.aval.dtype.itemsize
        for body in jaxprs_in_params(loop.params)
        for eqn in body.eqns
        if eqn.primitive.name == "ppermute"
        for x in eqn.invars
    )


@pytest.mark.parametrize("ring", [2, 4, 8])
def test_a_step_of_the_ring_sends_keys_once_and_their_gradients_in_float32(ring: int) -> None:
    local, kv_heads, number = T // ring, 2, 4
    shard = local * kv_heads * H * number  # keys or values of one device
    keys = 2 * shard + 2 * local * number  # and positions, and segments
    with jax.set_mesh(make_mesh(seq=ring)):
        assert sent_in_loops(traced(attend, T, kv_heads)) == [keys]
        both = sent_in_loops(traced(gradients, T, kv_heads))
    # Forward; backward; home, on or back, of which one is walked.
    assert both == [keys, keys + 2 * shard, 2 * shard, 2 * shard]


@pytest.mark.parametrize("lengths, hops", [([64], 7), ([8] * 8, 0), ([4, 8, 8, 8], 1), ([20], 2)])
def test_the_ring_turns_only_as_far_as_a_token_sees(lengths: list[int], hops: int) -> None:
    ring, row = 8, 64
    positions = np.concatenate([np.arange(n) for n in lengths])
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
    where = Where(
        *(np.pad(x, (0, row - len(x)))[None].astype(np.int32) for x in (positions, segments))
    )
    with jax.set_mesh(make_mesh(seq=ring)):
        local = partial(count_hops_of_shard, axis="seq")
        rows = spec("batch", "seq")
        placed = jax.device_put(where, named_sharding(jax.sharding.get_mesh(), "batch", "seq"))
        found = jax.jit(jax.shard_map(local, in_specs=rows, out_specs=spec()))(placed)
    assert int(found) == hops


def count_hops_of_shard(where: Where, axis: str) -> Any:
    return count_hops(reach(where, True), where, axis)


@pytest.mark.parametrize("ring", [0, 8])
def test_no_array_grows_with_the_square_of_the_length(
    ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.KERNELS, "xla", replace(BLOCKWISE, tile=64))

    def largest(length: int) -> int:
        jaxpr = traced(gradients, length)
        return max(getattr(x.aval, "size", 0) for eqn, _ in equations(jaxpr) for x in eqn.outvars)

    if ring:
        with jax.set_mesh(make_mesh(seq=ring)):
            short, long = largest(4096), largest(8192)
    else:
        short, long = largest(4096), largest(8192)
    assert short == 4096 * N * H  # that of q itself
    assert long == 2 * short


def test_a_kernel_that_cannot_run_here_is_refused() -> None:
    q, k, v, _ = (jnp.asarray(x) for x in draw(8, 4))
    with pytest.raises(InputError, match="tpu kernel cannot run on this platform, cpu"):
        attend(q, k, v, one_document(8), impl="tpu")


# ---- what cannot be attended to is refused before anything is computed

BAD_CALLS = """
import numpy as np
from ringworld import Where, attend, make_mesh
from ringworld.errors import InputError

T = 300
q = np.zeros((1, T, 8, 16), np.float32)
where = Where(*(np.ones((1, T), np.int32),) * 2)
turned = q.swapaxes(1, 2)
short = Where(where.positions[:, :200], where.segments[:, :200])
floats = Where(where.positions.astype(np.float32), where.segments)
for args, impl in [
    ((q, q[:, :50], q, where), None),
    ((q, q[:, :50], q[:, :50], where), None),
    ((q, q[..., :8], q[..., :8], where), None),
    ((q, q, q, short), None),
    ((turned, turned, turned, where), None),
    ((q[0], q[0], q[0], where), None),
    ((q.astype(np.int32), q, q, where), None),
    ((q, q, q, floats), None),
    ((q, q, q, where), "flash"),
]:
    try:
        attend(*args, impl=impl)
    except InputError as error:
        print(error)
    else:
        print("computed")
for size in (1.5, "2"):
    try:
        make_mesh(seq=size)
    except InputError as error:
        print(error)
"""


def test_shapes_that_do_not_fit_are_refused_by_name_without_a_shape_checker() -> None:
    done = subprocess.run([sys.executable, "-c", BAD_CALLS], capture_output=True, text=True)
    told = done.stdout.splitlines()
    wanted = [
        ["k is (1, 50, 8, 16)", "v is (1, 300, 8, 16)"],
        ["q is (1, 300, 8, 16)", "k is (1, 50, 8, 16)"],
        ["q is (1, 300, 8, 16)", "k is (1, 300, 8, 8)"],
        ["positions is (1, 200)", "q is (1, 300, 8, 16)"],
        ["positions is (1, 300)", "q is (1, 8, 300, 16)", "swap axes 1 and 2"],
        ["(300, 8, 16)", "[batch, tokens, heads, head width]"],
        ["int32 (1, 300, 8, 16)", "floating-point"],
        ["positions is an array of float32"],
        ["'flash'", "xla", "tpu", "gpu", "dense"],
        ["mesh axis seq is 1.5", "whole number"],
        ["mesh axis seq is '2'", "whole number"],
    ]
    assert len(told) == len(wanted), done.stderr
    for sentence, parts in zip(told, wanted, strict=True):
        assert all(part in sentence for part in parts), sentence
