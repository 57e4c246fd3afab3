"""A stage on a folder of token shards: what `ringworld data build` made becomes training.

ringworld train shards --data SHARDS --start MODEL --folder F

F/run.json        the resolved recipe
F/stage/          metrics and checkpoints
F/model/          the trained model
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp

from ringworld.data.shards import Shards
from ringworld.generate.model import CODEC, TOKENIZER, load_model, save_model
from ringworld.mesh import MeshShape
from ringworld.rope import check_rope, rope_theta
from ringworld.train.loop import Loop
from ringworld.train.optimizer import AdamW
from ringworld.train.record import record_run
from ringworld.train.stage import Stage, train_stage

Announce = Callable[[str], None]

NANO = Path(__file__).parent / "assets" / "nano"
# As a stage's RoPE base: what the law makes of the base that the model has.
BY_THE_LAW = 0.0


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """One stage of the model folder `start` on all examples of the shards in `data`.

    A stage whose RoPE base is `BY_THE_LAW` takes the start's own as far as that reaches, and beyond
    it the base that the law gives.
    """

    name: str
    stage: Stage
    data: Path = Path("tokens")
    start: Path = NANO


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

    Raises InputError when the shards were made with another tokenizer or codec than the model's,
    or the folder holds another run.
    """
    examples = Shards(recipe.data)
    codec = recipe.start / CODEC
    examples.check_parts(recipe.start / TOKENIZER, codec if codec.exists() else None)
    record_run(recipe, folder)
    done = folder / "model"
    if done.exists():
        return done
    start = load_model(recipe.start)
    stage, llama = recipe.stage, start.config.llama
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
