"""What a stage with adapters starts from, trains and leaves.

The adapters are trained, and every other weight is frozen: it has no gradient and no optimizer
state, keeps its bits, and may be held as int8. The stage leaves the adapters in PEFT's layout
beside a model that has them merged in, from which the next stage goes on.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ringworld.errors import InputError
from ringworld.mesh import Rules
from ringworld.models.lora import (
    Lora,
    adapt,
    adapted_specs,
    adapter_specs,
    adapters_of,
    frozen_names,
    merge_adapters,
)
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import init
from ringworld.train.build import Updates
from ringworld.weights.adapter import save_adapter
from ringworld.weights.folder import fill
from ringworld.weights.tensors import LazyWeight

ADAPTER = "adapter"  # the folder of a stage's adapters


def trained_specs(c: World, lora: Lora) -> WorldWeights:
    """The spec table of what a step changes or reads: the model, with adapters if it has any."""
    return adapted_specs(c, lora) if lora.rank else specs(c)


def freeze_base(updates: Updates, c: World, lora: Lora) -> Updates:
    """The updates with all weights frozen but the adapters, if there are any.

    Raises InputError when there are, and other weights are named as frozen.
    """
    if not lora.rank:
        return updates
    if updates.frozen:
        raise InputError(
            f"only adapters are trained, so {', '.join(updates.frozen)} need not be named as "
            "frozen: leave frozen out",
            setting="frozen",
        )
    return replace(updates, frozen=frozen_names(adapted_specs(c, lora)))


def load_weights(
    c: World, table: Mapping[str, np.ndarray | LazyWeight], lora: Lora, seed: int, rules: Rules
) -> WorldWeights:
    """The weights of a model on the mesh that is set, with new adapters if it gets any."""
    weights = fill(specs(c), table, lora.base, rules)
    if not lora.rank:
        return weights
    draw = partial(init, adapter_specs(c.llama, lora), seed, rules=rules)
    return adapt(weights, jax.jit(draw)(), lora.scale)


def leave_adapter(
    folder: Path, weights: WorldWeights, c: World, lora: Lora, source: Path
) -> WorldWeights:
    """Save the adapters in the folder of a stage; returns the weights with them merged in.

    Weights without adapters are returned as they are. `source` is the model that was trained.
    """
    if not lora.rank:
        return weights
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # of a run that was stopped behind it
    save_adapter(folder / ADAPTER, adapters_of(weights), lora, str(source.absolute()))
    return jax.jit(partial(merge_adapters, c=c))(weights)
