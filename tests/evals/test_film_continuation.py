"""Held-out film that is continued: which stretches, and how far off what is drawn is."""

import numpy as np
import pytest

from ringworld.data.samples import HELD_MINUTES, SampleFilm
from ringworld.evals.film_continuation import (
    AHEAD,
    GIVEN,
    held_out_stretches,
    judge_film_continuation,
)

LENGTH = GIVEN + AHEAD


def make_film() -> SampleFilm:
    """Ten minutes at one frame a second, each frame as bright as its minute."""
    seconds = np.arange(600.0)
    frames = np.broadcast_to((seconds // 60).astype(np.uint8)[:, None, None, None], (600, 2, 2, 3))
    return SampleFilm(frames, seconds, np.zeros((600, 4), np.int32))


def test_stretches_are_whole_lie_in_one_held_out_minute_and_share_no_frame() -> None:
    film = make_film()
    stretches = list(held_out_stretches(film))
    assert all(list(s) == list(range(s[0], s[0] + LENGTH)) for s in stretches)
    assert all(film.held_out[s].all() for s in stretches)
    numbers = np.concatenate(stretches)
    assert len(np.unique(numbers)) == len(numbers)
    assert len(stretches) == len(HELD_MINUTES) * (60 // LENGTH), "the minutes are apart"


def test_the_errors_are_those_of_the_frames_after_the_given_ones() -> None:
    def flat(*levels: int) -> np.ndarray:
        return np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])

    before = [0] * (GIVEN - 1)
    true = [flat(*before, 10, 20, 20, 20), flat(*before, 10, 20, 20, 20)]
    drawn = [flat(20, 20, 20), flat(50, 50, 50)]
    kept = [flat(21, 21, 21), flat(20, 20, 20)]
    found = judge_film_continuation(drawn, kept, true)
    assert (found.nearer.right, found.nearer.tried) == (1, 2)
    assert found.error == pytest.approx((30 / 255) ** 2 / 2)
    assert found.repeated_error == pytest.approx((10 / 255) ** 2)
    assert found.codec_error == pytest.approx((1 / 255) ** 2 / 2)
    assert str(found).endswith("nearer in 1 of 2")
