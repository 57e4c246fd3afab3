"""The stage that gives a world model another codec, before others teach it the new codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.progress import Announce
from ringworld.train.stage import MODEL, Data, Stage
from ringworld.weights.codecs import open_codec
from ringworld.weights.open import hash_model
from ringworld.weights.save import exchange_codec


@dataclass(frozen=True, kw_only=True)
class NewCodec(Stage[Data]):
    """The model that it starts from, with the codec `codec`.

    The layers and the words stay as they are. The vision table and the vision head begin anew,
    because the codes of another codec have other meanings.
    """

    reads_data: ClassVar[bool] = False
    codec: Path
    """the folder of the codec"""

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when there is no codec."""
        open_codec(self.codec)

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the codec."""
        return {"codec": hash_model(self.codec)}

    def kept(self, folder: Path) -> bool:
        """Whether the model is there."""
        return (folder / self.name / MODEL).exists()

    def run(self, data: Data, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Write the folder, unless it is there; returns its path."""
        done = folder / self.name / MODEL
        if source is None:
            raise InputError(f"the stage {self.name} has no model to start from: put it behind one")
        with first_goes_first():
            if not done.exists():
                done.parent.mkdir(parents=True, exist_ok=True)
                exchange_codec(source, done, self.codec)
        return done
