"""The loss over all stages as one inline picture that keeps its words readable at any width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from ringworld.evals.heatmap import name_length
from ringworld.evals.page import Html, element
from ringworld.evals.story import StageRecord

LOSSES = {"text_loss": "text", "vision_loss": "vision"}
SIDE = 1000  # of the drawing in its own units, stretched to the width of the page
WINDOW = 0.1  # of a stage's steps, over which the bold line is a mean


def values(stage: StageRecord, name: str) -> Float[np.ndarray, " steps"]:
    """One metric of each step, NaN where it was not measured."""
    found = [row.get(name) for row in stage.rows]
    return np.array([np.nan if value is None else value for value in found], np.float64)


def smooth(line: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """The mean of the neighbours of each step, WINDOW of all; NaN where none was measured."""
    reach = int(len(line) * WINDOW / 2)
    means = []
    for i in range(len(line)):
        near = line[max(0, i - reach) : i + reach + 1]
        near = near[np.isfinite(near)]
        means.append(near.mean() if len(near) else np.nan)
    return np.array(means, np.float64)


def draw_losses(stages: Sequence[StageRecord]) -> Html:
    """Text and vision loss against tokens trained, each stage on its own ground."""
    ends = np.cumsum([stage.tokens for stage in stages], dtype=np.float64)
    low, high, ticks = _scale([values(stage, name) for stage in stages for name in LOSSES])
    lines, grounds = [], []
    for stage, end in zip(stages, ends, strict=True):
        left, wide = (end - stage.tokens) / ends[-1], stage.tokens / ends[-1]
        grounds.append(_ground(stage, left, wide))
        x = SIDE * (left + wide * (np.arange(len(stage.rows)) + 1) / len(stage.rows))
        for name, word in LOSSES.items():
            y = values(stage, name)
            for line, kind in ((y, "thin"), (smooth(y), "bold")):
                lines.append(_line(x, SIDE * (high - line) / (high - low), f"{word} {kind}"))
    svg = element(
        "svg", *lines, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true"
    )
    scale = [_tick(f"{tick:g}", (high - tick) / (high - low)) for tick in ticks]
    foot = [_mark(f"{end / 1e6:.2f}M", end / ends[-1]) for end in ends]
    plot = element("div", *grounds, *scale, svg, class_="plot")
    return element(
        "div", plot, element("div", *foot, class_="axis"), role="img", aria_label=say(stages)
    )


def say(stages: Sequence[StageRecord]) -> str:
    """The picture in words."""
    told = []
    for stage in stages:
        for name, word in LOSSES.items():
            told.append(f"{stage.name} {word} {span(stage, name)}")
    return f"Loss at the start and end of each stage: {', '.join(told)}."


def span(stage: StageRecord, name: str) -> str:
    """A smoothed metric at the stage's start and end, such as "3.20 → 2.75"."""
    line = smooth(values(stage, name))
    line = line[np.isfinite(line)]
    return f"{line[0]:.2f} → {line[-1]:.2f}" if len(line) else "–"


def _scale(lines: Sequence[Float[np.ndarray, "_"]]) -> tuple[float, float, list[float]]:
    """The lowest and the highest loss shown, and round numbers between them."""
    every = np.concatenate(lines)
    every = every[np.isfinite(every)]
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    ticks = MaxNLocator(5).tick_values(low, max(high, low + 1e-3))
    return float(ticks[0]), float(ticks[-1]), [float(tick) for tick in ticks[:-1]]


def _line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], class_: str) -> Html:
    kept = np.isfinite(y)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[kept], y[kept], strict=True))
    return element("polyline", points=points, class_=class_)


def _ground(stage: StageRecord, left: float, wide: float) -> Html:
    theta = element("i", f"θ {shorten(stage.rope_theta)}")
    words = element("b", name_length(stage.context)), theta
    return element("div", *words, class_="stage", style=f"left:{left:.2%};width:{wide:.2%}")


def shorten(number: float) -> str:
    """A number in three digits: 640,000 as "640K", 6,238,000 as "6.24M"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _tick(label: str, share: float) -> Html:
    return element("span", element("span", label), class_="tick", style=f"top:{share:.2%}")


def _mark(label: str, share: float) -> Html:
    return element("span", label, style=f"left:{share:.2%}")
