"""The stage that gives a world model another codec, before others teach it the new codes."""

from dataclasses import dataclass
from pathlib import Path

from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.train.stage import Data, StageWithoutSteps
from ringworld.weights.codecs import open_codec
from ringworld.weights.open import hash_model
from ringworld.weights.save import exchange_codec


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

    def write(self, made: Path, source: Path | None) -> None:
        """Write the model folder `made`. Raises InputError when there is no model to start from."""
        if source is None:
            raise InputError(f"the stage {self.name} has no model to start from: set start")
        with first_goes_first():
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                exchange_codec(source, made, self.codec)
