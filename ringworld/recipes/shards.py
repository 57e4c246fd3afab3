"""Training on a folder of token shards, as `ringworld data build` makes them.

ringworld train shards --data.folder SHARDS --start MODEL --folder F
ringworld train shards --data.folder SHARDS --stages.0.shares films 0.84 books 0.16
ringworld train shards --data.folder A --data.more B C --stages.0.shares A 0.5 B/films 0.5
ringworld train shards --data.folder SHARDS --stages.0.shares books 0.8 samples/recall 0.2

F/run.json        the resolved recipe
F/stage/          metrics and checkpoints
F/stage/model/    the trained model
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ringworld.data.corpora.folders import ShardFolders
from ringworld.data.corpora.manifest import MANIFEST
from ringworld.data.packing.mix import Chosen, check_whole, mix_sources
from ringworld.data.packing.rows import Apart, Examples, seed_of
from ringworld.errors import InputError
from ringworld.evals.perplexity import read_text
from ringworld.files import hash_file
from ringworld.models.world import World
from ringworld.progress import Announce
from ringworld.recipes.held_out import measure_held_out
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.samples import Samples
from ringworld.settings import MeshShape
from ringworld.train.loop import Loop, Measure
from ringworld.train.model_stage import ModelData, ModelStage
from ringworld.train.optimizer import AdamW
from ringworld.weights.file_names import CODEC
from ringworld.weights.shipped import NANO

# What the names of the package's own sources begin with, in the shares of a stage.
SAMPLES = "samples/"


@dataclass(frozen=True, kw_only=True)
class TokenShards(ModelData):
    """The token shards in `folder`, and in the folders `more`.

    A stage without shares goes through all examples, as many times as its steps need. With them,
    the sources of the shards are mixed by these shares of the tokens, which add up to 1. A source
    is called by its name, a whole folder by the last part of its path, and a source that two
    folders have by both (`folder/source`). The package's `samples` can be mixed in: `samples/books`
    and its like. Each stage has its own mix. Those that
    `apart` names do not share rows with others, and have their share of the rows of every batch. Of
    an example that was built in every order of text and vision one is taken, by the stage's seed.
    With `verify` the hash of every shard is compared first, at the speed at which the disk is read.
    """

    folder: Path = Path("tokens")
    """the folder of the shards, made by `ringworld data build`"""
    more: tuple[Path, ...] = ()
    """further folders of shards"""
    apart: tuple[str, ...] = ()
    """sources that do not share rows with others, and have their share of every batch"""
    samples: Samples = Samples(clips=600, seed=0)
    """what the sources samples/books, recall, echo, clips and film are drawn from"""
    verify: bool = True
    """whether the hash of every shard is compared before training"""
    held_out: Path | None = None
    """a UTF-8 text that is not in the shards, for the evaluations of a stage"""

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders."""
        return (self.folder, *self.more)

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of each manifest, which has those of its shards, and of the held-out text."""
        named = {"folder": self.folder} | {f"more.{i}": path for i, path in enumerate(self.more)}
        files = {name: path / MANIFEST for name, path in named.items()}
        files |= {"held_out": self.held_out} if self.held_out else {}
        return {name: hash_file(f) if f.is_file() else None for name, f in files.items()}

    def check(self, stage: ModelStage, source: Path | None) -> None:
        """Raise InputError when the shards cannot be mixed as asked, or are not the model's.

        The model's are those that were made with its tokenizer and its codec.
        """
        if stage.eval_every or self.held_out is not None:
            self.read_held_out()
        drawn, built = _split(stage.shares)
        if stage.shares:
            check_whole(stage.shares)
        if drawn:
            self.samples.check(replace(stage, shares=drawn), source)
        if drawn and not built:
            return
        shards = ShardFolders(self.folders)
        if source is not None:
            codec = source / CODEC
            for part in shards.parts:
                part.check_parts(source, codec if codec.exists() else None)
        total = sum(built.values()) or 1.0
        of_shards = replace(stage, shares={name: share / total for name, share in built.items()})
        apart = tuple(name for name in self.apart if not name.startswith(SAMPLES))
        choose_examples(shards, of_shards, apart)

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
        drawn, built = _split(stage.shares)
        shards = ShardFolders(self.folders if built or not drawn else ())
        for part in shards.parts if self.verify else ():
            announce(f"comparing the hashes of {len(part.manifest.shards)} shards")
            part.verify()
        examples: dict[str, Examples] = {}
        for name, share in drawn.items():
            loop = replace(stage.loop, steps=math.ceil(stage.loop.steps * share))
            own = replace(stage, shares={name: 1.0}, loop=loop, seed=seed_of(stage.seed, name))
            examples[SAMPLES + name] = self.samples.open(own, source, cache, announce)
        return choose_examples(shards, stage, self.apart, examples)


def _split(shares: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The shares above 0 of the samples, by their own names, and the shares of the shards."""
    drawn = {n.removeprefix(SAMPLES): s for n, s in shares.items() if n.startswith(SAMPLES) and s}
    return drawn, {n: s for n, s in shares.items() if not n.startswith(SAMPLES)}


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


def choose_examples(
    shards: ShardFolders,
    stage: ModelStage,
    apart: tuple[str, ...],
    drawn: Mapping[str, Examples] | None = None,
) -> Examples | Apart:
    """What the stage is trained on: sources of the shards, and examples that were `drawn`.

    Sources that are packed apart in other stages of a ladder need no share in this one. Raises
    InputError when a share or a source that is packed apart names none of the shards, or the shares
    do not add up to 1.
    """
    if apart and not stage.shares:
        raise InputError(f"{apart[0]} is packed apart and has no share: give the stage shares")
    if not stage.shares and not shards.have_forms:
        return shards
    lengths = shards.lengths
    if not stage.shares:
        every = shards.draw(None, stage.seed)
        return Chosen(shards, every, lengths[every])
    sources = dict(drawn or {})
    for name in dict.fromkeys((*stage.shares, *apart)):
        if name not in sources:
            numbers = shards.draw(name, stage.seed)
            sources[name] = Chosen(shards, numbers, lengths[numbers])
    used = [name for name in apart if stage.shares.get(name)]
    return mix_sources(sources, stage.shares, used, tokens=stage.tokens, seed=stage.seed)
