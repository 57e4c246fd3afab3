"""Rotary positions, and the law of their base.

Dimension pair i of a head turns by position * theta^(-2i/H); a score then depends on the distance
of the two tokens only. Angles are float32 (bfloat16 rounds 257 to 256). Pairs are (i, i + H/2), the
order of Hugging Face's weights. Source: Su et al., "RoFormer" (arXiv 2104.09864).
"""

import math
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ringworld.errors import InputError

# Bases are tried on a grid of 20 a decade from 10^2 to 10^14.
GRID = np.logspace(2, 14, 241)


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Queries or keys turned by their positions with base `theta`."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


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
    of the grid from which every larger one passes.
    """
    for i in range(len(GRID) - 1, -1, -1):
        if not _is_stable(GRID[i], context, head_width):
            if i + 1 == len(GRID):
                raise InputError(
                    f"no RoPE base up to 1e14 is stable at {context} tokens with heads of "
                    f"{head_width}: use wider heads or a shorter context"
                )
            return float(GRID[i + 1])
    return float(GRID[0])


def _is_stable(base: float, context: int, head_width: int, piece: int = 1 << 16) -> bool:
    half = head_width // 2
    frequencies = base ** (-np.arange(half) / half)
    for start in range(1, context + 1, piece):
        distances = np.arange(start, min(start + piece, context + 1))
        if np.cos(distances[:, None] * frequencies).sum(-1).min() < 0:
            return False
    return True


def rope_theta(context: int, head_width: int, base: float, trained_context: int) -> float:
    """The base for extending a model trained at (base, trained_context) to `context`.

    The larger of the critical base and the stable base, and never less than `base`.
    """
    return max(
        base, critical_base(context, base, trained_context), stable_base(context, head_width)
    )
