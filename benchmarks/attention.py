"""`make bench-attention`: attention beside its peers, in one run on one machine.

Each peer is a process of its own, in an environment of its own, and all are given the same numbers.
For each work every peer does it once unmeasured, and then they take turns, A B C A B C ..., so that
what else the machine does hits all alike. The figure is the fastest repeat. What is compared is a
ratio within the run. Results are compared too: a peer that computes something else is not timed.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.table import (
    AIM_HEAD,
    HEAD,
    Aim,
    Measurement,
    publish,
    put_between,
    row,
)
from benchmarks.turns import GEMM, Peer, ask, fastest, make_pythons, take_turns
from benchmarks.work import Case, Kind
from ringworld.progress import Announce

TORCH, THEIRS, OURS = "torch SDPA", "ringattention", "ringworld"
STEP_BYTES = 12e9
GRAIN = 512  # lengths are multiples of it, so that every ring and every block divides them
NAME = "attention"  # the markers of its tables in a page

Results = Mapping[Case, Sequence[Measurement]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Attention beside its peers: float32, causal, 8 heads of 64, one row."""

    lengths: tuple[int, ...] = (8192, 16384)
    """tokens of a row, multiples of 512"""
    kinds: tuple[Kind, ...] = ("plain", "packed", "gqa")
    """one document, documents of about 1K, 8 query heads on 2 key heads"""
    repeats: int = 5
    step: int = 1 << 20
    """tokens of the row of the training step; 0 leaves it out"""
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


def _ours(name: str, devices: int, impl: str | None = None) -> Peer:
    return Peer(name=name, module="ours", devices=devices, request={"impl": impl})


def _theirs(name: str, devices: int) -> Peer:
    return Peer(
        name=name, module="reference_ring", environment="reference_ring.txt", devices=devices
    )


PEERS = (
    GEMM,
    Peer(name=TORCH, module="torch_sdpa", environment="torch_sdpa.txt"),
    _theirs(THEIRS, 1),
    _theirs(f"{THEIRS}, ring of 2", 2),
    _ours("XLA, every score at once", 1, "dense"),
    _ours(OURS, 1),
    _ours(f"{OURS}, ring of 2", 2),
    _ours(f"{OURS}, ring of 8", 8),
)
STEPS = tuple(
    Peer(name=f"{OURS}, ring of {devices}", module="training_step", devices=devices)
    for devices in (2, 8)
)


def compare(
    case: Case, pythons: Mapping[str | None, Path], repeats: int, announce: Announce
) -> list[Measurement]:
    """Every peer at one case."""
    return take_turns(case.name, asdict(case), case.flops, PEERS, pythons, repeats, announce)


def time_step(tokens: int, repeats: int, announce: Announce) -> list[Measurement]:
    """The training step on each ring, one after another: two would not fit in memory."""
    work, found = f"training step of {tokens:,} packed tokens", []
    for peer in STEPS:
        announce(f"{work}: {peer.name}")
        worker = peer.start(Path(sys.executable))
        answer = ask(worker, "prepare", tokens=tokens)
        seconds: list[float] = []
        while "refused" not in answer and len(seconds) < repeats:
            answer = ask(worker, "repeat")
            seconds.append(answer.get("seconds", math.nan))
        worker.close()
        found.append(
            Measurement(
                work=work,
                peer=peer.name,
                flops=math.nan,
                seconds=tuple(seconds),
                peak=answer.get("peak", 0),
                refused=answer.get("refused", ""),
            )
        )
    return found


def list_aims(results: Results, steps: Sequence[Measurement]) -> list[Aim]:
    """What was aimed at, beside what was measured."""
    aims = []
    for case, found in results.items():
        ours = fastest(found, OURS)
        alone = next((m.best for m in found if m.peer == OURS), math.nan)
        if case.kind == "plain":
            ring = fastest(found, f"{OURS}, ring of 8")
            aims += [
                Aim(
                    claim=f"{case.name}: ringworld / torch",
                    ratio=ours / fastest(found, TORCH),
                    bound=1.0,
                ),
                Aim(
                    claim=f"{case.name}: ringworld / ringattention",
                    ratio=ours / fastest(found, THEIRS),
                    bound=0.45,
                ),
                Aim(
                    claim=f"{case.name}: ring of 8 / one device",
                    ratio=ring / alone,
                    bound=1.10,
                ),
            ]
        plain = Case(length=case.length, kind="plain", backward=case.backward)
        if case.kind == "packed" and plain in results:
            claim = f"{case.name}: times faster than one document"
            ratio = fastest(results[plain], OURS) / ours
            aims.append(Aim(claim=claim, ratio=ratio, bound=5.0, at_least=True))
    for m in steps:
        claim = f"{m.work}, {m.peer}: peak / {STEP_BYTES / 1e9:g} GB"
        ratio = math.nan if m.refused else m.peak / STEP_BYTES
        aims.append(Aim(claim=claim, ratio=ratio, bound=1.0))
    return aims


STEP_HEAD = ("work", "peer", "s", "tokens/s", "peak GB")


def make_tables(
    results: Results, steps: Sequence[Measurement], tokens: int
) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    """Title, head and rows of each table."""
    rows = []
    for found in results.values():
        gemm = next(m.rate for m in found if m.peer == GEMM.name)
        rows += [row(m, fastest(found, TORCH), gemm) for m in found]
    step_rows = [
        (m.work, m.peer, m.refused, "", "")
        if m.refused
        else (
            m.work,
            m.peer,
            f"{m.best:.1f}",
            f"{tokens / m.best:,.0f}",
            f"{m.peak / 1e9:.1f}",
        )
        for m in steps
    ]
    return [
        ("Attention", HEAD, rows),
        ("Training", STEP_HEAD, step_rows),
        ("Aims", AIM_HEAD, [aim.cells for aim in list_aims(results, steps)]),
    ]


def main() -> None:
    """Measure what is asked for, print it, and write it into a page where one is named."""
    asked = tyro.cli(Bench, prog="bench-attention")
    if any(n < GRAIN or n % GRAIN for n in asked.lengths) or asked.repeats < 1:
        print(f"bench-attention: use lengths that are multiples of {GRAIN}, and repeats of 1 up")
        sys.exit(2)
    announce: Announce = Console(stderr=True).print
    if asked.page:
        put_between(asked.page.read_text(encoding="utf-8"), NAME, "")
    pythons = make_pythons(PEERS, announce)
    cases = [
        Case(length=length, kind=kind, backward=backward)
        for length in asked.lengths
        for kind in asked.kinds
        for backward in (False, True)
    ]
    results = {case: compare(case, pythons, asked.repeats, announce) for case in cases}
    steps = time_step(asked.step, min(asked.repeats, 2), announce) if asked.step else []
    tables = [table for table in make_tables(results, steps, asked.step) if table[2]]
    publish(tables, asked.repeats, NAME, asked.page)


if __name__ == "__main__":
    main()
