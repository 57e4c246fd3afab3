"""Updates that are not made: where a number is not finite, and at a spike of loss or gradient.

A spike is a loss or a gradient norm that is more than `factor` standard deviations above the mean
of the last `interval` finite steps; the first half of an interval has none. Spikes count towards
the mean, so that a new level is accepted in time. The rule and its numbers are MaxText's
(`skip_step_on_spikes`), which has them from OLMo-core.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ringworld.errors import InputError
from ringworld.params import Leaf, pytree_dataclass


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When an update is skipped, although its numbers are finite."""

    interval: int = 128
    """the steps whose loss and gradient norm are remembered"""
    factor: float = 6.0
    """standard deviations above their mean from which one is a spike"""

    def __post_init__(self) -> None:
        if self.interval < 2 or self.factor <= 0:
            raise InputError(
                f"the guard has interval {self.interval} and factor {self.factor}: use at least 2 "
                "steps and a factor above 0"
            )


@pytree_dataclass
class GuardState:
    """What the guard remembers; all of it is 0 before the first step."""

    losses: Leaf  # [interval] float32: those of the last finite steps, in no order
    norms: Leaf  # [interval] float32: their gradient norms
    seen: Leaf  # int32 scalar: finite steps
    skips: Leaf  # int32 scalar: updates that were not made


def start_guard(guard: Guard) -> GuardState:
    """The state before the first step: four arrays, because a step donates each of them."""
    losses, norms = (jnp.zeros((guard.interval,), jnp.float32) for _ in range(2))
    seen, skips = (jnp.zeros((), jnp.int32) for _ in range(2))
    return GuardState(losses=losses, norms=norms, seen=seen, skips=skips)


def judge(
    guard: Guard, state: GuardState, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], GuardState]:
    """Whether the step's update is made, and the state after it."""
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    known = state.seen + 1 >= max(2, guard.interval // 2)
    spikes = [
        is_spike(guard, past, state.seen, value)
        for past, value in ((state.losses, loss), (state.norms, norm))
    ]
    keep = finite & ~(known & (spikes[0] | spikes[1]))
    here = finite & (jnp.arange(guard.interval) == state.seen % guard.interval)
    after = GuardState(
        losses=jnp.where(here, loss.astype(jnp.float32), state.losses),
        norms=jnp.where(here, norm.astype(jnp.float32), state.norms),
        seen=state.seen + finite.astype(jnp.int32),
        skips=state.skips + (~keep).astype(jnp.int32),
    )
    return keep, after


def is_spike(
    guard: Guard, past: Float[Array, "I"], seen: Int[Array, ""], value: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a value is more than `factor` standard deviations above the mean of the past ones.

    `past` holds the last of the `seen` values, in no order.
    """
    held = jnp.minimum(seen, guard.interval)
    count = held.astype(jnp.float32)
    told = jnp.arange(guard.interval) < held
    mean = jnp.sum(jnp.where(told, past, 0.0)) / jnp.maximum(count, 1.0)
    squares = jnp.sum(jnp.where(told, jnp.square(past - mean), 0.0))
    deviation = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
    return value - mean > guard.factor * deviation
