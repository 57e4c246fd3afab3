"""The stage that gives a world model another codec, before others teach it the new codes."""

from dataclasses import dataclass, replace
from pathlib import Path

from ringworld.models.world import World
from ringworld.train.changed_model import ChangedModel
from ringworld.train.stage import Data
from ringworld.weights.codecs import open_codec
from ringworld.weights.joint import extend_vocabulary
from ringworld.weights.open import Opened, hash_model
from ringworld.weights.save import replace_codec


@dataclass(frozen=True, kw_only=True)
class NewCodec(ChangedModel):
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
        world = self.require_start(before)
        words = extend_vocabulary(world.vocabulary, open_codec(self.codec)[0])
        return replace(world, vocabulary=words)

    def change(self, opened: Opened) -> Opened:
        """The model with the codec."""
        return replace_codec(opened, self.codec)
