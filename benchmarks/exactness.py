"""How exact attention is on rings of 1 to 64 devices: its errors against float64, as a curve.

    python -m benchmarks.exactness      writes docs/images/exactness.png and docs/exactness.md

Every order of the row, every mask, MHA, GQA and MQA, float32 and bfloat16; the output and all three
gradients. Masks and orders are data: each pair is a row of one batch, so a ring, a number of key
heads and a dtype make one program. `--json FILE` writes the errors themselves and draws nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ringworld import attention
from ringworld.attention import attend
from ringworld.attention.balance import Order
from ringworld.attention.block import BLOCKWISE
from ringworld.attention.layout import contiguous_order, invert, striped_order, zigzag_order
from ringworld.attention.mask import (
    Where,
    block_stops,
    causal,
    causal_by_block,
    causal_with_prefix,
    everything,
    window,
)
from ringworld.attention.ring import rotate
from ringworld.mesh import make_mesh, named_sharding

DOCS = Path(__file__).resolve().parent.parent / "docs"
RINGS = (1, 2, 3, 4, 6, 8, 16, 64)
KV_HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
DTYPES = ("float32", "bfloat16")
ARRAYS = ("out", "dq", "dk", "dv")
# With its padding a row has 384 places, 6 to a device on a ring of 64. Tiles are as long on every
# ring, so that its sums have as many terms.
T, N, H = 381, 4, 16
TILE, STRIPE = 6, 2
PREFIX, WINDOW, FRAME = 40, 50, 21
# What errors stay below, as a share of the largest number. Float32: sums of T terms walk at random,
# sqrt(T) 2^-23. Bfloat16, a unit of 2^-9: one for the result, one for the weights, and the score's,
# which is log2 e / sqrt(H) rounded and H products of rounded queries, sum |q k| / sqrt(H), some 5.
BOUNDS = {"float32": 2.3e-6, "bfloat16": 2**-6}
# Rounding wherever the program says so, as accelerators do; XLA on a CPU may leave it out.
STRICT = {"xla_allow_excess_precision": False, "xla_backend_optimization_level": 0}

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Mask:
    """A row as it was written, and who sees whom in it: told to `attend`, and token by token."""

    where: Where
    sees: Bool[np.ndarray, "T T"]


@dataclass(frozen=True)
class Errors:
    """The greatest error of each array of one row over the greatest number of that array."""

    ring: int
    heads: str
    dtype: str
    sums: str  # the dtype in which sums of gradients travel
    order: str
    mask: str
    out: float
    dq: float
    dk: float
    dv: float


def lay_rows(*lengths: int) -> Where:
    """One row of documents with these lengths, and padding behind them."""
    positions, segments = np.zeros((2, 1, T), np.int32)
    ends = np.cumsum(lengths)
    for segment, (end, length) in enumerate(zip(ends, lengths, strict=True), start=1):
        positions[0, end - length : end] = np.arange(length)
        segments[0, end - length : end] = segment
    return Where(positions, segments)


@cache
def make_masks() -> dict[str, Mask]:
    """Every kind of mask by its name."""
    one, two, many = lay_rows(T), lay_rows(160, 200), lay_rows(37, 1, 150, 3, 101, 64)
    frames = two.positions // FRAME

    def mask(where: Where, span: Any, rule: Any) -> Mask:
        p, segment = where.positions[0], where.segments[0]
        together = (segment[:, None] == segment) & (segment > 0)
        spanned = Where(where.positions, where.segments, span)
        return Mask(spanned, together & rule(p[:, None], p[None]))

    return {
        "causal": mask(one, causal(one), lambda t, s: s <= t),
        "full": mask(one, everything(one), lambda t, s: s == s),
        "packed": mask(many, causal(many), lambda t, s: s <= t),
        "prefix": mask(two, causal_with_prefix(two, PREFIX), lambda t, s: (s <= t) | (s < PREFIX)),
        "window": mask(
            one, causal(one) & window(one, WINDOW), lambda t, s: (s <= t) & (s > t - WINDOW)
        ),
        "frames": mask(
            two,
            causal_by_block(two, block_stops(two, frames)),
            lambda t, s: s // FRAME <= t // FRAME,
        ),
    }


def make_orders(ring: int) -> dict[str, Order]:
    """Every order for a ring. One device takes rows that were dealt for four."""
    ring = 4 if ring == 1 else ring
    return {
        "contiguous": contiguous_order(T, ring),
        "zigzag": zigzag_order(T, ring),
        "striped": striped_order(T, ring, STRIPE),
    }


def draw(kv_heads: int, dtype: str) -> Arrays:
    """q, k, v and the cotangent of the output of one row, `[T, heads, H]`."""
    rng = np.random.default_rng(0)
    heads = (N, kv_heads, kv_heads, N)
    return tuple(rng.standard_normal((T, n, H)).astype(jnp.dtype(dtype)) for n in heads)


def define(
    q: Float[np.ndarray, "T N H"],
    k: Float[np.ndarray, "T K H"],
    v: Float[np.ndarray, "T K H"],
    dout: Float[np.ndarray, "T N H"],
    sees: Bool[np.ndarray, "T T"],
) -> Arrays:
    """The output, dq, dk and dv of one row in float64, from the definition."""
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    kv_heads, scale = k.shape[1], q.shape[2] ** -0.5
    k, v = (np.repeat(x, q.shape[1] // kv_heads, axis=1) for x in (k, v))
    scores = np.where(sees, np.einsum("tnh,snh->nts", q, k) * scale, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    out = np.einsum("nts,snh->tnh", weights, v)
    dweights = np.einsum("tnh,snh->nts", dout, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
    dq = np.einsum("nts,snh->tnh", dscores, k)
    dk = np.einsum("nts,tnh->snh", dscores, q)
    dv = np.einsum("nts,tnh->snh", weights, dout)
    shared = (len(k), kv_heads, -1, q.shape[2])
    return out, dq, dk.reshape(shared).sum(2), dv.reshape(shared).sum(2)


@cache
def defined(heads: str, dtype: str, mask: str) -> Arrays:
    """What every ring must give for one mask."""
    return define(*draw(KV_HEADS[heads], dtype), make_masks()[mask].sees)


def deal(x: Shaped[np.ndarray, "T *rest"], order: Order) -> Shaped[np.ndarray, "P *rest"]:
    """One row of any arrays put into an order; padding's places get 0."""
    return np.concatenate([x, np.zeros_like(x[:1])])[order]


def rotate_narrow(tree: Any, axis: str, stride: int = 1) -> Any:
    """`rotate`, except that float32 arrays travel in bfloat16: the wrong way, for comparison."""

    def turn(x: jax.Array) -> jax.Array:
        sent = x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
        return rotate(sent, axis, stride).astype(x.dtype)

    return jax.tree.map(turn, tree)


@cache
def make_program(sums: str) -> Any:
    """The output and the gradients; compiled once a ring, number of key heads and dtype."""
    turn = rotate if sums == "float32" else rotate_narrow

    def run(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
        kernel = patch.dict(attention.KERNELS, xla=replace(BLOCKWISE, tile=TILE))
        with kernel, patch("ringworld.attention.ring.rotate", turn):
            out, pull = jax.vjp(partial(attend, where=where, causal=False, impl="xla"), q, k, v)
            return out, *pull(dout)

    return jax.jit(run, compiler_options=STRICT)


def run(ring: int, arrays: Arrays, where: Where, sums: str = "float32") -> Arrays:
    """The output, dq, dk and dv of dealt rows on a ring of so many devices, in float64."""
    mesh = make_mesh(seq=ring)
    with jax.set_mesh(mesh):
        placed = jax.device_put(arrays, named_sharding(mesh, "batch", "seq", "heads", None))
        rows = jax.device_put(where, named_sharding(mesh, "batch", "seq"))
        found = jax.device_get(make_program(sums)(*placed, rows))
    return tuple(x.astype(np.float64) for x in found)


def batch(ring: int, heads: str, dtype: str) -> tuple[Arrays, Where]:
    """A row for every pair of a mask and an order, dealt: masks before orders."""
    arrays, orders = draw(KV_HEADS[heads], dtype), make_orders(ring).values()
    masks = make_masks().values()
    dealt = tuple(np.stack([deal(x, o) for _ in masks for o in orders]) for x in arrays)
    wheres = [jax.tree.map(lambda x, o=o: deal(x[0], o), m.where) for m in masks for o in orders]
    return dealt, jax.tree.map(lambda *x: np.stack(x), *wheres)


def measure(ring: int, heads: str, dtype: str, sums: str = "float32") -> Iterator[Errors]:
    """The errors of every mask in every order."""
    found = run(ring, *batch(ring, heads, dtype), sums)
    rows = ((mask, order) for mask in make_masks() for order in make_orders(ring).items())
    for i, (mask, (name, order)) in enumerate(rows):
        wanted, back = defined(heads, dtype, mask), invert(order, T)
        errors = {
            array: float(np.abs(x[i][back] - y).max() / np.abs(y).max())
            for array, x, y in zip(ARRAYS, found, wanted, strict=True)
        }
        yield Errors(ring, heads, dtype, sums, name, mask, **errors)


def measure_all(rings: Sequence[int]) -> Iterator[Errors]:
    """The errors of everything, and last those of sums that are rounded as they travel."""
    for ring in rings:
        for dtype in DTYPES:
            for heads in KV_HEADS:
                yield from measure(ring, heads, dtype)
        yield from measure(ring, "GQA", "bfloat16", sums="bfloat16")


def worst(errors: Sequence[Errors], arrays: Sequence[str] = ARRAYS, **of: Any) -> float:
    """The greatest error of these arrays among the cases whose fields are as `of` says."""
    cases = [e for e in errors if all(getattr(e, name) == value for name, value in of.items())]
    return max(getattr(e, array) for e in cases for array in arrays)


# ---- the picture and the page

# Okabe and Ito's, which the colour-blind tell apart.
COLOURS = dict(zip(ARRAYS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))


def draw_curve(errors: Sequence[Errors]) -> bytes:
    """A PNG of error against ring: the worst case as a line, every case as a dot."""
    figure = Figure(figsize=(10, 4.4), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(DTYPES))
    for axes, dtype in zip(panels, DTYPES, strict=True):
        _draw_panel(axes, [e for e in errors if e.dtype == dtype], dtype)
    named = panels[-1].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=len(named[0]), frameon=False)
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_panel(axes: Axes, errors: Sequence[Errors], dtype: str) -> None:
    rings = sorted({e.ring for e in errors})
    kept = [e for e in errors if e.sums == "float32"]
    for shift, (array, colour) in zip((-0.15, -0.05, 0.05, 0.15), COLOURS.items(), strict=True):
        x = [rings.index(e.ring) + shift for e in kept]
        y = [getattr(e, array) for e in kept]
        axes.plot(x, y, ".", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        line = [worst(kept, [array], ring=ring) for ring in rings]
        axes.plot(range(len(rings)), line, "o-", color=colour, label=array, markersize=4)
    if any(e.sums == "bfloat16" for e in errors):
        line = [worst(errors, ["dk", "dv"], ring=ring, sums="bfloat16") for ring in rings]
        told = "were dk and dv to travel in bfloat16"
        axes.plot(range(len(rings)), line, "s:", color="0.45", label=told, markersize=4)
    axes.axhline(BOUNDS[dtype], color="black", linestyle="--", linewidth=1, label="bound")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:.0e}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(rings)), [str(ring) for ring in rings])
    axes.set_xlabel("devices in the ring")
    axes.set_ylabel("error, of the largest number")
    axes.set_title(dtype)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


PAGE = """# How exact attention is

The output and all gradients of `attend` are compared with the definition in float64. Each figure is
the largest error in an array, divided by the largest number of that array. It is the worst case of
{orders} token orders x {heads} x {masks} masks. Rows have {length} tokens and padding, heads are
{width} wide, and tiles have {tile} tokens; the ring of one device uses rows that were ordered for
four. In the picture every case is a dot, and the worst cases are the line.

![Error against float64 over the devices in the ring](images/exactness.png)

{by_ring}

The last column shows what happens if the gradients of keys and values travel in bfloat16. In
ringworld they are float32 all the way, whatever the dtype of the model, and the ring adds no error.

{by_mask}

Measured on virtual CPU devices, with every rounding of the program, by

```sh
python -m benchmarks.exactness
```

`test_errors_stay_below_the_bound_and_do_not_grow_with_the_ring` asserts that on every ring float32
errors stay below {float32:.1e}, which is sqrt(T) 2^-23, and bfloat16 errors below {bfloat16:.1e},
which is eight units of rounding.
"""


def write_page(errors: Sequence[Errors]) -> str:
    """The page that holds the tables and the picture."""
    kept = [e for e in errors if e.sums == "float32"]
    columns = [f"{dtype} {array}" for dtype in DTYPES for array in ARRAYS]
    rounded = [*columns, "dk, dv rounded on the way"]

    def cells(**of: Any) -> list[float]:
        return [worst(kept, [array], dtype=dtype, **of) for dtype in DTYPES for array in ARRAYS]

    by_ring = {
        str(ring): [*cells(ring=ring), worst(errors, ["dk", "dv"], ring=ring, sums="bfloat16")]
        for ring in sorted({e.ring for e in errors})
    }
    by_mask = {mask: cells(mask=mask) for mask in make_masks()}
    return PAGE.format(
        orders=len(make_orders(1)),
        heads=", ".join(KV_HEADS),
        masks=len(make_masks()),
        length=T,
        width=H,
        tile=TILE,
        by_ring=_table("devices", rounded, by_ring),
        by_mask=_table("mask, any ring", columns, by_mask),
        **BOUNDS,
    )


def _table(corner: str, columns: Sequence[str], rows: dict[str, list[float]]) -> str:
    head = [f"| {' | '.join((corner, *columns))} |", f"|---|{'---:|' * len(columns)}"]
    body = [f"| {name} | {' | '.join(f'{x:.1e}' for x in row)} |" for name, row in rows.items()]
    return "\n".join([*head, *body])


def main(rings: tuple[int, ...] = RINGS, json_file: Path | None = None) -> None:
    """Measure these rings; write the picture and the page, or the errors alone as JSON."""
    jax.config.update("jax_num_cpu_devices", max(rings))
    errors = list(measure_all(rings))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(e) for e in errors]), encoding="utf-8")
        return
    (DOCS / "images" / "exactness.png").write_bytes(draw_curve(errors))
    (DOCS / "exactness.md").write_text(write_page(errors), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, prog="bench-exactness")
