"""The stage that gives image codes 2-D position embeddings: of their row and their column."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.train.changed_model import ChangedModel
from ringworld.train.stage import Data
from ringworld.weights.joint import add_grid
from ringworld.weights.open import Opened, open_model


@dataclass(frozen=True, kw_only=True)
class CodeGrid(ChangedModel):
    """The model that it starts from, with rows of the vision table that tell where a code stands.

    They are 0, so that the model computes what it did until it is trained.
    """

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when the vision table has no rows to spare."""
        if source is not None:
            self.output_config(open_model(source).config)

    def output_config(self, before: World | None) -> World:
        """The sizes of the model.

        Raises InputError without one, without room in its table, and for one that is told already.
        """
        world = self.require_start(before)
        if world.vocabulary.grid:
            raise InputError(
                f"the model of the stage {self.name} is told rows and columns already: leave it out"
            )
        return replace(world, vocabulary=replace(world.vocabulary, grid=True))

    def change(self, opened: Opened) -> Opened:
        """The model with the grid."""
        self.output_config(opened.config)
        config, table = add_grid(opened.config, opened.table)
        return replace(opened, config=config, table=table)
