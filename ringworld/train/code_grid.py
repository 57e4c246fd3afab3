"""The stage that tells a world model the row and the column of each code."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.models.world import World
from ringworld.train.stage import Data, StageWithoutSteps, write_once
from ringworld.weights.joint import add_grid
from ringworld.weights.open import Opened, open_model
from ringworld.weights.save import save_changed


@dataclass(frozen=True, kw_only=True)
class CodeGrid(StageWithoutSteps):
    """The model that it starts from, with rows of the vision table that tell where a code stands.

    They are 0, so that the model computes what it did until it is trained.
    """

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when the vision table has no rows to spare."""
        if source is not None:
            self.output_config(open_model(source).config)

    def output_config(self, before: World | None) -> World:
        """The sizes of the model. Raises InputError without one, or without room in its table."""
        world = self.require_start(before)
        return replace(world, vocabulary=replace(world.vocabulary, grid=True))

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        start = self.require_start(source)

        def change(opened: Opened) -> Opened:
            config, table = add_grid(opened.config, opened.table)
            return replace(opened, config=config, table=table)

        write_once(made, lambda: save_changed(start, made, change))
