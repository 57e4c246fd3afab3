"""The stage that gives a model more layers, before others teach them."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.train.stage import Data, StageWithoutSteps, write_once
from ringworld.weights.depth import add_layers, place_layers
from ringworld.weights.open import Opened, open_model
from ringworld.weights.save import save_changed


@dataclass(frozen=True, kw_only=True)
class MoreLayers(StageWithoutSteps):
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

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        start = self.require_start(source)

        def change(opened: Opened) -> Opened:
            config, table = add_layers(opened.config, opened.table, self.layers)
            return replace(opened, config=config, table=table)

        write_once(made, lambda: save_changed(start, made, change))
