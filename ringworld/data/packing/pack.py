"""Masked packing: examples of any length into full rows, nothing leaking between them.

    lengths  -- split, truncate or drop -->  pieces  -- best fit -->  plan  -- pack_row -->  rows

A plan says which pieces of which examples make up each row. It is made once, from the lengths
alone, so that every row is random-access. Each piece becomes a segment: attention stays inside it,
its positions start at 0, its targets never reach into the next, and its weights sum to 1:

    loss_m = mean, over the pieces that predict modality m, of the weighted mean nll of their m

That is the loss of the same pieces without packing, each in a row of its own with padding behind:
loss and every gradient are equal, batch by batch. A split example counts as often as it has pieces.
Unpacked training has no longer rows, so there too each piece stands alone, and none sees the one
before it; the equality needs no other piece of the example to be in the batch. Source: LWM (arXiv
2402.08268), masked sequence packing.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.data.example import Example
from ringworld.errors import InputError

# Examples that are planned together: memory stays that of so many, and at 1 to 2 microseconds a
# piece the sorted list of rows with room is short enough to be kept by moving it.
PLAN_WINDOW = 1 << 17
# Where rows have fewer pieces than so many, which of them share one decides how full they are, and
# best fit wastes the end of most: two long pieces that leave room for half a third.
FEW_PIECES = 8
# Plans hold examples and tokens as int32: 12 bytes a piece, where int64 would take 24.
LARGEST_COUNT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Piece:
    """Tokens `[start, stop)` of one example."""

    example: int
    start: int
    stop: int

    @property
    def inputs(self) -> int:
        """The places that the piece takes in a row: its last token is a target only."""
        return self.stop - self.start - 1


@dataclass(frozen=True, eq=False)
class Pieces:
    """Many pieces as three arrays, indexed as one would a list of `Piece`."""

    example: Int[np.ndarray, "P"]
    start: Int[np.ndarray, "P"]
    stop: Int[np.ndarray, "P"]

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.example)

    def __getitem__(self, i: int) -> Piece:
        """Piece i."""
        return Piece(int(self.example[i]), int(self.start[i]), int(self.stop[i]))

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, in order."""
        return (self[i] for i in range(len(self)))

    @property
    def inputs(self) -> Int[np.ndarray, "P"]:
        """The places that each takes in a row."""
        return self.stop - self.start - 1


Lengths = Sequence[int] | Int[np.ndarray, "N"]
# What makes pieces of examples with these lengths for rows of so many input tokens.
Cut = Callable[[Lengths, int], Pieces]


def split_long(lengths: Lengths, context: int) -> Pieces:
    """Every example as pieces that fit a row; pieces share one token, so that no target is lost."""
    lengths = np.asarray(lengths, np.int64)
    counts = np.maximum(lengths + context - 2, 0) // context
    example = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    start = (np.arange(len(example)) - before[example]) * context
    return Pieces(example, start, np.minimum(start + context + 1, lengths[example]))


def truncate_long(lengths: Lengths, context: int) -> Pieces:
    """Every example as one piece, without what does not fit a row."""
    lengths = np.asarray(lengths, np.int64)
    example = np.flatnonzero(lengths > 1)
    return Pieces(example, np.zeros_like(example), np.minimum(lengths[example], context + 1))


def drop_long(lengths: Lengths, context: int) -> Pieces:
    """Only the examples that fit a row, each as one piece."""
    lengths = np.asarray(lengths, np.int64)
    example = np.flatnonzero((lengths > 1) & (lengths <= context + 1))
    return Pieces(example, np.zeros_like(example), lengths[example])


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Which pieces fill which row: row i holds `pieces[offsets[i]]` to before `offsets[i + 1]`."""

    offsets: Int[np.ndarray, "rows_and_1"]
    pieces: Pieces

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[Piece, ...]:
        """The pieces of a row, in order."""
        return tuple(self.pieces[i] for i in range(self.offsets[row], self.offsets[row + 1]))


def best_fit(sizes: Int[np.ndarray, "P"], context: int) -> Int[np.ndarray, "P"]:
    """The row of each piece: longest first, into the fullest row that still has room for it.

    Among equals the first comes first, so the same sizes give the same rows. Source: Johnson,
    "Near-optimal bin packing algorithms" (1973): best fit, decreasing.
    """
    order = np.argsort(-sizes, kind="stable")
    opened = int(np.count_nonzero(sizes == context))
    found = list(range(opened))
    room: list[int] = []  # free places << 32 | row, sorted
    for size in sizes[order[opened:]].tolist():
        at = bisect.bisect_left(room, size << 32)
        free, row = divmod(room.pop(at), 1 << 32) if at < len(room) else (context, opened)
        if row == opened:
            opened += 1
        found.append(row)
        if free > size:
            bisect.insort(room, (free - size) << 32 | row)
    rows = np.empty(len(sizes), np.int64)
    rows[order] = found
    return rows


def even_fit(sizes: Int[np.ndarray, "P"], context: int) -> Int[np.ndarray, "P"]:
    """The row of each piece: the longest that is left, then as many others as may go with it.

    Of these each is the longest that leaves room for the others, if they are as short as the
    shortest tenth. So a long piece gets short ones beside it, where best fit would put it beside
    another long one. Rows of the same lengths are found once; the same sizes give the same rows.
    """
    order = np.argsort(sizes, kind="stable")
    values, counts = (x.tolist() for x in np.unique(sizes, return_counts=True))
    left = dict(zip(values, counts, strict=True))
    place = dict(zip(values, (np.cumsum(counts) - counts).tolist(), strict=True))
    rows, made, short = np.empty(len(sizes), np.int64), 0, 0
    while values:
        if values[0] > short:
            reached = np.cumsum([left[size] for size in values])
            short = values[int(np.searchsorted(reached, reached[-1] / 10))]
        row = compose(values, left, short, context)
        uses = Counter(row)
        times = min(left[size] // n for size, n in uses.items())
        for size in row:
            rows[order[place[size] : place[size] + times]] = np.arange(made, made + times)
            place[size] += times
        made += times
        for size, n in uses.items():
            left[size] -= n * times
            if not left[size]:
                del values[bisect.bisect_left(values, size)]
    return rows


def compose(values: list[int], left: dict[int, int], short: int, context: int) -> list[int]:
    """The sizes in the next row of `even_fit`, from those that are left, `values` in order."""
    row, room = [values[-1]], context - values[-1]
    while room >= values[0]:
        for others in range(max(room // short, 1) - 1, -1, -1):
            at = bisect.bisect_right(values, room - others * short) - 1
            while at >= 0 and row.count(values[at]) == left[values[at]]:
                at -= 1
            if at >= 0:
                break
        else:
            break
        row.append(values[at])
        room -= values[at]
    return row


def fit_rows(sizes: Int[np.ndarray, "P"], context: int) -> Int[np.ndarray, "P"]:
    """The row of each piece, by `even_fit` where rows have few pieces and else by `best_fit`."""
    shorter = sizes[sizes < context]
    if len(shorter) and context < FEW_PIECES * np.quantile(shorter, 0.1):
        return even_fit(sizes, context)
    return best_fit(sizes, context)


def plan_rows(lengths: Lengths, context: int, cut: Cut = split_long) -> PackingPlan:
    """Rows of at most `context` input tokens, the same for the same lengths; no row is empty.

    Each `PLAN_WINDOW` of examples is planned by itself, with `fit_rows`. The plan takes 12 bytes a
    piece and 8 a row. Raises InputError when an example, or their number, passes 2^31.
    """
    lengths = np.asarray(lengths)
    if max(len(lengths), lengths.max(initial=0)) > LARGEST_COUNT:
        raise InputError(
            f"a plan holds at most {LARGEST_COUNT} examples of at most {LARGEST_COUNT} tokens: "
            "divide the longest ones, or plan them apart"
        )
    counts, columns = [np.zeros(1, np.int64)], [np.zeros((3, 0), np.int32)]
    for first in range(0, len(lengths), PLAN_WINDOW):
        pieces = cut(lengths[first : first + PLAN_WINDOW], context)
        rows = fit_rows(pieces.inputs, context)
        order = np.lexsort((-pieces.inputs, rows))
        counts.append(np.bincount(rows))
        column = np.stack([pieces.example + first, pieces.start, pieces.stop])[:, order]
        columns.append(column.astype(np.int32))
    return PackingPlan(np.cumsum(np.concatenate(counts)), Pieces(*np.concatenate(columns, axis=1)))


def efficiency(plan: PackingPlan, context: int) -> float:
    """The share of the rows' places that hold a token."""
    return float(plan.pieces.inputs.sum(dtype=np.int64) / (len(plan) * context))


def lay(row: Iterable[Piece], context: int) -> Where:
    """Positions and segments `[context]` of a row; places without a token have segment 0."""
    positions, segments, at = np.zeros(context, np.int32), np.zeros(context, np.int32), 0
    for segment, piece in enumerate(row, start=1):
        positions[at : at + piece.inputs] = np.arange(piece.inputs)
        segments[at : at + piece.inputs] = segment
        at += piece.inputs
    return Where(positions, segments)


def weigh_examples(row: Batch) -> Batch:
    """The row with weights that sum to 1 in each modality of each piece: masked packing's."""
    return _weigh(row, row.segments)


def weigh_rows(row: Batch) -> Batch:
    """The row with weights that sum to 1 in each modality of the row: as LWM's released loss.

    An example with few targets counts little beside one with many. (In LWM's mean over rows, one
    that predicts nothing of a modality counts as 0; here it does not count.)
    """
    return _weigh(row, np.zeros_like(row.segments))


def _weigh(row: Batch, groups: Int[np.ndarray, "T"]) -> Batch:
    kinds = 2 * groups + row.target_vision
    totals = np.bincount(kinds, row.weights)[kinds]
    weights = row.weights / np.where(totals > 0, totals, 1)
    return replace(row, weights=weights.astype(np.float32))


def run_on(where: Where) -> Where:
    """Naive packing: the whole row as one segment, in which positions run on.

    Each token sees all that comes before it in the row, of whatever example. LWM's released code
    packs so.
    """
    used = where.segments > 0
    places = np.arange(used.shape[-1], dtype=np.int32)
    return Where(np.where(used, places, np.int32(0)), used.astype(np.int32))


def pack_row(
    row: Iterable[Piece],
    example: Callable[[int], Example],
    context: int,
    weigh: Callable[[Batch], Batch] = weigh_examples,
    needed: Bool[np.ndarray, "T"] | None = None,
) -> Batch:
    """One row as numpy arrays `[context]`; places without a token have segment 0 and weight 0.

    With `needed` only the pieces that have one of these places are read, and the others stay 0.
    """
    row = list(row)
    where = lay(row, context)
    out = Batch(
        tokens=np.zeros(context, np.int32),
        vision=np.zeros(context, np.bool_),
        targets=np.zeros(context, np.int32),
        target_vision=np.zeros(context, np.bool_),
        weights=np.zeros(context, np.float32),
        positions=where.positions,
        segments=where.segments,
    )
    at = 0
    for piece in row:
        here = slice(at, at + piece.inputs)
        at = here.stop
        if needed is not None and not needed[here].any():
            continue
        whole = example(piece.example)
        read, next_ = slice(piece.start, piece.stop - 1), slice(piece.start + 1, piece.stop)
        out.tokens[here], out.targets[here] = whole.tokens[read], whole.tokens[next_]
        out.vision[here], out.target_vision[here] = whole.vision[read], whole.vision[next_]
        out.weights[here] = whole.weights[next_]
    return weigh(out)
