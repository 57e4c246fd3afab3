"""`make bench-weights`: reading a prompt and writing an answer, beside transformers on torch's CPU.

A model of SmolLM2-135M's shape with random weights is written once, as a Hugging Face folder, and
both programs load it, in float32. Each is a process of its own, and they take turns, so that what
else the machine does hits both alike. The figure is the fastest repeat, and what is compared is the
ratio within the run. The first tokens that both write must be the same.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from benchmarks.environment import cache_folder, make_environment
from benchmarks.peers.model_work import WRITTEN, make_folder
from benchmarks.protocol import PeerFailed, Worker, python_command
from benchmarks.table import (
    AIM_HEAD,
    Aim,
    Measurement,
    publish,
)

OURS, THEIRS = "ringworld", "transformers"
Work = Literal["prefill", "decode"]
MODULES = {OURS: "weights_ours", THEIRS: "weights_transformers"}
HEAD = ("work", "peer", "s", "tokens/s", "load s", "peak MB", "peak / file")
NAME = "weights"  # the markers of its tables in a page


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Prefill and decode of one row, float32, beside transformers."""

    length: int = 2048
    """tokens of the prompt"""
    repeats: int = 5
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


def compare(
    work: Work, folder: Path, pythons: dict[str, Path], bench: Bench, console: Console
) -> list[tuple[Measurement, float]]:
    """Both peers at one work, and how long each took to load."""
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {name: [] for name in MODULES}
    samples: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    try:
        for name, module in MODULES.items():
            console.print(f"{work}: preparing {name}")
            log = cache_folder() / "logs" / f"weights-{name}.log"
            command = python_command(pythons[name], f"benchmarks.peers.{module}")
            worker = Worker(name, command, {}, log)
            workers[name] = worker
            asked = {"folder": str(folder), "length": bench.length, "work": work}
            samples[name] = worker.ask("prepare", **asked)["sample"]
        for _ in range(bench.repeats):
            for name, worker in workers.items():
                answer = worker.ask("repeat")
                seconds[name].append(answer["seconds"])
                peaks[name] = answer["peak"]
    finally:
        for worker in workers.values():
            worker.close()
    if work == "decode" and samples[OURS][1:] != samples[THEIRS][1:]:
        raise PeerFailed(f"the tokens differ: {samples[OURS][1:]} and {samples[THEIRS][1:]}")
    return [
        (
            Measurement(
                work=work,
                peer=name,
                flops=math.nan,
                seconds=tuple(seconds[name]),
                peak=peaks[name],
            ),
            samples[name][0],
        )
        for name in MODULES
    ]


def make_rows(
    found: Sequence[tuple[Measurement, float]], length: int, size: int
) -> list[tuple[str, ...]]:
    """A row for each measurement; `size` is that of the weights' file in bytes."""
    return [
        (
            m.work,
            m.peer,
            f"{m.best:.2f}",
            f"{(length if m.work == 'prefill' else WRITTEN) / m.best:,.1f}",
            f"{loaded:.1f}",
            f"{m.peak / 1e6:,.0f}",
            f"{m.peak / size:.2f}",
        )
        for m, loaded in found
    ]


def list_aims(found: Sequence[Measurement]) -> list[Aim]:
    """We are as fast as transformers at each work."""
    best = {(m.work, m.peer): m.best for m in found}
    return [
        Aim(
            claim=f"{work}: speed of {OURS} / {THEIRS}",
            ratio=best[work, THEIRS] / best[work, OURS],
            bound=1.0,
            at_least=True,
        )
        for work in dict.fromkeys(m.work for m in found)
    ]


def main() -> None:
    """Measure both works, print them, and write them into a page where one is named."""
    bench, console = tyro.cli(Bench, prog="bench-weights"), Console(stderr=True)
    if bench.length < 1 or bench.repeats < 1:
        print("bench-weights: use a length and repeats of 1 up")
        sys.exit(2)
    folder = cache_folder() / "smollm2-135m-shape"
    if not folder.exists():
        make_folder(folder)
    try:
        pins = Path(__file__).parent / "peers" / "transformers_cpu.txt"
        pythons = {OURS: Path(sys.executable), THEIRS: make_environment(pins, console.print)}
        works: tuple[Work, ...] = ("prefill", "decode")
        found = [pair for work in works for pair in compare(work, folder, pythons, bench, console)]
    except PeerFailed as failure:
        print(f"bench-weights: {failure}")
        sys.exit(1)
    size = (folder / "model.safetensors").stat().st_size
    aims = [aim.cells for aim in list_aims([m for m, _ in found])]
    tables = [
        ("Weights", HEAD, make_rows(found, bench.length, size)),
        ("Aims", AIM_HEAD, aims),
    ]
    publish(tables, bench.repeats, NAME, bench.page)


if __name__ == "__main__":
    main()
