"""Packed rows by number: of one sequence of examples, or of several that are packed apart.

Rows are numbered before anything is read. Which numbers a step takes is a function of the seed, so
a row is made only by those who need it, and nothing is lost when they stop.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Bool, Int

from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.data.example import Example
from ringworld.data.packing import pack
from ringworld.data.packing.pack import Cut, PackingPlan, Pieces, pack_row, plan_rows
from ringworld.distributed import is_first
from ringworld.errors import InputError
from ringworld.files import whole

CUT_FUNCTIONS: dict[str, Cut] = {
    "split": pack.split_long,
    "truncate": pack.truncate_long,
    "drop": pack.drop_long,
}
SEGMENTS: dict[str, Callable[[Where], Where]] = {"masked": lambda row: row, "naive": pack.run_on}
WEIGHTS: dict[str, Callable[[Batch], Batch]] = {
    "examples": pack.weigh_examples,
    "rows": pack.weigh_rows,
}


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How examples become rows; each choice names a function of `ringworld.data.packing.pack`.

    `long` is what becomes of an example that does not fit a row: `split` over rows, `truncate` to
    one, or `drop`. The other two are masked packing unless they say else: with `segments` "naive"
    attention and positions run on through the row, with `weights` "rows" each row counts alike
    instead of each example. Both together are what LWM released.
    """

    long: Literal["split", "truncate", "drop"] = "split"
    """what becomes of an example that does not fit a row"""
    segments: Literal["masked", "naive"] = "masked"
    """whether attention stays within each example, or runs on through the row"""
    weights: Literal["examples", "rows"] = "examples"
    """whether each example counts alike, or each row"""


MASKED = Packing()


@runtime_checkable
class Examples(Protocol):
    """Examples by number: a list, token shards, or a mix of them."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, i: int, /) -> Example:
        """Example i."""
        ...


@runtime_checkable
class Measured(Protocol):
    """Examples that know all their lengths without being read, as token shards do."""

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """The tokens of each example."""
        ...


@dataclass(frozen=True)
class Apart:
    """Sources that do not share rows, such as chat that is dense in targets and long documents.

    Each has its share of the rows of every batch.
    """

    sources: Mapping[str, Examples]
    shares: Mapping[str, float]


def example_lengths(examples: Examples) -> Int[np.ndarray, "N"]:
    """The length of each example, asked of all at once where they know."""
    if isinstance(examples, Measured):
        return np.asarray(examples.lengths)
    return np.array([len(examples[i]) for i in range(len(examples))], np.int64)


class PackedRows:
    """Examples packed into rows of `context` tokens; any row is made when it is asked for.

    With `plans`, a folder, the plan is kept there for whoever asks next, and mapped into memory.
    Raises InputError when no row can be made.
    """

    def __init__(
        self,
        examples: Examples,
        context: int,
        packing: Packing = MASKED,
        plans: Path | None = None,
    ) -> None:
        self.examples, self.context, self.packing = examples, context, packing
        lengths = example_lengths(examples)
        if plans is None:
            self.plan = plan_rows(lengths, context, CUT_FUNCTIONS[packing.long])
        else:
            self.plan = keep_plan(lengths, context, packing, plans)
        if not len(self.plan):
            raise InputError(
                f"{len(lengths)} examples make no row of {context} tokens: give some of 2 tokens "
                "or more, and split or truncate those that are longer than a row"
            )

    def __len__(self) -> int:
        """The number of rows in an epoch."""
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        """A row as numpy arrays `[context]`."""
        return self.part(number, np.ones(self.context, np.bool_))

    def part(self, number: int, needed: Bool[np.ndarray, "T"]) -> Batch:
        """A row with what stands in the places that are needed; other places may be left 0.

        Examples without a token in them are not read, unless weights are those of the whole row.
        """
        read, weigh = self.examples.__getitem__, WEIGHTS[self.packing.weights]
        if self.packing.weights == "rows":
            needed = np.ones_like(needed)
        row = pack_row(self.plan[number], read, self.context, weigh, needed)
        where = SEGMENTS[self.packing.segments](row.where)
        return Batch(**{**vars(row), "positions": where.positions, "segments": where.segments})

    def where(self, number: int) -> Where:
        """The positions and segments of a row, from the plan: no example is read."""
        return SEGMENTS[self.packing.segments](pack.lay(self.plan[number], self.context))

    def draw(self, seed: int) -> grain.MapDataset[int]:
        """The numbers of rows without end: each once an epoch, every epoch shuffled anew."""
        return grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()


class MixedRows:
    """Rows of several sources, each packed apart, drawn by their shares of the rows.

    Of any B rows in a row, and so of every batch, a source has its share of B to within one row
    where there are two sources, and within two where there are more. Each source goes through
    epochs of its own. Raises InputError when a share names no source, or is of no row.
    """

    def __init__(self, sources: Mapping[str, PackedRows], shares: Mapping[str, float]) -> None:
        self.shares = check_shares(sources, shares)
        self.sources = {name: sources[name] for name in self.shares}
        self.context = max(rows.context for rows in self.sources.values())
        self._ends = np.cumsum([len(rows) for rows in self.sources.values()])

    def __len__(self) -> int:
        """The number of rows of all sources."""
        return int(self._ends[-1])

    def _find(self, number: int) -> tuple[PackedRows, int]:
        source = int(np.searchsorted(self._ends, number, side="right"))
        rows = list(self.sources.values())[source]
        return rows, number - int(self._ends[source]) + len(rows)

    def __getitem__(self, number: int) -> Batch:
        """A row as numpy arrays `[context]`; those of the first source come first."""
        rows, own = self._find(number)
        return rows[own]

    def part(self, number: int, needed: Bool[np.ndarray, "T"]) -> Batch:
        """A row with what stands in the places that are needed, as its source reads it."""
        rows, own = self._find(number)
        return rows.part(own, needed)

    def where(self, number: int) -> Where:
        """The positions and segments of a row; no example is read."""
        rows, own = self._find(number)
        return rows.where(own)

    def draw(self, seed: int) -> grain.MapDataset[int]:
        """The numbers of rows without end, by shares; each source's order has its own seed."""
        parts = []
        for (name, rows), end in zip(self.sources.items(), self._ends.tolist(), strict=True):
            own = seed_of(seed, name)
            numbers = grain.MapDataset.range(end - len(rows), end)
            parts.append(numbers.seed(own).shuffle().repeat())
        return grain.MapDataset.mix(parts, weights=list(self.shares.values()))


def seed_of(seed: int, name: str) -> int:
    """A seed for the source of that name, which does not change when another is added."""
    return int(np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0])


def check_shares(sources: Mapping[str, object], shares: Mapping[str, float]) -> dict[str, float]:
    """The shares that are above 0. Raises InputError when one names no source, or none is left."""
    if unknown := sorted(set(shares) - set(sources)):
        raise InputError(
            f"the mix names {unknown[0]}, which is no source: use {', '.join(sources)}"
        )
    used = {name: share for name, share in shares.items() if share > 0}
    if not used or min(shares.values()) < 0:
        raise InputError("the shares of a mix are 0 or more, and at least one is more: change them")
    return used


def keep_plan(
    lengths: Int[np.ndarray, "N"], context: int, packing: Packing, folder: Path
) -> PackingPlan:
    """The plan for these lengths as arrays mapped from files in `folder`; made when not there.

    The name of the files is a hash of all that the plan depends on. One process writes them.
    """
    asked = f"{context} {packing.long} {pack.PLAN_WINDOW}".encode()
    digest = hashlib.sha256(asked + np.ascontiguousarray(lengths, np.int64).tobytes()).hexdigest()
    pieces, offsets = (folder / f"{kind}-{digest[:16]}.npy" for kind in ("pieces", "offsets"))
    if not offsets.exists():
        plan = plan_rows(lengths, context, CUT_FUNCTIONS[packing.long])
        if not is_first():
            return plan
        columns = (plan.pieces.example, plan.pieces.start, plan.pieces.stop)
        for path, array in ((pieces, np.stack(columns)), (offsets, plan.offsets)):
            with whole(path) as draft:
                np.save(draft, array)
    mapped = np.load(pieces, mmap_mode="r")
    return PackingPlan(np.load(offsets, mmap_mode="r"), Pieces(*mapped))
