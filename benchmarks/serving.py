"""`make bench-serving`: one to sixteen requests beside transformers, and one beside llama.cpp.

SmolLM2-135M in float32, from the GGUF that llama.cpp reads too (as Q4_1); transformers has a model
of the same shape. Each peer is a process of its own, and they take turns. The figure is the fastest
repeat, and what is compared are ratios within the run. The last work is a second question about a
long text: the time to its first token beside that of the first question.
"""

import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from benchmarks.environment import cache_folder, make_environment
from benchmarks.peers.model_work import WRITTEN, make_folder
from benchmarks.protocol import PeerFailed, Worker, python_command
from benchmarks.table import AIM_HEAD, Aim, publish, put_between
from ringworld.fetch import fetch

OURS, THEIRS, LLAMA = "ringworld", "transformers", "llama.cpp"
Work = Literal["prefill", "decode", "first", "second"]
REQUESTS = (1, 4, 16)
HEAD = ("work", "requests", "peer", "s", "tokens/s", "peak MB")
NAME = "serving"  # the markers of its tables in a page
NODE_PACKAGE = "node-llama-cpp@3.22"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Prefill and decoding of 1, 4 and 16 requests, and a second question about a long text."""

    length: int = 512
    """tokens of each prompt"""
    book: int = 32768
    """tokens of the text that is asked about twice; 0 leaves it out"""
    repeats: int = 3
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a peer took for one work: the fastest repeat in seconds, and the process's peak."""

    work: Work
    requests: int
    peer: str
    seconds: float
    tokens: int
    peak: int

    @property
    def rate(self) -> float:
        """Tokens a second over all requests."""
        return self.tokens / self.seconds

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        told = (f"{self.seconds:.2f}", f"{self.rate:,.1f}", f"{self.peak / 1e6:,.0f}")
        return self.work, str(self.requests), self.peer, *told


def install_node_peer() -> Path:
    """The folder in which llama.cpp for Node is installed. Raises PeerFailed when it cannot be."""
    folder = cache_folder() / NODE_PACKAGE.replace("@", "-")
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", NODE_PACKAGE]
        if subprocess.run(command, cwd=draft, stdout=sys.stderr).returncode:
            raise PeerFailed("llama.cpp could not be installed: see what npm said above")
        draft.rename(folder)
    return folder


def list_peers(requests: int) -> dict[str, tuple[list[str], Path]]:
    """The command and the model of each peer that can do this many requests."""
    pins = Path(__file__).parent / "peers" / "transformers_cpu.txt"
    shape, gguf = cache_folder() / "smollm2-135m-shape", fetch("smollm2-135m")
    if not shape.exists():
        make_folder(shape)
    python, own = make_environment(pins, print), Path(sys.executable)
    peers = {
        OURS: (python_command(own, "benchmarks.peers.serving_ours"), gguf),
        THEIRS: (python_command(python, "benchmarks.peers.serving_transformers"), shape),
    }
    if requests == 1:
        script = Path(__file__).parent / "peers" / "serving_llama.mjs"
        peers[LLAMA] = (["node", str(script), str(install_node_peer())], gguf)
    return peers


def measure(
    work: Work, requests: int, length: int, repeats: int, peers: Sequence[str], console: Console
) -> list[Speed]:
    """The speed of each peer at one work, in turn."""
    workers: dict[str, Worker] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    try:
        for name, (command, model) in list_peers(requests).items():
            if name not in peers:
                continue
            console.print(f"{work} of {requests}: preparing {name}")
            log = cache_folder() / "logs" / f"serving-{name}.log"
            workers[name] = worker = Worker(name, command, {}, log)
            asked = {"model": str(model), "length": length, "requests": requests, "work": work}
            worker.ask("prepare", **asked)
        for _ in range(repeats):
            for name, worker in workers.items():
                answers.setdefault(name, []).append(worker.ask("repeat"))
    finally:
        for worker in workers.values():
            worker.close()
    tokens = requests * {"prefill": length, "decode": WRITTEN}[work]
    return [note(work, requests, name, tokens, own, console) for name, own in answers.items()]


def ask_about_book(length: int, repeats: int, console: Console) -> list[Speed]:
    """Our speed at the first question about a text of so many tokens, and at the next ones."""
    console.print(f"a text of {length:,} tokens: preparing {OURS}")
    command, model = list_peers(1)[OURS]
    worker = Worker(OURS, command, {}, cache_folder() / "logs" / f"serving-{OURS}.log")
    try:
        worker.ask("prepare", model=str(model), length=length, requests=1, work="book")
        answers = [worker.ask("repeat") for _ in range(1 + repeats)]
    finally:
        worker.close()
    return [
        note("first", 1, OURS, length, answers[:1], console),
        note("second", 1, OURS, length, answers[1:], console),
    ]


def note(
    work: Work,
    requests: int,
    peer: str,
    tokens: int,
    answers: Sequence[dict[str, Any]],
    console: Console,
) -> Speed:
    """The fastest of a peer's repeats, also printed: the whole takes most of an hour."""
    speed = Speed(
        work=work,
        requests=requests,
        peer=peer,
        seconds=min(answer["seconds"] for answer in answers),
        tokens=tokens,
        peak=max(answer["peak"] for answer in answers),
    )
    console.print(
        f"{work} of {requests}, {peer}: {speed.seconds:.2f} s, {speed.rate:,.1f} tokens/s"
    )
    return speed


def list_aims(found: Sequence[Speed]) -> list[Aim]:
    """The aims of the engine, as ratios."""
    rates = {(speed.work, speed.requests, speed.peer): speed.rate for speed in found}

    def ratio(work: Work, left: tuple[int, str], right: tuple[int, str]) -> float:
        nothing = math.nan
        return rates.get((work, *left), nothing) / rates.get((work, *right), nothing)

    aims = [
        Aim(
            claim=f"{work} of {count}: speed of {OURS} / {THEIRS}",
            ratio=ratio(work, (count, OURS), (count, THEIRS)),
            bound=1.0,
            at_least=True,
        )
        for work in ("prefill", "decode")
        for count in REQUESTS
    ]
    against = ((LLAMA, "prefill", 1.5), (LLAMA, "decode", 1.0))
    aims += [
        Aim(
            claim=f"{work} of 1: speed of {OURS} / {name}",
            ratio=ratio(work, (1, OURS), (1, name)),
            bound=bound,
            at_least=True,
        )
        for name, work, bound in against
    ]
    many = ratio("decode", (16, OURS), (1, OURS))
    aims.append(Aim(claim="decode: tokens/s of 16 / of 1", ratio=many, bound=6.0, at_least=True))
    asked = {speed.work: speed for speed in found if speed.work in ("first", "second")}
    if asked:
        claim = f"second question on {asked['first'].tokens:,} tokens / first"
        taken = asked["second"].seconds / asked["first"].seconds
        aims.append(Aim(claim=claim, ratio=taken, bound=0.01))
    return aims


def main() -> None:
    """Measure all works, print them, and write them into a page where one is named."""
    bench, console = tyro.cli(Bench, prog="bench-serving"), Console(stderr=True)
    if bench.length < 1 or bench.repeats < 1:
        print("bench-serving: use a length and repeats of 1 up")
        sys.exit(2)
    everyone, found = (OURS, THEIRS, LLAMA), []
    try:
        if bench.page is not None:  # else an hour of measuring would end in an error
            put_between(bench.page.read_text(encoding="utf-8"), NAME, "")
    except (OSError, ValueError) as error:
        print(f"bench-serving: {error}")
        sys.exit(2)
    try:
        works: tuple[Work, ...] = ("prefill", "decode")
        for work in works:
            for count in REQUESTS:
                found += measure(work, count, bench.length, bench.repeats, everyone, console)
        if bench.book:
            found += ask_about_book(bench.book, bench.repeats, console)
    except PeerFailed as failure:
        print(f"bench-serving: {failure}")
        sys.exit(1)
    aims = [aim.cells for aim in list_aims(found)]
    tables = [("Serving", HEAD, [s.cells for s in found]), ("Aims", AIM_HEAD, aims)]
    publish(tables, bench.repeats, NAME, bench.page)


if __name__ == "__main__":
    main()
