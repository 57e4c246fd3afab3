"""The famous picture: needle accuracy over context lengths and depths."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ringworld.evals.needle import Trial, accuracy
from ringworld.progress import name_length


def draw_heatmaps(maps: Mapping[str, Sequence[Trial]]) -> bytes:
    """A PNG of maps side by side, by title; a cell is red when never found, green when always."""
    lengths, depths, _ = accuracy(next(iter(maps.values())))
    width = 1.6 + 0.9 * len(lengths)
    figure = Figure(figsize=(width * len(maps), 1.3 + 0.42 * len(depths)), dpi=144)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    drawn = [_draw_map(axes, *named) for axes, named in zip(panels, maps.items(), strict=True)]
    panels[0].set_ylabel("depth of the needle")
    figure.colorbar(drawn[0], ax=list(panels), label="share found")
    out = BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def _draw_map(axes: Axes, title: str, trials: Sequence[Trial]) -> AxesImage:
    lengths, depths, share = accuracy(trials)
    picture = axes.imshow(share, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [name_length(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("context length (tokens)")
    axes.set_title(title)
    for (row, column), found in np.ndenumerate(share):
        ink = "white" if abs(found - 0.5) > 0.35 else "black"
        axes.text(column, row, f"{found:.2f}", ha="center", va="center", size=8, color=ink)
    return picture
