"""One recipe type: what a run's folder goes on from, what it refuses, and what may change."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_hf import write_tiny
from tiny_models import ONE_LAYER

from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.ledger import LEDGER_FILE
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models.world import specs
from ringworld.params import paths, shardings
from ringworld.progress import Announce
from ringworld.recipes.extend import Extend
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.registry import RECIPES, find_recipe
from ringworld.rope_scaling import YaRN
from ringworld.settings import MeshShape
from ringworld.train import checkpoint
from ringworld.train import model_stage as stage_module
from ringworld.train.build import start
from ringworld.train.fresh_model import FreshModel
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelData, ModelStage, choose_rope
from ringworld.train.optimizer import AdamW
from ringworld.train.stage import Data
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO
from ringworld.weights.tensors import read_tensors
from tests import foreign

CONTEXT = ONE_LAYER.llama.context


@dataclass(frozen=True, kw_only=True)
class Toys(ModelData):
    """Forty short texts of random ids."""

    seed: int = 0

    def open(
        self, stage: ModelStage, source: Path, cache: Path, announce: Announce
    ) -> list[Example]:
        """The texts."""
        rng = np.random.default_rng(self.seed)
        lengths = rng.integers(3, 15, 40)
        return [example.text(rng.integers(3, 32, n).tolist(), 1.0) for n in lengths]


FIRST = ModelStage(
    name="first",
    context=CONTEXT,
    batch=2,
    loop=Loop(steps=3, save_every=2),
    optimizer=AdamW(peak_lr=1e-3, end_lr=1e-3, warmup_steps=0, schedule="constant"),
    mesh=MeshShape(),
    shares={},
    vision_share=0.0,
)
FRESH = FreshModel(name="fresh", model=ONE_LAYER, parts=NANO, seed=0)


def recipe(*stages: ModelStage, **changes: Any) -> Recipe:
    """Fresh weights and these stages."""
    return replace(Recipe(name="tiny", stages=(FRESH, *stages), data=Toys()), **changes)


def longer(steps: int) -> ModelStage:
    """The first stage with other steps."""
    return replace(FIRST, loop=replace(FIRST.loop, steps=steps))


def losses(folder: Path) -> list[float]:
    """The loss of every step of the first stage."""
    lines = (folder / "first" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def quiet(said: str) -> None:
    """Announce to nobody."""


def weights(folder: Path) -> bytes:
    """The bytes of the weights in a model folder."""
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe(FIRST).run(folder, quiet)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---- more steps


def test_a_finished_run_goes_on_when_it_is_given_more_steps(run: Path, tmp_path: Path) -> None:
    before, first, said = losses(run), weights(run / "first" / "model"), []
    done = recipe(longer(6)).run(run, said.append)
    assert any(
        "first goes on from 3 to 6 steps: its constant schedule now spans all of them, so the "
        "learning rate goes from 0.001 to 0.001" in line
        for line in said
    )
    assert losses(run)[:3] == before and len(losses(run)) == 6
    assert weights(run / "first" / "3-steps-model") == first
    # At a constant rate it is the run that was given six steps at once, to the bit.
    whole = recipe(longer(6)).run(tmp_path / "whole", quiet)
    assert losses(run) == losses(tmp_path / "whole") and weights(done) == weights(whole)
    with pytest.raises(InputError, match=r"stages.1.loop.steps was 6, is 3"):
        recipe(FIRST).run(run, quiet)


def test_a_longer_cosine_is_told_by_the_rates_before_and_after(tmp_path: Path) -> None:
    def cosine(steps: int) -> Recipe:
        shape = AdamW(peak_lr=1e-3, end_lr=0.0, warmup_steps=0, schedule="cosine")
        return recipe(replace(longer(steps), optimizer=shape))

    said: list[str] = []
    cosine(2).run(tmp_path / "cosine", quiet)
    cosine(6).run(tmp_path / "cosine", said.append)
    told = "cosine schedule now spans all of them, so the learning rate goes from 0.0005 to 0.00075"
    assert any(told in line for line in said)


def test_a_stage_that_another_went_on_from_is_given_no_more_steps(run: Path) -> None:
    second = replace(FIRST, name="second")
    recipe(FIRST, second).run(run, quiet)
    with pytest.raises(InputError, match=r"another recipe \(stages.1.loop.steps was 3, is 6\)"):
        recipe(longer(6), second).run(run, quiet)


# ---- what is refused, and what may change


def test_every_real_difference_is_named_and_nothing_is_touched(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    other = recipe(replace(FIRST, seed=5, vision_share=0.5), data=Toys(seed=9), name="other")
    with pytest.raises(
        InputError,
        match=r"another recipe \(name was tiny, is other; stages.1.vision_share was 0.0, is 0.5; "
        r"stages.1.seed was 0, is 5; data.seed was 0, is 9\): use another folder",
    ):
        other.run(run, quiet)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_what_changes_nothing_that_is_learned_may_change(run: Path) -> None:
    loop = replace(FIRST.loop, save_every=1, log_every=1)
    changed = replace(FIRST, loop=loop, mesh=MeshShape(seq=2), activations="nothing")
    assert recipe(changed).run(run, quiet) == run / "first" / "model"


def test_a_run_of_a_version_that_lacked_a_setting_goes_on_with_its_default(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["stages"][1]["rope"], record["stages"][1]["packing"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"another recipe \(stages.1.rope was absent, is yarn\)"):
        recipe(replace(FIRST, rope="yarn")).run(run, quiet)
    assert recipe(FIRST).run(run, quiet) == run / "first" / "model"


def test_a_stage_that_has_kept_nothing_may_be_changed_and_one_may_follow(run: Path) -> None:
    second = replace(FIRST, name="second", seed=1)
    recipe(FIRST, second).run(run, quiet)
    recipe(FIRST, second, replace(second, name="third")).run(run, quiet)
    assert (run / "third" / "model").is_dir()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mesh": MeshShape(seq=16)},
        {"optimizer": replace(FIRST.optimizer, warmup_steps=9)},
    ],
    ids=["mesh", "warm-up"],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError):
        recipe(replace(FIRST, **wrong)).run(folder, quiet)
    assert not folder.exists()


def test_a_run_that_failed_before_it_kept_anything_is_corrected_in_its_folder(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    wrong = replace(FIRST, seed=5, loop=replace(FIRST.loop, log_every=2))

    def full(*given: Any) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="the disk is full"):
        patch.setattr(checkpoint.Checkpoints, "save", full)
        recipe(wrong, data=Toys(seed=3)).run(folder, quiet)
    assert (folder / "first" / LEDGER_FILE).exists()
    recipe(FIRST).run(folder, quiet)
    assert losses(folder) == losses(finished)
    assert len((folder / "first" / LEDGER_FILE).read_text().splitlines()) == 3


def test_a_start_is_known_by_what_it_holds_and_not_by_its_path(
    finished: Path, tmp_path: Path
) -> None:
    start, moved, folder = tmp_path / "start", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(finished / "first" / "model", start)
    given = Recipe(name="on", stages=(FIRST,), data=Toys(), start=start)
    given.run(folder, quiet)
    start.rename(moved)
    again = replace(given, start=moved)
    assert again.run(folder, quiet) == folder / "first" / "model"
    content = bytearray(weights(moved))
    content[-1] ^= 1
    (moved / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"another recipe \(start was \w{12}, is \w{12}\)"):
        again.run(folder, quiet)


def test_a_record_that_is_no_record_is_told(run: Path) -> None:
    (run / "run.json").write_text('{"name": ')
    with pytest.raises(InputError, match="run.json is damaged: remove it"):
        recipe(FIRST).run(run, quiet)


# ---- the base of RoPE


def test_a_stage_keeps_the_base_as_far_as_it_reaches(tmp_path: Path) -> None:
    shipped, said = open_model(NANO).config, list[str]()
    for context in (1024, 4096, 16384):
        chosen = choose_rope(shipped, replace(FIRST, context=context), said.append)
        assert chosen.llama.rope_theta == shipped.llama.rope_theta
        assert (chosen.llama.context, chosen.llama.rope_reach) == (context, 16384)
    assert said[1] == "stage first: RoPE base 6,238,000, kept, because it reaches 16,384 tokens"
    longer = choose_rope(shipped, replace(FIRST, context=32768), said.append)
    assert longer.llama.rope_theta == pytest.approx(25_118_864, rel=1e-6)
    assert longer.llama.rope_reach == 32768
    assert said[-1] == (
        "stage first: RoPE base 6,238,000 -> 25,118,864, because the old one reaches 16,384 tokens "
        "and 32,768 are asked for"
    )
    chosen = choose_rope(shipped, replace(FIRST, context=1024, rope_theta=5e6), said.append)
    assert chosen.llama.rope_theta == 5e6 and chosen.llama.rope_reach == 1024
    assert any("6,238,000 -> 5,000,000, as the stage says" in line for line in said)


def test_yarn_reaches_the_same_whether_in_one_stage_or_in_two() -> None:
    said = list[str]()
    yarn = replace(FIRST, rope="yarn")
    grown = choose_rope(ONE_LAYER, replace(yarn, context=64), said.append)
    assert grown.llama.rope_scaling == YaRN(factor=4.0, trained_context=CONTEXT)
    assert said[0] == (
        "stage first: RoPE base 100 with YaRN by 4, because the old one reaches 16 tokens and 64 "
        "are asked for"
    )
    at_once, twice = (choose_rope(c, replace(yarn, context=256), quiet) for c in (ONE_LAYER, grown))
    assert at_once == twice and twice.llama.rope_theta == 100.0
    assert twice.llama.rope_scaling == YaRN(factor=16.0, trained_context=CONTEXT)
    kept = choose_rope(grown, replace(yarn, context=32), quiet)
    assert kept.llama.rope == grown.llama.rope, "shorter rows keep what was learned"


def test_a_given_base_and_a_rule_for_one_are_refused_together() -> None:
    with pytest.raises(InputError, match="rope_theta is 500 and rope is yarn: set one of them"):
        replace(FIRST, rope="yarn", rope_theta=500.0)


def test_a_base_that_was_chosen_for_more_is_recorded_in_the_model(tmp_path: Path) -> None:
    ahead = replace(FIRST, context=2 * CONTEXT, rope_context=4 * CONTEXT)
    done = recipe(ahead).run(tmp_path, quiet)
    llama = open_model(done).config.llama
    contexts = (llama.context, llama.rope_context, llama.rope_reach)
    assert contexts == (2 * CONTEXT, 4 * CONTEXT, 4 * CONTEXT)


def test_shorter_rows_leave_the_context_where_they_leave_the_base(tmp_path: Path) -> None:
    shorter = replace(FIRST, context=CONTEXT // 2)
    llama = open_model(recipe(shorter).run(tmp_path, quiet)).config.llama
    assert (llama.context, llama.rope_theta) == (CONTEXT, ONE_LAYER.llama.rope_theta)
    other = choose_rope(ONE_LAYER, replace(shorter, rope_theta=500.0), quiet)
    assert (other.llama.context, other.llama.rope_reach) == (CONTEXT // 2, CONTEXT // 2)


# ---- weights from stage to stage


def test_a_stage_reads_its_weights_from_the_folder_onto_its_own_mesh(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []

    def noted(read: Any, optimizer: Any, updates: Any) -> Any:
        placed = jax.tree.map(lambda w: w.sharding, read)  # the first step takes the weights away
        part = read.text_embed.addressable_shards[0].data.shape
        begun.append((jax.device_get(read), placed, part))
        return start(read, optimizer, updates)

    monkeypatch.setattr(stage_module, "start", noted)
    spread = replace(FIRST, mesh=MeshShape(seq=2, tensor=1), weights_over=("fsdp", "seq"))
    source = finished / "first" / "model"
    Recipe(name="on", stages=(spread,), data=Toys(), start=source).run(tmp_path, quiet)
    ((read, placed, part),) = begun
    assert placed == shardings(specs(ONE_LAYER), make_mesh(seq=2), spread.rules)
    assert part == (32, 4)
    stored = read_tensors(source / "model.safetensors")
    for name, weight in paths(read).items():
        np.testing.assert_array_equal(weight, stored[name])


def test_a_trained_model_is_saved_whole_or_not_at_all(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    source = finished / "first" / "model"
    given = Recipe(name="on", stages=(FIRST,), data=Toys(), start=source)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="could not be written"):
        patch.setattr("ringworld.weights.model.shutil.copy2", full)
        given.run(tmp_path, quiet)
    assert not (tmp_path / "first" / "model").exists()
    done = given.run(tmp_path, quiet)
    assert {file.name for file in source.iterdir()} == {file.name for file in done.iterdir()}


def hugging_face(folder: Path) -> Path:
    """A folder as Hugging Face has them."""
    write_tiny(folder / "theirs")
    return folder / "theirs"


def lwm_file(folder: Path) -> Path:
    """A file of LWM's beside its config, without a tokenizer."""
    tree = foreign.lwm_tree(np.random.default_rng(0), vision=False, scanned=True, dtype=np.float32)
    (folder / "config.json").write_text(json.dumps(foreign.LWM_CONFIG))
    (folder / "streaming_params").write_bytes(foreign.streaming(tree))
    return folder / "streaming_params"


@pytest.mark.parametrize("write", [hugging_face, lwm_file])
def test_a_stage_starts_from_a_model_of_others(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    theirs = open_model(path := write(tmp_path))
    stage = replace(longer(1), start=path)
    done = Recipe(name="on", stages=(stage,), data=Toys()).run(tmp_path / "run", quiet)
    assert theirs.config.llama.context > CONTEXT
    assert open_model(done).config.llama == theirs.config.llama, "rows are shorter, and it stays"
    assert (tmp_path / "run" / "first" / "start").exists() == (write is lwm_file)
    assert (done / "tokenizer.json").exists() == (theirs.tokenizer is not None)


# ---- the registry


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "data", "second"])
def test_a_stage_has_the_name_of_a_folder_of_its_own(name: str) -> None:
    stages = (replace(FIRST, name=name), replace(FIRST, name="second"))
    with pytest.raises(InputError, match=f"{name!r}: give each stage a name|'second': give each"):
        Recipe(name="names", stages=stages, data=Data())


@pytest.mark.parametrize("wrong", [{"vision_share": 1.5}, {"batch": 0}, {"z_loss": -1.0}])
def test_a_stage_that_would_teach_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="use a share from 0 to 1|make batch and context 1"):
        replace(FIRST, **wrong)


def test_every_recipe_of_the_registry_is_made_by_its_name() -> None:
    assert {name: RECIPES[name]().name for name in RECIPES} == {name: name for name in RECIPES}
    assert isinstance(find_recipe("demo"), Recipe) and isinstance(find_recipe("extend"), Extend)
    with pytest.raises(InputError, match="there is no recipe nano-bsae.*nano-base"):
        find_recipe("nano-bsae")


def test_a_stage_that_is_evaluated_needs_something_that_is_held_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing of these data is held out: set eval_every to 0"):
        recipe(replace(FIRST, eval_every=1)).run(tmp_path, quiet)
