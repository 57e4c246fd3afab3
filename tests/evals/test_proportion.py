"""A share is told with the interval that its count proves, and with the chance of a guess."""

import numpy as np
import pytest

from ringworld.evals.proportion import Proportion, percent


# Wilson's interval without continuity correction, as R's `prop.test(k, n, correct = FALSE)`.
@pytest.mark.parametrize(
    ("right", "tried", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (11, 16, 0.4440, 0.8584),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_the_interval_is_wilsons(right: int, tried: int, low: float, high: float) -> None:
    assert Proportion(right, tried, 0.0).interval == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.5, 0.9])
def test_the_interval_holds_the_truth_in_about_95_of_100_cases(share: float) -> None:
    counts = np.random.default_rng(0).binomial(60, share, 2000).tolist()
    held = [low <= share <= high for low, high in (Proportion(k, 60, 0.0).interval for k in counts)]
    assert 0.925 <= np.mean(held) <= 0.98


def test_a_count_is_told_with_its_bounds_and_the_chance_of_a_guess() -> None:
    assert str(Proportion(11, 16, 1 / 3)) == "11 of 16 (95 %: 44 to 86 %, a guess: 33 %)"
    assert [percent(share) for share in (0.0, 0.004, 0.0101, 1.0)] == [
        "0 %",
        "< 1 %",
        "1 %",
        "100 %",
    ]
