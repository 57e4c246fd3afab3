"""The kernel for NVIDIA GPUs, in Pallas with Triton: one device's queries, one shard of keys.

A program has one tile of one head and loops over the tiles of the other side, from the first that
is live to the last, in three runs: tiles that need the mask, the first run
of tiles that are whole, and the rest, masked again. So no loop has a branch in it, and the compiler
can load a tile while it multiplies the one before.

    runs = first live, first whole, after the whole, after the last live

The forward holds a tile of queries and loops over keys. The backward is two kernels, so that no two
programs add to one number: one sums dq over the keys, the other dk and dv over the queries of all
heads that read the key head. Each makes the weights anew from the global log-sum-exp, as in
FlashAttention-2 (arXiv 2307.08691).

Triton wants powers of two: a shorter tile or a narrower head is loaded with zeros behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Bounds, key_bounds, may_see, sees, sees_all
from ringworld.attention.online import Partial, finite
from ringworld.attention.tiles import Grads, Kernel, Keys, Queries, Saved, compare_tiles

# Chosen from what Triton's compiler says, for it has not run on a GPU. With these no bfloat16 pass
# of heads up to 128 wide spills a register on an H100; the largest takes 100 KB of shared memory.
GPU_TILE = 64
STAGES = 2
WARPS = 4
WIDE = 64  # heads wider than this take twice the warps
LEAST = 16  # rows and columns of the smallest product of matrices that Triton has


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    """The float32 product of two matrices, summed over one axis of each."""
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


# ---- which tiles the loop visits


def _runs_of(live: Bool[Array, "B J"], whole: Bool[Array, "B J"]) -> Int[Array, "B runs"]:
    """The bounds of the three runs of one loop in each row; all are empty when nothing is live."""
    size = live.shape[-1]
    tiles = jnp.arange(size, dtype=jnp.int32)
    first = jnp.where(live, tiles, size).min(-1)
    stop = jnp.where(live, tiles + 1, 0).max(-1)
    whole_first = jnp.where(whole, tiles, stop[:, None]).min(-1)
    broken = ~whole & (tiles >= whole_first[:, None])
    whole_stop = jnp.where(broken, tiles, stop[:, None]).min(-1)
    return jnp.stack([first, whole_first, whole_stop, stop], -1)


def find_runs(
    queries: Bounds, keys: Bounds, *, over_keys: bool, full: bool
) -> Int[Array, "B tiles 1 runs"]:
    """The runs of the inner loop of every outer tile, from the bounds `[B, tiles]` of both.

    With `over_keys` queries are the outer loop and keys the inner one, else the other way round.
    Without `full` the key tiles have zeros behind them, and all need the mask.
    """

    def compare(queries: Bounds, keys: Bounds) -> Int[Array, "B runs"]:
        live = may_see(queries, keys)
        return _runs_of(live, live & sees_all(queries, keys) & full)

    return compare_tiles(compare, queries, keys, over_keys=over_keys)[:, :, None]


# ---- what a program has at hand


def _power(size: int) -> int:
    return max(LEAST, pl.next_power_of_2(size))


@dataclass(frozen=True)
class _Tiles:
    """Tiles in memory, behind a reference: their sizes are powers of two, of which `real` count."""

    ref: Any
    real: tuple[int, ...]

    def _inside(self, shape: tuple[int, ...]) -> Array | None:
        """Which numbers of a tile count; None when all of them do."""
        sizes = enumerate(zip(self.real, shape, strict=True))
        inside = [
            lax.broadcasted_iota(jnp.int32, shape, axis) < real
            for axis, (real, size) in sizes
            if real < size
        ]
        return reduce(and_, inside) if inside else None

    def read(self, *at: Any) -> Array:
        """The tile at these indices, 0 where nothing counts."""
        ref = self.ref.at[at] if at else self.ref
        inside = self._inside(ref.shape)
        return ref[...] if inside is None else triton.load(ref, mask=inside, other=0)

    def write(self, tile: Array) -> None:
        """Put a tile where this one is."""
        triton.store(self.ref, tile, mask=self._inside(tile.shape))


@dataclass(frozen=True)
class _Place:
    """An array `[B, tiles, heads, ..., *tile]`, and which of it a program works on.

    rank    how many axes a tile has: 0 for numbers
    inner   whether a program loops over all tiles of its row and head, or has one
    """

    array: Array
    rank: int
    inner: bool = False

    def block(self, heads: int) -> pl.BlockSpec:
        """The part of the program (tile, head, row); `heads` of them share what heads there are."""
        shape, group = self.array.shape, heads // self.array.shape[2]
        cut = len(shape) - self.rank
        block = (shape[1] if self.inner else None, None, *shape[3:cut], *map(_power, shape[cut:]))

        def index(i: Array, n: Array, b: Array) -> tuple[Any, ...]:
            rest = (0,) * (len(block) - 2)
            return (b, 0 if self.inner else i, lax.div(n, jnp.int32(group)), *rest)

        return pl.BlockSpec((None, *block), index)

    def hold(self, ref: Any) -> _Tiles:
        """The tiles of this place, behind a program's reference."""
        return _Tiles(ref, self.array.shape[self.array.ndim - self.rank :])


def _load_tile(tree: Any, *at: Any) -> Any:
    return jax.tree.map(lambda tiles: tiles.read(*at), tree)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    """Another array of this kind, varying over the mesh as this one does."""
    varies = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varies)


def _run(
    kernel: Callable[..., tuple[Array, ...]],
    heads: int,
    inputs: tuple[Any, ...],
    sums: Sequence[_Place],
    interpret: bool,
) -> Sequence[Array]:
    """The sums after `kernel(*inputs, sums)` for every tile and head; they change in place.

    The kernel is given `_Tiles` where `inputs` has places, and the sums so far as arrays.
    """
    places, tree = jax.tree.flatten(inputs)
    places += sums

    def program(*refs: Any) -> None:
        held = [place.hold(ref) for place, ref in zip(places, refs[: len(places)], strict=True)]
        before = tuple(tiles.read() for tiles in held[-len(sums) :])
        after = kernel(*tree.unflatten(held[: -len(sums)]), before)
        for place, ref, tile in zip(sums, refs[len(places) :], after, strict=True):
            place.hold(ref).write(tile)

    (B, tiles), H = sums[0].array.shape[:2], sums[-1].array.shape[-1]
    first = len(places) - len(sums)
    return pl.pallas_call(
        program,
        grid=(tiles, heads, B),
        in_specs=[place.block(heads) for place in places],
        out_specs=[place.block(heads) for place in sums],
        out_shape=[_like(place.array) for place in sums],
        input_output_aliases={first + i: i for i in range(len(sums))},
        compiler_params=triton.CompilerParams(
            num_warps=WARPS if H <= WIDE else 2 * WARPS, num_stages=STAGES
        ),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*(place.array for place in places))


def _loop(runs: _Tiles, step: Callable[..., Any], sums: Any, visits: int = 1) -> Any:
    """The sums after `step(masked, visit, sums)`, `visits` of them to a tile, in three runs."""
    first, whole_first, whole_stop, stop = (visits * runs.read(i) for i in range(4))
    for masked, low, high in (
        (True, first, whole_first),
        (False, whole_first, whole_stop),
        (True, whole_stop, stop),
    ):
        sums = lax.fori_loop(low, high, partial(step, masked), sums)
    return sums


# ---- what a kernel is given


def _flat(x: Float[Array, "B I K G *tile"]) -> Float[Array, "B I N *tile"]:
    """One axis of heads."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _place_queries(queries: Queries, inner: bool) -> Queries:
    """Queries one by one, or all that a key head is read by, and what they see."""
    q = queries.q if inner else _flat(queries.q)
    seen = jax.tree.map(lambda x: _Place(x[:, :, None], 1, inner), queries.reach)
    return Queries(_Place(q, 2, inner), seen, jax.tree.map(lambda _: None, queries.bounds))


def _place_keys(keys: Keys, inner: bool) -> Keys:
    stands = jax.tree.map(lambda x: _Place(x[:, :, None], 1, inner), keys.where)
    return Keys(_Place(keys.k, 2, inner), _Place(keys.v, 2, inner), stands)


def _place_saved(saved: Saved, inner: bool) -> Saved:
    dout, lse, delta = (x if inner else _flat(x) for x in (saved.dout, saved.lse, saved.delta))
    return Saved(_Place(dout, 2, inner), _Place(lse, 1, inner), _Place(delta, 1, inner))


def _place_runs(queries: Queries, keys: Keys, *, over_keys: bool) -> _Place:
    s = keys.k.shape[-2]
    bounds = key_bounds(keys.where)
    return _Place(find_runs(queries.bounds, bounds, over_keys=over_keys, full=s == _power(s)), 0)


# ---- forward


def _forward_tile(
    runs: _Tiles, queries: Queries, keys: Keys, before: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """The running softmax of one tile of queries of one head: maximum, sum and value."""
    q, reach = queries.q.read(), _load_tile(queries.reach)

    def step(masked: bool, j: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        top, total, value = sums
        k, v = keys.k.read(j), keys.v.read(j)
        scores = _dot(q, k, (1, 1))
        if masked:
            scores = jnp.where(sees(reach, _load_tile(keys.where, j)), scores, -jnp.inf)
        now = jnp.maximum(top, scores.max(1))
        weights = jnp.exp2(scores - finite(now)[:, None])
        keep = jnp.exp2(top - finite(now))
        value = value * keep[:, None] + _dot(weights.astype(v.dtype), v, (1, 0))
        return now, total * keep + weights.sum(1), value

    return _loop(runs, step, before)


def _forward_pass(queries: Queries, keys: Keys, partials: Partial, *, interpret: bool) -> Partial:
    """The partial results with these keys merged in; `partials` has the tiles of the queries."""
    runs = _place_runs(queries, keys, over_keys=True)
    inputs = (runs, _place_queries(queries, False), _place_keys(keys, True))
    known = (partials.max, partials.sum, partials.value)
    sums = [_Place(_flat(x), rank) for x, rank in zip(known, (1, 1, 2), strict=True)]
    after = _run(_forward_tile, sums[0].array.shape[2], inputs, sums, interpret)
    return Partial(*(x.reshape(y.shape) for x, y in zip(after, known, strict=True)))


# ---- backward


def _backward_queries(
    runs: _Tiles, queries: Queries, keys: Keys, saved: Saved, before: tuple[Array]
) -> tuple[Array]:
    """dq of one tile of queries of one head, `[t, H]`."""
    q, reach = queries.q.read(), _load_tile(queries.reach)
    dout, lse, delta = saved.dout.read(), finite(saved.lse.read()), saved.delta.read()

    def step(masked: bool, j: Array, sums: tuple[Array]) -> tuple[Array]:
        k, v = keys.k.read(j), keys.v.read(j)
        scores = _dot(q, k, (1, 1))
        if masked:
            scores = jnp.where(sees(reach, _load_tile(keys.where, j)), scores, -jnp.inf)
        weights = jnp.exp2(scores - lse[:, None])
        dscores = weights * (_dot(dout, v, (1, 1)) - delta[:, None])
        return (sums[0] + _dot(dscores.astype(k.dtype), k, (1, 0)),)

    return _loop(runs, step, before)


def _backward_keys(
    runs: _Tiles, queries: Queries, keys: Keys, saved: Saved, before: tuple[Array, Array]
) -> tuple[Array, Array]:
    """dk and dv of one tile of keys of one head, `[s, H]`; scores stand transposed, `[s, t]`."""
    k, v, where = keys.k.read(), keys.v.read(), _load_tile(keys.where)
    groups = queries.q.ref.shape[1]

    def step(masked: bool, visit: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        i, g = lax.div(visit, jnp.int32(groups)), lax.rem(visit, jnp.int32(groups))
        q, dout = queries.q.read(i, g), saved.dout.read(i, g)
        lse, delta = finite(saved.lse.read(i, g)), saved.delta.read(i, g)
        scores = _dot(k, q, (1, 1))
        if masked:
            scores = jnp.where(sees(_load_tile(queries.reach, i), where).T, scores, -jnp.inf)
        weights = jnp.exp2(scores - lse[None])
        dscores = weights * (_dot(v, dout, (1, 1)) - delta[None])
        dk = sums[0] + _dot(dscores.astype(q.dtype), q, (1, 0))
        return dk, sums[1] + _dot(weights.astype(q.dtype), dout, (1, 0))

    return _loop(runs, step, before, visits=groups)


def _backward_pass(
    queries: Queries, keys: Keys, saved: Saved, grads: Grads, *, interpret: bool
) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    sums = [_Place(_flat(grads[0]), 2)]
    runs = _place_runs(queries, keys, over_keys=True)
    inputs = (runs, _place_queries(queries, False), _place_keys(keys, True))
    inputs = (*inputs, _place_saved(saved, False))
    [dq] = _run(_backward_queries, sums[0].array.shape[2], inputs, sums, interpret)
    sums = [_Place(x, 2) for x in grads[1:]]
    runs = _place_runs(queries, keys, over_keys=False)
    inputs = (runs, _place_queries(queries, True), _place_keys(keys, False))
    inputs = (*inputs, _place_saved(saved, True))
    dk, dv = _run(_backward_keys, sums[0].array.shape[2], inputs, sums, interpret)
    return dq.reshape(grads[0].shape), dk, dv


def make_gpu_kernel(tile: int = GPU_TILE, *, interpret: bool = False) -> Kernel:
    """The GPU kernel; `interpret` runs it anywhere, slowly, for tests."""
    return Kernel(
        tile,
        partial(_forward_pass, interpret=interpret),
        partial(_backward_pass, interpret=interpret),
    )
