"""Held-out stretches of the sample film that a model continues."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from ringworld.chat.ask import continue_clips
from ringworld.data.samples import SampleFilm
from ringworld.evals.config import Shapes
from ringworld.evals.proportion import Proportion
from ringworld.weights.model import Model

# Frames, at one a second: so many are given, and so many drawn.
GIVEN, AHEAD = 5, 3


@dataclass(frozen=True, kw_only=True)
class FilmContinuation:
    """How far the drawn frames of held-out stretches of film are off.

    The errors are mean squares of pixels from 0 to 1: of what was drawn, of the last given frame in
    its place, and of the true frames after the codec, which no model that draws with it gets below.
    `nearer` counts the stretches where what was drawn is nearer to the film than the last frame.
    """

    nearer: Proportion
    error: float
    repeated_error: float
    codec_error: float

    def __str__(self) -> str:
        """The figures in a line."""
        return (
            f"error {self.error:.4f}, with the last frame repeated {self.repeated_error:.4f}, of "
            f"the codec {self.codec_error:.4f}; nearer in {self.nearer.right} of "
            f"{self.nearer.tried}"
        )


def measure_film_continuation(model: Model, film: SampleFilm, wanted: Shapes) -> FilmContinuation:
    """What a model draws after the first `GIVEN` frames of each held-out stretch."""
    stretches = list(held_out_stretches(film))
    drawn = continue_clips(
        model,
        [film.codes[stretch[:GIVEN]] for stretch in stretches],
        frames_more=AHEAD,
        sampling=wanted.sampling,
        seed=wanted.seed,
    )
    kept = [model.codec.decode(film.codes[stretch[GIVEN:]]) for stretch in stretches]
    return judge_film_continuation(drawn, kept, [film.frames[stretch] for stretch in stretches])


def held_out_stretches(film: SampleFilm) -> Iterator[Int[np.ndarray, "_"]]:
    """The numbers of the frames of each whole stretch of held-out film, one after another."""
    for run in film.stretches:
        if film.held_out[run[0]]:
            for start in range(0, len(run) - GIVEN - AHEAD + 1, GIVEN + AHEAD):
                yield run[start : start + GIVEN + AHEAD]


def judge_film_continuation(
    drawn: Sequence[UInt8[np.ndarray, "more Y X 3"]],
    kept: Sequence[UInt8[np.ndarray, "more Y X 3"]],
    true: Sequence[UInt8[np.ndarray, "Z Y X 3"]],
) -> FilmContinuation:
    """The figures of drawn frames and of what the codec keeps, each beside its true stretch."""
    last = [np.repeat(frames[GIVEN - 1 : GIVEN], AHEAD, axis=0) for frames in true]
    after = np.stack([frames[GIVEN:] for frames in true]) / 255
    error, repeated, codec = (
        np.mean((np.stack(some) / 255 - after) ** 2, axis=(1, 2, 3, 4))
        for some in (drawn, last, kept)
    )
    return FilmContinuation(
        nearer=Proportion(int(np.sum(error < repeated)), len(true), 0.5),
        error=float(error.mean()),
        repeated_error=float(repeated.mean()),
        codec_error=float(codec.mean()),
    )
