"""What a training step holds on one device, from shapes alone, without compiling anything.

    weights       the state's weights, each divided over the mesh as the step divides it
    moments       the state's optimizer, divided likewise, and its guard
    gradients     one number for each weight that is trained, in the weight's dtype; two where the
                  rows go through in parts: the sum, and what a part adds
    activations   what every layer keeps for its backward pass, of the tokens of one device

A layer keeps its input, D numbers a token; with "attention" also attention's output, N H numbers,
and its log-sum-exp, N in float32, which the tensor axis divides. Not counted is what one layer
needs while it is computed: its gathered weights, and chunks of features and logits. The compiler
knows that (`plan.aot`).
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ringworld.models.llama import COMPUTE, Llama
from ringworld.settings import MeshShape
from ringworld.train.build import EVERY, TrainState, Updates
from ringworld.train.freeze import divide

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on one device."""

    weights: int
    moments: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.moments + self.gradients + self.activations


def estimate_memory(
    state: TrainState, c: Llama, tokens: int, shape: MeshShape, updates: Updates = EVERY
) -> StepMemory:
    """What a step of so many tokens with this abstract state holds on a device."""
    parts = updates.accumulate
    own = tokens // (shape.data * shape.fsdp * shape.seq * parts)
    trained, _ = divide(state.weights, updates.frozen)
    return StepMemory(
        weights=bytes_held(state.weights),
        moments=bytes_held((state.optimizer, state.guard)),
        gradients=bytes_held(trained) * (2 if parts > 1 else 1),
        activations=count_activations(c, own, shape.tensor),
    )


def bytes_held(tree: Any) -> int:
    """The bytes of one device's part of every array in a tree of abstract arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def count_activations(c: Llama, tokens: int, tensor: int) -> int:
    """The bytes that all layers keep of so many tokens; of those kept by the host, none."""
    number = jnp.dtype(COMPUTE[c.dtype]).itemsize
    heads = c.heads * (c.head_width * number + FLOAT32_BYTES) // tensor
    kept = {"nothing": c.model * number, "attention": c.model * number + heads, "offload": 0}
    return c.layers * tokens * kept[c.activations]
