"""The training loop: restore, step, report, save, and resume after any kind of stop.

A batch is a pure function of its step, and the state is all that a step changes. So a run that was
killed and started again takes the same steps, bit for bit, as one that was not.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from ringworld.distributed import exchange_texts, is_first
from ringworld.errors import InputError
from ringworld.files import alone_in
from ringworld.progress import Announce
from ringworld.train.build import Step, TrainState, is_finite
from ringworld.train.checkpoint import FOLDER, Checkpoints
from ringworld.train.metrics import MetricsLog
from ringworld.train.sinks import SinkName


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long a run is, and how often it saves and reports; all counted in steps."""

    steps: int
    """updates in all"""
    save_every: int = 100
    """updates between two checkpoints"""
    keep: int = 2
    """how many of the newest checkpoints stay, 2 or more"""
    milestones: tuple[int, ...] = ()
    """steps whose checkpoint always stays"""
    log_every: int = 10
    """steps between two lines of the log; on a terminal every step is shown"""
    patience: int = 10
    """steps in a row without a finite loss and gradient after which the run stops"""
    replay_every: int = 0
    """steps between two whose gradients are computed twice and compared; 0 for none"""
    sinks: tuple[SinkName, ...] = ()
    """where the metrics go besides metrics.jsonl"""

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: make it 1 or more")
        if self.replay_every < 0:
            raise InputError(f"replay_every is {self.replay_every}: make it 0 or more")


Measure = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured of the weights while they are trained.

    `measure` maps them to numbers by name, the same for the same weights; it is called after every
    `every` steps and after the last.
    """

    every: int
    measure: Measure


def fit(
    *,
    abstract: TrainState,
    begin: Callable[[], TrainState],
    step: Step,
    batches: Callable[[int], Any],
    loop: Loop,
    folder: Path,
    identity: dict[str, Any],
    tokens_per_step: int,
    dtype: DTypeLike,
    announce: Announce,
    replay: Step | None = None,
    evaluation: Evaluation | None = None,
) -> TrainState:
    """Train until `loop.steps` updates are made, from the newest whole checkpoint in `folder`.

    A checkpoint is restored onto the shapes and shardings of `abstract`; without one, `begin` makes
    the first state. `step` maps a state and a batch to the next state and its metrics (scalars,
    among them "loss" and "grad_norm", and "flops" where they are known); it is jitted and may
    donate the state. `batches(n)` makes the batch of step n and of nothing else, in another thread:
    it must not run collectives. `identity` is JSON that says which model this is. Utilisation is
    the share of what matrix products of `dtype` reach. `replay` takes the place of `step` every
    `loop.replay_every` steps.

    Raises InputError when the checkpoint is of another model, the disk is full, another process
    trains in `folder`, a number is not finite in a step that was not skipped, or in
    `loop.patience` steps in a row (nothing of them is kept). On SIGINT or
    SIGTERM the current step ends and is saved, then KeyboardInterrupt says how to go on; of several
    processes it is enough that one gets the signal, and all save the same step.
    """
    checkpoints = Checkpoints(
        folder=folder / FOLDER, keep=loop.keep, milestones=loop.milestones, announce=announce
    )
    with alone_in(folder) if is_first() else nullcontext():
        checkpoints.prepare()
        state = checkpoints.restore(abstract, identity) or begin()
        start = int(state.step)
        if start >= loop.steps:
            announce(f"{folder}: trained to step {start} already")
            return state
        if start:
            announce(f"{folder}: going on from step {start} of {loop.steps}")
        checkpoints.check_space(state)
        log = MetricsLog(
            folder,
            start=start,
            steps=loop.steps,
            log_every=loop.log_every,
            patience=loop.patience,
            tokens_per_step=tokens_per_step,
            dtype=dtype,
            announce=announce,
            sinks=loop.sinks,
        )
        stream = closing(_prefetch(batches, start, loop.steps))
        with log, stream as ahead, _stop_signal() as stop:
            for n, batch, wait_s in ahead:
                done = n + 1
                twice = loop.replay_every > 0 and done % loop.replay_every == 0
                state, metrics = (replay if replay and twice else step)(state, batch)
                if evaluation is not None and (done % evaluation.every == 0 or done == loop.steps):
                    with log.clock_stopped(metrics):
                        metrics = {**metrics, **evaluation.measure(state.weights)}
                log.push(n, metrics, wait_s=wait_s)
                # Between hosts, while the devices compute: 1 ms on 2 of them.
                stopping = any(exchange_texts("stop" if stop.is_set() else ""))
                if done % loop.save_every == 0 or done == loop.steps or stopping:
                    log.flush()
                    _check_finite(state, n)
                    checkpoints.save(state, identity)
                    log.restart_clock()
                if stopping and done < loop.steps:
                    raise KeyboardInterrupt(
                        f"stopped after step {n}, saved in {folder}: run the same command to go on"
                    )
    return state


def _prefetch(
    batches: Callable[[int], Any], start: int, end: int
) -> Generator[tuple[int, Any, float], None, None]:
    """Each step's number, its batch, and the seconds spent waiting for it.

    The next batch is made in a thread while the step runs.
    """
    mesh = jax.sharding.get_mesh()  # a mesh is set per thread

    def make(n: int) -> Any:
        with nullcontext() if mesh.empty else jax.set_mesh(mesh):
            return batches(n)

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead = pool.submit(make, start)
        for n in range(start, end):
            since = time.perf_counter()
            batch = ahead.result()
            waited = time.perf_counter() - since
            if n + 1 < end:
                ahead = pool.submit(make, n + 1)
            yield n, batch, waited


def _check_finite(state: TrainState, n: int) -> None:
    if not is_finite(state):
        raise InputError(
            f"the weights are not finite after step {n}: lower the learning rate and train in "
            "another folder; the last checkpoint of this one is as it was"
        )


@contextmanager
def _stop_signal() -> Generator[threading.Event, None, None]:
    """An event that SIGINT and SIGTERM set; a second signal acts as if this were not here."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        stop.set()
        restore_handlers()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore_handlers()
