"""The stage that takes the language model out of a world model, to teach it more text."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.models.world import World
from ringworld.train.stage import Data, StageWithoutSteps, write_once
from ringworld.weights.joint import drop_vision, without_vision
from ringworld.weights.open import Opened
from ringworld.weights.save import save_changed


@dataclass(frozen=True, kw_only=True)
class LanguageModel(StageWithoutSteps):
    """The model that it starts from, without its codec, vision table and vision head."""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Nothing can be wrong before it begins."""

    def output_config(self, before: World | None) -> World:
        """The sizes of the language model. Raises InputError without a model."""
        return without_vision(self.require_start(before))

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        start = self.require_start(source)

        def change(opened: Opened) -> Opened:
            config, table = drop_vision(opened.config, opened.table)
            return replace(opened, config=config, table=table, codec=None)

        write_once(made, lambda: save_changed(start, made, change))
