"""Partitions run in processes of this machine, which end without a message on Ctrl-C.

A terminal sends Ctrl-C to every process, and the builder says what to do next. A worker leaves the
partition that it is at by an exception, so that nothing half-written stays, and begins no other; it
does not die of it, since a pool that loses one worker kills the rest where they stand. A builder
that is killed takes its workers with it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

from ringworld.data.corpora.partition import PartitionNote
from ringworld.data.corpora.reader import Partition
from ringworld.errors import InputError


def run_in_processes(
    work: Callable[[Partition], PartitionNote], partitions: Sequence[Partition], *, workers: int
) -> Iterator[PartitionNote]:
    """The notes of the partitions, in order, each done in one of `workers` new processes.

    Raises InputError when a process dies.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin)
    try:
        with _interrupts_held():
            notes = pool.map(partial(_do, work), partitions)
        yield from notes
    except BrokenProcessPool as error:
        raise InputError(
            "a worker died, perhaps of memory: run again to go on, with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """Let Ctrl-C wait, and in processes that are started meanwhile too, until they heed it.

    Blocking alone does not hold it here: the system gives it to another thread of the program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if waiting:
        raise KeyboardInterrupt


@dataclass
class State:
    """Whether a worker is at a partition, and whether somebody has pressed Ctrl-C."""

    at_work: bool = False
    stopped: bool = False


STATE = State()


def _begin() -> None:
    """In a worker that has started: take the interrupts that waited, and those to come."""
    threading.Thread(target=_end_with_builder, daemon=True).start()
    signal.signal(signal.SIGINT, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_builder() -> None:
    """End this worker at once when its builder is gone, killed without a chance to say so.

    It would wait for ever for its next partition, and until then write where the next build does.
    """
    builder = multiprocessing.parent_process()
    assert builder is not None, "a worker has a builder"
    builder.join()
    os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    STATE.stopped = True
    if STATE.at_work:
        raise KeyboardInterrupt


def _do(work: Callable[[Partition], PartitionNote], partition: Partition) -> PartitionNote:
    """One partition, in a worker."""
    STATE.at_work = True
    try:
        if STATE.stopped:
            raise KeyboardInterrupt
        return work(partition)
    finally:
        STATE.at_work = False
