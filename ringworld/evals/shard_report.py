"""An inspection of shards, printed in the terminal and written as one self-contained page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ringworld.data.corpora.inspection import SHOWN_FRAMES, Inspection, Sample, spread_evenly
from ringworld.errors import InputError
from ringworld.evals.page import (
    Html,
    bar,
    element,
    figure,
    filmstrip,
    join_html,
    page,
    section,
    table,
)
from ringworld.files import whole

TimedFrames = tuple[UInt8[np.ndarray, "Z Y X 3"], list[str]]
"""Frames, and for each the time at which the film shows it, in words."""

STYLES = {"given": "dim", "learned": "bold green", "seen": "yellow", "drawn": "bold yellow"}
# The size of a frame in the terminal: two pixels to a letter's height.
COLUMNS, LINES = 18, 9
SAMPLE_SHEET = 4  # frames side by side, which a terminal of 80 columns holds
BAR = 32


def key_figures(found: Inspection) -> list[tuple[str, str]]:
    """The numbers that come first, each as (value, what it is)."""
    counts, packing = found.counts, found.packing
    return [
        (f"{counts.examples:,}", "examples"),
        (f"{counts.tokens:,}", "tokens"),
        (f"{counts.vision / counts.tokens:.1%}", "of them vision ids"),
        (f"{counts.learned / counts.tokens:.1%}", "of them learned"),
        (f"{packing.efficiency:.1%}", f"of {packing.rows:,} rows of {packing.context:,} filled"),
        (f"{found.text_ids_used:,} of {found.text_ids:,}", "text ids used"),
        (f"{found.codes_used:,} of {found.codes:,}", "codes used"),
        (f"{found.skipped:,}", "rows skipped"),
    ]


def source_rows(found: Inspection) -> list[tuple[str, ...]]:
    """A row for each source: its name, counts of examples and tokens, and shares."""
    return [
        (
            name,
            f"{counts.examples:,}",
            f"{counts.tokens:,}",
            f"{counts.tokens / found.counts.tokens:.1%}",
            f"{counts.vision / max(counts.tokens, 1):.1%}",
            f"{counts.learned / max(counts.tokens, 1):.1%}",
        )
        for name, counts in found.sources.items()
    ]


def use_rows(found: Inspection) -> list[tuple[str, ...]]:
    """A row for each number of uses: how many text ids and codes are used so often."""
    return [
        (f"at most {row.times:,}" if row.times else "never", f"{row.text:,}", f"{row.codes:,}")
        for row in found.uses
    ]


MIX = ("source", "examples", "tokens", "share", "vision", "learned")
USES = ("times", "text ids", "codes")


# ---- the terminal


def print_inspection(
    found: Inspection, frames: Mapping[int, TimedFrames], console: Console
) -> None:
    """Print the inspection to a console; frames are drawn where it is a terminal."""
    for number, words in key_figures(found):
        console.print(f"{number:>16}  {words}", highlight=False)
    console.print(_rich_table(MIX, source_rows(found)))
    lengths = found.lengths
    most = max(lengths.bars.values())
    bars = [(f"<= {top}", f"{n:,}", "#" * -(-BAR * n // most)) for top, n in lengths.bars.items()]
    console.print(_rich_table(("tokens", "examples", ""), bars))
    often = [(row.token, str(row.id), f"{row.count:,}") for row in found.often]
    console.print(_rich_table(("most frequent", "id", "times"), often))
    console.print(_rich_table(USES, use_rows(found)))
    for row in found.bad[:BAR]:
        console.print(f"skipped {row.origin}: {row.why}", markup=False, highlight=False)
    for sample in found.samples:
        console.print(_render_sample(sample, frames.get(sample.index), console.is_terminal))


def _rich_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    out = Table(box=None, header_style="dim")
    for i, name in enumerate(head):
        out.add_column(name, justify="right" if i and name else "left")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))
    return out


def _render_sample(sample: Sample, frames: TimedFrames | None, pictures: bool) -> Group:
    words = Text()
    for piece in sample.pieces:
        shown = f"[{piece.written}]" if piece.kind in ("seen", "drawn") else piece.written
        words.append(shown, STYLES[piece.kind])
    head = f"\n{sample.origin}, {sample.tokens:,} tokens, of {sample.source}"
    rows = [Text(head, "underline"), words]
    if frames is not None and pictures:
        rows += [_sheet(*frames)]
    return Group(*rows)


def _sheet(frames: UInt8[np.ndarray, "Z Y X 3"], moments: Sequence[str]) -> Table:
    """Frames side by side, half a letter a pixel, each with its timestamp."""
    shown = spread_evenly(len(frames), SAMPLE_SHEET)
    out = Table.grid(padding=(0, 1))
    for _ in shown:
        out.add_column()
    cells = []
    for frame in frames[shown]:
        small = np.asarray(Image.fromarray(frame).resize((COLUMNS, 2 * LINES)))
        cell = Text()
        for top, bottom in zip(small[::2], small[1::2], strict=True):
            for (r, g, b), (x, y, z) in zip(top, bottom, strict=True):
                cell.append("\u2580", f"rgb({r},{g},{b}) on rgb({x},{y},{z})")
            cell.append("\n")
        cells.append(cell)
    out.add_row(*cells)
    out.add_row(*(Text(moments[i], "dim") for i in shown))
    return out


# ---- the page


def write_page(path: Path, found: Inspection, frames: Mapping[int, TimedFrames]) -> None:
    """Write the inspection as a page, whole or not at all; it asks no other place for anything.

    Raises InputError when there is a folder of that name, or the disk is full.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write the page to")
    title = f"The tokens of {found.folder}"
    key = (
        element("div", element("dt", words), element("dd", number))
        for number, words in key_figures(found)
    )
    header = join_html([element("h1", title), element("dl", *key, class_="key")])
    most = max(found.lengths.bars.values())
    lengths = [
        (f"at most {int(top):,}", f"{n:,}", bar(n / most)) for top, n in found.lengths.bars.items()
    ]
    often = [(row.token, str(row.id), f"{row.count:,}") for row in found.often]
    parts = [
        section("Mix", "What each source gives.", table(MIX, source_rows(found))),
        section(
            "LengthSummary",
            f"From {found.lengths.shortest:,} to {found.lengths.longest:,} tokens, "
            f"{found.lengths.median:,.0f} in the middle.",
            table(("tokens", "examples", ""), lengths),
        ),
        section(
            "Tokens",
            "How many ids stand in the data how often, and the most frequent text ids.",
            table(USES, use_rows(found)),
            table(("token", "id", "times"), often),
        ),
        section(
            "Samples",
            "Given words are quiet, learned words are green, learned frames are bold, [...] is "
            "what was left out. Frames, "
            f"up to {SHOWN_FRAMES} of a sample, are what the codec makes of their codes, over the "
            "time at which the film shows them.",
            *(_show_sample(sample, frames.get(sample.index)) for sample in found.samples),
        ),
    ]
    if found.bad:
        rows = [(row.origin, row.why) for row in found.bad]
        listed = element("div", table(("row", "why"), rows), class_="words")
        parts.append(section("Skipped", "Rows that were left out.", listed))
    with whole(path) as draft:
        draft.write_text(page(title, header, join_html(parts)), encoding="utf-8")


def _show_sample(sample: Sample, frames: TimedFrames | None) -> Html:
    colours = {"given": "var(--soft)", "learned": "var(--good)"}
    words = []
    for piece in sample.pieces:
        frame = piece.kind in ("seen", "drawn")
        colour = colours.get(piece.kind, "var(--vision)")
        style = f"color:{colour};white-space:pre-wrap;overflow-wrap:anywhere"
        style += ";font-weight:600" * (piece.kind == "drawn")
        words.append(element("span", f"[{piece.written}]" if frame else piece.written, style=style))
    body = [element("p", *words)]
    if frames is not None:
        body.append(filmstrip({sample.origin: frames[0]}, frames[1]))
    return figure(join_html(body), f"{sample.origin}, {sample.tokens:,} tokens, of {sample.source}")
