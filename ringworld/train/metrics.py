"""What each step reports: a line on the terminal and a line in `metrics.jsonl`.

The numbers of a step are fetched only after the next one has been started, so that reading them
never keeps a device waiting.
"""

import json
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ringworld.distributed import is_first
from ringworld.errors import InputError
from ringworld.files import sync, whole, writing_to
from ringworld.mesh import make_mesh
from ringworld.progress import Announce, make_progress
from ringworld.train.sinks import SinkName, open_sinks, select_numbers

METRICS_NAME = "metrics.jsonl"
MUST_BE_FINITE = ("loss", "grad_norm")
# The side of the square matrices that measure the machine: large enough to reach its peak, on a CPU
# and on an accelerator, where 1024 would measure how long it takes to start a kernel.
SIDE, WIDE_SIDE = 1024, 8192
TRIALS = 5


@cache
def peak_flops(dtype: np.dtype) -> float:
    """Floating point operations a second of all devices together, measured on matrix products.

    The products are of `dtype`, the type that the model computes in. Virtual CPU devices share
    their cores and count as one.
    """
    cpu = jax.default_backend() == "cpu"
    side = SIDE if cpu else WIDE_SIDE
    multiply = jax.jit(lambda a: a @ a)
    seconds = []
    with jax.set_mesh(make_mesh(devices=jax.local_devices()[:1])):
        x = multiply(jnp.ones((side, side), dtype)).block_until_ready()
        for _ in range(TRIALS):
            begin = time.perf_counter()
            multiply(x).block_until_ready()
            seconds.append(time.perf_counter() - begin)
    return (1 if cpu else jax.device_count()) * 2 * side**3 / min(seconds)


def mfu(flops: float | None, seconds: float, dtype: np.dtype) -> float | None:
    """Model FLOPs utilisation: the share of the peak that went into `flops` of the model.

    None where `flops` is, and where the share is above 1: then the peak was measured while other
    work held the machine, and no share of it is true.
    """
    if flops is None:
        return None
    share = flops / seconds / peak_flops(dtype)
    return share if share <= 1 else None


@runtime_checkable
class Pending(Protocol):
    """An array that may still be computed: JAX's own type does not name this method."""

    def is_ready(self) -> bool:
        """Whether nothing is waited for any more to read it."""
        ...


class MetricsLog:
    """The record of a run: each step exactly once, in order, also over restarts.

    Of several processes the first one writes it.

    `start` is the first step that will be reported; later lines of an earlier attempt are dropped.
    Floats are written so that reading them back gives the same bits. A step whose loss or gradient
    is not finite ends the run, unless its metric "skipped" says that it changed nothing; `patience`
    of those in a row end it too. Use it as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        steps: int,
        log_every: int,
        patience: int,
        tokens_per_step: int,
        dtype: DTypeLike,
        announce: Announce,
        sinks: Sequence[SinkName] = (),
    ) -> None:
        self.path = folder / METRICS_NAME
        self.steps, self.log_every, self.announce = steps, log_every, announce
        self.tokens_per_step, self.dtype = tokens_per_step, jnp.dtype(dtype)
        self.patience, self._without_update = patience, 0
        self._waiting: tuple[int, dict[str, Any], float] | None = None
        if is_first():
            keep_before(self.path, start)
        self._sinks = open_sinks(sinks, folder, start) if is_first() else []
        self._bar = make_progress(
            BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}")
        )
        self._task = self._bar.add_task("", total=steps, completed=start)
        peak_flops(self.dtype)
        self._since = time.perf_counter()

    def __enter__(self) -> "MetricsLog":
        """Show the progress bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the progress bar and close the sinks."""
        self._bar.stop()
        for sink in self._sinks:
            sink.close()

    def push(self, step: int, metrics: dict[str, Any], *, wait_s: float) -> None:
        """Report the step before this one, and hold this one until its numbers are ready.

        Where starting a step waits for its end, as some programs on a CPU do, it is ready already
        and reported, so that each step has its own seconds. `metrics` are scalars; `wait_s` are the
        seconds that the step waited for its batch. Raises InputError when a step reported ends the
        run.
        """
        self._report_held()
        self._waiting = step, metrics, wait_s
        if have_ended(metrics):
            self._report_held()

    def flush(self) -> None:
        """Report the step that is held, and put all on the disk. Raises InputError as `push`."""
        self._report_held()
        if is_first():
            sync(self.path)

    def _report_held(self) -> None:
        held, self._waiting = self._waiting, None
        if held:
            self._report(*held)

    def restart_clock(self) -> None:
        """Leave the time since the last report out of the next one: a save is not training."""
        self._since = time.perf_counter()

    @contextmanager
    def clock_stopped(self, metrics: dict[str, Any]) -> Generator[None, None, None]:
        """Leave the time within out of the step whose metrics these are, once it has ended."""
        self._report_held()
        jax.block_until_ready(metrics)
        stopped = time.perf_counter()
        yield
        self._since += time.perf_counter() - stopped

    def _report(self, step: int, metrics: dict[str, Any], wait_s: float) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        flops = values.pop("flops", None)
        seconds = time.perf_counter() - self._since
        self._since += seconds
        self._check_finite(step, values)
        row = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "seconds": seconds,
            "wait_s": wait_s,
            "tokens_per_s": self.tokens_per_step / seconds,
            "mfu": mfu(flops, seconds, self.dtype),
        }
        if is_first():
            with writing_to(self.path.parent), open(self.path, "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        for sink in self._sinks:
            sink.write(step, select_numbers(row))
        line = format_row(row)
        self._bar.update(self._task, completed=step + 1, description=line)
        last = step + 1 == self.steps
        if self._bar.disable and (step % self.log_every == 0 or last):
            self.announce(line)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [name for name in MUST_BE_FINITE if not math.isfinite(values.get(name, 0.0))]
        self._without_update = self._without_update + 1 if bad else 0
        skipped = bool(values.get("skipped"))
        if bad and (not skipped or self._without_update >= self.patience):
            often = f", the last of {self._without_update} such steps" if skipped else ""
            raise InputError(
                f"{bad[0]} is {values[bad[0]]} at step {step}{often}: lower the learning rate and "
                "train in another folder; the last checkpoint of this one is as it was"
            )
        if skipped:
            cause = " and ".join(f"{name} {values[name]:.4g}" for name in MUST_BE_FINITE)
            self.announce(f"step {step}: no update, because of {cause}")


def have_ended(metrics: dict[str, Any]) -> bool:
    """Whether nothing is waited for any more to read these numbers."""
    return all(value.is_ready() for value in metrics.values() if isinstance(value, Pending))


def format_row(row: dict[str, Any]) -> str:
    """A row of the record as one line for people."""
    shown = [f"step {row['step']}"]
    shown += [f"{name} {row[name]:.4f}" for name in MUST_BE_FINITE if row.get(name) is not None]
    shown.append(f"tokens/s {row['tokens_per_s']:.0f}")
    if row["mfu"] is not None:
        shown.append(f"mfu {row['mfu']:.1%}")
    return " ".join([*shown, f"waited {row['wait_s'] / row['seconds']:.1%}"])


def share_waited(path: Path) -> float:
    """The share of a run's time in which its steps waited for their batches.

    `path` is its `metrics.jsonl`. All steps count, also the first, whose batch nothing hides.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(row["wait_s"] for row in rows) / sum(row["seconds"] for row in rows)


def keep_before(path: Path, start: int) -> None:
    """Drop the lines of step `start` and later, and a line that a kill cut short."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) < start]
    with whole(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
