"""The record of a run has each step once, in order, with the exact numbers."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.train import metrics
from ringworld.train.metrics import (
    METRICS_NAME,
    MetricsLog,
    format_row,
    keep_before,
    mfu,
    peak_flops,
    share_waited,
)


def record(folder: Path, said: list[str], **changes: Any) -> MetricsLog:
    """A log of ten steps that speaks at every fifth."""
    arguments = {
        "start": 0,
        "steps": 10,
        "log_every": 5,
        "patience": 3,
        "tokens_per_step": 100,
        "dtype": jnp.float32,
        "announce": said.append,
    }
    return MetricsLog(folder, **{**arguments, **changes})


def rows(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds."""
    return [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]


def write(folder: Path, losses: list[Any], *, start: int = 0) -> list[str]:
    """Log these losses from step `start`; returns what was said."""
    said: list[str] = []
    with record(folder, said, start=start) as log:
        for n, loss in enumerate(losses, start):
            log.push(n, {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1)}, wait_s=0.0)
        log.flush()
    return said


def test_floats_come_back_to_the_bit(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).standard_normal(10).astype(np.float32)
    write(tmp_path, list(losses))
    stored = np.array([row["loss"] for row in rows(tmp_path)], np.float32)
    assert stored.tobytes() == losses.tobytes()


def one(loss: float) -> dict[str, jax.Array]:
    return {"loss": jnp.float32(loss).block_until_ready()}


def test_a_step_that_has_ended_when_it_was_started_is_reported_at_once(tmp_path: Path) -> None:
    with record(tmp_path, []) as log:
        log.push(0, one(1), wait_s=0.0)
        assert [row["step"] for row in rows(tmp_path)] == [0]


def test_a_step_is_reported_after_the_next_one_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "have_ended", lambda numbers: False)
    with record(tmp_path, []) as log:
        log.push(0, one(1), wait_s=0.25)
        assert not (tmp_path / METRICS_NAME).exists()
        log.push(1, one(2), wait_s=0.5)
        assert [row["step"] for row in rows(tmp_path)] == [0]
        log.flush()
    assert [(row["step"], row["wait_s"]) for row in rows(tmp_path)] == [(0, 0.25), (1, 0.5)]


def test_going_on_from_a_step_drops_it_and_all_after_it(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3, 4, 5, 6])
    with open(tmp_path / METRICS_NAME, "a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, [40, 50], start=3)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 40),
        (4, 50),
    ]


@pytest.mark.parametrize("broken", ['{"step": 1, "lo', "[]", '{"loss": 1}', "\x00\x00", ""])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, broken: str) -> None:
    (tmp_path / METRICS_NAME).write_text('{"step": 0}\n' + broken)
    keep_before(tmp_path / METRICS_NAME, 9)
    assert (tmp_path / METRICS_NAME).read_text() == '{"step": 0}\n'


def test_plain_lines_are_said_every_few_steps_and_at_the_end(tmp_path: Path) -> None:
    said = write(tmp_path, list(range(10)))
    assert [line.split(" tokens/s")[0] for line in said] == [
        "step 0 loss 0.0000 grad_norm 1.0000",
        "step 5 loss 5.0000 grad_norm 1.0000",
        "step 9 loss 9.0000 grad_norm 1.0000",
    ]


def test_a_line_says_step_loss_gradient_speed_utilisation_and_waiting() -> None:
    row = {"step": 7, "loss": 1.5, "grad_norm": 0.25, "tokens_per_s": 1e3, "mfu": 0.421}
    said = format_row({**row, "seconds": 2.0, "wait_s": 0.02})
    assert said == "step 7 loss 1.5000 grad_norm 0.2500 tokens/s 1000 mfu 42.1% waited 1.0%"


def test_waiting_is_told_as_the_share_of_all_steps(tmp_path: Path) -> None:
    lines = [{"step": 0, "seconds": 3.0, "wait_s": 0.5}, {"step": 1, "seconds": 1.0, "wait_s": 0.0}]
    (tmp_path / METRICS_NAME).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert share_waited(tmp_path / METRICS_NAME) == 0.125


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_is_not_recorded(tmp_path: Path, bad: float) -> None:
    with pytest.raises(InputError, match=f"loss is {bad} at step 2: lower the learning rate"):
        write(tmp_path, [1, 2, bad])
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def numbers(loss: float, skipped: float) -> dict[str, jax.Array]:
    """The metrics of a step, as those of a training that skips updates."""
    named = {"loss": loss, "grad_norm": 1.0, "skipped": skipped}
    return {name: jnp.float32(value).block_until_ready() for name, value in named.items()}


def test_a_skipped_step_is_recorded_and_told_and_the_run_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    with record(tmp_path, said) as log:
        for step, (loss, skipped) in enumerate([(2.0, 0), (math.nan, 1), (9.5, 1), (2.0, 0)]):
            log.push(step, numbers(loss, skipped), wait_s=0.0)
    assert [(row["loss"], row["skipped"]) for row in rows(tmp_path)] == [
        (2, 0),
        (None, 1),
        (9.5, 1),
        (2, 0),
    ]
    assert said[1:] == [
        "step 1: no update, because of loss nan and grad_norm 1",
        "step 2: no update, because of loss 9.5 and grad_norm 1",
    ]


def test_too_many_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    with record(tmp_path, []) as log:
        for step, loss in enumerate([math.nan, math.inf, 1.0, math.nan, math.nan]):
            log.push(step, numbers(loss, float(not math.isfinite(loss))), wait_s=0.0)
        with pytest.raises(InputError, match="loss is nan at step 5, the last of 3 such steps"):
            log.push(5, numbers(math.nan, 1.0), wait_s=0.0)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_the_time_of_an_evaluation_is_none_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    with record(tmp_path, []) as log:
        monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        log.restart_clock()
        clock.now += 2
        with log.clock_stopped(one(1)):
            clock.now += 50
        log.push(0, {**one(1), "eval_loss": 3.25}, wait_s=0.0)
    assert rows(tmp_path)[0]["seconds"] == 2 and rows(tmp_path)[0]["eval_loss"] == 3.25


def test_another_metric_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with record(tmp_path, []) as log:
        log.push(0, {"loss": jnp.float32(1), "vision": jnp.float32("nan")}, wait_s=0.0)
        log.flush()
    assert rows(tmp_path)[0]["vision"] is None


def test_utilisation_is_the_share_of_the_measured_peak() -> None:
    dtype = np.dtype(np.float32)
    assert peak_flops(dtype) > 1e8
    np.testing.assert_allclose(mfu(0.25 * peak_flops(dtype), 0.5, dtype), 0.5)


def test_no_utilisation_is_told_rather_than_a_false_one(tmp_path: Path) -> None:
    dtype = np.dtype(np.float32)
    assert mfu(None, 1.0, dtype) is None and mfu(1.001 * peak_flops(dtype), 1.0, dtype) is None
    assert mfu(peak_flops(dtype), 1.0, dtype) == 1
    said: list[str] = []
    with record(tmp_path, said) as log:
        log.push(0, one(1), wait_s=0.0)
        log.push(1, {**one(1), "flops": jnp.float32(1e30)}, wait_s=0.0)
        log.push(2, {**one(1), "flops": jnp.float32(1.0)}, wait_s=0.0)
    found = rows(tmp_path)
    assert [row["mfu"] is None for row in found] == [True, True, False]
    assert 0 < found[2]["mfu"] <= 1 and not any("flops" in row for row in found)
    assert "mfu" not in said[0]
