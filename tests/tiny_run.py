"""A run small enough to be killed many times: a two-layer regression on a mesh of eight devices.

As a program, `python tests/tiny_run.py FOLDER STEPS SAVE_EVERY [FAILPOINT]` trains it, going on
where an earlier process stopped. With a failpoint the process ends there, at once, in its third
save. `python tests/tiny_run.py FOLDER limits - BYTES ...` saves where files cannot grow.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ringworld.errors import InputError
from ringworld.mesh import make_mesh, shard, spec
from ringworld.params import constant, dense, init, pytree_dataclass
from ringworld.train import checkpoint
from ringworld.train.build import Metrics, TrainState, abstract_of, make_step, start
from ringworld.train.loop import Loop, fit
from ringworld.train.optimizer import AdamW, make_optimizer

ROOT = Path(__file__).resolve().parent.parent
WIDTH, ROWS = 8, 16
STEPS = 60
IDENTITY = {"model": {"width": WIDTH, "layers": 2}, "recipe": "tiny"}
BATCH_S = 0.005  # what a batch takes in the program, so that a kill can fall between two saves
# Where a process can end in a save: the function it is about to call, and the how many-th call of
# it falls into the third save of a process that starts from nothing.
FAILPOINTS: dict[str, tuple[Any, str, int]] = {
    "before anything": (checkpoint, "_write", 3),
    "between weights and optimizer": (ocp.PyTreeCheckpointer, "save", 8),
    "before the manifest": (checkpoint, "write_manifest", 3),
    "in an empty manifest": (json, "dump", 3),
    "before Orbax renames the weights": (os, "rename", 9),
    "before the rename": (os, "rename", 12),
    "after the rename": (checkpoint, "sync", 3),
    "before reading back": (checkpoint, "verify", 3),
    "while deleting the oldest": (shutil, "rmtree", 1),
}


@pytree_dataclass
class Tiny:
    """Weights of relu(x @ inner) @ outer + bias."""

    inner: Any
    outer: Any
    bias: Any


SPECS = Tiny(
    inner=dense((WIDTH, WIDTH), ("embed", "mlp"), fan_in=WIDTH),
    outer=dense((WIDTH, WIDTH), ("mlp", "embed"), fan_in=WIDTH),
    bias=constant((WIDTH,), ("embed",), 0.0),
)
CONFIG = AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=5, schedule="cosine")
OPTIMIZER = make_optimizer(CONFIG, STEPS, SPECS)


def tiny_state() -> TrainState:
    """The state before step 0, on the mesh that is set."""
    return start(init(SPECS, seed=0), OPTIMIZER)


def batch(step: int) -> np.ndarray:
    """Rows of random numbers that depend on the step alone."""
    return np.random.default_rng([7, step]).standard_normal((ROWS, WIDTH), np.float32)


def loss_of(weights: Tiny, x: Any) -> tuple[jax.Array, Metrics]:
    """The mean squared error of predicting the reversed row."""
    x = shard(jnp.asarray(x), "batch", None)
    inner = jnp.einsum("bd,df->bf", x, shard(weights.inner, None, "mlp"))
    outer = shard(weights.outer, "mlp", None)
    y = jnp.einsum("bf,fd->bd", jax.nn.relu(inner), outer, out_sharding=spec("batch", None))
    return jnp.mean((y + shard(weights.bias, None) - x[:, ::-1]) ** 2), {}


tiny_step = make_step(loss_of, OPTIMIZER)


def train(folder: Path, steps: int, save_every: int, **changes: Any) -> TrainState:
    """`fit` on the tiny run, with any argument changed."""
    arguments: dict[str, Any] = {
        "step": tiny_step,
        "batches": batch,
        "loop": Loop(steps=steps, save_every=save_every, log_every=steps),
        "folder": folder,
        "identity": IDENTITY,
        "tokens_per_step": ROWS,
        "dtype": jnp.float32,
        "announce": print,
    }
    with jax.set_mesh(make_mesh(fsdp=2, seq=2, tensor=2)):
        abstract = abstract_of(tiny_state())
        return fit(abstract=abstract, begin=tiny_state, **{**arguments, **changes})


def launch(*arguments: str | Path | int) -> subprocess.Popen[str]:
    """Start this file as a program."""
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at(name: str, act: Callable[[], None]) -> Callable[[], None]:
    """Have `act` called when the failpoint is reached; calling the result takes that back."""
    owner, attribute, calls_left = FAILPOINTS[name]
    real = getattr(owner, attribute)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if not calls_left:
            act()
        return real(*args, **kwargs)

    setattr(owner, attribute, counted)
    return lambda: setattr(owner, attribute, real)


def slow_batch(step: int) -> np.ndarray:
    """`batch`, after a short time."""
    time.sleep(BATCH_S)
    return batch(step)


def save_with_limit(folder: Path, limits: list[str]) -> None:
    """Try to save while no file may grow beyond each limit in bytes; print what is said."""
    with jax.set_mesh(make_mesh()):
        state = tiny_state()
    box = checkpoint.Checkpoints(folder=folder, keep=2, milestones=(), announce=print)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in map(int, limits):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            box.save(state, IDENTITY)
        except InputError as error:
            print(error)


def main() -> None:
    """Train as the arguments say."""
    folder, steps, save_every, *rest = sys.argv[1:]
    if steps == "limits":
        save_with_limit(Path(folder), rest)
        return
    for name in rest:
        at(name, lambda: os._exit(77))
    try:
        train(Path(folder), int(steps), int(save_every), batches=slow_batch)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
