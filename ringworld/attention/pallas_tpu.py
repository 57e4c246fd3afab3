"""The kernel for TPUs, in Pallas: one device's queries against one shard of keys.

Scores stand transposed, `[s, r]`: keys down, and across all queries of a tile that read one key
head, r = G t of them. So what is said of a query (its maximum, its log-sum-exp, what it sees) is a
row `[1, r]`, as it lies in memory, and no number is turned from a row into a column on the way.

For every tile of queries the grid visits the key tiles from the first that is live to the last, and
the longest such range sets its length. The bounds of all tiles lie in scalar memory: a pair that
the mask empties is skipped, one that it leaves whole is not masked.

The backward is two kernels: one sums dq over the keys, the other dk and dv over the queries. Each
makes the weights anew from the global log-sum-exp, as in FlashAttention-2 (arXiv 2307.08691).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from ringworld.attention.mask import Bounds, key_bounds, may_see, sees_all
from ringworld.attention.online import Partial, finite
from ringworld.attention.tiles import Grads, Kernel, Keys, Queries, Saved, compare_tiles, live_range

# 512 x 512 float32 scores are 1 MiB a query head of a group; groups of 8 still fit the 64 MiB of a
# v5p's vector memory. Chosen by size: it has been compiled for chips, and not run on one.
TPU_TILE = 512
VMEM = 64 * 2**20
# Batch, key head and outer tile may run in any order; the inner tiles may not.
ORDER = ("parallel", "parallel", "parallel", "arbitrary")
BOUNDS = 7  # numbers to a tile in scalar memory

Placed = tuple[Array, pl.BlockSpec]  # an array, and which of its blocks a step works on


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    """The float32 product of two matrices, summed over one axis of each."""
    return lax.dot_general(
        a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def _column(row: Array) -> Array:
    """A row `[1, s]` as a column `[s, 1]`; eight rows, because registers have eight."""
    return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1]


# ---- which pairs are visited


def _flat(bounds: Bounds) -> Int[Array, "numbers"]:
    """The bounds of all tiles `[B, I]`, BOUNDS numbers to a tile, in one vector."""
    return jnp.stack([x.astype(jnp.int32) for x in jax.tree.leaves(bounds)], -1).reshape(-1)


def _bounds_at(ref: Any, tile: Array) -> Bounds:
    """The bounds of one tile, scalars, from `_flat`."""
    low_segment, low, high_segment, high, solid, first, stop = (
        ref[BOUNDS * tile + i] for i in range(BOUNDS)
    )
    return Bounds(low_segment, low, high_segment, high, solid != 0, first, stop)


def _live_ranges(queries: Bounds, keys: Bounds, *, over_keys: bool) -> Int[Array, "numbers"]:
    """The first live inner tile of each outer tile, and the one after the last."""
    ranges = compare_tiles(
        lambda *pair: jnp.stack(live_range(may_see(*pair)), -1), queries, keys, over_keys=over_keys
    )
    return ranges.reshape(-1)


@dataclass(frozen=True)
class _Step:
    """What a kernel has at hand at one pair of tiles: blocks of its inputs, and the sums so far."""

    inputs: tuple[Any, ...]
    sums: tuple[Any, ...]


def _split(refs: tuple[Any, ...], lengths: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Runs of these lengths, and what is left."""
    for length in lengths:
        yield refs[:length]
        refs = refs[length:]
    yield refs


def _like(x: Array) -> jax.ShapeDtypeStruct:
    """Another array of this kind, varying over the mesh as this one does."""
    varies = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varies)


@dataclass(frozen=True)
class _Grid:
    """The grid of one pass: every outer tile, and a step for each inner tile of its live range.

    over_keys   whether queries are outer and keys inner, or the other way round
    tiles       how many tiles of queries and of keys a row has
    scalars     what lies in scalar memory: the bounds of queries and of keys, and the live ranges
    steps       of the longest range; at least 1, because a step carries the results over
    """

    over_keys: bool
    tiles: tuple[int, int]
    scalars: tuple[Array, Array, Array]
    steps: Array

    def _range(self, b: Array, i: Array, ranges: Any) -> tuple[Array, Array]:
        at = 2 * (b * self.tiles[not self.over_keys] + i)
        return ranges[at], ranges[at + 1]

    def _inner(self, b: Array, i: Array, step: Array, ranges: Any) -> Array:
        """The inner tile of a step; the last one again after the end of the range."""
        first, stop = self._range(b, i, ranges)
        return jnp.minimum(first + step, jnp.maximum(stop - 1, first))

    def block(self, *block: int, keys: bool, heads: bool = True) -> pl.BlockSpec:
        """Blocks of an array `[B, tiles, K, *block]`, or `[B, tiles, 1, *block]` for all heads."""
        rest = (0,) * len(block)

        def index(b: Array, k: Array, i: Array, step: Array, *scalars: Any) -> tuple[Any, ...]:
            tile = self._inner(b, i, step, scalars[2]) if keys == self.over_keys else i
            return (b, tile, k if heads else 0, *rest)

        return pl.BlockSpec((None, None, None, *block), index)

    def visit(self, scalars: Sequence[Any], update: Callable[[bool], None]) -> None:
        """`update(masked)` when the pair of this step is live."""
        b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
        query_bounds, bounds_of_keys, ranges = scalars
        first, stop = self._range(b, i, ranges)
        inner = self._inner(b, i, step, ranges)
        query, key = (i, inner) if self.over_keys else (inner, i)
        queries = _bounds_at(query_bounds, b * self.tiles[0] + query)
        keys = _bounds_at(bounds_of_keys, b * self.tiles[1] + key)
        live = (first + step < stop) & may_see(queries, keys)
        whole = sees_all(queries, keys)
        pl.when(live & whole)(partial(update, False))
        pl.when(live & jnp.logical_not(whole))(partial(update, True))

    def run(
        self,
        update: Callable[[_Step, bool], None],
        inputs: Sequence[Placed],
        sums: Sequence[Placed],
        products: int,
        interpret: bool,
    ) -> Sequence[Array]:
        """The sums after `update(step, masked)` of every live pair; they change in place.

        With `over_keys` the last sum, `[r, H]`, is kept transposed. `products` counts the matrix
        products of a pair.
        """
        arrays, blocks = zip(*inputs, *sums, strict=True)
        lengths = (len(self.scalars), len(inputs), len(sums), len(sums))
        turned = self.over_keys

        def kernel(*refs: Any) -> None:
            scalars, given, before, after, rest = _split(refs, lengths)
            running = (*after[:-1], *rest) if turned else after

            @pl.when(pl.program_id(3) == 0)
            def _() -> None:
                for to, ref in zip(running, before, strict=True):
                    to[...] = ref[...].T if turned and ref is before[-1] else ref[...]

            self.visit(scalars, partial(update, _Step(given, running)))

            if turned:

                @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
                def _() -> None:
                    after[-1][...] = running[-1][...].T

        (B, I, K, r, H), s = arrays[0].shape, arrays[1].shape[-2]
        pairs = B * K * I * r * self.tiles[1] * s
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=(B, K, self.tiles[not self.over_keys], self.steps),
                in_specs=blocks,
                out_specs=[block for _, block in sums],
                scratch_shapes=[pltpu.VMEM((H, r), jnp.float32)] if turned else [],
            ),
            out_shape=[_like(x) for x, _ in sums],
            input_output_aliases={lengths[0] + lengths[1] + i: i for i in range(len(sums))},
            # For the scheduler, to hide transfers behind it: half the pairs, as if causal.
            cost_estimate=pl.CostEstimate(
                flops=products * pairs * H,
                transcendentals=pairs // 2,
                bytes_accessed=sum(x.nbytes for x in arrays),
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=ORDER, vmem_limit_bytes=VMEM),
            interpret=interpret,
        )(*self.scalars, *arrays)


def _make_grid(queries: Queries, keys: Keys, *, over_keys: bool) -> _Grid:
    bounds = key_bounds(keys.where)
    ranges = _live_ranges(queries.bounds, bounds, over_keys=over_keys)
    steps = jnp.maximum((ranges[1::2] - ranges[::2]).max(), 1)
    scalars = (_flat(queries.bounds), _flat(bounds), ranges)
    return _Grid(over_keys, (queries.q.shape[1], keys.k.shape[1]), scalars, steps)


# ---- what a kernel is given


def _rows(x: Float[Array, "B I K G t"]) -> Float[Array, "B I K 1 r"]:
    """A number a query, as rows."""
    return x.reshape(*x.shape[:3], 1, -1)


def _heads(x: Float[Array, "B I K G t H"]) -> Float[Array, "B I K r H"]:
    """A vector a query, the groups below each other."""
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _inputs(grid: _Grid, queries: Queries, keys: Keys) -> list[Placed]:
    """Queries, keys, values, what queries see `[3, r]`, and where keys stand `[2, s]`."""
    G, s, H = queries.q.shape[3], *keys.k.shape[-2:]
    q = _heads(queries.q)
    r = q.shape[-2]
    sees = jnp.stack([queries.reach.segments, queries.reach.first, queries.reach.stop], 2)
    stands = jnp.stack([keys.where.segments, keys.where.positions], 2)
    return [
        (q, grid.block(r, H, keys=False)),
        (keys.k, grid.block(s, H, keys=True)),
        (keys.v, grid.block(s, H, keys=True)),
        (jnp.tile(sees, (1, 1, 1, G))[:, :, None], grid.block(3, r, keys=False, heads=False)),
        (stands[:, :, None], grid.block(2, s, keys=True, heads=False)),
    ]


def _scores(q: Any, k: Any, reach: Any, where: Any, masked: bool) -> Float[Array, "s r"]:
    """Scores in bits, -inf where the query does not see the key."""
    scores = _dot(k[...], q[...], (1, 1))
    if not masked:
        return scores
    segments, first, stop = reach[0:1, :], reach[1:2, :], reach[2:3, :]
    stands, positions = _column(where[0:1, :]), _column(where[1:2, :])
    seen = (segments == stands) & (segments > 0) & (first <= positions) & (positions < stop)
    return jnp.where(seen, scores, -jnp.inf)


# ---- forward


def _forward_tile(at: _Step, masked: bool) -> None:
    """One step of the running softmax; its value is `[H, r]`."""
    q, k, v, reach, where = at.inputs
    top, total, value = at.sums
    scores = _scores(q, k, reach, where, masked)
    before = top[...]
    now = jnp.maximum(before, scores.max(0, keepdims=True))
    weights = jnp.exp2(scores - finite(now))
    keep = jnp.exp2(before - finite(now))
    top[...] = now
    total[...] = total[...] * keep + weights.sum(0, keepdims=True)
    value[...] = value[...] * keep + _dot(v[...], weights.astype(v.dtype), (0, 0))


def _forward_pass(queries: Queries, keys: Keys, partials: Partial, *, interpret: bool) -> Partial:
    """The partial results with these keys merged in; `partials` has the tiles of the queries."""
    grid = _make_grid(queries, keys, over_keys=True)
    value = _heads(partials.value)
    row = grid.block(1, value.shape[-2], keys=False)
    sums = [
        (_rows(partials.max), row),
        (_rows(partials.sum), row),
        (value, grid.block(*value.shape[-2:], keys=False)),
    ]
    out = grid.run(_forward_tile, _inputs(grid, queries, keys), sums, 2, interpret)
    top, total, value = (
        x.reshape(before.shape)
        for x, before in zip(out, (partials.max, partials.sum, partials.value), strict=True)
    )
    return Partial(top, total, value)


# ---- backward


def _weigh(at: _Step, masked: bool) -> tuple[Float[Array, "s r"], Float[Array, "s r"]]:
    """The weights of a pair of tiles, and the gradients of its scores, for the matrix unit."""
    q, k, v, reach, where, dout, lse, delta = at.inputs
    scores = _scores(q, k, reach, where, masked)
    weights = jnp.exp2(scores - finite(lse[...]))
    dweights = _dot(v[...], dout[...], (1, 1))
    dscores = weights * (dweights - delta[...])
    return weights.astype(q.dtype), dscores.astype(q.dtype)


def _backward_queries(at: _Step, masked: bool) -> None:
    """One pair's share of dq, `[H, r]`."""
    _, dscores = _weigh(at, masked)
    at.sums[0][...] += _dot(at.inputs[1][...], dscores, (0, 0))


def _backward_keys(at: _Step, masked: bool) -> None:
    """One pair's share of dk and dv, `[s, H]`."""
    q, dout, (dk, dv) = at.inputs[0], at.inputs[5], at.sums
    weights, dscores = _weigh(at, masked)
    dk[...] += _dot(dscores, q[...], (1, 0))
    dv[...] += _dot(weights, dout[...], (1, 0))


def _saved(grid: _Grid, saved: Saved) -> list[Placed]:
    dout, lse, delta = _heads(saved.dout), _rows(saved.lse), _rows(saved.delta)
    row = grid.block(1, dout.shape[-2], keys=False)
    return [(dout, grid.block(*dout.shape[-2:], keys=False)), (lse, row), (delta, row)]


def _backward_pass(
    queries: Queries, keys: Keys, saved: Saved, grads: Grads, *, interpret: bool
) -> Grads:
    """`grads` with these keys' share: dq `[B, I, K, G, t, H]`, dk and dv `[B, J, K, s, H]`."""
    dq, dk, dv = _heads(grads[0]), *grads[1:]
    grid = _make_grid(queries, keys, over_keys=True)
    inputs = _inputs(grid, queries, keys) + _saved(grid, saved)
    stays = [(dq, grid.block(*dq.shape[-2:], keys=False))]
    [dq] = grid.run(_backward_queries, inputs, stays, 3, interpret)
    # In a ring, dk and dv arrive while dq is computed: the kernel that adds to them comes after.
    dq, queries = lax.optimization_barrier((dq, queries))
    grid = _make_grid(queries, keys, over_keys=False)
    inputs = _inputs(grid, queries, keys) + _saved(grid, saved)
    block = grid.block(*dk.shape[-2:], keys=True)
    dk, dv = grid.run(_backward_keys, inputs, [(dk, block), (dv, block)], 4, interpret)
    return dq.reshape(grads[0].shape), dk, dv


def make_tpu_kernel(tile: int = TPU_TILE, *, interpret: bool = False) -> Kernel:
    """The TPU kernel; `interpret` runs it anywhere, slowly, for tests."""
    return Kernel(
        tile,
        partial(_forward_pass, interpret=interpret),
        partial(_backward_pass, interpret=interpret),
    )
