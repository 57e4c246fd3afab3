"""A stage on a folder of token shards: what `ringworld data build` made becomes training.

ringworld train shards --data SHARDS --start MODEL --folder F
ringworld train shards --data SHARDS --stage.shares films 0.84 books 0.16 --apart books

F/run.json        the resolved recipe
F/stage/          metrics and checkpoints
F/model/          the trained model
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.mix import Chosen, draw_forms, mix_sources
from ringworld.data.packing.rows import Apart, Examples
from ringworld.errors import InputError
from ringworld.progress import Announce
from ringworld.rope import check_rope, rope_theta
from ringworld.settings import MeshShape
from ringworld.train.loop import Loop
from ringworld.train.optimizer import AdamW
from ringworld.train.record import record_run
from ringworld.train.stage import Stage, train_stage
from ringworld.weights.file_names import CODEC
from ringworld.weights.model import load_model, save_model
from ringworld.weights.shipped import NANO

# As a stage's RoPE base: what the law makes of the base that the model has.
BY_THE_LAW = 0.0


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """One stage of the model folder `start` on the shards in `data`.

    Without `stage.shares` it goes through all examples, as many times as its steps need. With them,
    the sources of the shards are mixed by these shares of the tokens, which add up to 1. Those that
    `apart` names do not share rows with others, and have their share of the rows of every batch. Of
    an example that was built in every order of text and vision one is taken, by `stage.seed`. With
    `verify` the hash of every shard is compared first, at the speed at which the disk is read.

    A stage whose RoPE base is `BY_THE_LAW` takes the start's own as far as that reaches, and beyond
    it the base that the law gives.
    """

    name: str
    stage: Stage
    data: Path = Path("tokens")
    start: Path = NANO
    apart: tuple[str, ...] = ()
    verify: bool = True


def shards() -> ShardRecipe:
    """The shipped model on rows of 1,024 tokens, for a hundred steps."""
    return ShardRecipe(
        name="shards",
        stage=Stage(
            name="stage",
            context=1024,
            rope_theta=BY_THE_LAW,
            batch=4,
            loop=Loop(steps=100, save_every=50),
            optimizer=AdamW(schedule="cosine", peak_lr=3e-4, end_lr=3e-5, warmup_steps=2),
            mesh=MeshShape(seq=2),
            shares={},
        ),
    )


def run_shard_recipe(recipe: ShardRecipe, folder: Path, announce: Announce) -> Path:
    """Train the stage in `folder`, going on where it stopped; returns the model's folder.

    Raises InputError when the shards are not what was written, were made with another tokenizer or
    codec than the model's or cannot be mixed as asked, or the folder holds another run.
    """
    shards = Shards(recipe.data)
    codec = recipe.start / CODEC
    shards.check_parts(recipe.start, codec if codec.exists() else None)
    examples, shares = choose_examples(shards, recipe)
    record_run(recipe, folder)
    done = folder / "model"
    if done.exists():
        return done
    if recipe.verify:
        announce(f"comparing the hashes of {len(shards.manifest.shards)} shards")
        shards.verify()
    start = load_model(recipe.start)
    stage, llama = replace(recipe.stage, shares=shares), start.config.llama
    if stage.rope_theta == BY_THE_LAW:
        theta = rope_theta(stage.context, llama.head_width, llama.rope_theta, llama.context)
        stage = replace(stage, rope_theta=theta)
    config = start.config.at(stage.context, stage.rope_theta)
    if (warning := check_rope(config.llama.rope, stage.context)) is not None:
        announce(f"warning: {warning}")
    announce(f"stage {stage.name}: {stage.tokens} tokens at {stage.context}")
    weights = train_stage(
        stage, start.config, start.weights, examples, folder / stage.name, announce
    )
    save_model(done, config, weights, recipe.start, jnp.float32)
    return done


def choose_examples(
    shards: Shards, recipe: ShardRecipe
) -> tuple[Examples | Apart, dict[str, float]]:
    """What the stage is trained on, and its shares of the rows of every batch.

    Raises InputError when a share or a source that is packed apart names none of the shards, or the
    shares do not add up to 1.
    """
    stage, apart, forms = recipe.stage, recipe.apart, shards.manifest.forms
    if apart and not stage.shares:
        raise InputError(f"{apart[0]} is packed apart and has no share: give the stage shares")
    if not stage.shares and not forms:
        return shards, {}
    built = dict.fromkeys(shard.source for shard in shards.manifest.shards)
    numbers = {
        name: draw_forms(shards.indices(name), forms.get(name, 1), stage.seed)
        for name in (dict.fromkeys((*stage.shares, *apart)) if stage.shares else built)
    }
    lengths = shards.lengths
    if not stage.shares:
        every = np.concatenate(list(numbers.values()))
        return Chosen(shards, every, lengths[every]), {}
    sources = {name: Chosen(shards, own, lengths[own]) for name, own in numbers.items()}
    return mix_sources(sources, stage.shares, apart, tokens=stage.tokens, seed=stage.seed)
