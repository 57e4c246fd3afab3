"""The stage that gives a model more layers, before others teach them."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.train.changed_model import ChangedModel
from ringworld.train.stage import Data
from ringworld.weights.depth import add_layers, place_layers
from ringworld.weights.open import Opened, open_model


@dataclass(frozen=True, kw_only=True)
class MoreLayers(ChangedModel):
    """The model that it starts from, with copies of some layers that add nothing yet.

    What the model computes stays as it is (`ringworld.weights.depth`).
    """

    layers: int
    """the layers that it has afterwards"""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"layers is {self.layers}: use 1 or more", setting="layers")

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when the model has more layers already."""
        if source is not None:
            self.output_config(open_model(source).config)

    def output_config(self, before: World | None) -> World:
        """The sizes of the model. Raises InputError without one, and for one of more layers."""
        world = self.require_start(before)
        place_layers(world.llama.layers, self.layers)
        return replace(world, llama=replace(world.llama, layers=self.layers))

    def change(self, opened: Opened) -> Opened:
        """The model with the layers."""
        config, table = add_layers(opened.config, opened.table, self.layers)
        return replace(opened, config=config, table=table)
