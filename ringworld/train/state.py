"""What training carries from one step to the next."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class TrainState:
    """All that a step changes.

    There is no random key and no data position in it: both are functions of `step`, so that a run
    that goes on from here is the run that never stopped.
    """

    step: Leaf  # int32 scalar: how many updates have been made
    weights: Leaf
    optimizer: Leaf


def start(weights: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Call it under `jax.set_mesh` when the weights are divided over a mesh, so that the counters lie
    on that mesh too.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32), weights=weights, optimizer=optimizer.init(weights)
    )


def outline(tree: Any) -> Any:
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
