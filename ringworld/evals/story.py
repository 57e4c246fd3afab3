"""The results of a whole run, from the film to the answers, as plain values for a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from ringworld.evals.needle import Trial
from ringworld.evals.proportion import Proportion
from ringworld.tasks.needle import NUMBER_COUNT
from ringworld.tasks.shape_judge import ClipScore

ClipFrames = UInt8[np.ndarray, "Z Y X 3"]


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
class BookTokens:
    """The tokens of a text, and its use, such as "training" or "haystacks only"."""

    title: str
    tokens: int
    use: str


@dataclass(frozen=True, kw_only=True)
class FilmReconstruction:
    """Film frames, what their codes give back, and the seconds of the film they are from.

    `psnr` in dB is measured on `held_out`, a phrase such as "minutes 8 and 9"; `codes` is the
    number a frame; `film` names the film and its makers.
    """

    film: str
    original: ClipFrames
    rebuilt: ClipFrames
    seconds: Float[np.ndarray, " Z"]
    codes: int
    psnr: float
    held_out: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A clip drawn from a caption, the guidance it was drawn with, and how it was judged.

    `chance` is the probability that a random clip would be exactly right.
    """

    caption: str
    frames: ClipFrames
    guidance: float
    score: ClipScore
    chance: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question about a clip that was not trained on, the truth, and what the model wrote.

    `chance` is the probability that a random answer of the same kind would be right.
    """

    question: str
    truth: str
    written: str
    right: bool
    chance: float
    frames: ClipFrames


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The film from second `start`: the given frames, the drawn ones, and the film's own."""

    start: float
    given: UInt8[np.ndarray, "before Y X 3"]
    drawn: UInt8[np.ndarray, "after Y X 3"]
    truth: UInt8[np.ndarray, "after Y X 3"]


@dataclass(frozen=True, kw_only=True)
class PlayedLevel:
    """A level of the small world that is played: its frames as a model draws them, and the truth.

    Frame 0 is given; `actions[i]` makes frame i + 1, and `right` says which of these are true in
    every cell.
    """

    actions: Sequence[str]
    drawn: ClipFrames
    truth: ClipFrames
    right: Sequence[bool]


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
    """Everything that a report shows; what is empty or None is left out of it.

    `drawing_model` and `game_model` name the models of the clips that were drawn and of the games.
    """

    title: str
    summary: str
    machine: Machine
    reconstruction: FilmReconstruction | None = None
    books: Sequence[BookTokens] = ()
    stages: Sequence[StageRecord] = ()
    before: Sequence[Trial] = ()
    after: Sequence[Trial] = ()
    drawing_model: str = ""
    drawings: Sequence[Drawing] = ()
    game_model: str = ""
    games: Sequence[PlayedLevel] = ()
    answers: Sequence[Answer] = ()
    continuation: Continuation | None = None
    numbers: Sequence[Number] = ()
    notes: Sequence[str] = ()
    talk: str | None = None

    @property
    def answered(self) -> Proportion:
        """How many of the questions were answered rightly."""
        return count_right([(answer.right, answer.chance) for answer in self.answers])

    @property
    def drawn(self) -> Proportion:
        """How many of the clips were drawn exactly as asked."""
        return count_right([(clip.score.exact, clip.chance) for clip in self.drawings])

    @property
    def played(self) -> Proportion:
        """How many of the levels were right in every frame. A guess never is."""
        return count_right([(all(game.right), 0.0) for game in self.games])


def count_right(results: Sequence[tuple[bool, float]]) -> Proportion:
    """The proportion of results that are right, each with its own chance of a guess."""
    chance = sum(chance for _, chance in results) / max(len(results), 1)
    return Proportion(sum(right for right, _ in results), len(results), chance)


def count_found(trials: Sequence[Trial], length: int) -> Proportion:
    """How many needles were found at one length in tokens."""
    found = [trial.found for trial in trials if trial.length == length]
    return Proportion(sum(found), len(found), 1 / NUMBER_COUNT)
