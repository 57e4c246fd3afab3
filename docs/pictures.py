"""Draws the pictures of the pages attention, engine and stretch, by `python docs/pictures.py`.

They are docs/images/*.png. What was measured for docs/stretch.md is in docs/images/stretch.json.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ringworld.attention.balance import Layout, count_work, make_orders
from ringworld.attention.mask import (
    Reach,
    Span,
    Where,
    block_stops,
    causal,
    causal_by_block,
    causal_with_prefix,
    everything,
    sees,
    window,
)
from ringworld.evals.heatmap import name_length
from ringworld.files import whole

IMAGES = Path(__file__).parent / "images"
RULES = {"plain": "#c0392b", "yarn": "#2f6fb0", "ntk": "#d9822b", "theta": "#2e8b57"}
TICKS = (64, 256, 1024, 4096, 16384)
INK, QUERY, KEY, MUTED = "#222222", "#2f6fb0", "#d9822b", "#9aa5b1"
RING, ROW, TILE = 8, 1 << 16, 256


def document(lengths: list[int], row: int) -> Where:
    """One row of documents with these lengths, and padding behind them."""
    pad = row - sum(lengths)
    positions = np.concatenate([np.arange(n) for n in (*lengths, pad)])
    segments = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, pad])
    return Where(positions.astype(np.int32)[None], segments.astype(np.int32)[None])


def figure(width: float, height: float) -> Figure:
    """An empty figure that draws without a screen."""
    empty = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def save(picture: Figure, name: str) -> None:
    """Write docs/images/NAME.png."""
    with whole(IMAGES / f"{name}.png") as draft, draft.open("wb") as file:
        picture.savefig(file, format="png")


def draw_ring() -> Figure:
    """Four devices with their queries, and the keys on their way round, at two steps."""
    picture = figure(9, 4.4)
    for axes, step in zip(picture.subplots(1, 2), (0, 1), strict=True):
        _draw_devices(axes, step)
    return picture


def _draw_devices(axes: Axes, step: int) -> None:
    devices = 4
    angles = np.pi / 2 - 2 * np.pi * np.arange(devices) / devices
    places = np.stack([np.cos(angles), np.sin(angles)], -1) * 1.5
    for r, (x, y) in enumerate(places):
        box = FancyBboxPatch(
            (x - 0.62, y - 0.36), 1.24, 0.72, boxstyle="round,pad=0.05", fc="white", ec=MUTED
        )
        axes.add_patch(box)
        axes.text(x, y + 0.22, f"device {r}", ha="center", va="center", size=8, color=INK)
        axes.text(x - 0.3, y - 0.14, f"q{r}", ha="center", va="center", size=12, color=QUERY)
        held = (r - step) % devices
        axes.text(
            x + 0.3, y - 0.14, f"k{held} v{held}", ha="center", va="center", size=11, color=KEY
        )
        start, stop = places[r], places[(r + 1) % devices]
        arrow = FancyArrowPatch(
            tuple(start + 0.34 * (stop - start)),
            tuple(start + 0.66 * (stop - start)),
            arrowstyle="-|>",
            mutation_scale=16,
            color=KEY,
            connectionstyle="arc3,rad=-0.25",
        )
        axes.add_patch(arrow)
    axes.text(0, 0, "keys travel,\nqueries stay", ha="center", va="center", size=9, color=INK)
    axes.text(-2.2, 1.9, f"step {step}", size=11, color=INK)
    axes.set(xlim=(-2.4, 2.4), ylim=(-2.2, 2.3), aspect="equal")
    axes.axis("off")


def draw_orders() -> Figure:
    """The work of every device at every ring step, for each order and three kinds of rows."""
    rng = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < ROW:
        lengths.append(min(int(np.exp(rng.uniform(np.log(512), np.log(ROW)))), ROW - sum(lengths)))
    rows = {
        "one document": document([ROW], ROW),
        "documents of many lengths": document(lengths, ROW),
        "short documents": document([ROW // 32] * 32, ROW),
    }
    orders = make_orders(ROW, RING)
    picture = figure(10, 8.2)
    panels = picture.subplots(len(rows), len(orders), sharex=True, sharey=True)
    for line, (title, where) in zip(panels, rows.items(), strict=True):
        plans = [
            Layout(name, order, count_work(where, order, RING, TILE))
            for name, order in orders.items()
        ]
        most = max(plan.work.max() for plan in plans)
        for axes, plan in zip(line, plans, strict=True):
            _draw_work(axes, plan, most)
        line[0].set_ylabel(f"{title}\n\ndevice")
    for axes in panels[-1]:
        axes.set_xlabel("ring step")
    return picture


def _draw_work(axes: Axes, plan: Layout, most: int) -> None:
    steps = np.arange(RING)
    of_step = plan.work[steps[:, None], (steps[:, None] - steps) % RING]
    axes.imshow(of_step, vmin=0, vmax=most, cmap="Blues", aspect="auto")
    for (r, step), pairs in np.ndenumerate(of_step):
        ink = "white" if pairs > 0.6 * most else INK
        axes.text(step, r, f"{pairs:,}", ha="center", va="center", size=5.5, color=ink)
    told = f"max/mean {plan.imbalance:.2f}, time {plan.time:,.0f}, {plan.hops} rotations"
    axes.set_title(f"{plan.name}\n{told}", size=9)
    axes.set_xticks(steps)
    axes.set_yticks(steps)


def draw_masks() -> Figure:
    """What every token of a short row sees under each kind of span."""
    where = document([14, 6, 16], 40)
    frames = block_stops(where, where.positions // 4)
    spans: dict[str, Span] = {
        "everything": everything(where),
        "causal": causal(where),
        "prefix of 5": causal_with_prefix(where, 5),
        "causal & window of 4": causal(where) & window(where, 4),
        "frames of 4": causal_by_block(where, frames),
        "frames & window of 8": causal_by_block(where, frames) & window(where, 8),
    }
    picture = figure(9, 6.2)
    for axes, (title, span) in zip(picture.subplots(2, 3).flat, spans.items(), strict=True):
        mask = sees(Reach(where.segments, span.first, span.stop), where)[0]
        shown = np.where(mask, where.segments[0][:, None], 0)
        axes.imshow(shown, cmap="Blues", vmin=0, vmax=4, interpolation="nearest")
        axes.set_title(title, size=10)
        axes.set(xlabel="key", ylabel="query", xticks=[], yticks=[])
    return picture


def draw_engine() -> Figure:
    """The pool with the pages of four rows, and what one step of the engine does."""
    picture = figure(10, 4.6)
    left, right = picture.subplots(1, 2)
    _draw_pool(left)
    _draw_step(right)
    return picture


# Pages of each row by their number in the pool; those of the prompt that are read, and the rest.
TABLES = {
    "A": ((1, 2, 5), (6,)),
    "B": ((1, 2), (9, 10)),
    "C": ((3, 4, 7, 8), (11, 12)),
    "D": ((13,), ()),
}
ROW_COLORS = {"A": "#2f6fb0", "B": "#2e8b57", "C": "#d9822b", "D": "#8e5ea2"}


def _draw_box(axes: Axes, x: float, y: float, color: str, words: str, *, full: bool) -> None:
    style = {"fc": color if full else "white", "ec": color, "alpha": 1.0 if full else 0.7}
    axes.add_patch(FancyBboxPatch((x, y), 0.8, 0.7, boxstyle="round,pad=0.03", **style))
    ink = "white" if full else color
    axes.text(x + 0.4, y + 0.33, words, ha="center", va="center", size=8, color=ink)


def _draw_pool(axes: Axes) -> None:
    readers: dict[int, list[str]] = {}
    for name, (read, waiting) in TABLES.items():
        for page in (*read, *waiting):
            readers.setdefault(page, []).append(name)
    for page in range(16):
        names = readers.get(page, [])
        color = ROW_COLORS[names[0]] if len(names) == 1 else INK if names else MUTED
        read = any(page in TABLES[name][0] for name in names)
        words = "+".join(names) or {0: "none", 14: "kept", 15: "free"}[page]
        _draw_box(axes, page % 4 * 1.1, 6.2 - page // 4 * 0.95, color, words, full=read)
        axes.text(page % 4 * 1.1 + 0.04, 6.82 - page // 4 * 0.95, str(page), size=6, color=MUTED)
    for i, (name, (read, waiting)) in enumerate(TABLES.items()):
        numbers = " ".join(map(str, (*read, *waiting)))
        axes.text(0, 2.5 - 0.5 * i, f"row {name}: pages {numbers}", color=ROW_COLORS[name], size=9)
    axes.text(0, 0.4, "full: read;  outline: reserved for the rest of prompt and answer", size=8)
    axes.set(title="the pool, and the tables of four rows", xlim=(-0.2, 4.4), ylim=(0.2, 7.2))
    axes.axis("off")


def _draw_step(axes: Axes) -> None:
    lines = [
        ("A", 0, "decodes", 5),
        ("D", 1, "decodes", 2),
        ("C", 2, "reads page 11", 0),
        ("B", 3, "reads page 9", 0),
    ]
    for name, slot, does, tokens in lines:
        y = 5.6 - 1.1 * slot
        axes.text(-0.2, y + 0.3, f"slot {slot}", size=8, color=MUTED, va="center")
        _draw_box(axes, 0.7, y, ROW_COLORS[name], name, full=True)
        axes.text(1.8, y + 0.33, does, size=9, va="center", color=ROW_COLORS[name])
        for i in range(4 if tokens else 0):
            _draw_box(axes, 3.6 + 0.9 * i, y, ROW_COLORS[name], "token", full=i == 0)
        if not tokens:
            style = {"boxstyle": "round,pad=0.03", "fc": "white", "ec": ROW_COLORS[name]}
            axes.add_patch(FancyBboxPatch((3.6, y), 3.5, 0.7, **style))
            parts = "device 0   |   device 1   |   device 2   |   device 3"
            axes.text(5.35, y + 0.33, parts, size=6.5, ha="center", va="center", color=INK)
    words = "rows that decode are one batch of fixed size; a chunk is one row's alone"
    axes.text(-0.2, 1.4, words, size=8)
    merge = "out = sum over devices of 2^(lse_r - lse) out_r"
    axes.text(-0.2, 0.8, f"on a ring the parts merge:  {merge}", size=8)
    axes.set(title="one step", xlim=(-0.4, 7.6), ylim=(0.2, 7.2))
    axes.axis("off")


def draw_stretch() -> Figure:
    """SmolLM2's loss by position: each context within its own, and one beyond it by every rule."""
    measured = json.loads((IMAGES / "stretch.json").read_text(encoding="utf-8"))
    curves, trained = measured["curves"], measured["trained"]
    picture = figure(10, 4.2)
    left, right = picture.subplots(1, 2, sharey=True)
    for curve in (curve for curve in curves if curve["context"] <= trained):
        shade = str(0.75 - 0.25 * math.log2(curve["context"] / 2048))
        _draw_losses(left, curve, name_length(curve["context"]), shade)
    for curve in (curve for curve in curves if curve["context"] > trained):
        _draw_losses(right, curve, curve["rule"], RULES[curve["rule"]])
    beyond = max(curve["context"] for curve in curves)
    for axes, title in ((left, "within its context"), (right, f"stretched to {beyond:,} tokens")):
        axes.axvline(trained, color=MUTED, linestyle=":", label=f"trained at {trained:,}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(TICKS, [name_length(tick) for tick in TICKS])
        axes.set(title=title, xlabel="position (tokens)")
        axes.legend(title="perplexity", fontsize=8)
    left.set_ylabel("loss (nats a token)")
    return picture


def _draw_losses(axes: Axes, curve: dict[str, Any], label: str, color: str) -> None:
    middles = [(start + past) / 2 for start, past in curve["buckets"]]
    said = f"{label}: {curve['perplexity']:.1f}"
    axes.plot(middles, curve["losses"], marker=".", color=color, label=said)


def main() -> None:
    """Draw them all."""
    pictures = {
        "ring": draw_ring,
        "orders": draw_orders,
        "masks": draw_masks,
        "engine": draw_engine,
        "stretch": draw_stretch,
    }
    for name, draw in pictures.items():
        save(draw(), name)
        print(f"wrote {IMAGES / name}.png")


if __name__ == "__main__":
    main()
