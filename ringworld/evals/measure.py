"""Needle accuracy of a model folder, as numbers and as a picture."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax

from ringworld.data.corpus import read_shelf
from ringworld.evals.heatmap import draw_heatmap
from ringworld.evals.needle import Grid, run_needle
from ringworld.files import whole
from ringworld.generate.model import load_model
from ringworld.mesh import MeshShape, make_mesh


def measure_needles(
    folder: Path, grid: Grid, mesh: MeshShape, out: Path, announce: Callable[[str], None]
) -> None:
    """Needle accuracy of a model folder: `needle.json` and the picture `needle.png` in `out`.

    Haystacks are the held-out books. Raises InputError when a length exceeds the model's context.
    """
    model = load_model(folder)
    shelf = read_shelf(model.tokenizer, out / "data", announce)
    with jax.set_mesh(make_mesh(**asdict(mesh))):
        trials = run_needle(
            model.placed(),
            model.config,
            model.tokenizer,
            shelf.held_out,
            grid,
            out / "needle.json",
            announce,
        )
    with whole(out / "needle.png") as draft:
        draft.write_bytes(draw_heatmap(trials, f"needles of {folder.name}"))
    announce(f"wrote {out / 'needle.json'} and {out / 'needle.png'}")
