"""A run that was stopped in any way goes on as if it had not been."""

import fcntl
import json
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import STEPS, batch, launch, tiny_step, train

from ringworld.errors import InputError
from ringworld.mesh import mesh_is_set
from ringworld.train.build import TrainState
from ringworld.train.checkpoint import FOLDER
from ringworld.train.loop import Evaluation, Loop
from ringworld.train.metrics import METRICS_NAME


def losses(folder: Path) -> list[tuple[int, float]]:
    """The step and the loss of every line of the record."""
    rows = [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def bits(state: TrainState) -> list[bytes]:
    """All numbers of a state."""
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def kept(folder: Path) -> list[str]:
    """The names in the checkpoint folder."""
    return sorted(path.name for path in (folder / FOLDER).iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """A run of 12 steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, 12, 12)


def test_going_on_before_at_and_after_a_save_is_exact(
    tmp_path: Path, whole: tuple[Path, TrainState]
) -> None:
    folder, state = whole
    for step in (1, 4, 5, 11):
        train(tmp_path / str(step), step, 5)
        assert bits(train(tmp_path / str(step), 12, 5)) == bits(state), step
        assert losses(tmp_path / str(step)) == losses(folder), step


def test_going_on_many_times_is_exact(tmp_path: Path, whole: tuple[Path, TrainState]) -> None:
    for step in range(1, 13):
        state = train(tmp_path, step, 1)
    assert bits(state) == bits(whole[1]) and losses(tmp_path) == losses(whole[0])


def kill_until_done(folder: Path, kills: int, seed: int) -> None:
    """Train in processes that SIGKILL ends at random moments, then in one that nothing ends."""
    chance = random.Random(seed)
    for _ in range(kills):
        before = (folder / METRICS_NAME).read_bytes() if (folder / METRICS_NAME).exists() else b""
        with launch(folder, STEPS, 5) as process:
            while process.poll() is None:
                if (folder / METRICS_NAME).exists() and (
                    folder / METRICS_NAME
                ).read_bytes() != before:
                    break
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
    with launch(folder, STEPS, 5) as process:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()


def loses_nothing_when_killed(folder: Path, kills: int, seed: int) -> None:
    """Assert that a killed run has the losses and the last weights of one that was not."""
    kill_until_done(folder / "whole", 0, seed)
    kill_until_done(folder / "killed", kills, seed)
    assert [step for step, _ in losses(folder / "killed")] == list(range(STEPS))
    assert losses(folder / "killed") == losses(folder / "whole")
    states = [train(folder / name, STEPS, 5, announce=print) for name in ("whole", "killed")]
    assert bits(states[0]) == bits(states[1])


def test_a_run_killed_at_random_moments_has_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    loses_nothing_when_killed(tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    loses_nothing_when_killed(tmp_path, kills=20, seed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_says_how_to_go_on(
    tmp_path: Path, whole: tuple[Path, TrainState], number: signal.Signals
) -> None:
    def batch_with_signal(step: int) -> np.ndarray:
        if step == 7:
            os.kill(os.getpid(), number)
        return batch(step)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="saved in .*: run the same command to go on"):
        train(tmp_path, 12, 100, batches=batch_with_signal)
    assert signal.getsignal(number) is before
    assert kept(tmp_path)[0] in ("step_00000007", "step_00000008")
    assert bits(train(tmp_path, 12, 100)) == bits(whole[1])
    assert losses(tmp_path) == losses(whole[0])


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    state = train(tmp_path, 4, 4)

    def never(*arguments: Any) -> Any:
        raise AssertionError("a finished run took a step")

    record = (tmp_path / METRICS_NAME).read_text()
    assert bits(train(tmp_path, 4, 4, step=never, batches=never)) == bits(state)
    assert (tmp_path / METRICS_NAME).read_text() == record


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_not_finite_stops_before_it_is_kept(tmp_path: Path, name: str) -> None:
    def breaking(state: TrainState, x: np.ndarray) -> tuple[TrainState, dict[str, jax.Array]]:
        step = int(state.step)
        state, metrics = tiny_step(state, x)
        return state, {**metrics, name: jnp.float32(jnp.nan)} if step == 9 else metrics

    with pytest.raises(InputError, match=f"{name} is nan at step 9: lower the learning rate"):
        train(tmp_path, 12, 5, step=breaking)
    assert kept(tmp_path) == ["step_00000005"]
    assert [step for step, _ in losses(tmp_path)] == list(range(9))


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    def breaking(state: TrainState, x: np.ndarray) -> tuple[TrainState, dict[str, jax.Array]]:
        step = int(state.step)
        state, metrics = tiny_step(state, x)
        weights = jax.tree.map(lambda w: w / (9.0 - step), state.weights)
        return replace(state, weights=weights), metrics

    with pytest.raises(InputError, match="the weights are not finite after step 9"):
        train(tmp_path, 12, 5, step=breaking)
    assert kept(tmp_path) == ["step_00000005"]


def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 4, 4)
    with pytest.raises(InputError, match="identity.recipe is tiny there and None here"):
        train(tmp_path, 8, 4, identity={"model": {"width": 8, "layers": 2}})
    assert kept(tmp_path) == ["step_00000004"]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    train(tmp_path, 4, 4)
    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is at work in"):
            train(tmp_path, 8, 4)
    train(tmp_path, 8, 4)


def test_the_next_batch_is_made_while_a_step_runs(tmp_path: Path) -> None:
    made = [threading.Event() for _ in range(7)]
    meshes = []

    def noticed(step: int) -> np.ndarray:
        meshes.append(mesh_is_set())
        made[step].set()
        return batch(step)

    def waiting(state: TrainState, x: np.ndarray) -> tuple[TrainState, dict[str, jax.Array]]:
        ahead = int(state.step) + 1
        assert ahead == 6 or made[ahead].wait(20), f"batch {ahead} was not made ahead"
        return tiny_step(state, x)

    train(tmp_path, 6, 6, step=waiting, batches=noticed)
    assert meshes == [True] * 6
    rows = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert all(row["wait_s"] >= 0 for row in rows)


def test_each_step_records_how_long_it_waited_for_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([reading for n in range(6) for reading in (10.0 * n, 10.0 * n + n)])
    clock = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr("ringworld.train.loop.time", clock)
    train(tmp_path, 6, 6)
    rows = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert [row["wait_s"] for row in rows] == [0, 1, 2, 3, 4, 5]


def test_an_error_in_a_batch_ends_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    def broken(step: int) -> np.ndarray:
        if step == 7:
            raise InputError("shard 3 is cut short: prepare the data again")
        return batch(step)

    with pytest.raises(InputError, match="shard 3 is cut short"):
        train(tmp_path, 12, 5, batches=broken)
    assert kept(tmp_path) == ["step_00000005"]


def test_every_few_steps_one_is_made_by_the_replay(tmp_path: Path) -> None:
    made = []

    def note(name: str) -> Any:
        def step(state: TrainState, x: np.ndarray) -> tuple[TrainState, dict[str, jax.Array]]:
            made.append(name)
            return tiny_step(state, x)

        return step

    loop = Loop(steps=7, save_every=7, replay_every=3)
    train(tmp_path, 7, 7, loop=loop, step=note("step"), replay=note("replay"))
    assert made == ["step", "step", "replay"] * 2 + ["step"]
    with pytest.raises(InputError, match="replay_every is -1: make it 0 or more"):
        Loop(steps=7, replay_every=-1)


def test_an_evaluation_stands_in_the_record_of_its_step_also_after_a_stop(tmp_path: Path) -> None:
    def evaluation(every: int) -> Evaluation:
        return Evaluation(
            every=every, measure=lambda weights: {"eval_size": float(jnp.sum(weights.inner**2))}
        )

    def sizes(folder: Path) -> list[float | None]:
        lines = (folder / METRICS_NAME).read_text().splitlines()
        return [json.loads(line).get("eval_size") for line in lines]

    train(tmp_path / "whole", 10, 4, evaluation=evaluation(3))
    measured = sizes(tmp_path / "whole")
    assert [n for n, size in enumerate(measured) if size is not None] == [2, 5, 8, 9]
    train(tmp_path / "stopped", 5, 4, evaluation=evaluation(3))
    train(tmp_path / "stopped", 10, 4, evaluation=evaluation(3))
    again = sizes(tmp_path / "stopped")
    assert (again[2], *again[5:]) == (measured[2], *measured[5:])


@pytest.mark.parametrize("name", ["steps", "save_every", "log_every", "patience"])
def test_a_loop_without_steps_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0: make it 1 or more"):
        Loop(**{"steps": 1, name: 0})
