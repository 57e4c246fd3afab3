"""A model folder with initial weights: the stage that a ladder from nothing begins with."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from ringworld.distributed import first_says
from ringworld.mesh import Rules, local_mesh
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import init
from ringworld.progress import Announce
from ringworld.train.stage import MODEL, Data, Stage
from ringworld.weights.model import save_model
from ringworld.weights.open import open_model


@dataclass(frozen=True, kw_only=True)
class FreshModel(Stage[Data]):
    """A model folder with initial weights drawn from `seed`.

    Its tokenizer and codec are copied from the model folder `parts`.
    """

    reads_data: ClassVar[bool] = False
    model: World
    """the sizes of the model"""
    parts: Path
    """the model folder whose tokenizer and codec it gets"""
    seed: int
    """draws the initial weights"""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when `parts` holds no model."""
        open_model(self.parts)

    def kept(self, folder: Path) -> bool:
        """Whether the model is there."""
        return (folder / self.name / MODEL).exists()

    def run(self, data: Data, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Write the folder, unless it is there; returns its path."""
        done = folder / self.name / MODEL
        if not first_says(done.exists()):
            with jax.set_mesh(local_mesh()):
                weights = fresh_weights(self.model, self.seed, Rules())
            save_model(done, self.model, weights, self.parts, jnp.float32)
        return done


def fresh_weights(config: World, seed: int, rules: Rules) -> WorldWeights:
    """Initial weights on the mesh that is set, the same on every mesh."""
    return jax.jit(lambda: init(specs(config), seed, rules=rules))()
