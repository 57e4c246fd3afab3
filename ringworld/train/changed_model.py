"""Stages that change a model without training it."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ringworld.train.stage import StageWithoutSteps, write_once
from ringworld.weights.open import Opened
from ringworld.weights.save import save_changed


@dataclass(frozen=True, kw_only=True)
class ChangedModel(StageWithoutSteps):
    """The model that it starts from, changed."""

    @abstractmethod
    def change(self, opened: Opened) -> Opened:
        """What is written of a model whose weights are on the disk."""

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        start = self.require_start(source)
        write_once(made, lambda: save_changed(start, made, self.change))
