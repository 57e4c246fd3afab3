"""Several processes on this machine that compute as one, each with its part of four devices.

As a program, `python tests/worlds.py FOLDER CHECK ...` is one of them: it makes the checks in
turn and writes what each found to `FOLDER/CHECK-PROCESS.json`. `python tests/worlds.py ringworld
VERB ...` is the command line, with the recipe "toys" among the others.
"""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from ringworld import cli, distributed, files
from ringworld.chat.session import Session, Style
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.rows import Examples
from ringworld.errors import InputError
from ringworld.evals.perplexity import measure_losses
from ringworld.files import check_shared
from ringworld.inference.generate import draw_frames, write_text
from ringworld.mesh import Rules, make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World, specs
from ringworld.params import paths
from ringworld.progress import Announce
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.registry import RECIPES
from ringworld.settings import MeshShape, Processes, Sampling
from ringworld.tasks.clips import unconditional_prompt, video_prompt
from ringworld.train.build import abstract_batch
from ringworld.train.fresh_model import FreshModel
from ringworld.train.loop import Loop
from ringworld.train.metrics import MetricsLog
from ringworld.train.model_stage import ModelData, ModelStage, build_stage
from ringworld.train.optimizer import AdamW
from ringworld.vocab import Vocabulary
from ringworld.weights import folder as folder_module
from ringworld.weights import tensors as tensors_module
from ringworld.weights.folder import fill
from ringworld.weights.model import load_model, save_model
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO

ROOT = Path(__file__).resolve().parent.parent
GLOO_WAITS_S = 30  # for a device that it is not connected with
DEVICES = 4
CONTEXT, ROWS = 16, 4
STEPS, SAVE_EVERY, STOP_AT = 6, 2, 2
HASH_SEEDS = (1, 3, 4, 5)  # with each a set of the mesh axes has another order
MESH = MeshShape(fsdp=2, seq=2)
TINY = World(
    llama=Llama(
        layers=2,
        model=16,
        mlp=32,
        heads=2,
        kv_heads=2,
        head_width=8,
        context=CONTEXT,
        rope_theta=100.0,
    ),
    vocabulary=Vocabulary(text=2048, bos=1, eos=2),
)


class Counted(list[Example]):
    """Examples that note which of them are opened."""

    def __init__(self, examples: Sequence[Example], pause: float) -> None:
        super().__init__(examples)
        self.opened: set[int] = set()
        self.pause = pause

    def __getitem__(self, i: Any) -> Any:
        self.opened.add(int(i))
        time.sleep(self.pause)
        return super().__getitem__(i)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(one) for one in iter(self)], np.int64)


@dataclass(frozen=True, kw_only=True)
class Toys(ModelData):
    """Texts of random ids."""

    seed: int = 0
    """draws them"""
    pause: float = 0.0
    """seconds that one takes to be read, so that a signal falls between two steps"""

    def open(self, stage: ModelStage, source: Path, cache: Path, announce: Announce) -> Examples:
        """Forty texts that note which of them are opened, in `OPENED`."""
        rng = np.random.default_rng(self.seed)
        lengths = rng.integers(3, 15, 40)
        texts = [example.text(rng.integers(3, 32, n).tolist(), 1.0) for n in lengths]
        OPENED.append(Counted(texts, self.pause))
        return OPENED[-1]


OPENED: list[Counted] = []
STAGE = ModelStage(
    name="toys",
    context=CONTEXT,
    batch=ROWS,
    loop=Loop(steps=STEPS, save_every=SAVE_EVERY),
    optimizer=AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2, schedule="cosine"),
    mesh=MESH,
    shares={},
    vision_share=0.0,
)
RECIPE = Recipe(
    name="toys",
    stages=(FreshModel(name="fresh", model=TINY, parts=NANO, seed=0), STAGE),
    data=Toys(),
)


def train(folder: Path) -> dict[str, Any]:
    """Train the recipe in a folder; what was said, and which examples were opened."""
    said: list[str] = []
    OPENED.clear()
    RECIPE.run(folder, said.append)
    return {"said": said, "opened": sorted(OPENED[-1].opened) if OPENED else []}


def train_until_stopped(folder: Path) -> dict[str, Any]:
    """As `train`, and the last of the processes gets SIGTERM in step `STOP_AT`."""
    push, last = MetricsLog.push, distributed.index() == distributed.process_count() - 1

    def stop(self: MetricsLog, step: int, *rest: Any, **more: Any) -> None:
        if last and step == STOP_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        push(self, step, *rest, **more)

    with patch.object(MetricsLog, "push", stop):
        try:
            train(folder)
        except KeyboardInterrupt as stopped:
            return {"said": str(stopped)}
    return {"said": "it was not stopped"}


def copy_model(folder: Path) -> dict[str, Any]:
    """Write `folder/model` to `folder/copy`, and fresh weights; bytes of both on this host."""
    read, written, begun = Bytes(), Bytes(), Bytes()
    with patch.object(tensors_module, "check_numbers", begun.add):
        RECIPE.stages[0].run(RECIPE.data, None, folder / "alone", print)
    with jax.set_mesh(make_mesh(**asdict(MESH))):
        opened = open_model(folder / "model")
        rules = Rules(embed=("fsdp", "seq"))
        with patch.object(folder_module, "check_numbers", read.add):
            weights = fill(specs(opened.config), opened.table, jnp.float32, rules)
    with patch.object(tensors_module, "check_numbers", written.add):
        save_model(folder / "copy", opened.config, weights, folder / "model", jnp.float32)
    whole = sum(x.nbytes for x in paths(weights).values())
    held = sum(
        shard.data.nbytes
        for x in paths(weights).values()
        for shard in {str(s.index): s for s in x.addressable_shards}.values()
    )
    counts = {"read": read.count, "written": written.count, "begun": begun.count}
    return counts | {"whole": whole, "held": held}


@dataclass
class Bytes:
    """Counts the bytes of arrays that pass."""

    count: int = 0

    def add(self, name: str, piece: np.ndarray) -> None:
        """Count an array."""
        self.count += piece.nbytes


def use(folder: Path) -> dict[str, Any]:
    """What the shipped model computes on the mesh: losses, text, frames, an answer."""
    with jax.set_mesh(make_mesh(seq=2, tensor=1, data=DEVICES // 2)):
        model = load_model(NANO)
        words, c, weights = model.tokenizer, model.config, model.sharded_weights()
        prompts = [example.text(words.encode(f"The ring of {i}")[:8], 0.0) for i in range(4)]
        greedy = Sampling()
        written = write_text(weights, prompts, c, steps=5, sampling=greedy, seed=0)
        drawn = draw_frames(
            weights,
            [video_prompt("a red circle moves left", words)],
            [unconditional_prompt(words)],
            c,
            frames=1,
            guidance=2.0,
            sampling=greedy,
            seed=0,
        )
        pixels = model.codec.decode(drawn[0])
    with jax.set_mesh(make_mesh(seq=DEVICES)):
        model = load_model(NANO)
        rows = np.random.default_rng(0).integers(3, 2000, (2, 300)).astype(np.int32)
        losses = measure_losses(model.sharded_weights(), rows, c)
        style = Style(max_new_tokens=6)
        answer = "".join(Session(model, c, style).ask("Who?", document="A ring. " * 40))
    return {
        "written": written,
        "drawn": drawn.tolist(),
        "pixels": int(pixels.astype(np.int64).sum()),
        "losses": losses.tolist(),
        "answer": answer,
    }


def describe_program(folder: Path) -> dict[str, Any]:
    """The sha256 of the text of the training step, before XLA sees it."""
    mesh = make_mesh(**asdict(MESH))
    with jax.set_mesh(mesh):
        built, _ = build_stage(STAGE, TINY, mesh)
        lowered = jax.jit(built.step).lower(built.state, abstract_batch(mesh, ROWS, CONTEXT))
    return {"sha256": hashlib.sha256(lowered.as_text().encode()).hexdigest()}


def refuse(folder: Path) -> dict[str, Any]:
    """The sentences about worlds that are wrong, in this process."""
    own = folder / f"own-{distributed.index()}"
    ahead = 3600.0 * distributed.index()
    wrong: dict[str, Callable[[], object]] = {
        "mesh": lambda: make_mesh(seq=2),
        "too large": lambda: make_mesh(seq=64),
        "recipe": lambda: replace(
            RECIPE, stages=(replace(STAGE, seed=distributed.index()),), start=NANO
        ).run(folder / "recipe", print),
        "data": lambda: train_on_other_data(folder / "data"),
        "shared": lambda: check_shared(own),
        "clocks": lambda: late_clock(ahead),
        "alone": lambda: distributed.check_alone("a codec"),
    }
    said = {}
    with patch.object(files, "SEEN_S", 0.1):
        for name, act in wrong.items():
            try:
                act()
            except InputError as error:
                said[name] = str(error)
    return said


def train_on_other_data(folder: Path) -> None:
    """Train on data of which each process has others behind the same path."""
    with patch.object(Toys, "hashes", lambda _: {"texts": str(distributed.index())}):
        RECIPE.run(folder, print)


def late_clock(ahead: float) -> None:
    """Compare clocks, of which this one is ahead."""
    real = time.time
    with patch.object(time, "time", lambda: real() + ahead):
        distributed.check_clocks()


def come_late(folder: Path) -> dict[str, Any]:
    """The sum over all devices, for which the second process is later than gloo waits."""
    mesh = make_mesh(**asdict(MESH))
    if distributed.index() == 1:
        time.sleep(GLOO_WAITS_S + 5)
    with jax.set_mesh(mesh):
        count = mesh.devices.size
        x = jnp.ones(count, out_sharding=jax.NamedSharding(mesh, jax.P(mesh.axis_names)))
        return {"sum": float(jnp.sum(x)), "devices": count}


CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "fresh": lambda folder: train(folder / "fresh"),
    "begun": lambda folder: train(folder / "begun"),
    "stopped": lambda folder: train_until_stopped(folder / "stopped"),
    "copy": copy_model,
    "program": describe_program,
    "use": use,
    "refuse": refuse,
    "late": come_late,
}


def find_port() -> int:
    """A port that nothing listens on, and that no system gives to a connection meanwhile.

    Those it gives, from 32,768 up, another test may have before this one's process listens.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as opened, suppress(OSError):
            opened.bind(("127.0.0.1", port))
            return port


def launch(
    commands: Sequence[Sequence[str | Path]],
    folders: Sequence[Path] = (),
    typed: str = "",
    port: int | None = None,
) -> list[subprocess.Popen[str]]:
    """A process for each command of Python, each in one of the folders, or all here.

    `typed` is what the first process reads from its standard input; the others read nothing.
    Without a `port` for the coordinator, one is found.
    """
    count, search = len(commands), [str(ROOT), os.environ.get("PYTHONPATH", "")]
    world = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port or find_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "PYTHONPATH": os.pathsep.join(search),
    }
    with tempfile.TemporaryFile("w+") as keyboard:
        keyboard.write(typed)
        keyboard.seek(0)
        return [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                # Sets have another order in each process, as they have on other machines.
                env={
                    **os.environ,
                    **world,
                    "JAX_PROCESS_ID": str(process),
                    "PYTHONHASHSEED": str(HASH_SEEDS[process]),
                },
                cwd=folders[process] if folders else None,
                stdin=subprocess.DEVNULL if process else keyboard,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process, command in enumerate(commands)
        ]


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str


def wait_for(started: Sequence[subprocess.Popen[str]], timeout: float = 300) -> list[Ended]:
    """The end of each process. None is left behind."""
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                process.kill()
    return [Ended(process.returncode, *s) for process, s in zip(started, said, strict=True)]


def main() -> None:
    """Join the others and make the checks, or be the command line."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_default_matmul_precision", "highest")
    folder, *checks = sys.argv[1:]
    if folder == "ringworld":
        RECIPES["toys"] = lambda: RECIPE
        sys.argv = [folder, *checks]
        cli.program()
        return
    distributed.join_processes(Processes(), print)
    for name in checks:
        found = CHECKS[name](Path(folder))
        file = Path(folder) / f"{name}-{distributed.index()}.json"
        file.write_text(json.dumps(found))
    distributed.leave(0)


if __name__ == "__main__":
    main()
