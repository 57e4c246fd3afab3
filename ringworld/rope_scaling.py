"""How fast the pairs of a head turn, and the scalings that slow them for a longer context.

Pair i of a head of width H turns by theta^(-2i/H) radians a position. A pair that makes many turns
within the trained context has met every angle there, and may go on as it is. One that makes none
meets new angles beyond it, and is slowed by the factor of the extension. Between the two, a ramp:

    frequency_i  ->  frequency_i * (keep_i + (1 - keep_i) / factor)        keep_i from 1 down to 0

A scaling is data: the same model, with a `Llama3` or a `YaRN` beside its base.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ringworld.errors import InputError

# The turns within the trained context above and below which YaRN keeps and slows a pair, and the
# slope of its gain: what the paper recommends for Llama models.
YARN_FAST_TURNS = 32.0
YARN_SLOW_TURNS = 1.0
YARN_GAIN_SLOPE = 0.1


def frequencies(theta: float, head_width: int) -> Float[np.ndarray, "{head_width//2}"]:
    """Radians a position of each pair, before any scaling: theta^(-2i/H), the fastest first."""
    half = head_width // 2
    return theta ** (-np.arange(half) / half)


def _check_ramp(factor: float, slow: float, fast: float) -> None:
    if factor < 1 or not 0 < slow < fast:
        raise InputError(
            f"RoPE cannot be slowed by {factor} on a ramp from {slow} to {fast} turns: set the "
            "factor to 1 or more, and the lower number of turns above 0 and below the higher"
        )


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """The scaling of Llama 3.1 and later: the ramp is linear in the turns a pair makes.

    A pair is kept that makes `high_turns` or more within the `trained_context`, and slowed by
    `factor` if it makes `low_turns` or less. Source: Dubey et al., "The Llama 3 Herd of Models"
    (arXiv 2407.21783) and its code, where the fields are `low_freq_factor`, `high_freq_factor` and
    `original_max_position_embeddings`. Raises InputError when the numbers are out of order.
    """

    factor: float
    low_turns: float
    high_turns: float
    trained_context: int

    def __post_init__(self) -> None:
        _check_ramp(self.factor, self.low_turns, self.high_turns)

    @property
    def gain(self) -> float:
        """What queries and keys are multiplied by as they turn."""
        return 1.0

    def multipliers(self, theta: float, head_width: int) -> Float[np.ndarray, "{head_width//2}"]:
        """What each pair's frequency is multiplied by, float64."""
        turns = self.trained_context * frequencies(theta, head_width) / math.tau
        keep = np.clip((turns - self.low_turns) / (self.high_turns - self.low_turns), 0, 1)
        return keep + (1 - keep) / self.factor


@dataclass(frozen=True, kw_only=True)
class YaRN:
    """YaRN: the ramp is linear in the index of a pair, and scores are sharpened.

    It runs from the last pair that makes `fast_turns` within the `trained_context` to the first
    that makes only `slow_turns`. (The paper's ramp is linear in the turns; its checkpoints and
    those of others were trained with this one, of its code.) Scores grow by the square of `gain`,
    the paper's 1 / temperature. Source: Peng et al., "YaRN" (arXiv 2309.00071). Raises InputError
    when the numbers are out of order.
    """

    factor: float
    trained_context: int
    fast_turns: float = YARN_FAST_TURNS
    slow_turns: float = YARN_SLOW_TURNS

    def __post_init__(self) -> None:
        _check_ramp(self.factor, self.slow_turns, self.fast_turns)

    @property
    def gain(self) -> float:
        """What queries and keys are multiplied by as they turn: 0.1 ln(factor) + 1."""
        return YARN_GAIN_SLOPE * math.log(self.factor) + 1.0

    def multipliers(self, theta: float, head_width: int) -> Float[np.ndarray, "{head_width//2}"]:
        """What each pair's frequency is multiplied by, float64."""

        def pair_of(turns: float) -> float:
            wavelength = self.trained_context / turns
            return head_width / 2 * math.log(wavelength / math.tau) / math.log(theta)

        first = max(math.floor(pair_of(self.fast_turns)), 0)
        last = min(math.ceil(pair_of(self.slow_turns)), head_width - 1)
        # A ramp of no length is a step: what comes after `first` is slowed.
        slow = np.clip((np.arange(head_width // 2) - first) / max(last - first, 1e-3), 0, 1)
        return 1 - slow + slow / self.factor


Scaling = Llama3 | YaRN
