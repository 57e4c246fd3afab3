"""The one builder of a training step: its state, where the state lies on a mesh, and the update.

Training, the compile for TPUs and the tests of memory and traffic all build the same program here.
What is learned is an argument: a loss maps weights and a batch to a scalar and its metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ringworld import params
from ringworld.batch import Batch
from ringworld.mesh import RULES, Rules, named_sharding
from ringworld.params import Leaf, pytree_dataclass

Metrics = dict[str, jax.Array]
# Weights and a batch -> the scalar to minimise, and metrics.
Loss = Callable[[Any, Any], tuple[Float[Array, ""], Metrics]]


@pytree_dataclass
class TrainState:
    """All that a step changes.

    There is no random key and no data position in it: both are functions of `step`, so that a
    resumed run is the run that never stopped.
    """

    step: Leaf  # int32 scalar: how many updates have been made
    weights: Leaf
    optimizer: Leaf


Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Build:
    """A training step and the state that it takes.

    `state` has the shape, dtype and sharding of every array, and no memory. `step` is jitted, and
    donates the memory of the state that it is given.
    """

    state: TrainState
    step: Step


def build(
    specs: Any,
    mesh: Mesh | AbstractMesh,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    rules: Rules = RULES,
) -> Build:
    """The training step of the weights that `specs` describes, divided over `mesh` by `rules`.

    Nothing is computed or allocated, so the mesh may be one of devices that are only described.
    Call it and what it returns under `jax.set_mesh(mesh)`.
    """

    def fresh() -> TrainState:
        return start(params.init(specs, 0, rules=rules), optimizer)

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    abstract = jax.tree.map(place, jax.eval_shape(fresh))
    return Build(abstract, make_step(loss, optimizer))


def start(weights: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Call it under `jax.set_mesh` when the weights are divided over a mesh, so that the counters lie
    on that mesh too.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32), weights=weights, optimizer=optimizer.init(weights)
    )


def make_step(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """The jitted update: loss, gradients, optimizer. It donates the memory of the old state.

    Its metrics are those of the loss, "loss" and "grad_norm".
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.weights, batch)
        updates, moments = optimizer.update(grads, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **parts}
        return TrainState(state.step + 1, weights, moments), metrics

    return step


def abstract_batch(mesh: Mesh | AbstractMesh, rows: int, context: int) -> Batch:
    """A batch of `rows` rows of `context` tokens, without memory, divided over a mesh."""

    def array(dtype: Any) -> jax.ShapeDtypeStruct:
        sharding = named_sharding(mesh, "batch", "seq")
        return jax.ShapeDtypeStruct((rows, context), dtype, sharding=sharding)

    ids, floats, bools = array(jnp.int32), array(jnp.float32), array(jnp.bool_)
    return Batch(ids, bools, ids, bools, floats, ids, ids)


def abstract_of(tree: Any) -> Any:
    """The shape, dtype and sharding of every leaf: what a checkpoint is restored onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@jax.jit
def is_finite(tree: Any) -> jax.Array:
    """Whether no number in the tree is NaN or infinite; a bool scalar."""
    finite = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite = finite & jnp.isfinite(leaf).all()
    return finite
