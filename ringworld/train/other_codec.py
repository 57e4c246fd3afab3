"""A model folder with another codec: the stage that goes from one codec to its successor."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ringworld.distributed import is_first
from ringworld.errors import InputError
from ringworld.train.fresh_model import WrittenModel
from ringworld.train.stage import Data
from ringworld.weights.codecs import open_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.folder import new_folder
from ringworld.weights.open import hash_model


@dataclass(frozen=True, kw_only=True)
class OtherCodec(WrittenModel):
    """The model folder that it starts from, with `codec` in the place of its codec.

    The weights stay as they are, so the codes of the two should mean about the same.
    """

    codec: Path
    """the folder of the codec"""

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the codec."""
        return {"codec": hash_model(self.codec)}

    def check(self, data: Data, source: Path | None, folder: Path) -> None:
        """Raise InputError when there is no such codec, or the model's is of other sizes."""
        codec, _ = open_codec(self.codec)
        if source is None or not (source / CODEC).is_dir():
            raise InputError(
                f"the stage {self.name} needs a model folder with a codec: start the recipe at one"
            )
        if open_codec(source / CODEC)[0] != codec:
            raise InputError(
                f"{self.codec} and the codec of {source} are of other sizes: use one of the same"
            )

    def write(self, source: Path | None, done: Path) -> None:
        """Copy the folder `source`, with the other codec."""
        assert source is not None
        with new_folder(done) as draft:
            if is_first():
                others = shutil.ignore_patterns(CODEC)
                shutil.copytree(source, draft, ignore=others, dirs_exist_ok=True)
                shutil.copytree(self.codec, draft / CODEC)
