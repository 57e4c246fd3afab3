"""The stage that gives a world model another codec, before others teach it the new codes."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.models.world import World
from ringworld.train.stage import Data, StageWithoutSteps
from ringworld.weights.codecs import open_codec
from ringworld.weights.joint import extend_vocabulary
from ringworld.weights.open import hash_model
from ringworld.weights.save import replace_codec


@dataclass(frozen=True, kw_only=True)
class NewCodec(StageWithoutSteps):
    """The model that it starts from, with the codec `codec`.

    The layers and the words stay as they are. The vision table and the vision head begin anew,
    because the codes of another codec have other meanings.
    """

    codec: Path
    """the folder of the codec"""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when there is no codec."""
        open_codec(self.codec)

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the codec."""
        return {"codec": hash_model(self.codec)}

    def output_config(self, before: World | None) -> World:
        """The sizes of the model with the codec's codes. Raises InputError without a model."""
        if before is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        return replace(
            before, vocabulary=extend_vocabulary(before.vocabulary, open_codec(self.codec)[0])
        )

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        if source is None:
            raise InputError(f"the stage {self.name} has no model: give the recipe a start")
        with first_goes_first():
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                replace_codec(source, made, self.codec)
