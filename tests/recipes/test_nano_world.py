"""A short run of nano-world learns where things are asked for."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from ringworld.evals.config import Shapes
from ringworld.evals.drawings import MOST_THINGS, draw_scenes
from ringworld.evals.stills import StillFigures, draw_stills, freeze_scenes, judge_stills
from ringworld.mesh import make_mesh
from ringworld.recipes.nano import nano_world
from ringworld.recipes.recipe import Recipe
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage
from ringworld.weights.model import load_model
from ringworld.weights.shipped import NANO

# After 100 steps the new codes are not learned yet, and nothing is drawn.
STEPS, CLIPS, SCENES = 400, 6000, 30


def shorten(recipe: Recipe) -> Recipe:
    """The new codec and the first stage behind it, with fewer steps and clips."""
    codec, first, *_ = recipe.stages
    assert isinstance(first, ModelStage)
    stages = (codec, replace(first, loop=Loop(steps=STEPS)))
    return replace(recipe, stages=stages, data=replace(recipe.data, clips=CLIPS))


def measure(model: Path) -> StillFigures:
    """What a model draws of the words of stills of one thing."""
    wanted = Shapes(scenes=SCENES, seed=5, guidance=2.0)
    stills = freeze_scenes(draw_scenes(1, wanted))
    with jax.set_mesh(make_mesh()):
        drawn = draw_stills(load_model(model, "float32"), stills, wanted)
    return judge_stills(drawn, stills, max_things=MOST_THINGS)


@pytest.mark.slow
def test_a_short_run_of_nano_world_draws_more_as_asked_than_nano(tmp_path: Path) -> None:
    before, after = measure(NANO), measure(shorten(nano_world()).run(tmp_path, print))
    print("before", before, "after", after)
    assert after.place > before.place + 0.2
    assert after.whole.right > before.whole.right
