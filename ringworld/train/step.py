"""One update: loss, gradients, optimiser. Pure, and the same on every mesh."""

from collections.abc import Callable
from functools import partial

import jax
import optax

from ringworld.batch import Batch
from ringworld.models.world import World
from ringworld.train.loss import loss
from ringworld.train.state import TrainState

Metrics = dict[str, jax.Array]


def make_step(
    c: World, optimizer: optax.GradientTransformation, vision_share: float
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted update of a world model. It gives up the old state's memory to the new one."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, parts), grads = value_and_grad(state.weights, batch, c, vision_share)
        updates, moments = optimizer.update(grads, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **parts}
        return TrainState(state.step + 1, weights, moments), metrics

    return step
