"""Checkpoints are whole or absent, whatever happens to the process, the disk or the bytes."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import FAILPOINTS, IDENTITY, at, launch, tiny_state, train

from ringworld import files
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.train import checkpoint
from ringworld.train.build import TrainState, abstract_of
from ringworld.train.checkpoint import FOLDER, Checkpoints
from ringworld.train.guard import Guard, start_guard
from ringworld.train.manifest import MANIFEST_NAME, Damaged, read_manifest, verify

SHAPES = [(1, 1, 1, 1), (1, 2, 2, 2), (1, 1, 8, 1), (2, 1, 4, 1), (2, 2, 1, 2)]


def state_on(shape: tuple[int, int, int, int], step: int = 0) -> TrainState:
    """A state with random-looking numbers everywhere, on a mesh of this shape."""
    names = ("data", "fsdp", "seq", "tensor")
    with jax.set_mesh(make_mesh(**dict(zip(names, shape, strict=True)))):
        state = jax.tree.map(lambda x: x + jnp.asarray(0.3, x.dtype), tiny_state())
        return TrainState(
            step=jnp.full((), step, jnp.int32), weights=state.weights, optimizer=state.optimizer
        )


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees hold the same numbers, to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with whole checkpoints of steps 10 and 20; tests copy it before they harm it."""
    folder = tmp_path_factory.mktemp("two")
    box = store(folder)
    for step in (10, 20):
        box.save(state_on((1, 2, 2, 2), step), IDENTITY)
    return folder


@pytest.fixture
def run(two_steps: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def store(folder: Path, said: list[str] | None = None, **changes: Any) -> Checkpoints:
    """The checkpoints of a run folder, made ready for a save."""
    say = said.append if said is not None else print
    arguments = {"keep": 2, "milestones": (), "announce": say, **changes}
    box = Checkpoints(folder=folder / FOLDER, **arguments)
    box.prepare()
    return box


def newest(folder: Path) -> Path:
    """The folder of the newest step."""
    return max((folder / FOLDER).glob("step_*"))


def files_of(folder: Path) -> list[Path]:
    """The files of the newest step."""
    return sorted(path for path in newest(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("after", SHAPES)
def test_a_checkpoint_restores_onto_any_mesh(run: Path, after: tuple[int, int, int, int]) -> None:
    wanted = abstract_of(state_on(after))
    restored = store(run).restore(wanted, IDENTITY)
    assert restored is not None
    assert same_bits(restored, state_on((1, 2, 2, 2), 20))
    assert [x.sharding for x in jax.tree.leaves(restored)] == [
        x.sharding for x in jax.tree.leaves(wanted)
    ]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Lose the last byte."""
    os.truncate(path, path.stat().st_size - 1)


def zero(path: Path) -> None:
    """Become zeros of the same length, as after some power cuts."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [flip, cut, zero, Path.unlink])
def test_damage_to_any_file_is_seen(run: Path, harm: Callable[[Path], None]) -> None:
    step = newest(run)
    for path in files_of(run):
        before = path.read_bytes()
        harm(path)
        with pytest.raises(Damaged):
            verify(step, read_manifest(step))
        path.write_bytes(before)
    verify(step, read_manifest(step))


def test_any_flipped_bit_of_the_manifest_is_damage_and_never_another_meaning(run: Path) -> None:
    path, content = newest(run) / MANIFEST_NAME, read_manifest(newest(run))
    original = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(original), 300):
        data = bytearray(original)
        data[place // 8] ^= 1 << (place % 8)
        path.write_bytes(data)
        try:
            assert read_manifest(newest(run)) == content
        except Damaged:
            continue


def test_files_swapped_between_steps_are_seen(run: Path) -> None:
    new, old = sorted((run / FOLDER).glob("step_*"), reverse=True)
    shutil.copyfile(old / MANIFEST_NAME, new / MANIFEST_NAME)
    with pytest.raises(Damaged):
        verify(new, read_manifest(new))


@pytest.mark.parametrize("harmed", ["weights/d", "optimizer/ocdbt", MANIFEST_NAME])
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(run: Path, harmed: str) -> None:
    step, said = newest(run), []
    flip(next(p for p in files_of(run) if p.relative_to(step).as_posix().startswith(harmed)))
    restored = store(run, said).restore(abstract_of(state_on((1, 1, 8, 1))), IDENTITY)
    assert restored is not None and int(restored.step) == 10
    assert step.with_name("step_00000020.bad").is_dir() and not step.exists()
    assert len(said) == 1 and "step_00000020 is damaged" in said[0] and "\n" not in said[0]


def test_nothing_is_restored_when_every_step_is_damaged(run: Path) -> None:
    for path in (run / FOLDER).glob(f"step_*/{MANIFEST_NAME}"):
        path.unlink()
    said: list[str] = []
    box = store(run, said)
    assert box.restore(abstract_of(state_on((1, 1, 1, 1))), IDENTITY) is None
    assert box.steps() == [] and len(said) == 2


def test_another_models_checkpoint_is_refused_and_left_alone(run: Path) -> None:
    wanted = abstract_of(state_on((1, 1, 1, 1)))
    other = {"model": {"width": 8, "layers": 3}, "recipe": "tiny"}
    with pytest.raises(InputError, match=r"identity.model.layers is 2 there and 3 here"):
        store(run).restore(wanted, other)
    wider = TrainState(
        step=wanted.step,
        weights=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((9, *x.shape), x.dtype), wanted.weights
        ),
        optimizer=wanted.optimizer,
    )
    with pytest.raises(InputError, match=r"weights.inner is float32\[8, 8\] there"):
        store(run).restore(wider, IDENTITY)
    assert store(run).steps() == [10, 20]


def test_the_newest_steps_and_the_milestones_are_kept(tmp_path: Path) -> None:
    box = store(tmp_path, milestones=(2,))
    for step in range(1, 6):
        box.save(state_on((1, 1, 1, 1), step), IDENTITY)
    assert box.steps() == [2, 4, 5]
    with pytest.raises(InputError, match="keep is 1"):
        store(tmp_path, keep=1)


def test_an_older_step_stays_when_the_new_one_cannot_be_read_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync_badly(path: Path) -> None:
        flip(path / "step_00000030" / "weights" / "_METADATA")

    monkeypatch.setattr(checkpoint, "sync", sync_badly)
    with pytest.raises(InputError, match="could not be read back"):
        store(run).save(state_on((1, 1, 1, 1), 30), IDENTITY)
    restored = store(run).restore(abstract_of(state_on((1, 1, 1, 1))), IDENTITY)
    assert restored is not None and int(restored.step) == 20


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(run: Path) -> None:
    limits = (10, 300, 1000)
    with launch(run / FOLDER, "limits", "-", *limits) as process:
        said, errors = process.communicate()
    lines = said.splitlines()
    assert len(lines) == len(limits), errors
    assert all("could not be written" in line and "free some space" in line for line in lines)
    assert sorted(p.name for p in (run / FOLDER).iterdir()) == ["step_00000010", "step_00000020"]
    restored = store(run).restore(abstract_of(state_on((1, 1, 1, 1))), IDENTITY)
    assert restored is not None and int(restored.step) == 20


def test_a_run_or_a_save_that_cannot_fit_is_not_begun(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = store(run)
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0)
    )
    with pytest.raises(InputError, match="has 0.0 MB free"):
        box.save(state_on((1, 1, 1, 1), 30), IDENTITY)
    with pytest.raises(InputError, match="has 0.0 MB free"):
        train(tmp_path / "new", 3, 3, step=print)
    assert box.steps() == [10, 20]


def test_what_a_killed_save_left_is_removed(run: Path) -> None:
    stale = run / FOLDER / "step_00000030.tmp-0"
    stale.mkdir()
    (stale / "half").write_text("written")
    assert store(run).steps() == [10, 20] and not stale.exists()


COMMITTED = ("after the rename", "before reading back", "while deleting the oldest")


def goes_on_exactly(folder: Path, name: str, whole: TrainState) -> None:
    """Assert that the run left at this failpoint loses at most one save and ends as `whole`."""
    said: list[str] = []
    again = train(folder, 9, 3, announce=said.append)
    there = "trained to step 9" if name in COMMITTED else "going on from step 6"
    assert there in said[0], name
    assert same_bits(again, whole), name
    assert not [path for path in (folder / FOLDER).iterdir() if ".tmp" in path.name], name


def test_what_lies_on_the_disk_at_any_point_of_a_save_can_be_gone_on_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    undo = [
        at(name, lambda name=name: shutil.copytree(run, tmp_path / name)) for name in FAILPOINTS
    ]
    whole = train(run, 9, 3)
    for take_back in reversed(undo):
        take_back()
    for name in FAILPOINTS:
        goes_on_exactly(tmp_path / name, name, whole)


@pytest.mark.slow
def test_a_process_that_ends_at_any_point_of_a_save_loses_at_most_that_save(tmp_path: Path) -> None:
    def end(name: str) -> int:
        with launch(tmp_path / name, 9, 3, name) as process:
            process.communicate()
        return process.returncode

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(end, FAILPOINTS)) == {77}
    whole = train(tmp_path / "whole", 9, 9)
    for name in FAILPOINTS:
        goes_on_exactly(tmp_path / name, name, whole)


def test_a_checkpoint_without_a_guard_is_gone_on_from_and_says_so(run: Path) -> None:
    with jax.set_mesh(make_mesh()):
        before = state_on((1, 1, 1, 1), 20)
        past = start_guard(Guard(interval=4))
        guarded = TrainState(
            step=before.step, weights=before.weights, optimizer=before.optimizer, guard=past
        )
        said: list[str] = []
        restored = store(run, said).restore(abstract_of(guarded), IDENTITY)
        assert said == ["step_00000020 is of an earlier version, without a guard: it begins anew"]
        assert restored is not None and same_bits(restored, guarded)
        filled = jax.tree.map(lambda x: x + jnp.ones_like(x), past)
        changed = TrainState(
            step=before.step + 10, weights=before.weights, optimizer=before.optimizer, guard=filled
        )
        store(run).save(changed, IDENTITY)
        again = store(run, said).restore(abstract_of(guarded), IDENTITY)
        assert again is not None and same_bits(again, changed) and len(said) == 1


def test_what_is_written_is_arrays_and_json(run: Path) -> None:
    content = json.loads((newest(run) / MANIFEST_NAME).read_text())["content"]
    assert content["step"] == 20 and content["identity"] == IDENTITY
    assert content["arrays"]["weights.inner"] == "float32[8, 8]"
    assert not any(path.read_bytes().startswith(b"\x80") for path in files_of(run))  # no pickle
