"""`make bench-decode`: writing an answer with weights in float32, bfloat16 and int8, and llama.cpp.

All read the same file, SmolLM2-135M in 4 bits: we hold its weights as each of the three, llama.cpp
(built for npm's node-llama-cpp) as they are. Each has read a prompt of random ids and writes tokens
greedily, as one request. Each is a process of its own, and they take turns; the figure is the
fastest repeat.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.environment import cache_folder
from benchmarks.peers.model_work import WRITTEN
from benchmarks.protocol import PeerFailed, Worker, python_command
from benchmarks.serving import install_node_peer
from benchmarks.table import AIM_HEAD, Aim, publish
from ringworld.fetch import fetch

MODEL = "smollm2-135m"
OURS = {f"ringworld, {dtype}": dtype for dtype in ("float32", "bfloat16", "int8")}
THEIRS = "llama.cpp, 4 bits"
HEAD = ("peer", "s", "tokens/s", "ms a token", "peak MB")
NAME = "decode"  # the markers of its tables in a page


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Tokens of one row, written after a prompt."""

    length: int = 512
    """tokens of the prompt"""
    repeats: int = 4
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


def compare(bench: Bench, console: Console) -> dict[str, tuple[float, int]]:
    """The fastest repeat of each peer in seconds, and the most memory that it held."""
    file, here = fetch(MODEL), Path(__file__).parent / "peers"
    ours = python_command(Path(sys.executable), "benchmarks.peers.serving_ours")
    theirs = ["node", str(here / "serving_llama.mjs"), str(install_node_peer())]
    workers: dict[str, Worker] = {}
    found: dict[str, tuple[float, int]] = {}
    try:
        for name in (*OURS, THEIRS):
            console.print(f"preparing {name}")
            log = cache_folder() / "logs" / f"decode-{len(workers)}.log"
            workers[name] = Worker(name, theirs if name == THEIRS else ours, {}, log)
            asked = {"model": str(file), "length": bench.length, "requests": 1, "work": "decode"}
            workers[name].ask("prepare", **asked, dtype=OURS.get(name))
        for _ in range(bench.repeats):
            for name, worker in workers.items():
                answer = worker.ask("repeat")
                best = found[name][0] if name in found else float("inf")
                found[name] = min(best, answer["seconds"]), answer["peak"]
    finally:
        for worker in workers.values():
            worker.close()
    return found


def list_aims(seconds: dict[str, float]) -> list[Aim]:
    """int8 is faster than float32, and as fast as llama.cpp."""
    return [
        Aim(
            claim=f"speed of ringworld, int8 / {other}",
            ratio=seconds[other] / seconds["ringworld, int8"],
            bound=1.0,
            at_least=True,
        )
        for other in ("ringworld, float32", THEIRS)
    ]


def main() -> None:
    """Measure, print, and write the tables into a page where one is named."""
    bench, console = tyro.cli(Bench, prog="bench-decode"), Console(stderr=True)
    if bench.length < 2 or not 1 <= bench.repeats <= 6:
        print("bench-decode: use a length of 2 and repeats of 1 to 6")
        sys.exit(2)
    try:
        found = compare(bench, console)
    except PeerFailed as failure:
        print(f"bench-decode: {failure}")
        sys.exit(1)
    rows = [
        (
            name,
            f"{seconds:.2f}",
            f"{WRITTEN / seconds:.1f}",
            f"{seconds / WRITTEN * 1e3:.1f}",
            f"{peak / 1e6:,.0f}",
        )
        for name, (seconds, peak) in found.items()
    ]
    aims = [aim.cells for aim in list_aims({name: best for name, (best, _) in found.items()})]
    title = f"{WRITTEN} tokens after {bench.length:,}"
    publish([(title, HEAD, rows), ("Aims", AIM_HEAD, aims)], bench.repeats, NAME, bench.page)


if __name__ == "__main__":
    main()
