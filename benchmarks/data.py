"""`make bench-data`: text, films, pictures and rows, beside the libraries alone that they rest on.

Each side is a process of its own, and they take turns, A B A B ..., so that what else the machine
does hits both alike. The figure is the fastest repeat, and what is compared is the ratio within the
run. Both must give as many tokens, and the same pixels.

With `--runs` it also tells how long the steps of finished runs waited for their batches.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.environment import cache_folder
from benchmarks.peers.data_work import UNITS, Work, make_corpus
from benchmarks.protocol import PeerFailed, Worker, python_command
from benchmarks.table import publish
from ringworld.train.metrics import METRICS_NAME as METRICS
from ringworld.train.metrics import share_waited

OURS, ALONE = "ringworld", "alone"
MODULES = {OURS: "data_ours", ALONE: "data_alone"}
# What stands beside us at each work.
PEERS: dict[Work, str] = {
    "books": "tokenizers",
    "verses": "tokenizers",
    "every frame": "PyAV",
    "frame a second": "PyAV",
    "pictures": "Pillow",
    "rows": "Arrow and numpy",
}
HEAD = ("work", "peer", "s", "a second", "", "of the peer's speed")
WAIT_HEAD = ("stage", "steps", "s a step", "waited for batches")
NAME = "data"  # the markers of its tables in a page


@dataclass(frozen=True, kw_only=True)
class Bench:
    """From files to shards, from films to frames, from shards to batches."""

    repeats: int = 5
    works: tuple[Work, ...] = tuple(UNITS)
    runs: tuple[Path, ...] = ()
    """folders of runs whose waiting is told too"""
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How much of a work one side did in its fastest repeat."""

    work: Work
    peer: str
    count: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens, frames, pictures or rows a second."""
        return self.count / self.seconds


def compare(work: Work, repeats: int, console: Console) -> tuple[Found, Found]:
    """Both sides at one work: the library alone, then ours. Raises PeerFailed if they differ."""
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {name: [] for name in MODULES}
    samples: dict[str, list[float]] = {}
    try:
        for name, module in MODULES.items():
            console.print(f"{work}: preparing {name if name == OURS else PEERS[work]}")
            log = cache_folder() / "logs" / f"data-{name}.log"
            module = f"benchmarks.peers.{module}"
            workers[name] = Worker(name, python_command(Path(sys.executable), module), {}, log)
            samples[name] = workers[name].ask("prepare", work=work)["sample"]
        for _ in range(repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.ask("repeat")["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    if samples[OURS] != samples[ALONE]:
        raise PeerFailed(f"{work}: the results differ, {samples[OURS]} and {samples[ALONE]}")
    count = samples[OURS][0]
    alone = Found(work=work, peer=PEERS[work], count=count, seconds=min(seconds[ALONE]))
    return alone, Found(work=work, peer=OURS, count=count, seconds=min(seconds[OURS]))


def make_rows(pairs: Sequence[tuple[Found, Found]]) -> list[tuple[str, ...]]:
    """A row for each side of each work."""
    return [
        (
            side.work,
            side.peer,
            f"{side.seconds:.2f}",
            f"{side.rate:,.0f}",
            UNITS[side.work],
            f"{side.rate / pair[0].rate:#.3g}",
        )
        for pair in pairs
        for side in pair
    ]


def tell_waits(runs: Sequence[Path]) -> list[tuple[str, ...]]:
    """A row for each stage of the runs: how much of its time it waited for batches."""
    rows = []
    for path in sorted(file for run in runs for file in run.glob(f"**/{METRICS}")):
        steps = [json.loads(line) for line in path.read_text().splitlines()]
        each = sum(step["seconds"] for step in steps) / len(steps)
        name = path.parent.relative_to(path.parent.parent.parent).as_posix()
        rows.append((name, f"{len(steps)}", f"{each:.2f}", f"{share_waited(path):.3%}"))
    return rows


def main() -> None:
    """Measure, print, and write the tables into a page where one is named."""
    bench, console = tyro.cli(Bench, prog="bench-data"), Console(stderr=True)
    if bench.repeats < 1:
        print("bench-data: use repeats of 1 up")
        sys.exit(2)
    try:
        make_corpus()
        pairs = [compare(work, bench.repeats, console) for work in bench.works]
    except PeerFailed as failure:
        print(f"bench-data: {failure}")
        sys.exit(1)
    tables = [("Data", HEAD, make_rows(pairs))]
    if bench.runs:
        tables.append(("Waiting", WAIT_HEAD, tell_waits(bench.runs)))
    publish(tables, bench.repeats, NAME, bench.page)


if __name__ == "__main__":
    main()
