"""Runs as functions. A recipe says which model, which stages, which data, and from which start.

nano_tokenizer   what turns text into ids (`ringworld.recipes.tokenizer`)
nano_codec       the shipped codec (`ringworld.recipes.codec`)
folder_codec     a codec of your own films and pictures (`ringworld.recipes.codec`)
nano_base        the shipped model: text first, then the world, from fresh weights, at 1K
demo             the shipped model grown from 1K to 4K to 16K over a ring of eight
shards           a model trained on token shards (`ringworld.recipes.shards`)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ringworld.data.packing.mix import Source, draw_examples
from ringworld.data.samples import read_film, read_shelf
from ringworld.errors import InputError
from ringworld.fetch import fetch
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.progress import Announce
from ringworld.recipes.codec import CodecRecipe, FolderCodecRecipe, folder_codec, nano_codec
from ringworld.recipes.shards import ShardRecipe, shards
from ringworld.recipes.sources import text_sources, vision_sources
from ringworld.recipes.tokenizer import TokenizerRecipe, nano_tokenizer
from ringworld.rope import check_rope, rope_theta, stable_base
from ringworld.settings import MeshShape
from ringworld.tasks.clips import draw_clips
from ringworld.text.load import TOKENIZER, load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.train.loop import Loop
from ringworld.train.optimizer import AdamW
from ringworld.train.record import record_run
from ringworld.train.stage import Stage, train_stage
from ringworld.vocab import Vocabulary
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.model import load_model, save_model
from ringworld.weights.shipped import NANO

NANO_WORLD = World(
    llama=Llama(
        layers=4,
        model=192,
        mlp=512,
        heads=3,
        kv_heads=1,
        head_width=64,
        context=1024,
        rope_theta=stable_base(1024, 64),
    ),
    vocabulary=Vocabulary(text=2048, bos=1, eos=2, codes=512, codes_per_frame=64, vision_rows=520),
)

# The length that the shipped model is meant to be taken to.
REACH = 16384


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A chain of stages. `start` is a model folder, or None for fresh weights.

    `clips` is how many clips of moving shapes the corpus holds, drawn from `seed`.
    """

    name: str
    model: World
    stages: tuple[Stage, ...]
    clips: int
    seed: int
    start: Path | None


def reach_theta() -> float:
    """The RoPE base that the law gives the shipped model for `REACH`.

    Its last stage is trained at this base, still at 1K, where steps are cheap: a change of base
    costs the model its sight for hundreds of steps (docs/log.md), and the demo has ninety.
    """
    llama = NANO_WORLD.llama
    return rope_theta(REACH, llama.head_width, llama.rope_theta, llama.context)


def nano_base() -> Recipe:
    """The shipped model from fresh weights: language first, as in LWM, then language and vision."""

    def stage(
        name: str, context: int, theta: float, batch: int, steps: int, lr: float, **rest: Any
    ) -> Stage:
        return Stage(
            name=name,
            context=context,
            rope_theta=theta,
            batch=batch,
            loop=Loop(steps=steps, save_every=100),
            optimizer=AdamW(schedule="cosine", peak_lr=lr, end_lr=lr / 10, warmup_steps=30),
            mesh=MeshShape(data=2),
            **rest,
        )

    theta = NANO_WORLD.llama.rope_theta
    echo = {"echo": 0.8, "books": 0.2}
    text = {"recall": 0.5, "echo": 0.25, "books": 0.25}
    world = {"recall": 0.15, "books": 0.05, "clips": 0.72, "film": 0.08}
    return Recipe(
        name="nano-base",
        model=NANO_WORLD,
        stages=(
            stage("echo-64", 64, theta, 64, 500, 2e-3, shares=echo, vision_share=0.0, seed=1),
            stage("text-256", 256, theta, 16, 600, 2e-3, shares=text, vision_share=0.0, seed=2),
            stage("world-1k", 1024, theta, 4, 4500, 1.5e-3, shares=world, seed=3),
            stage("reach-1k", 1024, reach_theta(), 4, 1600, 1.2e-3, shares=world, seed=4),
        ),
        clips=12000,
        seed=7,
        start=None,
    )


def demo() -> Recipe:
    """The shipped model grown from 1K to 16K on a ring of eight, its RoPE base by the law."""
    shares = {"recall": 0.45, "books": 0.05, "clips": 0.45, "film": 0.05}
    stages = []
    for context, steps, lr in ((1024, 10, 3e-4), (4096, 60, 7e-4), (16384, 20, 3e-4)):
        stages.append(
            Stage(
                name=f"{context // 1024}k",
                context=context,
                rope_theta=rope_theta(context, NANO_WORLD.llama.head_width, reach_theta(), REACH),
                batch=max(1, 8192 // context),
                loop=Loop(steps=steps, save_every=10),
                optimizer=AdamW(schedule="cosine", peak_lr=lr, end_lr=lr / 10, warmup_steps=3),
                mesh=MeshShape(seq=8),
                shares=shares,
                seed=context,
            )
        )
    return Recipe(
        name="demo", model=NANO_WORLD, stages=tuple(stages), clips=600, seed=11, start=NANO
    )


AnyRecipe = Recipe | CodecRecipe | FolderCodecRecipe | TokenizerRecipe | ShardRecipe
RECIPES: dict[str, Callable[[], AnyRecipe]] = {
    "nano-tokenizer": nano_tokenizer,
    "nano-codec": nano_codec,
    "folder-codec": folder_codec,
    "nano-base": nano_base,
    "demo": demo,
    "shards": shards,
}


def find_recipe(name: str) -> AnyRecipe:
    """The recipe of that name. Raises InputError, naming those there are, when there is none."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def make_vision(
    recipe: Recipe, tokenizer: Tokenizer, parts: Path, cache: Path, announce: Announce
) -> dict[str, Source]:
    """The film and the moving shapes, through the codec of the model folder `parts`."""
    codec = load_codec(parts / CODEC)
    film = read_film(fetch("film"), codec, cache, announce)
    clips = draw_clips(film, codec, recipe.clips, recipe.seed, cache, announce)
    return vision_sources(film, clips, tokenizer, recipe.model.vocabulary)


def run_recipe(recipe: Recipe, folder: Path, announce: Announce) -> Path:
    """Train the chain in `folder`, one sub-folder a stage; returns the last stage's model folder.

    Stages that are done are not repeated, the one that was interrupted goes on. The resolved
    recipe is saved as `run.json`. Raises InputError when the folder holds another recipe's run.
    """
    record_run(recipe, folder)
    parts = recipe.start or NANO
    tokenizer = load_tokenizer(parts / TOKENIZER)
    weights = load_model(recipe.start).weights if recipe.start else None
    cache, sources, done = folder / "data", {}, parts
    for stage in recipe.stages:
        done = folder / stage.name / "model"
        if not done.exists():
            sources = sources or text_sources(read_shelf(tokenizer, cache, announce), tokenizer)
            if not set(stage.shares) <= set(sources):
                sources |= make_vision(recipe, tokenizer, parts, cache, announce)
            announce(f"stage {stage.name}: {stage.tokens} tokens at {stage.context}")
            config = recipe.model.at(stage.context, stage.rope_theta)
            if (warning := check_rope(config.llama.rope, stage.context)) is not None:
                announce(f"warning: {warning}")
            examples = draw_examples(
                sources, stage.shares, tokens=stage.tokens, longest=stage.context, seed=stage.seed
            )
            weights = train_stage(
                stage, recipe.model, weights, examples, folder / stage.name, announce
            )
            save_model(done, config, weights, parts, jnp.float32)
        else:
            weights = load_model(done).weights
    return done
