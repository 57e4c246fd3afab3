"""Low-rank adapters: which matrices have one, their spec table, and the model with them.

    x W  ->  x W + (alpha / rank) (x A) B

Only A and B are trained. B starts at 0, so an adapter changes nothing before its first step.
Source: Hu et al., "LoRA" (arXiv 2106.09685).
"""

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from ringworld.errors import InputError, did_you_mean
from ringworld.models.llama import Llama, blocks_specs
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import Adapted, Int8, Param, Weight, map_specs, paths, pytree_dataclass
from ringworld.settings import WeightType

# The matrices that can have an adapter: Hugging Face's names, and the fields of `Block`.
MODULES = {
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "gate_proj": "w_gate",
    "up_proj": "w_up",
    "down_proj": "w_down",
}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters, which are trained in place of the weights that they stand beside."""

    rank: int = 0
    """the rank of the adapters; 0 trains the weights themselves"""
    alpha: float = 32.0
    """what an adapter adds is multiplied by alpha / rank"""
    targets: tuple[str, ...] = ("*_proj",)
    """which matrices have one: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj, or globs"""
    base: WeightType = "float32"
    """how the frozen weights are held in memory"""

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0:
            raise InputError(
                f"adapters of rank {self.rank} with alpha {self.alpha} cannot be: use a rank from "
                "0 up and an alpha above 0",
                setting="rank",
            )
        if not self.rank and self.base != "float32":
            raise InputError(
                f"weights of {self.base} are not trained: leave base out, or give adapters a rank",
                setting="base",
            )
        for glob in self.targets:
            if not any(fnmatchcase(name, glob) for name in MODULES):
                raise InputError(
                    f"no matrix is called {glob}{did_you_mean(glob, MODULES) or ':'} use some of "
                    f"{', '.join(MODULES)}",
                    setting="targets",
                )
        if not self.targets:
            raise InputError("no matrix has an adapter: name some", setting="targets")

    @property
    def scale(self) -> float:
        """The factor of what an adapter adds."""
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """The matrices that have an adapter, by Hugging Face's names."""
        return tuple(
            name for name in MODULES if any(fnmatchcase(name, glob) for glob in self.targets)
        )


@pytree_dataclass
class Adapter:
    """The factors of an adapter in all layers: A [L, inputs..., r] and B [L, r, outputs...]."""

    a: Weight
    b: Weight


Adapters = dict[str, Adapter]  # by Hugging Face's name of the matrix


def adapter_specs(c: Llama, lora: Lora) -> Adapters:
    """The spec table of the adapters: all that is trained.

    Raises InputError when the rank is above that of a matrix: such an adapter is no smaller.
    """
    table = blocks_specs(c)
    for name in lora.modules:
        p: Param = getattr(table, MODULES[name])
        inputs = math.prod(p.shape[axis] for axis in p.inputs)
        most = min(inputs, math.prod(p.shape[1:]) // inputs)
        if lora.rank > most:
            raise InputError(
                f"adapters of rank {lora.rank} are no smaller than {name}, whose rank is at most "
                f"{most}: use a smaller rank",
                setting="rank",
            )
    return {
        name: Adapter(*getattr(table, MODULES[name]).low_rank(lora.rank)) for name in lora.modules
    }


def adapted_specs(c: World, lora: Lora) -> WorldWeights:
    """The spec table of a model with adapters, its own weights as `lora.base` has them."""

    def held(p: Param) -> Any:
        if lora.base == "int8":
            return p.int8() if p.inputs else p
        return replace(p, dtype=lora.base)

    return adapt(map_specs(held, specs(c)), adapter_specs(c.llama, lora), lora.scale)


def frozen_names(weights: WorldWeights) -> tuple[str, ...]:
    """The dotted names of all weights of an adapted model but its adapters."""
    adapters = {f"blocks.{MODULES[name]}.{part}" for name in MODULES for part in ("a", "b")}
    return tuple(name for name in paths(weights) if name not in adapters)


def adapt(weights: WorldWeights, adapters: Adapters, scale: float) -> WorldWeights:
    """The model with adapters beside its matrices."""
    changed = {
        MODULES[name]: Adapted(getattr(weights.blocks, MODULES[name]), adapter.a, adapter.b, scale)
        for name, adapter in adapters.items()
    }
    return replace(weights, blocks=replace(weights.blocks, **changed))


def adapters_of(weights: WorldWeights) -> Adapters:
    """The adapters that stand beside the matrices of a model."""
    held = {name: getattr(weights.blocks, ours) for name, ours in MODULES.items()}
    return {name: Adapter(w.a, w.b) for name, w in held.items() if isinstance(w, Adapted)}


def merge_adapters(weights: WorldWeights, c: World) -> WorldWeights:
    """The model with plain arrays: W + scale A B where it is adapted, float32 where it is int8."""

    def plain(p: Param, w: Any) -> jax.Array:
        if isinstance(w, Int8):
            return w.values.astype(jnp.float32) * jnp.expand_dims(w.scales, p.inputs)
        if not isinstance(w, Adapted):
            return w
        base = plain(p, w.base)
        inputs, outputs = "ij"[: len(p.inputs)], "xy"[: len(p.shape) - 1 - len(p.inputs)]
        added = jnp.einsum(
            f"l{inputs}r,lr{outputs}->l{inputs}{outputs}",
            w.a,
            w.b,
            out_sharding=jax.typeof(base).sharding.spec,
        )
        return base + (w.scale * added).astype(base.dtype)

    return jax.tree.map(plain, specs(c), weights, is_leaf=lambda x: isinstance(x, Param))
