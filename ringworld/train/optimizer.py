"""AdamW and its schedule."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ringworld.errors import InputError
from ringworld.params import Param, map_specs


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay on matrices, after clipping by the global norm.

    The defaults are those of LWM's text stages. Its vision stages are
    `AdamW(schedule="cosine", peak_lr=6e-4, end_lr=6e-5, warmup_steps=1000)`.
    """

    peak_lr: float = 4e-5
    """the learning rate after the warm-up"""
    end_lr: float = 4e-6
    """where a "cosine" schedule ends; a "constant" one stays at the peak"""
    warmup_steps: int = 100
    """steps over which the rate rises from 0"""
    schedule: Literal["cosine", "constant"] = "constant"
    """the course of the rate after the warm-up"""
    b1: float = 0.9
    """decay of the running mean of gradients"""
    b2: float = 0.95
    """decay of the running mean of their squares"""
    eps: float = 1e-8
    """added to the root of the second before dividing by it"""
    weight_decay: float = 0.1
    """share of each matrix that a rate of 1 would take away in a step"""
    clip_norm: float = 1.0
    """the largest norm of all gradients together; longer ones are scaled down to it"""

    def __post_init__(self) -> None:
        if self.peak_lr <= 0:
            raise InputError(f"peak_lr is {self.peak_lr}: make it greater than 0")
        if not 0 <= self.end_lr <= self.peak_lr:
            raise InputError(
                f"end_lr is {self.end_lr} and peak_lr {self.peak_lr}: "
                "choose end_lr from 0 to peak_lr"
            )
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps}: make it 0 or more")
        if self.schedule not in ("cosine", "constant"):
            raise InputError(f'schedule is "{self.schedule}": choose "cosine" or "constant"')
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise InputError(f"b1 is {self.b1} and b2 {self.b2}: choose both from 0 to below 1")
        if self.eps <= 0 or self.weight_decay < 0 or self.clip_norm <= 0:
            raise InputError(
                f"eps is {self.eps}, weight_decay {self.weight_decay} and clip_norm "
                f"{self.clip_norm}: eps and clip_norm must be above 0, weight_decay 0 or more"
            )


def learning_rate(config: AdamW, steps: int, step: jax.Array | int) -> jax.Array:
    """The learning rate of update `step`, counted from 0; a float32 scalar.

    It rises linearly from 0 to the peak over the warm-up, then stays there or falls along half a
    cosine to `end_lr` at `steps`. Raises InputError when the warm-up does not fit into `steps`.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        return jnp.asarray(_schedule(config, steps)(step), jnp.float32)


def make_optimizer(config: AdamW, steps: int, specs: Any) -> optax.GradientTransformation:
    """AdamW for `steps` updates of the weights that `specs` describes.

    Weights that are matrices within their block (two axes or more besides "layers") decay; gains
    and biases do not. Raises InputError when the warm-up does not fit into `steps`.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=map_specs(_is_matrix, specs)),
        optax.scale_by_learning_rate(_schedule(config, steps)),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def _is_matrix(p: Param) -> bool:
    return sum(axis != "layers" for axis in p.axes) >= 2


def _schedule(config: AdamW, steps: int) -> optax.Schedule:
    if config.warmup_steps >= steps:
        raise InputError(
            f"a warm-up of {config.warmup_steps} steps does not fit into {steps} steps: "
            "make warmup_steps smaller or train longer"
        )
    constant = config.schedule == "constant"
    after = (
        optax.constant_schedule(config.peak_lr)
        if constant
        else optax.cosine_decay_schedule(
            config.peak_lr, steps - config.warmup_steps, alpha=config.end_lr / config.peak_lr
        )
    )
    warmup = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
