"""Stages: a tiny one learns, hands its weights on, and goes on after a stop as if never stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from counted import count_operations
from tiny_models import tiny_world
from tiny_stage import VOCABULARY, toys

from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models import llama
from ringworld.models.llama import HOST, Activations
from ringworld.models.world import specs
from ringworld.params import shardings
from ringworld.recipes.recipe import Recipe, record_run
from ringworld.settings import MeshShape
from ringworld.train import metrics
from ringworld.train.build import Updates
from ringworld.train.fresh_model import fresh_weights
from ringworld.train.loop import Loop
from ringworld.train.model_stage import (
    ModelStage,
    check_activations,
    choose_rope,
    stage_batches,
    train_stage,
)
from ringworld.train.optimizer import AdamW, Muon
from ringworld.train.stage import Data

CONTEXT, STEPS = 32, 20
TINY = tiny_world(
    VOCABULARY, CONTEXT, layers=1, model=32, mlp=32, heads=2, kv_heads=1, head_width=16
)
FIRST = ModelStage(
    name="first",
    context=CONTEXT,
    rope_theta=100.0,
    batch=4,
    loop=Loop(steps=STEPS, save_every=5, log_every=1),
    optimizer=AdamW(peak_lr=3e-2, end_lr=3e-3, warmup_steps=2, schedule="cosine"),
    mesh=MeshShape(data=2, seq=2),
    shares={},
)
# Another length, base and mesh; a rate so small that float32 weights do not move.
SECOND = replace(
    FIRST,
    name="second",
    context=2 * CONTEXT,
    rope_theta=400.0,
    batch=2,
    loop=Loop(steps=1),
    optimizer=AdamW(peak_lr=1e-30, end_lr=0.0, warmup_steps=0),
    mesh=MeshShape(seq=4),
)


def losses(folder: Path, name: str = "loss") -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def train(stage: ModelStage, folder: Path, weights: Any = None, announce: Any = print) -> Any:
    config = choose_rope(TINY, stage, print)

    def load() -> Any:
        if weights is None:
            return fresh_weights(config, stage.seed, stage.rules)
        there = shardings(specs(config), jax.sharding.get_mesh(), stage.rules)
        return jax.device_put(weights, there)

    return jax.device_get(train_stage(stage, config, load, toys(), folder, announce))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A stage that was never stopped: its folder and its weights."""
    folder = tmp_path_factory.mktemp("stage") / "first"
    return folder, train(FIRST, folder)


def assert_same_bits(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", ["loss", "text_loss", "vision_loss"])
def test_a_tiny_stage_learns_to_read_and_to_see(whole: tuple[Path, Any], name: str) -> None:
    values = losses(whole[0], name)
    assert len(values) == STEPS
    assert np.mean(values[-3:]) < 0.5 * values[0]


def test_the_record_tells_the_utilisation_by_what_the_masks_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 1e11  # ten times what such small products reach on any processor
    monkeypatch.setattr(metrics, "peak_flops", lambda dtype: peak)
    said: list[str] = []
    stage = replace(FIRST, loop=Loop(steps=3, log_every=1))
    train(stage, tmp_path / "run", announce=said.append)
    with jax.set_mesh(make_mesh(data=2, seq=2)):
        batches = stage_batches(stage, toys(), tmp_path / "again")
        wanted = [count_operations(batches(n), TINY) for n in range(3)]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["mfu"] * row["seconds"] * peak for row in rows] == pytest.approx(wanted, rel=1e-5)
    lines = [line for line in said if line.startswith("step ")]
    assert [f" mfu {row['mfu']:.1%} " in line for row, line in zip(rows, lines, strict=True)] == [
        True
    ] * 3


def test_the_next_stage_starts_from_the_weights_of_the_last(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, weights = whole
    after = train(SECOND, tmp_path / "second", weights)
    assert_same_bits(after, weights)
    assert losses(tmp_path / "second")[0] < 0.6 * losses(folder)[0]


def test_a_stage_stopped_between_two_saves_goes_on_with_the_same_losses(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(losses(tmp_path)) == 13:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        train(FIRST, tmp_path, announce=stop)
    weights = train(FIRST, tmp_path, announce=said.append)
    assert f"{tmp_path}: going on from step 10 of {STEPS}" in said
    assert losses(tmp_path) == losses(whole[0])
    assert_same_bits(weights, whole[1])


def test_a_stage_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for change, said in (
        ({"mesh": MeshShape(seq=16)}, "needs 16 devices and there are 8"),
        ({"context": 1}, "rows of 1 tokens do not reach round a ring of 2"),
        ({"batch": 3}, "3 rows do not divide over 2 groups"),
        (
            {"mesh": MeshShape(seq=5), "weights_over": ("fsdp", "seq")},
            "width 32 does not divide over the 5 devices of fsdp x seq",
        ),
        ({"loop": Loop(steps=2)}, "a warm-up of 2 steps does not fit into 2 steps"),
        ({"updates": Updates(accumulate=3)}, "do not divide into 3 parts"),
        ({"updates": Updates(frozen=("head",))}, "the pattern head of frozen weights names none"),
    ):
        with pytest.raises(InputError, match=said):
            train(replace(FIRST, **change), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_stage_knows_how_many_tokens_it_trains_on() -> None:
    assert FIRST.tokens == STEPS * 4 * CONTEXT


def test_weights_spread_over_the_ring_train_as_others_and_go_on_from_their_checkpoint(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    spread = replace(FIRST, weights_over=("fsdp", "seq"))

    def stop(line: str) -> None:
        if len(losses(tmp_path)) == 7:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        train(spread, tmp_path, announce=stop)
    train(spread, tmp_path)
    # Sums over devices in another order, after updates that magnify it: 1e-6 is what is seen.
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=1e-4)


def test_a_stage_in_parts_in_bfloat16_and_with_frozen_vision_learns_to_read(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    updates = Updates(accumulate=2, frozen=("vision_*",))
    weights = train(replace(FIRST, compute="bfloat16", updates=updates, z_loss=1e-4), tmp_path)
    start = jax.device_get(fresh_weights(choose_rope(TINY, FIRST, print), 0, FIRST.rules))
    np.testing.assert_array_equal(weights.vision_embed, start.vision_embed)
    assert all(w.dtype == np.float32 for w in jax.tree.leaves(weights))
    reading = losses(tmp_path, "text_loss")
    assert reading[0] == pytest.approx(losses(whole[0], "text_loss")[0], rel=0.02)
    assert np.mean(reading[-3:]) < 0.6 * reading[0]


def test_a_stage_learns_with_muon_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    muon = replace(FIRST, optimizer=Muon(peak_lr=3e-2, end_lr=3e-3, warmup_steps=2))
    weights = train(muon, tmp_path / "whole")
    assert np.mean(losses(tmp_path / "whole")[-3:]) < 0.5 * losses(tmp_path / "whole")[0]

    def stop(line: str) -> None:
        if len(losses(tmp_path / "stopped")) == 7:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        train(muon, tmp_path / "stopped", announce=stop)
    assert_same_bits(train(muon, tmp_path / "stopped"), weights)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


# ---- what is kept of a layer until its backward


def test_a_stage_that_keeps_less_has_the_same_loss(tmp_path: Path) -> None:
    found = []
    choices: list[Activations] = ["attention", "nothing", "offload"]
    for choice in choices:
        train(replace(SECOND, activations=choice), tmp_path / choice)
        found.append(losses(tmp_path / choice))
    # The same sums, perhaps compiled in another order: float32 keeps 1e-7 of each.
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 2


def test_a_stage_keeps_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        asked.append(primitive)
        return False

    monkeypatch.setitem(llama.KEPT, "nothing", keep)
    train(SECOND, tmp_path / "attention")
    assert not asked
    train(replace(SECOND, activations="nothing"), tmp_path / "nothing")
    assert asked


def test_what_a_stage_keeps_stands_in_the_record_of_its_run(tmp_path: Path) -> None:
    recipe = Recipe(name="r", stages=(replace(SECOND, activations="offload"),), data=Data())
    record_run(recipe, tmp_path, print)
    resolved = json.loads((tmp_path / "run.json").read_text())
    assert resolved["stages"][0]["activations"] == "offload"


def test_offloading_is_refused_where_no_memory_of_the_host_can_be_reached() -> None:
    with pytest.raises(InputError, match="set activations to attention or nothing"):
        check_activations("offload", {"device"})
    check_activations("offload", {"device", HOST})
    check_activations("nothing", {"device"})
