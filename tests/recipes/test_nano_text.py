"""A short run of nano-text learns to find needles again at its new RoPE base."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from ringworld.data.samples import read_shelf
from ringworld.evals.config import Grid
from ringworld.evals.needle import run_needle
from ringworld.mesh import make_mesh
from ringworld.recipes.nano import nano_text
from ringworld.recipes.recipe import Recipe
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage
from ringworld.train.optimizer import AdamW
from ringworld.weights.model import load_model

STEPS, CONTEXT = 150, 1024
GRID = Grid(lengths=(CONTEXT,), depths=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=4, seed=5)


def shorten(recipe: Recipe, steps: int) -> Recipe:
    """The language model and the first stage behind it, with fewer steps."""
    text, first, *_ = recipe.stages
    assert isinstance(first, ModelStage) and isinstance(first.optimizer, AdamW)
    warm = replace(first.optimizer, warmup_steps=steps // 10)
    return replace(recipe, stages=(text, replace(first, loop=Loop(steps=steps), optimizer=warm)))


def count_needles(model: Path, folder: Path) -> int:
    """The needles that a model finds of 20."""
    with jax.set_mesh(make_mesh()):
        loaded = load_model(model, "float32")
        shelf = read_shelf(loaded.tokenizer, folder / "data", print)
        trials = run_needle(
            loaded.sharded_weights(),
            loaded.config,
            loaded.tokenizer,
            shelf.held_out,
            GRID,
            folder / "needle.json",
            print,
            identity={"model": str(model)},
        )
    return sum(trial.found for trial in trials)


@pytest.mark.slow
def test_a_short_run_of_nano_text_finds_needles_at_its_new_base(tmp_path: Path) -> None:
    found = []
    for steps in (1, STEPS):
        folder = tmp_path / str(steps)
        found.append(count_needles(shorten(nano_text(), steps).run(folder, print), folder))
    print("needles of 20 after 1 step and after", STEPS, found)
    assert found[1] >= 16 and found[1] >= found[0] + 4
