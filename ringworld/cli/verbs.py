"""The verbs: dataclasses whose fields are their options, and what each does.

`load` imports what does the work and returns it, so that this module needs neither JAX nor a codec,
and help is quick.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

from tyro.conf import Positional, arg

from ringworld.chat.config import ChatRequest, ImageRequest, VideoRequest
from ringworld.chat.play_config import PlayRequest
from ringworld.data.questions.config import QA
from ringworld.errors import UnavailableError
from ringworld.evals.config import Grid, Perplexity, Playing, Shapes
from ringworld.serve.config import ServeConfig
from ringworld.settings import Extension, MeshShape, Processes, WeightOptions, WeightType

Action = Callable[[Callable[[str], None]], None]
# One process, whatever the launcher says: for verbs that do not compute over several.
ALONE = Processes(processes=1)
# The model that ships with the package, as `weights.shipped` has it.
SHIPPED = Path(__file__).parents[1] / "assets" / "nano"
# What the extra `serve` installs.
SERVE_PACKAGES = ("fastapi", "llguidance", "prometheus_client", "uvicorn")


@runtime_checkable
class Verb(Protocol):
    """A verb with its options filled in."""

    def load(self) -> Action:
        """Import what does the work; return a function that does it and announces how it goes."""


def prepare_jax(world: Processes = ALONE, devices: int | None = None) -> None:
    """Set up what a process must ask of JAX before it is first used.

    On a CPU there are `devices` virtual ones, or as many as recipes need. It joins the processes
    that `world` names. Raises InputError as `ringworld.distributed.join`.
    """
    from ringworld.cpu import DEVICES, use_virtual_devices, widen_vectors
    from ringworld.distributed import join_processes, keep_output

    def tell(said: str) -> None:
        """Print the sentence with which another process ends this one."""
        if sys.stderr is not None:
            print(f"ringworld: {said}", file=sys.stderr, flush=True)

    count = join_processes(world, tell)
    if count > 1:
        keep_output()
    use_virtual_devices(count, devices or DEVICES)
    widen_vectors()


@dataclass(frozen=True, kw_only=True)
class Computes:
    """A verb that computes, in one process or in several that each were started with it."""

    world: Annotated[Processes, arg(name="")] = field(default_factory=Processes)


@dataclass(frozen=True, kw_only=True)
class Demo(Computes):
    """The whole story on a laptop: fetch, encode, train in stages, evaluate, chat, report."""

    folder: Path = Path("runs/demo")
    """where everything is kept, to go on from"""

    def load(self) -> Action:
        """The demo."""
        from ringworld.demo import run_demo

        return lambda announce: announce(f"done: open {run_demo(self.folder, announce)}")


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Bring pinned sample data or a model into the cache; its sha256 is checked."""

    name: Positional[str]
    """what to bring; an unknown name lists them all"""

    def load(self) -> Action:
        """Fetch, and say where."""
        from ringworld.fetch import fetch

        return lambda announce: announce(str(fetch(self.name)))


@dataclass(frozen=True, kw_only=True)
class BuildShards:
    """Make token shards of text, tables, chat, films and pictures; docs/data.md says how."""

    spec: Positional[Path]
    """a TOML file that names the sources"""
    out: Path
    """the folder of the shards: a new one, or that of a build to go on with"""
    workers: int = 1
    """processes that read and encode"""
    engine: Literal["local", "ray"] = "local"
    """where they run: on this machine, or on a Ray cluster"""

    def load(self) -> Action:
        """Build the shards, and say what was made."""
        prepare_jax()
        from ringworld.data.corpora.build import build_shards

        def work(announce: Callable[[str], None]) -> None:
            made = build_shards(
                self.spec, self.out, announce, workers=self.workers, engine=self.engine
            )
            announce(
                f"done: {made.counts.examples:,} examples of {made.counts.tokens:,} tokens in "
                f"{self.out}, skipped rows: {made.skipped:,}"
            )

        return work


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a folder of shards holds; every hash is compared."""

    folder: Positional[Path]
    """the folder of the shards"""
    context: int = 4096
    """the length of the rows that the examples would be packed into"""
    json: bool = False
    """print JSON for machines, and nothing else"""
    html: Path | None = None
    """write it as a page to this file"""
    codec: Path | None = None
    """the codec that made the codes, to show frames; the shipped one is known"""
    samples: int = 6
    """how many examples are shown"""

    def load(self) -> Action:
        """Inspect, and print, and write the page if one is asked for."""
        prepare_jax()
        from rich.console import Console

        from ringworld.data.corpora.inspection import draw_samples, find_codec, inspect_shards
        from ringworld.data.corpora.shards import Shards
        from ringworld.evals.shard_report import print_inspection, write_page

        def work(announce: Callable[[str], None]) -> None:
            found = inspect_shards(self.folder, context=self.context, samples=self.samples)
            if self.json:
                print(dumps(asdict(found), indent=1))
            codec = find_codec(Shards(self.folder).manifest, self.codec)
            frames = draw_samples(self.folder, found.samples, codec) if codec else {}
            if self.html is not None:
                write_page(self.html, found, frames)
            if not self.json:
                print_inspection(found, frames, Console())

        return work


@dataclass(frozen=True, kw_only=True)
class MeasureNeedles(Computes):
    """Hide random numbers in books and ask for them, over lengths and depths."""

    model: Positional[Path] = SHIPPED
    """a model folder, a weights file, or the name of a fetched model"""
    folder: Path = Path("runs/needle")
    """where needle.json and needle.png are written, and results kept to go on from"""
    grid: Grid = field(
        default_factory=lambda: Grid(
            lengths=(256, 512, 1024), depths=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=4
        )
    )
    rules: tuple[Extension, ...] = ("yarn",)
    """how RoPE is extended at lengths beyond the model's context: plain theta ntk yarn"""
    int8: bool = False
    """keep keys and values as int8"""
    weights: Annotated[WeightOptions, arg(name="")] = WeightOptions()
    mesh: MeshShape = field(default_factory=MeshShape)

    def load(self) -> Action:
        """Measure."""
        import jax

        from ringworld.evals.measure import measure_needles
        from ringworld.files import check_writable
        from ringworld.mesh import make_mesh
        from ringworld.weights.model import load_model
        from ringworld.weights.open import hash_model

        def work(announce: Callable[[str], None]) -> None:
            check_writable(self.folder / "needle.json")
            with jax.set_mesh(make_mesh(**asdict(self.mesh))):
                model = load_model(self.model, self.weights.dtype, self.weights.adapter)
            adapter = self.weights.adapter
            identity = {
                "model": hash_model(self.model),
                "dtype": self.weights.dtype,
                "adapter": None if adapter is None else hash_model(adapter),
            }
            measure_needles(
                model,
                self.model.name,
                self.grid,
                self.mesh,
                self.folder,
                announce,
                self.rules,
                identity=identity,
                int8=self.int8,
            )

        return work


@dataclass(frozen=True, kw_only=True)
class LossByPosition(Computes, Perplexity):
    """What a context costs or gains: the loss of a text by position, plain and extended."""

    def load(self) -> Action:
        """Measure."""
        from ringworld.evals.perplexity import measure_perplexity

        def work(announce: Callable[[str], None]) -> None:
            measure_perplexity(self, announce)

        return work


@dataclass(frozen=True, kw_only=True)
class MeasureShapes(Computes, Shapes):
    """What a world model makes of moving shapes: drawings, answers, and its codec."""

    def load(self) -> Action:
        """Measure."""
        from ringworld.evals.drawings import measure_shapes

        return lambda announce: measure_shapes(self, announce)


@dataclass(frozen=True, kw_only=True)
class MeasurePlay(Playing):
    """What a model makes of the small world with actions: frames, rollouts, actions read back."""

    def load(self) -> Action:
        """Measure."""
        prepare_jax()
        from ringworld.evals.playing import measure_play

        return lambda announce: measure_play(self, announce)


@dataclass(frozen=True, kw_only=True)
class Play(PlayRequest):
    """Play a level of the small world with arrow keys, as a model dreams it."""

    def load(self) -> Action:
        """Play."""
        prepare_jax()
        from ringworld.chat.play import play

        return lambda announce: play(self, announce)


@dataclass(frozen=True, kw_only=True)
class Talk(Computes, ChatRequest):
    """Talk with a model about documents, pictures and films."""

    def load(self) -> Action:
        """Talk."""
        from ringworld.chat.terminal import chat

        return lambda announce: chat(self, announce)


@dataclass(frozen=True, kw_only=True)
class Picture(Computes, ImageRequest):
    """Draw a still picture from a caption, with classifier-free guidance; a .png."""

    def load(self) -> Action:
        """Draw."""
        from ringworld.chat.ask import draw_image

        return lambda announce: draw_image(self, announce)


@dataclass(frozen=True, kw_only=True)
class Video(Computes, VideoRequest):
    """Draw a clip from a caption, with classifier-free guidance; a .gif, .mp4 or .webm."""

    def load(self) -> Action:
        """Draw."""
        from ringworld.chat.ask import draw_video

        return lambda announce: draw_video(self, announce)


@dataclass(frozen=True, kw_only=True)
class Serve(ServeConfig):
    """Serve a model over HTTP as OpenAI's API, with a page to talk to it."""

    model: Positional[Path] = SHIPPED
    """a model folder, a weights file, or the name of a fetched model"""

    def load(self) -> Action:
        """Serve. Raises UnavailableError when the packages of the extra are missing."""
        missing = [name for name in SERVE_PACKAGES if find_spec(name) is None]
        if missing:
            raise UnavailableError(
                f"serving needs {' and '.join(missing)}: pip install 'ringworld[serve]'"
            )
        prepare_jax(devices=self.mesh.devices)
        from ringworld.serve.server import serve

        return lambda announce: serve(self, announce)


@dataclass(frozen=True, kw_only=True)
class Questions(QA):
    """Ask an endpoint for questions about long documents, chunk by chunk."""

    def load(self) -> Action:
        """Ask, judge and put together."""
        from ringworld.data.questions.qa import run_qa

        return lambda announce: announce(f"done: {run_qa(self, announce)}")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """A model or a codec from elsewhere into a folder of ours; ours into one that others load."""

    source: Positional[Path]
    """a folder of ours or of Hugging Face's, a .gguf file, LWM's beside its config.json, a codec"""
    target: Positional[Path]
    """the new folder"""
    add_vision: Path | None = None
    """a codec with which a language model becomes a world model"""
    dtype: WeightType | None = None
    """how weights are stored; without it as they are. int8 is always a folder of ours"""
    adapter: Path | None = None
    """a folder with a LoRA adapter that is merged into the weights"""

    def load(self) -> Action:
        """Convert."""
        prepare_jax()
        from ringworld.weights.save import convert

        return lambda announce: convert(
            self.source,
            self.target,
            self.add_vision,
            announce,
            dtype=self.dtype,
            adapter=self.adapter,
        )


@dataclass(frozen=True)
class Entry:
    """A verb in the list of verbs: its options, what it is called with, and what it does."""

    options: type
    usage: str
    summary: str


VERBS = {
    "demo": Entry(Demo, "", "the whole story on a laptop"),
    "fetch": Entry(Fetch, "NAME", "sample data and models, by name"),
    "data build": Entry(BuildShards, "SPEC --out F", "token shards of films, chat, books"),
    "data inspect": Entry(Inspect, "FOLDER", "what shards hold, hashes compared"),
    "data qa": Entry(
        Questions,
        "DOCUMENTS --tokenizer M ...",
        "questions about documents, from an endpoint",
    ),
    "eval needle": Entry(MeasureNeedles, "[MODEL]", "needle accuracy over lengths and depths"),
    "eval perplexity": Entry(
        LossByPosition, "MODEL --text F", "loss by position, plain and extended"
    ),
    "eval shapes": Entry(MeasureShapes, "[MODEL]", "clips drawn from words, and the codec"),
    "eval play": Entry(MeasurePlay, "[MODEL]", "a world with actions: frames, rollouts, actions"),
    "play": Entry(Play, "[MODEL]", "a small world that a model dreams, by arrow keys"),
    "chat": Entry(Talk, 'MODEL ["QUESTION"]', "talk, about a document, pictures or a film"),
    "serve": Entry(Serve, "[MODEL]", "a model over HTTP as OpenAI's API, and a page"),
    "generate image": Entry(Picture, 'MODEL "CAPTION" -o F', "a still picture from a caption"),
    "generate video": Entry(Video, 'MODEL "CAPTION" -o F', "a clip from a caption"),
    "convert": Entry(Convert, "SOURCE TARGET", "weights in and out; --add-vision CODEC"),
}
