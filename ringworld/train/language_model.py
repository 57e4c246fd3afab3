"""The stage that takes the language model out of a world model, to teach it more text."""

from dataclasses import dataclass
from pathlib import Path

from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.train.stage import Data, StageWithoutSteps
from ringworld.weights.joint import without_vision
from ringworld.weights.save import save_language_model


@dataclass(frozen=True, kw_only=True)
class LanguageModel(StageWithoutSteps):
    """The model that it starts from, without its codec, vision table and vision head."""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Nothing can be wrong before it begins."""

    def output_config(self, before: World | None) -> World:
        """The sizes of the language model. Raises InputError without a model."""
        if before is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        return without_vision(before)

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        if source is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        with first_goes_first():
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                save_language_model(source, made)
