"""The rows of the engine on the host: what each has read and written, and a batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from ringworld.data.example import Example
from ringworld.inference.pool import Content
from ringworld.inference.programs import RowBatch
from ringworld.inference.request import MOST_BIASED, Completion, Output
from ringworld.inference.sampling import IN_ANSWER, IN_PROMPT, Settings


@dataclass(eq=False)
class ActiveRow:
    """One prompt and one sample of its answer, or the prompt that a sample is guided away from.

    `computed` counts the tokens of the prompt whose keys are in the pages. `x` is the residual
    stream of the last of them, until the first token is chosen.
    """

    answer: Output
    sample: Completion
    index: int
    prompt: Example
    contents: Sequence[Content]
    leads: bool
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = -1
    x: Array | None = None

    @property
    def unread(self) -> int:
        """The tokens of the prompt that are still to be read."""
        return len(self.prompt) - self.computed

    @property
    def decodes(self) -> bool:
        """Whether its first token is chosen and its last one is not."""
        return bool(self.sample.ids) and self.sample.finish is None

    @property
    def scored(self) -> bool:
        """Whether the log-probabilities of its prompt are asked for."""
        return self.answer.request.prompt_logprobs and self.leads and self.index == 0

    @property
    def length(self) -> int:
        """The tokens of the prompt and of the longest answer."""
        return len(self.prompt) + self.answer.request.max_new_tokens


# The rows of one sample: the one that leads, and behind it the one it is guided away from, if any.
Group = tuple[ActiveRow, ...]


def lay_table(row: ActiveRow, columns: int) -> Int[np.ndarray, "M"]:
    """The page numbers of a row, and 0 behind them."""
    table = np.zeros(columns, np.int32)
    table[: len(row.pages)] = row.pages
    return table


def lay_rows(
    groups: Sequence[Group], slots: Sequence[Sequence[int]], size: int, vocabulary: int
) -> RowBatch:
    """A batch of `size` rows with each group's rows at its slots."""
    most = max((len(g[0].answer.request.stops) for g in groups), default=0)
    # Two shapes only: each is a program of its own.
    most_biased = MOST_BIASED if any(g[0].answer.request.bias for g in groups) else 1
    whole = np.arange(size, dtype=np.int32)

    def zeros(kind: Any, fill: float = 0.0) -> np.ndarray:
        return np.full(size, fill, kind)

    floats = {name: zeros(np.float32, fill) for name, fill in NEUTRAL.items()}
    top_k, seed, sample = zeros(np.int32), zeros(np.uint32), zeros(np.int32)
    settings = Settings(top_k=top_k, seed=seed, sample=sample, **floats)
    rows = RowBatch(
        token=zeros(np.int32),
        vision=zeros(np.bool_),
        position=zeros(np.int32, -1.0),
        begin=zeros(np.int32),
        left=zeros(np.int32),
        leader=whole.copy(),
        guide=whole.copy(),
        scale=zeros(np.float32, 1.0),
        stops=np.full((size, 1 << most.bit_length()), -1, np.int32),
        wants=zeros(np.bool_),
        marks=np.zeros((size, vocabulary), np.uint16),
        biased=np.full((size, most_biased), -1, np.int32),
        bias=np.zeros((size, most_biased), np.float32),
        allowed=np.ones((size, vocabulary), np.bool_),
        settings=settings,
    )
    for group, places in zip(groups, slots, strict=True):
        for row, i in zip(group, places, strict=True):
            request, ids = row.answer.request, row.sample.ids
            rows.token[i] = ids[-1] if ids else 0
            rows.vision[i], rows.wants[i] = request.codes, request.logprobs is not None
            rows.position[i] = len(row.prompt) + len(ids) - 1
            rows.begin[i], rows.left[i] = len(row.prompt), request.max_new_tokens - len(ids)
            rows.leader[i], rows.stops[i, : len(request.stops)] = places[0], request.stops
            for name in NEUTRAL:
                floats[name][i] = getattr(request.sampling, name)
            top_k[i] = min(request.sampling.top_k, np.iinfo(np.int32).max)
            seed[i], sample[i] = request.seed, row.index
            if is_penalized(row):
                rows.marks[i, row.prompt.tokens[~row.prompt.vision]] |= IN_PROMPT
                np.add.at(rows.marks[i], ids, IN_ANSWER)
            for j, (token, more) in enumerate(request.bias):
                rows.biased[i, j], rows.bias[i, j] = token, more
            if request.allow is not None and row.leads:
                rows.allowed[i] = request.allow(tuple(ids))
            if len(group) > 1 and row.leads:
                rows.guide[i], rows.scale[i] = places[1], request.guidance
    return rows


# The settings of a row that is idle.
NEUTRAL = {
    "temperature": 0.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def is_penalized(row: ActiveRow) -> bool:
    """Whether its sampling looks at the ids that it holds."""
    sampling = row.answer.request.sampling
    return any(getattr(sampling, name) != NEUTRAL[name] for name in PENALTIES)
