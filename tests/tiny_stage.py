"""A stage of a tiny world model, small enough to be killed many times.

As a program, `python tests/tiny_stage.py FOLDER` trains it, going on where an earlier process
stopped.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ringworld.data import example
from ringworld.data.example import Example
from ringworld.mesh import make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, specs
from ringworld.settings import MeshShape
from ringworld.train.build import TrainState, build
from ringworld.train.checkpoint import FOLDER, Checkpoints
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelStage, choose_rope, fresh_weights, train_stage
from ringworld.train.optimizer import AdamW, make_optimizer
from ringworld.vocab import Vocabulary

CONTEXT, STEPS, SAVE_EVERY = 32, 60, 5
VOCABULARY = Vocabulary(text=32, bos=1, eos=2, codes=6, codes_per_frame=3, vision_rows=8)
WORLD = World(
    llama=Llama(
        layers=1,
        model=32,
        mlp=32,
        heads=4,
        kv_heads=2,
        head_width=8,
        context=CONTEXT,
        rope_theta=100.0,
    ),
    vocabulary=VOCABULARY,
)
STAGE = ModelStage(
    name="stage",
    context=CONTEXT,
    rope_theta=100.0,
    batch=4,
    loop=Loop(steps=STEPS, save_every=SAVE_EVERY, log_every=STEPS),
    optimizer=AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2, schedule="cosine"),
    mesh=MeshShape(data=2, seq=2),
    shares={},
)


@cache
def toys() -> list[Example]:
    """Text in which each id follows from the one before it, and films of one code that stays."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(60):
        ids = [int(rng.integers(3, 32))]
        for _ in range(int(rng.integers(5, 15))):
            ids.append(3 + (ids[-1] * 5 + 1) % 29)
        clip = np.full((int(rng.integers(1, 4)), 3), rng.integers(0, VOCABULARY.codes))
        parts = [example.text(ids, 1.0), example.frames(clip, VOCABULARY, 1.0)]
        examples.append(example.join(parts))
    return examples


def train(folder: Path, announce: Any = print, **changes: Any) -> WorldWeights:
    """The weights after the stage, with any of its settings changed."""
    stage = replace(STAGE, **changes)
    config = choose_rope(WORLD, stage, lambda said: None)
    return train_stage(
        stage,
        config,
        lambda: fresh_weights(config, stage.seed, stage.rules),
        toys(),
        folder,
        announce,
    )


def last_state(folder: Path, **changes: Any) -> TrainState:
    """All numbers of the newest checkpoint, on the host."""
    stage = replace(STAGE, **changes)
    config = choose_rope(WORLD, stage, lambda said: None)
    mesh = make_mesh(**vars(stage.mesh))
    optimizer = make_optimizer(stage.optimizer, stage.loop.steps, specs(config))
    with jax.set_mesh(mesh):
        built = build(specs(config), mesh, optimizer, lambda weights, batch: (0.0, {}))
        box = Checkpoints(folder=folder / FOLDER, keep=2, milestones=(), announce=print)
        (step,) = box.steps()[-1:]
        state = box.load(step, built.state)
    return jax.device_get(state)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
