"""The command line: one program, a few verbs. Bad input is one sentence and exit code 2."""

import sys
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated, Protocol

import tyro
from rich.console import Console

from ringworld.chat.ask import draw_video
from ringworld.chat.terminal import Chat, chat
from ringworld.cpu import use_virtual_devices, widen_vectors
from ringworld.data.corpora.build import Engine, build
from ringworld.data.corpora.inspection import draw_samples, find_codec, inspect_shards
from ringworld.data.corpora.shards import Shards
from ringworld.data.questions.qa import QA, run_qa
from ringworld.demo import run_demo
from ringworld.errors import InputError
from ringworld.evals.measure import measure_needles
from ringworld.evals.needle import Grid
from ringworld.evals.perplexity import Perplexity, measure_perplexity
from ringworld.evals.shard_report import tell, write_page
from ringworld.fetch import ASSETS, fetch
from ringworld.progress import Announce
from ringworld.recipes.registry import RECIPES, find_recipe
from ringworld.settings import Extension, MeshShape, Sampling
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO

Positional = tyro.conf.Positional


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole story on a laptop: fetch, see, read, train in stages, prove, use, report."""

    folder: Path = Path("runs/demo")

    def act(self, announce: Announce) -> None:
        """Run the demo."""
        page = run_demo(self.folder, announce)
        announce(f"done: open {page}")


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Bring pinned sample data into the cache, sha256 checked."""

    name: Positional[str]
    """what to bring; an unknown name lists them all"""

    def act(self, announce: Announce) -> None:
        """Fetch, and say where."""
        announce(str(fetch(self.name)))


@dataclass(frozen=True, kw_only=True)
class Build:
    """Make token shards of text, tables, chat, films and pictures; docs/data.md says how."""

    spec: Positional[Path]
    """a TOML file that names the sources"""
    out: Path
    """the folder of the shards: a new one, or that of a build to go on with"""
    workers: int = 1
    engine: Engine = "local"

    def act(self, announce: Announce) -> None:
        """Build, and say what was made."""
        made = build(self.spec, self.out, announce, workers=self.workers, engine=self.engine)
        counts = made.counts
        announce(
            f"done: {counts.examples} examples of {counts.tokens} tokens in {self.out}, "
            f"{made.skipped} rows skipped"
        )


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a folder of shards holds, every hash compared."""

    folder: Positional[Path]
    context: int = 4096
    """the length of the rows that the examples would be packed into"""
    json: bool = False
    """print JSON for machines, and nothing else"""
    html: Path | None = None
    """where to write it as a page"""
    codec: Path | None = None
    """the codec that made the codes, to show frames; the shipped one is known"""
    samples: int = 6

    def act(self, announce: Announce) -> None:
        """Inspect, and print, and write the page if one is asked for."""
        found = inspect_shards(self.folder, context=self.context, samples=self.samples)
        if self.json:
            print(dumps(asdict(found), indent=1))
        codec = find_codec(Shards(self.folder).manifest, self.codec)
        frames = draw_samples(self.folder, found.samples, codec) if codec else {}
        if self.html is not None:
            write_page(self.html, found, frames)
        if not self.json:
            tell(found, frames, Console())


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
    rules: tuple[Extension, ...] = ("yarn",)
    """how RoPE is stretched at lengths beyond the model's context: plain theta ntk yarn"""
    mesh: MeshShape = field(default_factory=MeshShape)

    def act(self, announce: Announce) -> None:
        """Measure."""
        measure_needles(self.model, self.grid, self.mesh, self.folder, announce, self.rules)


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

    def act(self, announce: Announce) -> None:
        """Draw."""
        draw_video(
            self.model,
            self.wish,
            self.output,
            frames=self.frames,
            fps=self.fps,
            guidance=self.guidance,
            sampling=self.sampling,
            seed=self.seed,
            mesh=self.mesh,
        )
        announce(f"wrote {self.output}")


@dataclass(frozen=True, kw_only=True)
class Questions(QA):
    """Ask an endpoint for questions about long documents, chunk by chunk."""

    def act(self, announce: Announce) -> None:
        """Ask, judge and put together."""
        announce(f"done: {run_qa(self, announce)}")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """A model or a codec from elsewhere into a folder of ours; ours into one that others load."""

    source: Positional[Path]
    """a folder of ours or of Hugging Face's, a .gguf file, LWM's beside its config.json, a codec"""
    target: Positional[Path]
    """the new folder"""
    add_vision: Path | None = None
    """a codec with which a language model becomes a world model"""

    def act(self, announce: Announce) -> None:
        """Convert."""
        convert(self.source, self.target, self.add_vision, announce)


@dataclass(frozen=True, kw_only=True)
class Talk(Chat):
    """Talk with a model about documents, pictures and films."""

    def act(self, announce: Announce) -> None:
        """Talk."""
        chat(self, announce)


@dataclass(frozen=True, kw_only=True)
class LossByPosition(Perplexity):
    """What a context costs or gains: the loss of a text by position, plain and stretched."""

    def act(self, announce: Announce) -> None:
        """Measure."""
        measure_perplexity(self, announce)


class Verb(Protocol):
    """What a verb is: a dataclass whose fields are its options, and what it does."""

    def act(self, announce: Announce) -> None:
        """Do it, and say in sentences how it goes."""


# The words of a verb, what it is called with, and what `--help` says of it.
VERBS: dict[str, tuple[type[Verb], str, str]] = {
    "demo": (Demo, "", "the whole story on a laptop"),
    "fetch": (Fetch, "NAME", f"sample data: {', '.join(ASSETS)}"),
    "data build": (Build, "SPEC --out F", "token shards of films, chat, books"),
    "data inspect": (Inspect, "FOLDER", "what shards hold, hashes compared"),
    "data qa": (Questions, "DOCUMENTS", "questions about documents, from an endpoint"),
    "eval needle": (Needle, "[MODEL]", "needle accuracy over lengths and depths"),
    "eval perplexity": (LossByPosition, "MODEL --text F", "loss by position, plain and stretched"),
    "chat": (Talk, 'MODEL ["QUESTION"]', "talk, about a document, pictures or a film"),
    "generate video": (Video, 'MODEL "WORDS" -o F', "a clip from a caption"),
    "convert": (Convert, "SOURCE TARGET", "weights in and out; --add-vision CODEC"),
}
TRAIN = ("train", "RECIPE [--a.b VALUE]", f"one stage or a chain: {', '.join(RECIPES)}")


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


def run(words: list[str], announce: Announce) -> None:
    """Do what the words ask for. Raises InputError for a verb or a recipe that does not exist."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    use_virtual_devices()
    widen_vectors()
    if words[0] == "train":
        train(words[1:], announce)
        return
    length = next((n for n in (1, 2) if " ".join(words[:n]) in VERBS), 0)
    if not length:
        raise InputError(f"there is no verb {words[0]}: use one of train, {', '.join(VERBS)}")
    verb = " ".join(words[:length])
    tyro.cli(VERBS[verb][0], prog=f"ringworld {verb}", args=words[length:]).act(announce)


def usage() -> str:
    """What the program can do, a line a verb."""
    rows = [TRAIN, *((verb, given, said) for verb, (_, given, said) in VERBS.items())]
    lines = [f"  {f'{verb} {given}':<36}{said}" for verb, given, said in rows]
    return "\n".join(
        ["usage: ringworld VERB ...", "", *lines, "", "  ringworld VERB --help: its options", ""]
    )


def train(words: list[str], announce: Announce) -> None:
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
    announce(f"done: {recipe.run(folder, announce)}")
