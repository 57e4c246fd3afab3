"""A stage of a tiny world model, small enough to be killed many times.

As a program, `python tests/tiny_stage.py FOLDER` trains it, going on where an earlier process
stopped.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
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
from ringworld.train.fresh_model import fresh_weights
from ringworld.train.loop import Loop
from ringworld.train.metrics import METRICS_NAME
from ringworld.train.model_stage import ModelStage, choose_rope, train_stage
from ringworld.train.optimizer import AdamW, make_optimizer
from ringworld.vocab import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
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
    identity = {"stage": stage.name, "model": asdict(config)}
    box = Checkpoints(folder=folder / FOLDER, keep=2, milestones=(), announce=print)
    with jax.set_mesh(mesh):
        built = build(specs(config), mesh, optimizer, lambda weights, batch: (0.0, {}))
        state = box.restore(built.state, identity)
    assert state is not None, f"{folder} has no checkpoint"
    return jax.device_get(state)


def fingerprint(state: TrainState) -> str:
    """The sha256 of all numbers of a state: weights, optimizer, guard and step."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def losses(folder: Path) -> list[str]:
    """The loss of every step, to the bit."""
    lines = (folder / METRICS_NAME).read_text().splitlines()
    return [float(json.loads(line)["loss"]).hex() for line in lines]


def launch(folder: Path) -> subprocess.Popen[str]:
    """Start this file as a program."""
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]))
