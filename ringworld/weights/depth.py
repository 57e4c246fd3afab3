"""More layers for a model, which computes with them what it did.

Some layers are followed by a copy whose two output matrices are 0, so that it adds nothing until
training says more. Its other weights are those of the layer before it, from which it learns sooner
than from noise. Source: LLaMA Pro (arXiv 2401.02415), block expansion.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.weights.tensors import LazyTensor, LazyWeight, Table

LAYERED = "blocks."
# What a layer adds to the residual stream comes out of these.
OUTPUTS = ("blocks.wo", "blocks.w_down")


def place_layers(before: int, after: int) -> list[tuple[int, bool]]:
    """For each of `after` layers the one of `before` that it is, and whether it is a copy of it.

    Copies are spread evenly. Raises InputError when there would be fewer layers than before.
    """
    if after < before:
        raise InputError(
            f"the model has {before} layers and {after} are asked for: ask for at least {before}",
            setting="layers",
        )
    sources = [i * before // after for i in range(after)]
    return [(source, source in sources[:i]) for i, source in enumerate(sources)]


def add_layers(config: World, table: Table, layers: int) -> tuple[World, Table]:
    """The model with so many layers: its sizes and its weights, read when they are needed."""
    placed = place_layers(config.llama.layers, layers)
    deeper = {
        name: _add_layers(weight, placed, name in OUTPUTS) if name.startswith(LAYERED) else weight
        for name, weight in table.items()
    }
    return replace(config, llama=replace(config.llama, layers=layers)), deeper


def _add_layers(
    weight: np.ndarray | LazyWeight, placed: list[tuple[int, bool]], is_output: bool
) -> LazyWeight:
    reads = []
    for source, copied in placed:
        read = LazyTensor(partial(_read_layer, weight, source), weight.dtype)
        reads.append(read.then(np.zeros_like) if copied and is_output else read)
    return LazyWeight((len(placed), *weight.shape[1:]), tuple(reads))


def _read_layer(weight: np.ndarray | LazyWeight, layer: int) -> np.ndarray:
    """One layer of a weight, `[1, ...]`."""
    if isinstance(weight, np.ndarray):
        return weight[layer : layer + 1]
    if len(weight.reads) == weight.shape[0]:
        return weight.reads[layer]()
    return np.concatenate(list(weight))[layer : layer + 1]
