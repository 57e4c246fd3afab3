"""LWM's ladders: their recorded runs, and every stage traced on a mesh of its chips.

`python tests/recipes/test_lwm_recipes.py` records the runs anew.
"""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from ringworld.mesh import abstract_mesh
from ringworld.models.world import specs
from ringworld.params import count
from ringworld.recipes.lwm import LLAMA2_7B, LWM_7B
from ringworld.recipes.preview import StagePreview, build_abstractly, preview
from ringworld.recipes.recipe import resolve
from ringworld.recipes.registry import RECIPES
from ringworld.train.build import abstract_batch

GOLDEN = Path(__file__).parent / "golden"
# The chips of each ladder: a TPU v4-512 has 256, a v4-1024 has 512.
CHIPS = {"lwm-text": 256, "lwm-text-chat": 256, "lwm-vision": 512, "lwm-vision-chat": 512}
STAGES = [(name, stage.name) for name in CHIPS for stage in RECIPES[name]().stages]


def record(name: str) -> Path:
    """Where the run of a recipe is recorded."""
    return GOLDEN / f"{name}.json"


@pytest.mark.parametrize("name", CHIPS)
def test_a_ladder_of_lwm_resolves_to_its_recorded_run(name: str) -> None:
    assert resolve(RECIPES[name]()) == json.loads(record(name).read_text())


def test_the_models_have_the_sizes_that_were_published() -> None:
    assert count(specs(LLAMA2_7B)) == 6_738_415_616
    assert count(specs(LWM_7B)) == 6_807_621_632


def seen(name: str, stage: str) -> StagePreview:
    """One stage of a ladder, with the config that the stages before it make."""
    found = [one for one in preview(RECIPES[name]()) if isinstance(one, StagePreview)]
    return next(one for one in found if one.stage.name == stage)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_the_step_of_every_stage_traces_on_its_chips(name: str, stage: str) -> None:
    one = seen(name, stage)
    mesh = abstract_mesh(one.stage.mesh)
    assert one.stage.mesh.devices == CHIPS[name]
    built = build_abstractly(one.stage, one.config)
    with jax.set_mesh(None), jax.sharding.use_abstract_mesh(mesh):
        batch = abstract_batch(mesh, one.stage.batch, one.stage.context)
        after, metrics = jax.eval_shape(built.step, built.state, batch)
    assert all(x.shape == () for x in jax.tree.leaves(metrics))

    def kind(x: Any) -> Any:
        return x.shape, x.dtype, x.sharding and x.sharding.spec

    for old, new in zip(jax.tree.leaves(built.state), jax.tree.leaves(after), strict=True):
        assert kind(new)[:2] == kind(old)[:2]
        assert new.sharding is None or kind(new) == kind(old)


@pytest.mark.parametrize("name", CHIPS)
def test_every_batch_of_a_ladder_has_as_many_tokens_and_its_shares_are_whole(name: str) -> None:
    tokens = {256: 1 << 22, 512: 1 << 23}[CHIPS[name]]
    for stage in RECIPES[name]().stages:
        assert stage.batch * stage.context == tokens
        assert sum(stage.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", CHIPS)
def test_the_stages_of_a_ladder_are_those_of_its_page(name: str) -> None:
    page = (GOLDEN.parents[2] / "docs" / "ladders.md").read_text(encoding="utf-8")
    table = page.split(f"**{name}**")[1].split("\n\n")[1]
    rows = [
        [
            stage.name,
            f"{stage.context:,}",
            f"{stage.rope_theta:,.0f}",
            f"{stage.batch:,}",
            f"{stage.loop.steps:,}",
            f"{stage.optimizer.warmup_steps:,}",
            f"{stage.optimizer.peak_lr:g} {stage.optimizer.schedule}",
            "x".join(map(str, stage.mesh.sizes)),
            ", ".join(f"{source} {share:g}" for source, share in stage.shares.items()),
        ]
        for stage in RECIPES[name]().stages
    ]
    assert table.splitlines()[2:] == [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    for name in CHIPS:
        record(name).write_text(json.dumps(resolve(RECIPES[name]()), indent=1) + "\n")
