"""What a whole run found, from film to answers, as plain values that a report can be made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from ringworld.evals.needle import Trial
from ringworld.tasks.shape_judge import ClipScore

Frames = UInt8[np.ndarray, "Z Y X 3"]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage as it ran; `rows` are the lines of its `metrics.jsonl`, `tokens` all it saw."""

    name: str
    context: int
    rope_theta: float
    steps: int
    tokens: int
    seconds: float
    rows: Sequence[Mapping[str, float | int | None]]


@dataclass(frozen=True, kw_only=True)
class Book:
    """A text as it was tokenized; `use` says what for, such as "training" or "haystacks only"."""

    title: str
    tokens: int
    use: str


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Film frames, what their codes give back, and the seconds of the film they are from.

    `psnr` in dB is measured on `held_out`, a phrase such as "minutes 8 and 9"; `codes` is the
    number a frame; `film` names the film and its makers.
    """

    film: str
    original: Frames
    rebuilt: Frames
    seconds: Float[np.ndarray, " Z"]
    codes: int
    psnr: float
    held_out: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A clip drawn from a caption, the guidance it was drawn with, and how it was judged."""

    caption: str
    frames: Frames
    guidance: float
    score: ClipScore


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question about a clip that was not trained on, the truth, and what the model wrote."""

    question: str
    truth: str
    written: str
    right: bool
    frames: Frames


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The film from second `start`: frames given, frames the model went on with, the film's own."""

    start: float
    given: UInt8[np.ndarray, "before Y X 3"]
    drawn: UInt8[np.ndarray, "after Y X 3"]
    truth: UInt8[np.ndarray, "after Y X 3"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """One measurement: of what, its value with the unit, and how it was measured."""

    what: str
    value: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it ran, how many seconds each step of the story took, and the peak of memory."""

    cores: int
    devices: str
    jax: str
    seconds: Mapping[str, float]
    peak_bytes: int

    @property
    def total(self) -> float:
        """All seconds together."""
        return sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True)
class Story:
    """Everything a report tells; what is empty or None is left out of it."""

    title: str
    summary: str
    machine: Machine
    reconstruction: Reconstruction | None = None
    books: Sequence[Book] = ()
    stages: Sequence[StageRecord] = ()
    before: Sequence[Trial] = ()
    after: Sequence[Trial] = ()
    drawings: Sequence[Drawing] = ()
    answers: Sequence[Answer] = ()
    continuation: Continuation | None = None
    numbers: Sequence[Number] = ()
    notes: Sequence[str] = ()
