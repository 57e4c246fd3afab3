"""Which files of the package run on the three paths of docs/reading.md.

As a program, `python -m tests.paths` goes each path once, with real inputs and one process, and
prints the files whose functions were called as JSON: {path: [file, ...]}. What runs when a module
is imported does not count. A program that is started counts as the file that it is started from.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

import ringworld
from ringworld import Where, attend, make_mesh
from ringworld.chat.session import Session, Style
from ringworld.data.corpora.build import build_shards
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.loader import make_batches
from ringworld.data.packing.rows import PackedRows
from ringworld.mesh import shard
from ringworld.train.loss import loss
from ringworld.weights.shipped import NANO

PACKAGE = Path(ringworld.__file__).parent
RING = 2


def files_run(act: Callable[[], object]) -> set[str]:
    """The files of the package, relative to it, whose functions `act` calls in any thread."""
    found: set[str] = set()
    start = subprocess.Popen.__init__

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        # A module or the body of a class has no locals of its own: it runs on import.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
            found.add(code.co_filename)

    def launch(process: subprocess.Popen, command: list[str], *rest: Any, **options: Any) -> None:
        found.update(map(str, command))
        start(process, command, *rest, **options)

    subprocess.Popen.__init__ = launch
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        subprocess.Popen.__init__ = start
    paths = [Path(name) for name in found if name.endswith(".py")]
    return {p.relative_to(PACKAGE).as_posix() for p in paths if p.is_relative_to(PACKAGE)}


def text_to_loss() -> None:
    """A text file becomes shards, rows, a batch on a ring of two, and a loss."""
    Path("books").mkdir()
    Path("books/one.txt").write_text("The ring of eight went round and round. " * 40)
    Path("spec.toml").write_text('[[text]]\nname = "books"\npath = "books"\n')
    build_shards(Path("spec.toml"), Path("tokens"), print)
    batches = make_batches(PackedRows(Shards(Path("tokens")), 64), batch=2, seed=0, ring=RING)
    jax.jit(loss, static_argnums=(2, 3))(MODEL.weights, batches(0), MODEL.config, 0.5)


def key_round_the_ring() -> None:
    """Attention of a row on a ring of two, forward and backward."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 512, 2, 16))
    q, k, v = (shard(x, "batch", "seq", "heads", None) for x in (q, k, v))
    positions = shard(jnp.arange(512, dtype=jnp.int32)[None], "batch", "seq")
    where = Where(positions, jnp.ones_like(positions))
    jax.grad(lambda k: jax.jit(attend)(q, k, v, where).sum())(k)


def question_to_answer() -> None:
    """A question of a conversation with a loaded model, and the first tokens of its answer."""
    list(Session(MODEL, MODEL.config, Style(max_new_tokens=4)).ask("Who is it?"))


PATHS = {
    "A text to its loss": text_to_loss,
    "A key round the ring": key_round_the_ring,
    "A question to its answer": question_to_answer,
}

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", RING)
    os.chdir(tempfile.mkdtemp())
    with jax.set_mesh(make_mesh(seq=RING)):
        MODEL = ringworld.load(NANO)
        run = {name: sorted(files_run(act)) for name, act in PATHS.items()}
    print(json.dumps(run))
