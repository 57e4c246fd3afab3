"""The stage that takes the language model out of a world model, to teach it more text."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.models.world import World
from ringworld.train.changed_model import ChangedModel
from ringworld.train.stage import Data
from ringworld.weights.joint import drop_vision, without_vision
from ringworld.weights.open import Opened


@dataclass(frozen=True, kw_only=True)
class LanguageModel(ChangedModel):
    """The model that it starts from, without its codec, vision table and vision head."""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Nothing can be wrong before it begins."""

    def output_config(self, before: World | None) -> World:
        """The sizes of the language model. Raises InputError without a model."""
        return without_vision(self.require_start(before))

    def change(self, opened: Opened) -> Opened:
        """The language model alone."""
        config, table = drop_vision(opened.config, opened.table)
        return replace(opened, config=config, table=table, codec=None)
