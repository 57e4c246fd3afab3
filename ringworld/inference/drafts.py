"""Speculation in idle slots: a row that repeats itself is decoded several tokens at one time.

What followed the last three ids when they stood in the row before is a guess of what follows now.
Each guessed token is a row of its own, with the table of its row and the next position: it is
computed by the same program as it would be later, so a guess that comes true has the bits of a
token that was decoded. Guesses take slots that nobody has, whose rows are computed anyway.
Source: Saxena, "Prompt lookup decoding" (2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from ringworld.inference.programs import RowBatch
from ringworld.inference.rows import ActiveRow, Group, is_penalized

# Ids that have to stand there before. Two guess more often, and wrongly.
GRAM = 3


@dataclass(frozen=True)
class Draft:
    """The guessed next tokens of the row at `slot`, and the idle slots that they take."""

    slot: int
    tokens: Sequence[int]
    places: Sequence[int]


def find_draft(history: Int[np.ndarray, "n"], most: int) -> list[int]:
    """What followed the latest earlier place of the last GRAM ids, at most so many ids."""
    if len(history) <= GRAM:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(history[:-1], GRAM)
    found = np.flatnonzero((windows == history[-GRAM:]).all(1))
    if not len(found):
        return []
    start = int(found[-1]) + GRAM
    return history[start : start + most].tolist()


def propose_drafts(groups: Sequence[Group], idle: Sequence[int]) -> list[Draft]:
    """Guesses for the rows of one sample each, which share the idle slots evenly."""
    rows = [group[0] for group in groups if len(group) == 1 and _may_guess(group[0])]
    drafts, places = [], list(idle)
    for row in rows:
        left = row.answer.request.max_new_tokens - len(row.sample.ids)
        most = min(len(idle) // len(rows), left - 1)
        history = np.concatenate([row.prompt.tokens, np.asarray(row.sample.ids, np.int32)])
        tokens = find_draft(history, most) if most > 0 else []
        if tokens:
            drafts.append(Draft(row.slot, tokens, places[: len(tokens)]))
            places = places[len(tokens) :]
    return drafts


def _may_guess(row: ActiveRow) -> bool:
    """Whether the next tokens depend on nothing but the ids before them, and are text."""
    request = row.answer.request
    return not (request.codes or request.allow is not None or is_penalized(row))


def lay_drafts(rows: RowBatch, tables: Int[np.ndarray, "B M"], drafts: Sequence[Draft]) -> None:
    """Put the guesses into a batch, each one position behind the one before."""
    for draft in drafts:
        for i, (token, place) in enumerate(zip(draft.tokens, draft.places, strict=True), 1):
            for x in (tables, *jax.tree.leaves(rows)):
                x[place] = x[draft.slot]
            rows.token[place] = token
            rows.position[place] += i
            rows.left[place] -= i
            rows.leader[place] = rows.guide[place] = place
