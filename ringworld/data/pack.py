"""Masked packing: examples of any length into full rows, nothing leaking between them.

A plan says which pieces of which examples make up each row; it is made once, from the lengths
alone, so that every row is random-access. Each piece becomes a segment: attention stays inside it,
its positions start at 0, and its targets never reach into the next.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.batch import Batch
from ringworld.data.example import Example, weigh


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


def split(lengths: Sequence[int], context: int) -> list[Piece]:
    """Every example as pieces that fit a row; pieces share one token, so that no target is lost."""
    pieces = []
    for example, length in enumerate(lengths):
        for start in range(0, length - 1, context):
            pieces.append(Piece(example, start, min(start + context + 1, length)))
    return pieces


def plan_rows(lengths: Sequence[int], context: int) -> list[tuple[Piece, ...]]:
    """Rows of at most `context` input tokens: best-fit decreasing, the same for the same lengths.

    Longest first, each piece goes into the fullest row that still has room for it.
    """
    pieces = split(lengths, context)
    order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].inputs, i))
    rows: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for i in order:
        piece = pieces[i]
        at = bisect.bisect_left(room, (piece.inputs, -1))
        free, row = room.pop(at) if at < len(room) else (context, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        if free > piece.inputs:
            bisect.insort(room, (free - piece.inputs, row))
    return [tuple(row) for row in rows]


def efficiency(rows: Sequence[tuple[Piece, ...]], context: int) -> float:
    """The share of the rows' places that hold a token."""
    return sum(piece.inputs for row in rows for piece in row) / (len(rows) * context)


def pack_row(row: Sequence[Piece], example: Callable[[int], Example], context: int) -> Batch:
    """One row as numpy arrays `[context]`; places without a token have segment 0 and weight 0."""
    out = Batch(
        tokens=np.zeros(context, np.int32),
        vision=np.zeros(context, np.bool_),
        targets=np.zeros(context, np.int32),
        target_vision=np.zeros(context, np.bool_),
        weights=np.zeros(context, np.float32),
        positions=np.zeros(context, np.int32),
        segments=np.zeros(context, np.int32),
    )
    at = 0
    for segment, piece in enumerate(row, start=1):
        whole = example(piece.example)
        cut = slice(piece.start, piece.stop)
        part = weigh(Example(whole.tokens[cut], whole.vision[cut], whole.weights[cut]))
        here = slice(at, at + piece.inputs)
        out.tokens[here], out.targets[here] = part.tokens[:-1], part.tokens[1:]
        out.vision[here], out.target_vision[here] = part.vision[:-1], part.vision[1:]
        out.weights[here] = part.weights[1:]
        out.positions[here] = np.arange(piece.inputs)
        out.segments[here] = segment
        at += piece.inputs
    return out
