"""The optimizers and their schedule: AdamW, and Muon beside it.

Muon makes the update of a matrix orthogonal: from the running mean of its gradients, five steps of
Newton and Schulz make a matrix whose singular values are all near 1. Sources: Jordan et al., "Muon"
(2024); Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982), whose scale of the
updates it has, so that AdamW's learning rates and weight decay fit both.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from ringworld.errors import InputError
from ringworld.params import Param, map_specs

Schedule = Literal["cosine", "constant"]


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
    schedule: Schedule = "constant"
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


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon for the matrices of the layers, and AdamW for all other weights.

    Both have the schedule, the weight decay and the clipping of AdamW; `b1`, `b2` and `eps` are
    those of the other weights. Queries, keys and values are matrices of all heads together.
    """

    momentum: float = 0.95
    """decay of the running mean of the gradients of the matrices"""
    update_rms: float = 0.2
    """root mean square of their updates at a rate of 1; that of AdamW is about 0.2"""
    newton_schulz_steps: int = 5
    """steps that make an update orthogonal"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}: choose it from 0 to below 1")
        if self.update_rms <= 0 or self.newton_schulz_steps < 1:
            raise InputError(
                f"update_rms is {self.update_rms} and newton_schulz_steps "
                f"{self.newton_schulz_steps}: make the first larger than 0, the second 1 or more"
            )


Optimizer = AdamW | Muon
OPTIMIZERS: dict[str, type[AdamW]] = {"adamw": AdamW, "muon": Muon}


def learning_rate(config: AdamW, steps: int, step: jax.Array | int) -> jax.Array:
    """The learning rate of update `step`, counted from 0; a float32 scalar.

    It rises linearly from 0 to the peak over the warm-up, then stays there or falls along half a
    cosine to `end_lr` at `steps`. Raises InputError when the warm-up does not fit into `steps`.
    """
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        return jnp.asarray(_schedule(config, steps)(step), jnp.float32)


def make_optimizer(config: Optimizer, steps: int, specs: Any) -> optax.GradientTransformation:
    """The optimizer for `steps` updates of the weights that `specs` describes.

    Matrices decay; gains and biases, whose start is a constant and over whose axes no product sums,
    do not. Raises InputError when the warm-up does not fit into `steps`.
    """
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _with_muon(config, adam, specs) if isinstance(config, Muon) else adam,
        optax.add_decayed_weights(config.weight_decay, mask=map_specs(_is_matrix, specs)),
        optax.scale_by_learning_rate(_schedule(config, steps)),
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def _with_muon(
    config: Muon, adam: optax.GradientTransformation, specs: Any
) -> optax.GradientTransformation:
    """Muon's directions for the matrices of the layers, and Adam's for all other weights."""
    sides = map_specs(lambda p: _sides(p) or optax.MaskedNode(), specs)
    scales = map_specs(
        lambda p: config.update_rms / _orthogonal_rms(p) if _sides(p) else optax.MaskedNode(), specs
    )
    muon = optax.chain(
        scale_by_muon(
            beta=config.momentum,
            ns_steps=config.newton_schulz_steps,
            weight_dimension_numbers=sides,
        ),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales)),
    )
    labels = map_specs(lambda p: "muon" if _sides(p) else "adam", specs)
    return optax.partition({"muon": _left_to_compiler(muon), "adam": adam}, labels)


def _left_to_compiler(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose products of divided matrices are divided as the compiler sees fit.

    The results lie where the gradients and the old state do.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        places = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        run: Any = jax.sharding.auto_axes(optimizer.update, out_sharding=places)
        return run(updates, state)

    return optax.GradientTransformation(optimizer.init, update)


def _sides(p: Param) -> MuonDimensionNumbers | None:
    """The axes of a layer's matrix along the model width, and its others; None for other weights.

    Which side is which changes nothing: Newton-Schulz of the transpose is the transpose.
    """
    if "layers" not in p.axes or "embed" not in p.axes:
        return None
    width = p.axes.index("embed")
    others = tuple(i for i, axis in enumerate(p.axes) if i != width and axis != "layers")
    return MuonDimensionNumbers((width,), others) if others else None


def _orthogonal_rms(p: Param) -> float:
    """The root mean square of a layer's matrix whose singular values are 1: max(m, n)^-1/2."""
    width, layers = (p.shape[p.axes.index(axis)] for axis in ("embed", "layers"))
    return max(width, math.prod(p.shape) // (width * layers)) ** -0.5


def _is_matrix(p: Param) -> bool:
    return bool(p.inputs) or p.scale > 0


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
