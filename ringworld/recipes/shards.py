"""Training on a folder of token shards, as `ringworld data build` makes them.

ringworld train shards --data.folder SHARDS --start MODEL --folder F
ringworld train shards --data.folder SHARDS --stages.0.shares films 0.84 books 0.16

F/run.json        the resolved recipe
F/stage/          metrics and checkpoints
F/stage/model/    the trained model
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ringworld.data.corpora.manifest import MANIFEST
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.mix import Chosen, draw_forms, mix_sources
from ringworld.data.packing.rows import Apart, Examples
from ringworld.errors import InputError
from ringworld.evals.perplexity import read_text
from ringworld.files import hash_file
from ringworld.models.world import World
from ringworld.progress import Announce
from ringworld.recipes.held_out import measure_held_out
from ringworld.recipes.recipe import Recipe
from ringworld.settings import MeshShape
from ringworld.train.loop import Loop, Measure
from ringworld.train.model_stage import ModelData, ModelStage
from ringworld.train.optimizer import AdamW
from ringworld.weights.file_names import CODEC
from ringworld.weights.shipped import NANO


@dataclass(frozen=True, kw_only=True)
class TokenShards(ModelData):
    """The token shards in `folder`.

    A stage without shares goes through all examples, as many times as its steps need. With them,
    the sources of the shards are mixed by these shares of the tokens, which add up to 1. Those that
    `apart` names do not share rows with others, and have their share of the rows of every batch. Of
    an example that was built in every order of text and vision one is taken, by the stage's seed.
    With `verify` the hash of every shard is compared first, at the speed at which the disk is read.
    """

    folder: Path = Path("tokens")
    """the folder of the shards, made by `ringworld data build`"""
    apart: tuple[str, ...] = ()
    """sources that do not share rows with others, and have their share of every batch"""
    verify: bool = True
    """compare the hash of every shard before training"""
    held_out: Path | None = None
    """a UTF-8 text that is not in the shards, for the evaluations of a stage"""

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the manifest, which has those of all shards, and of the held-out text."""
        paths = {"folder": self.folder / MANIFEST} | (
            {"held_out": self.held_out} if self.held_out else {}
        )
        return {name: hash_file(p) if p.is_file() else None for name, p in paths.items()}

    def check(self, stage: ModelStage, source: Path | None) -> None:
        """Raise InputError when the shards cannot be mixed as asked, or are not the model's.

        The model's are those that were made with its tokenizer and its codec.
        """
        if stage.eval_every:
            self.read_held_out()
        shards = Shards(self.folder)
        if source is not None:
            codec = source / CODEC
            shards.check_parts(source, codec if codec.exists() else None)
        choose_examples(shards, stage, self.apart)

    def read_held_out(self) -> str:
        """The held-out text. Raises InputError when there is none, or it cannot be read."""
        if self.held_out is None:
            raise InputError(
                "a stage is evaluated on a text that is not in the shards: name its file in "
                "held_out, or set eval_every to 0",
                setting="held_out",
            )
        return read_text(self.held_out)

    def measure(
        self, stage: ModelStage, source: Path, config: World, cache: Path, announce: Announce
    ) -> Measure:
        """The loss of the held-out text, and needles in it."""
        text = self.read_held_out()
        return measure_held_out(
            stage, source, config, lambda words: [np.asarray(words.encode(text), np.int32)]
        )

    def open(
        self, stage: ModelStage, source: Path, cache: Path, announce: Announce
    ) -> Examples | Apart:
        """The examples of a stage. Raises InputError when the shards are not what was written."""
        shards = Shards(self.folder)
        if self.verify:
            announce(f"comparing the hashes of {len(shards.manifest.shards)} shards")
            shards.verify()
        return choose_examples(shards, stage, self.apart)


def shards() -> Recipe:
    """The shipped model on rows of 1,024 tokens, for a hundred steps."""
    return Recipe(
        name="shards",
        start=NANO,
        stages=(
            ModelStage(
                name="stage",
                context=1024,
                batch=4,
                loop=Loop(steps=100, save_every=50),
                optimizer=AdamW(schedule="cosine", peak_lr=3e-4, end_lr=3e-5, warmup_steps=2),
                mesh=MeshShape(seq=2),
                shares={},
            ),
        ),
        data=TokenShards(),
    )


def choose_examples(shards: Shards, stage: ModelStage, apart: tuple[str, ...]) -> Examples | Apart:
    """What the stage is trained on.

    Raises InputError when a share or a source that is packed apart names none of the shards, or the
    shares do not add up to 1.
    """
    forms: Mapping[str, int] = shards.manifest.forms
    if apart and not stage.shares:
        raise InputError(f"{apart[0]} is packed apart and has no share: give the stage shares")
    if not stage.shares and not forms:
        return shards
    built = dict.fromkeys(shard.source for shard in shards.manifest.shards)
    numbers = {
        name: draw_forms(shards.indices(name), forms.get(name, 1), stage.seed)
        for name in (dict.fromkeys((*stage.shares, *apart)) if stage.shares else built)
    }
    lengths = shards.lengths
    if not stage.shares:
        every = np.concatenate(list(numbers.values()))
        return Chosen(shards, every, lengths[every])
    sources = {name: Chosen(shards, own, lengths[own]) for name, own in numbers.items()}
    return mix_sources(sources, stage.shares, apart, tokens=stage.tokens, seed=stage.seed)
