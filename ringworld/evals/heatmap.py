"""The famous picture: needle accuracy over context lengths and depths."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ringworld.evals.needle import Trial, accuracy


def name_length(tokens: int) -> str:
    """1024 as "1K", 1048576 as "1M", and other numbers as they are."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{letter}"
    return str(tokens)


def draw_heatmap(trials: Sequence[Trial], title: str) -> bytes:
    """A PNG with a cell for each length and depth, from red (never found) to green (always)."""
    lengths, depths, share = accuracy(trials)
    figure = Figure(figsize=(1.6 + 0.9 * len(lengths), 1.3 + 0.42 * len(depths)), dpi=144)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(share, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [name_length(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle")
    axes.set_title(title)
    for (row, column), found in np.ndenumerate(share):
        ink = "white" if abs(found - 0.5) > 0.35 else "black"
        axes.text(column, row, f"{found:.2f}", ha="center", va="center", size=8, color=ink)
    figure.colorbar(picture, ax=axes, label="share found")
    out = BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()
