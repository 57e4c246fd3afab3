"""The loss over all stages as one inline picture that keeps its words readable at any width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from ringworld.evals.page import Html, element
from ringworld.evals.story import StageRecord
from ringworld.progress import name_length

LOSSES = {"text_loss": "text", "vision_loss": "vision"}
# By how many targets a step's loss is the mean, where the record has it.
TARGETS = {"text_loss": "text_targets", "vision_loss": "vision_targets"}
CURVE_SIDE = 1000  # of the drawing in its own units, stretched to the width of the page
WINDOW = 0.1  # of a stage's steps, over which the bold line is a mean


def values(stage: StageRecord, name: str) -> Float[np.ndarray, " steps"]:
    """One metric of each step, NaN where it was not measured."""
    found = [row.get(name) for row in stage.rows]
    return np.array([np.nan if value is None else value for value in found], np.float64)


def targets(stage: StageRecord, name: str) -> Float[np.ndarray, " steps"]:
    """Of how many targets each step's metric is the mean; 1 where the record does not say."""
    found = values(stage, TARGETS[name])
    return np.where(np.isfinite(found), found, 1.0)


def smooth(
    line: Float[np.ndarray, " steps"], counts: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """The mean of the neighbours of each step, WINDOW of all; NaN where none was measured.

    A step counts by its `counts`, so that one with few targets weighs less than one with many.
    """
    counts = np.where(np.isfinite(line), counts, 0.0)
    reach = int(len(line) * WINDOW / 2)
    means = []
    for i in range(len(line)):
        near = slice(max(0, i - reach), i + reach + 1)
        total = counts[near].sum()
        means.append(np.nansum(line[near] * counts[near]) / total if total else np.nan)
    return np.array(means, np.float64)


def draw_losses(stages: Sequence[StageRecord]) -> Html:
    """Text and vision loss against tokens trained, each stage on its own ground."""
    ends = np.cumsum([stage.tokens for stage in stages], dtype=np.float64)
    low, high, ticks = _scale([values(stage, name) for stage in stages for name in LOSSES])
    lines, grounds = [], []
    for stage, end in zip(stages, ends, strict=True):
        left, wide = (end - stage.tokens) / ends[-1], stage.tokens / ends[-1]
        grounds.append(_ground(stage, left, wide))
        x = CURVE_SIDE * (left + wide * (np.arange(len(stage.rows)) + 1) / len(stage.rows))
        for name, word in LOSSES.items():
            y = values(stage, name)
            for line, kind in ((y, "thin"), (smooth(y, targets(stage, name)), "bold")):
                lines += _lines(x, CURVE_SIDE * (high - line) / (high - low), f"{word} {kind}")
    svg = element(
        "svg",
        *lines,
        viewBox=f"0 0 {CURVE_SIDE} {CURVE_SIDE}",
        preserveAspectRatio="none",
        aria_hidden="true",
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
    line = smooth(values(stage, name), targets(stage, name))
    line = line[np.isfinite(line)]
    return f"{line[0]:.2f} → {line[-1]:.2f}" if len(line) else "–"


def _scale(lines: Sequence[Float[np.ndarray, "_"]]) -> tuple[float, float, list[float]]:
    """The lowest and the highest loss shown, and round numbers between them."""
    every = np.concatenate(lines)
    every = every[np.isfinite(every)]
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    ticks = MaxNLocator(5).tick_values(low, max(high, low + 1e-3))
    return float(ticks[0]), float(ticks[-1]), [float(tick) for tick in ticks[:-1]]


def _lines(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], class_: str) -> list[Html]:
    """A line for each run of steps that were measured, with gaps between them; a step is a dot."""
    known = np.flatnonzero(np.isfinite(y))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else []
    runs = [run if len(run) > 1 else run.repeat(2) for run in runs]
    return [
        element(
            "polyline",
            points=" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[run], y[run], strict=True)),
            class_=class_,
        )
        for run in runs
    ]


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
