"""Rotary positions that stay right to 16M tokens, and the law of their base.

Pair i of a head turns by position * theta^(-2i/H); a score then depends on the distance of its two
tokens only. An angle is not a float before the end: a turn is 2^64 parts, each position adds the
same whole number of them, and what overflows is a full turn, which changes nothing:

    phase = position * floor(2^64 frequency / 2 pi)  mod 2^64        angle = 2 pi phase / 2^64

In float32 the product position * frequency is off by 0.03 rad at 1M tokens and by 0.5 at 10M; this
angle is off by 3e-7 up to 2^24 positions, phases are exactly relative, and there is no table.
Source: Su et al., "RoFormer" (arXiv 2104.09864).
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from ringworld.errors import InputError
from ringworld.params import Leaf, pytree_dataclass
from ringworld.rope_scaling import Scaling, frequencies

# A step has up to 19 digits before its point; the rest keep its floor from being a rounding's.
DIGITS = 50
TAU = Decimal("6.28318530717958647692528676655900576839433879875021164")

# Bases are tried on a grid of 20 a decade from 10^2 to 10^14.
GRID = np.logspace(2, 14, 241)
# How a stretch of distances is searched: into how many parts it is cut, and how many of them are
# looked at in one piece (4096 x 128 pairs are 4 MB). Neither changes what is found.
PARTS = 4
PIECE = 4096


# ---- turning


@pytree_dataclass
class Turns:
    """Cosine and sine of the pairs' angles at some tokens, `[B, T, H/2]` float32, with the gain."""

    cos: Leaf
    sin: Leaf


@dataclass(frozen=True, kw_only=True)
class Rope:
    """A rotary: its base, the width of the heads it turns, and how its frequencies are scaled.

    Raises InputError when the width is odd or the base is not above 1.
    """

    theta: float
    head_width: int
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if self.head_width % 2 or self.theta <= 1:
            raise InputError(
                f"RoPE cannot turn heads of {self.head_width} with base {self.theta}: make the "
                "width even and the base greater than 1"
            )

    @property
    def gain(self) -> float:
        """What queries and keys are multiplied by as they turn; 1 unless the scaling says else."""
        return 1.0 if self.scaling is None else self.scaling.gain

    def multipliers(self) -> Float[np.ndarray, "{self.head_width//2}"]:
        """What the scaling multiplies each frequency by."""
        if self.scaling is None:
            return np.ones(self.head_width // 2)
        return self.scaling.multipliers(self.theta, self.head_width)

    def frequencies(self) -> Float[np.ndarray, "{self.head_width//2}"]:
        """Radians a position of each pair, float64."""
        return frequencies(self.theta, self.head_width) * self.multipliers()

    def at(self, positions: Int[Array, "B T"]) -> Turns:
        """How far the pairs of tokens at these positions are turned; positions are not negative."""
        high, _ = find_phases(self, positions)
        # The upper limb, read as signed, is the angle between -pi and pi in steps of 1.5e-9 rad.
        signed = lax.bitcast_convert_type(high, jnp.int32).astype(jnp.float32)
        angles = signed * (math.tau / 2**32)
        return Turns(self.gain * jnp.cos(angles), self.gain * jnp.sin(angles))


@cache
def _steps(rope: Rope) -> tuple[np.ndarray, np.ndarray]:
    """By how much each pair's phase grows a position, as an upper and a lower uint32 limb."""
    half = rope.head_width // 2
    with localcontext(prec=DIGITS):
        turns = [
            Decimal(rope.theta) ** (Decimal(-i) / half) * Decimal(multiplier) / TAU
            for i, multiplier in enumerate(rope.multipliers().tolist())
        ]
        steps = np.array([int(turn * 2**64) for turn in turns], np.uint64)
    return (steps >> np.uint64(32)).astype(np.uint32), steps.astype(np.uint32)


def find_phases(
    rope: Rope, positions: Int[Array, "B T"]
) -> tuple[
    UInt32[Array, "B T {rope.head_width//2}"],
    UInt32[Array, "B T {rope.head_width//2}"],
]:
    """Each pair's phase in 2^64ths of a turn, as an upper and a lower limb, exactly."""
    step_high, step_low = _steps(rope)
    position = positions.astype(jnp.uint32)[..., None]
    carried, low = _multiply(position, jnp.asarray(step_low))
    return position * step_high + carried, low


def _multiply(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> tuple[Array, Array]:
    """The 64 bits of a product as two limbs, from 16-bit halves: no uint64 is needed."""
    (a_high, a_low), (b_high, b_low) = ((x >> 16, x & 0xFFFF) for x in (a, b))
    inner = a_high * b_low + (a_low * b_low >> 16)
    outer = a_low * b_high + (inner & 0xFFFF)
    return a_high * b_high + (inner >> 16) + (outer >> 16), a * b


def turn_halves(x: Float[Array, "B T N H"], turns: Turns) -> Float[Array, "B T N H"]:
    """Queries or keys turned in the pairs (i, i + H/2), the order of Hugging Face's weights."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_turn(first, second, turns), -1).astype(x.dtype)


def turn_neighbours(x: Float[Array, "B T N H"], turns: Turns) -> Float[Array, "B T N H"]:
    """Queries or keys turned in the pairs (2i, 2i + 1), the order of Meta's and LWM's weights."""
    wide = x.astype(jnp.float32)
    turned = jnp.stack(_turn(wide[..., ::2], wide[..., 1::2], turns), -1)
    return turned.reshape(x.shape).astype(x.dtype)


def _turn(first: Array, second: Array, turns: Turns) -> tuple[Array, Array]:
    cos, sin = turns.cos[..., None, :], turns.sin[..., None, :]
    return first * cos - second * sin, second * cos + first * sin


def to_halves(w: Float[np.ndarray, "*axes H"]) -> Float[np.ndarray, "*axes H"]:
    """Columns of wq or wk for `turn_neighbours`, in the order in which `turn_halves` wants them."""
    return w.reshape(*w.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(w.shape)


def to_neighbours(w: Float[np.ndarray, "*axes H"]) -> Float[np.ndarray, "*axes H"]:
    """The inverse of `to_halves`."""
    return w.reshape(*w.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(w.shape)


# ---- the law of the base


def critical_base(context: int, base: float, trained_context: int) -> float:
    """The base whose slow dimensions turn no further at `context` than they did when trained.

    base^(ln(context / 2 pi) / ln(trained_context / 2 pi)); Liu et al. (arXiv 2310.05209).
    """
    return base ** (math.log(context / math.tau) / math.log(trained_context / math.tau))


@cache
def stable_base(context: int, head_width: int) -> float:
    """The least base from which a similar key is never scored below a random one within `context`.

    The criterion is sum_i cos(m theta^(-2i/H)) >= 0 for every distance m up to the context
    (Men et al., arXiv 2405.14591). The sum is not monotone in the base, so this is the first base
    of the grid from which every larger one passes. Raises InputError when none does.
    """
    for i in range(len(GRID) - 1, -1, -1):
        if find_dip(frequencies(GRID[i], head_width), context) is not None:
            if i + 1 == len(GRID):
                raise InputError(
                    f"no RoPE base up to 1e14 is stable at {context} tokens with heads of "
                    f"{head_width}: use wider heads or a shorter context"
                )
            return float(GRID[i + 1])
    return float(GRID[0])


def rope_theta(context: int, head_width: int, base: float, trained_context: int) -> float:
    """The base for extending a model trained at (base, trained_context) to `context`.

    The larger of the critical base and the stable base, and never less than `base`; from there up
    in steps of the grid, because a base between two of the grid's may dip where both pass.
    """
    theta = max(
        base, critical_base(context, base, trained_context), stable_base(context, head_width)
    )
    while find_dip(frequencies(theta, head_width), context) is not None:
        theta *= GRID[1] / GRID[0]
    return float(theta)


def check_rope(rope: Rope, context: int) -> str | None:
    """What is wrong with this rotary at `context`, in one sentence; None when it is stable there.

    The criterion is that of `stable_base`, on the rotary's own frequencies, scaled as they are.
    """
    dip = find_dip(rope.frequencies(), context)
    if dip is None:
        return None
    return (
        f"RoPE base {rope.theta:g} with heads of {rope.head_width} scores a similar key below a "
        f"random one at a distance of {dip} tokens, within the context of {context}: read at most "
        f"{dip - 1} tokens, or train on with a larger base (rope_theta says which)"
    )


def find_dip(frequencies: Float[np.ndarray, "_"], context: int) -> int | None:
    """The least distance m of 1 to `context` with sum_i cos(m frequency_i) < 0, or None.

    It is the distance that summing at each one in float64 finds, but whole stretches of distances
    are dismissed at once: see `_lower_bound`.
    """
    width = 1
    while width < context:
        width *= PARTS
    return _search(np.array([1]), width, frequencies, context)


def _search(starts: np.ndarray, width: int, frequencies: np.ndarray, context: int) -> int | None:
    """The least distance that dips in the stretches [start, start + width), given in order."""
    # An angle near `context` radians is off by up to context 2^-53, and so is the one compared with
    # it: a bound that is above 2^-50 a pair and radian means a sum above 0.
    certain = len(frequencies) * context * 2.0**-50
    for i in range(0, len(starts), PIECE):
        piece = starts[i : i + PIECE]
        if width == 1:
            dips = piece[np.cos(piece[:, None] * frequencies).sum(-1) < 0]
            found = int(dips[0]) if len(dips) else None
        else:
            left = piece[_lower_bound(piece, width, frequencies) < certain]
            parts = (left[:, None] + np.arange(0, width, width // PARTS)).reshape(-1)
            found = _search(parts[parts <= context], width // PARTS, frequencies, context)
        if found is not None:
            return found
    return None


def _lower_bound(starts: np.ndarray, width: int, frequencies: np.ndarray) -> np.ndarray:
    """What sum_i cos(m frequency_i) is at least, for all m in each [start, start + width).

    There, an angle is at most `reach` away from the one in the middle. If that is `gap` away from
    the nearest odd multiple of pi, the cosine is at least -cos(gap - reach), or -1 if reach >= gap;
    so fast pairs, with reach >= pi, need not be looked at.
    """
    reach = frequencies * ((width - 1) / 2)
    slow = reach < math.pi
    middles = starts[:, None] + (width - 1) / 2
    gap = np.abs(np.remainder(middles * frequencies[slow], math.tau) - math.pi)
    return -np.cos(np.maximum(gap - reach[slow], 0)).sum(-1) - np.count_nonzero(~slow)
