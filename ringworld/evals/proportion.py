"""A count of right answers as what it proves: an interval, and what guessing would give."""

from dataclasses import dataclass
from math import sqrt

Z95 = 1.96  # standard deviations of a normal distribution that hold 95 % of it


@dataclass(frozen=True)
class Proportion:
    """`right` of `tried`, and the `chance` of each try to be right by a guess, from 0 to 1."""

    right: int
    tried: int
    chance: float

    @property
    def share(self) -> float:
        """The share of tries that were right, from 0 to 1."""
        return self.right / self.tried

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share, by Wilson's score.

        E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
        """
        n, share = self.tried, self.share
        middle = share + Z95**2 / (2 * n)
        reach = Z95 * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
        low, high = ((middle + side * reach) / (1 + Z95**2 / n) for side in (-1, 1))
        return max(low, 0.0), min(high, 1.0)

    @property
    def bounds(self) -> str:
        """The interval and the chance in words, such as "95 %: 44 to 86 %, a guess: 33 %"."""
        low, high = self.interval
        return f"95 %: {100 * low:.0f} to {100 * high:.0f} %, a guess: {percent(self.chance)}"

    def __str__(self) -> str:
        """The count with its bounds, such as "11 of 16 (95 %: 44 to 86 %, a guess: 33 %)"."""
        return f"{self.right} of {self.tried} ({self.bounds})"


def percent(share: float) -> str:
    """A share as a percentage: "33 %", and "< 1 %" for what rounds to nothing."""
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "< 1 %"
