"""What was measured, as tables: on the terminal, and as Markdown for a page."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

START, END = "<!-- {}: start -->", "<!-- {}: end -->"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One peer at one work: every repeat in seconds, or in `refused` why there is none.

    `flops` is what the work costs, `peak` the memory of the process in bytes.
    """

    work: str
    peer: str
    flops: float
    seconds: tuple[float, ...] = ()
    peak: int = 0
    refused: str = ""

    @property
    def best(self) -> float:
        """The fastest repeat: what the work takes when the machine does nothing else."""
        return min(self.seconds, default=float("nan"))

    @property
    def rate(self) -> float:
        """FLOP a second at the fastest repeat."""
        return self.flops / self.best


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A ratio that should not pass its bound; with `at_least`, not fall under it."""

    claim: str
    ratio: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the ratio is within its bound; a ratio that could not be measured is not."""
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Its row of the table."""
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "missed"
        measured = f"{self.ratio:.2f}" if self.ratio >= 0.1 else f"{self.ratio:.2g}"
        return self.claim, measured, f"{sign} {self.bound:.2f}", verdict


AIM_HEAD = ("aim", "measured", "bound", "")
HEAD = ("work", "peer", "s", "x torch", "GFLOP/s", "of GEMM", "peak MB")


def row(m: Measurement, yardstick: float, gemm: float) -> tuple[str, ...]:
    """The cells of one measurement; `yardstick` is torch's best and `gemm` the GEMM's FLOP/s."""
    if m.refused:
        return m.work, m.peer, m.refused, *[""] * (len(HEAD) - 3)
    return (
        m.work,
        m.peer,
        f"{m.best:.3f}",
        f"{m.best / yardstick:.2f}",
        f"{m.rate / 1e9:.1f}",
        f"{m.rate / gemm:.0%}",
        f"{m.peak / 1e6:,.0f}",
    )


def draw(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal, ruled where the first column changes."""
    table = Table(title=title)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < 2 else "right")
    for i, cells in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1][0] != cells[0]
        table.add_row(*cells, end_section=last and len(head) == len(HEAD))
    return table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    ruler = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ruler, *rows])


def describe_machine() -> str:
    """When and where: the day, the processor and its cores."""
    day = datetime.now(UTC).date().isoformat()
    model, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{day}, {os.cpu_count()} cores, {model}, {platform.system()}"


def publish(
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    repeats: int,
    name: str,
    page: Path | None,
) -> None:
    """Print tables (title, head, rows), and write them into a page where one is given.

    They come between the page's markers of that name, below a line of the machine and the repeats.
    """
    machine = f"{describe_machine()}; fastest of {repeats} repeats, peers in turn."
    for title, head, rows in tables:
        Console().print(draw(title, head, rows))
    print(machine)
    if page:
        parts = [f"**{title}**\n\n{markdown(head, rows)}" for title, head, rows in tables]
        whole = put_between(page.read_text(encoding="utf-8"), name, "\n\n".join([machine, *parts]))
        page.write_text(whole, encoding="utf-8")
        print(f"wrote {page}")


def put_between(page: str, name: str, text: str) -> str:
    """`page` with `text` in place of what stands between the two markers of that name.

    Raises ValueError when the page has not both of them, in this order.
    """
    start, end = START.format(name), END.format(name)
    before, opens, rest = page.partition(start)
    _, closes, after = rest.partition(end)
    if not (opens and closes):
        raise ValueError(f"the page has no {start} ... {end}")
    return f"{before}{start}\n{text}\n{end}{after}"
