"""A model folder with initial weights: the stage that a ladder from nothing begins with."""

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ringworld.mesh import Rules, make_mesh
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import init
from ringworld.train.stage import Data, StageWithoutSteps
from ringworld.weights.model import save_model
from ringworld.weights.open import open_model


@dataclass(frozen=True, kw_only=True)
class FreshModel(StageWithoutSteps):
    """A model folder with initial weights drawn from `seed`, which all devices hold in parts.

    Its tokenizer and codec are copied from the model folder `parts`.
    """

    model: World
    """the sizes of the model"""
    parts: Path
    """the model folder whose tokenizer and codec it gets"""
    seed: int
    """draws the initial weights"""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when `parts` holds no model."""
        open_model(self.parts)

    def output_config(self, before: World | None) -> World:
        """The sizes of the model."""
        return self.model

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`."""
        with jax.set_mesh(spread_mesh(self.model.llama.model)):
            weights = fresh_weights(self.model, self.seed, Rules())
        save_model(made, self.model, weights, self.parts, jnp.float32)


def spread_mesh(width: int) -> Mesh:
    """A mesh of all devices that divides weights of this width over as many as it can."""
    devices = jax.device_count()
    parts = math.gcd(width, devices)
    return make_mesh(data=devices // parts, fsdp=parts)


def fresh_weights(config: World, seed: int, rules: Rules) -> WorldWeights:
    """Initial weights on the mesh that is set, the same on every mesh."""
    return jax.jit(lambda: init(specs(config), seed, rules=rules))()
