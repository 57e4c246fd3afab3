"""The command line: one program, a few verbs. Bad input is one sentence and exit code 2."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from ringworld.codec_recipe import CodecRecipe, run_codec_recipe
from ringworld.convert.save import convert
from ringworld.data.fetch import ASSETS, fetch
from ringworld.demo import run_demo
from ringworld.errors import InputError
from ringworld.evals.measure import measure_needles
from ringworld.evals.needle import Grid
from ringworld.generate.ask import draw_video
from ringworld.generate.sample import Sampling
from ringworld.mesh import MeshShape
from ringworld.recipes import NANO, RECIPES, find_recipe, run_recipe
from ringworld.tokenizer_recipe import TokenizerRecipe, run_tokenizer_recipe

Positional = tyro.conf.Positional
VIRTUAL_DEVICES = "xla_force_host_platform_device_count"
NUM_DEVICES = "JAX_NUM_CPU_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole story on a laptop: fetch, see, read, train in stages, prove, use, report."""

    folder: Path = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Bring pinned sample data into the cache, sha256 checked."""

    name: Positional[str]
    """film, shakespeare or kjv"""


@dataclass(frozen=True, kw_only=True)
class Needle:
    """Hide random numbers in books and ask for them, over lengths and depths."""

    model: Positional[Path] = NANO
    folder: Path = Path("runs/needle")
    grid: Grid = field(
        default_factory=lambda: Grid(
            lengths=(256, 512, 1024), depths=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=4
        )
    )
    mesh: MeshShape = field(default_factory=MeshShape)


@dataclass(frozen=True, kw_only=True)
class Video:
    """Draw a clip from words, with classifier-free guidance."""

    model: Positional[Path]
    wish: Positional[str]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """where to write it: a .gif or .mp4"""
    frames: int = 6
    fps: float = 4.0
    guidance: float = 3.0
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, top_k=64))
    seed: int = 0
    mesh: MeshShape = field(default_factory=MeshShape)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Weights from elsewhere into a folder of ours; ours into one that transformers loads."""

    source: Positional[Path]
    """a folder of ours or of Hugging Face's, a .gguf file, or LWM's beside its config.json"""
    target: Positional[Path]
    """the new folder"""
    add_vision: Path | None = None
    """a codec with which a language model becomes a world model"""


VERBS = {
    "demo": Demo,
    "fetch": Fetch,
    "eval needle": Needle,
    "generate video": Video,
    "convert": Convert,
}
USAGE = """usage: ringworld VERB ...

  demo                                the whole story on a laptop
  fetch NAME                          sample data: {assets}
  train RECIPE [--a.b VALUE]          one stage or a chain: {recipes}
  eval needle [MODEL]                 needle accuracy over lengths and depths
  generate video MODEL "WORDS" -o F   a clip from a caption
  convert SOURCE TARGET               weights in and out; --add-vision CODEC

  ringworld VERB --help               every option of a verb
"""


def main() -> None:
    """Run the command line, and exit with 0 (done), 2 (bad usage or input) or 1 (anything else)."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        run(sys.argv[1:], lambda said: console.print(said, markup=False, highlight=False))
    except InputError as error:
        console.print(f"ringworld: {error}", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        console.print(str(stop) or "stopped", markup=False, highlight=False)
        sys.exit(1)


def run(words: list[str], announce: Callable[[str], None]) -> None:
    """Do what the words ask for. Raises InputError for a verb or a recipe that does not exist."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE.format(assets=", ".join(ASSETS), recipes=", ".join(RECIPES)))
        return
    use_virtual_devices()
    if words[0] == "train":
        train(words[1:], announce)
        return
    length = next((n for n in (1, 2) if " ".join(words[:n]) in VERBS), 0)
    if not length:
        raise InputError(f"there is no verb {words[0]}: use one of train, {', '.join(VERBS)}")
    verb = " ".join(words[:length])
    act(tyro.cli(VERBS[verb], prog=f"ringworld {verb}", args=words[length:]), announce)


def act(asked: Any, announce: Callable[[str], None]) -> None:
    """Do one verb, its options parsed."""
    match asked:
        case Demo():
            page = run_demo(asked.folder, announce)
            announce(f"done: open {page}")
        case Fetch():
            announce(str(fetch(asked.name)))
        case Needle():
            measure_needles(asked.model, asked.grid, asked.mesh, asked.folder, announce)
        case Video():
            draw_video(
                asked.model,
                asked.wish,
                asked.output,
                frames=asked.frames,
                fps=asked.fps,
                guidance=asked.guidance,
                sampling=asked.sampling,
                seed=asked.seed,
                mesh=asked.mesh,
            )
            announce(f"wrote {asked.output}")
        case Convert():
            convert(asked.source, asked.target, asked.add_vision, announce)


def train(words: list[str], announce: Callable[[str], None]) -> None:
    """`train RECIPE [--folder F] [--a.b VALUE]`: the recipe's own fields are the options."""
    if not words or words[0].startswith("-"):
        raise InputError(f"say which recipe to train: one of {', '.join(RECIPES)}")
    recipe = find_recipe(words[0])
    folder = Path("runs") / recipe.name
    if "--folder" in words[:-1]:
        at = words.index("--folder")
        folder = Path(words[at + 1])
        words = words[:at] + words[at + 2 :]
    recipe = tyro.cli(
        type(recipe), prog=f"ringworld train {words[0]}", default=recipe, args=words[1:]
    )
    if isinstance(recipe, CodecRecipe):
        done = run_codec_recipe(recipe, folder, announce)
    elif isinstance(recipe, TokenizerRecipe):
        done = run_tokenizer_recipe(recipe, folder, announce)
    else:
        done = run_recipe(recipe, folder, announce)
    announce(f"done: {done}")


def use_virtual_devices() -> None:
    """Give a CPU eight virtual devices, unless the environment has said how many."""
    said = VIRTUAL_DEVICES in os.environ.get("XLA_FLAGS", "") or NUM_DEVICES in os.environ
    if not said:
        jax.config.update("jax_num_cpu_devices", 8)
