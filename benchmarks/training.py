"""`make bench-training`: loss and gradients of one row through a small model, beside LWM's.

The model has 4 layers of width 256, 4 heads of 64 and 704 features, in float32; the row is one
document. Each program runs on rings of 2 and 8 virtual devices, in a process of its own, and they
take turns. All must agree on the loss and on the norm of every gradient. What the cores can do is
measured in the same run, on the product of two matrices.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.peers.step_work import count_step_flops
from benchmarks.table import AIM_HEAD, Aim, Measurement, publish, put_between
from benchmarks.turns import GEMM, Peer, fastest, make_pythons, take_turns
from ringworld.progress import Announce

OURS, THEIRS = "ringworld", "LWM"
RINGS = (2, 8)
GRAIN = 4096  # lengths are multiples of it, so that every ring and every block of LWM divides them
HEAD = ("work", "peer", "s", "tokens/s", "GFLOP/s", "of GEMM", "peak MB")
NAME = "training"  # the markers of its tables in a page

PEERS = (
    GEMM,
    *(
        Peer(
            name=f"{THEIRS}, ring of {devices}",
            module="step_lwm",
            environment="lwm.txt",
            devices=devices,
        )
        for devices in RINGS
    ),
    *(
        Peer(name=f"{OURS}, ring of {devices}", module="step_ours", devices=devices)
        for devices in RINGS
    ),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Loss and gradients of a small model, beside LWM's."""

    tokens: int = 8192
    """tokens of the row, a multiple of 4,096"""
    repeats: int = 5
    page: Path | None = None
    """a Markdown page that gets the tables, between its markers"""


def make_rows(found: Sequence[Measurement], tokens: int) -> list[tuple[str, ...]]:
    """A row for each peer."""
    gemm = next(m.rate for m in found if m.peer == GEMM.name)
    return [
        (m.work, m.peer, m.refused, *[""] * (len(HEAD) - 3))
        if m.refused
        else (
            m.work,
            m.peer,
            f"{m.best:.2f}",
            "" if m.peer == GEMM.name else f"{tokens / m.best:,.0f}",
            f"{m.rate / 1e9:.1f}",
            f"{m.rate / gemm:.0%}",
            f"{m.peak / 1e6:,.0f}",
        )
        for m in found
    ]


def list_aims(found: Sequence[Measurement]) -> list[Aim]:
    """A longer ring costs little, both reach the cores' peak, and LWM takes twice as long."""
    gemm = next(m.rate for m in found if m.peer == GEMM.name)
    rates = {m.peer: math.nan if m.refused else m.rate for m in found}
    times = {
        (name, n): fastest(found, f"{name}, ring of {n}") for name in (OURS, THEIRS) for n in RINGS
    }
    return [
        Aim(claim="ring of 8 / ring of 2", ratio=times[OURS, 8] / times[OURS, 2], bound=1.05),
        *(
            Aim(
                claim=f"ring of {n}: share of the GEMM's rate",
                ratio=rates[f"{OURS}, ring of {n}"] / gemm,
                bound=0.9,
                at_least=True,
            )
            for n in RINGS
        ),
        *(
            Aim(
                claim=f"ring of {n}: {OURS} / {THEIRS}",
                ratio=times[OURS, n] / times[THEIRS, n],
                bound=0.5,
            )
            for n in RINGS
        ),
    ]


def main() -> None:
    """Measure, print, and write the tables into a page where one is named."""
    asked = tyro.cli(Bench, prog="bench-training")
    if asked.tokens < GRAIN or asked.tokens % GRAIN or asked.repeats < 1:
        print(f"bench-training: use a multiple of {GRAIN} tokens, and repeats of 1 up")
        sys.exit(2)
    announce: Announce = Console(stderr=True).print
    if asked.page:
        put_between(asked.page.read_text(encoding="utf-8"), NAME, "")
    found = take_turns(
        f"{asked.tokens:,} tokens, loss and gradients",
        {"tokens": asked.tokens},
        count_step_flops(asked.tokens),
        PEERS,
        make_pythons(PEERS, announce),
        asked.repeats,
        announce,
    )
    tables = [
        ("Training step", HEAD, make_rows(found, asked.tokens)),
        ("Aims", AIM_HEAD, [aim.cells for aim in list_aims(found)]),
    ]
    publish(tables, asked.repeats, NAME, asked.page)


if __name__ == "__main__":
    main()
