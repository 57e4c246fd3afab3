"""How a codec is made: the shipped one from a film and moving shapes, yours from a folder.

ringworld train nano-codec --folder F
ringworld train folder-codec --pictures FOLDER --folder F

F/run.json        the resolved recipe
F/data/           the frames, decoded once
F/metrics.jsonl   one line a step
F/sheets/         of a folder's codec: what it drew on its way
F/codec/          the codec, in bfloat16
F/sheet.png       what the codec makes of held-out frames (and shapes), each under its original
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from ringworld.data.samples import HELD_MINUTES, write_arrays
from ringworld.errors import InputError
from ringworld.fetch import fetch
from ringworld.files import whole
from ringworld.media.clip import read_clip
from ringworld.media.codec import Codec
from ringworld.media.sampling import FrameSampling
from ringworld.models.patchgan import PatchGAN
from ringworld.models.vqgan import NANO_VQGAN, VQGAN, Weights, decode, encode
from ringworld.progress import Announce
from ringworld.recipes.pictures import (
    Windows,
    find_media,
    middles,
    picture_batches,
    read_folder,
)
from ringworld.recipes.pixels import PixelMix, held_out, pixel_batches, to_bytes, to_unit
from ringworld.tasks.shapes import draw, sample_scene
from ringworld.train.adversarial import PIXELS_ALONE, Judges
from ringworld.train.codec import CodecTraining, make_codec_step, start_codec
from ringworld.train.loop import Loop, fit
from ringworld.train.record import record_run
from ringworld.train.state import TrainState
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.folder import save_folder
from ringworld.weights.vgg import Features, load_features

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
Frames = UInt8[np.ndarray, "Z Y X 3"]
Unseen = UInt8[np.ndarray, "z y y 3"]  # frames of held-out minutes, as the model reads them

RECORD = "run.json"
SHEET = "sheet.png"
SHEETS = "sheets"
SHOWN = 10  # pictures in a row of the sheet
MEASURED = 512  # held-out frames of a folder, at most
SCENES = 40  # of moving shapes, to measure on
SCENES_SEED = 99


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """A codec from fresh weights, and the film that it learns from.

    The film is read at `fps` frames a second of `rows` x `columns` pixels until the second `end`,
    where its credits begin; the minutes held out everywhere in the package are held out here.
    """

    name: str
    model: VQGAN
    training: CodecTraining
    pictures: PixelMix
    fps: float
    rows: int
    columns: int
    end: float
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.pictures.size != self.model.size:
            raise InputError(
                f"the pictures are of {self.pictures.size} pixels and the codec of "
                f"{self.model.size}: set pictures.size and model.size to the same"
            )


def nano_codec() -> CodecRecipe:
    """The shipped codec."""
    return CodecRecipe(
        name="nano-codec",
        model=NANO_VQGAN,
        training=CodecTraining(steps=3300, warmup=200, learning_rate=2e-3),
        pictures=PixelMix(size=NANO_VQGAN.size, batch=16),
        fps=8.0,
        rows=72,
        columns=128,
        end=490.0,
    )


@dataclass(frozen=True, kw_only=True)
class FolderCodecRecipe:
    """A codec from fresh weights, and the folder of films and pictures that it learns from.

    `features` is what `ringworld.weights.vgg` reads: without, no judge asks for likeness.
    A sheet of held-out frames is drawn after every `sheet_every` steps.
    """

    name: str
    model: VQGAN
    training: CodecTraining
    judges: Judges
    windows: Windows
    pictures: Path = Path("pictures")
    features: Path | None = None
    sheet_every: int = 500
    save_every: int = 100

    def __post_init__(self) -> None:
        if min(self.windows.rows, self.windows.columns) < self.model.size:
            raise InputError(
                f"frames of {self.windows.rows} x {self.windows.columns} pixels have no windows of "
                f"{self.model.size}: raise windows.rows and windows.columns to model.size or more"
            )
        if self.sheet_every < 1:
            raise InputError(f"sheet_every is {self.sheet_every}: make it 1 or more")
        if self.judges.adversarial:
            self.judges.critic.side(self.model.size)


def folder_codec() -> FolderCodecRecipe:
    """A codec of the shipped one's size from your pictures; a critic joins after two thirds."""
    return FolderCodecRecipe(
        name="folder-codec",
        model=NANO_VQGAN,
        training=CodecTraining(steps=6000, warmup=200, learning_rate=2e-3),
        judges=Judges(
            perceptual=1.0,
            adversarial=0.1,
            starts=4000,
            critic=PatchGAN(channels=32, halvings=3),
        ),
        windows=Windows(rows=96, columns=96, batch=16),
    )


def run_folder_recipe(recipe: FolderCodecRecipe, folder: Path, announce: Announce) -> Path:
    """Train the codec in `folder`, going on where it stopped; returns the codec's folder.

    Raises InputError when there are no pictures or no such features, or the folder holds another
    recipe's run.
    """
    done, cache = folder / CODEC, folder / "data"
    if not cache.exists():
        find_media(recipe.pictures)
    features = None if recipe.features is None else load_features(recipe.features)
    if features is not None:
        features.config.check(recipe.model.size)
    refuse_strange_codec(folder)
    # How many files may be left out changes no picture, and is raised when one cannot be read.
    record_run(replace(recipe, windows=replace(recipe.windows, may_skip=0)), folder)
    pictures = read_folder(recipe.pictures, recipe.windows, cache, announce)
    size = recipe.model.size
    unseen = middles(pictures, size, MEASURED)
    if not done.exists():
        weights = train_codec(
            recipe,
            picture_batches(pictures, recipe.windows, size),
            folder,
            announce,
            judges=recipe.judges,
            features=features,
            sheets=Sheets(folder / SHEETS, recipe.sheet_every, recipe.model, unseen),
        )
        save_folder(done, "vqgan", recipe.model, weights, jnp.bfloat16)
    if not (folder / SHEET).exists():
        measure(load_codec(done), {"held-out frames": unseen}, folder / SHEET, announce)
    return done


def run_codec_recipe(recipe: CodecRecipe, folder: Path, announce: Announce) -> Path:
    """Train the codec in `folder`, going on where it stopped; returns the codec's folder.

    Raises InputError when the folder holds another recipe's run.
    """
    refuse_strange_codec(folder)
    record_run(recipe, folder)
    learned, unseen = read_pictures(recipe, fetch("film"), folder / "data", announce)
    done = folder / CODEC
    if not done.exists():
        weights = train_codec(recipe, pixel_batches(learned, recipe.pictures), folder, announce)
        save_folder(done, "vqgan", recipe.model, weights, jnp.bfloat16)
    if not (folder / SHEET).exists():
        shown = {"held-out film": unseen, "shapes": draw_shapes(unseen, recipe.model.size)}
        measure(load_codec(done), shown, folder / SHEET, announce)
    return done


def refuse_strange_codec(folder: Path) -> None:
    """Raise InputError when `folder` has a codec that no run of a recipe made there."""
    if (folder / CODEC).exists() and not (folder / RECORD).exists():
        raise InputError(f"{folder / CODEC} exists already, and no run made it: use another folder")


def read_pictures(
    recipe: CodecRecipe, film: Path, cache: Path, announce: Announce
) -> tuple[Frames, Unseen]:
    """The frames to learn from, and the held-out ones; kept in `cache`."""
    kept = cache / "pictures.npz"
    if not kept.exists():
        announce(f"decoding {film.name} at {recipe.fps:g} frames a second")
        clip = read_clip(
            film,
            FrameSampling(fps=recipe.fps, video_end=recipe.end),
            size=recipe.rows,
            columns=recipe.columns,
        )
        unseen = [
            read_clip(
                film,
                FrameSampling(fps=1.0, video_start=s, video_end=s + 60),
                size=recipe.model.size,
            ).frames
            for s in (60.0 * minute for minute in HELD_MINUTES)
        ]
        learned = clip.frames[~held_out(clip.seconds, HELD_MINUTES)]
        write_arrays(kept, learned=learned, unseen=np.concatenate(unseen))
    with np.load(kept) as arrays:
        return arrays["learned"], arrays["unseen"]


@dataclass(frozen=True)
class Sheets:
    """What the codec makes of held-out frames, drawn after every `every` steps of training."""

    folder: Path
    every: int
    config: VQGAN
    unseen: Unseen

    def around(self, step: Step) -> Step:
        """`step`, and `step_00000500.png` drawn after the 500th, if that is one of them.

        Steps are counted here: to ask the state for its number would be to wait for it.
        """
        done: int | None = None

        def stepped(state: TrainState, pixels: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            nonlocal done
            done = (int(state.step) if done is None else done) + 1
            state, metrics = step(state, pixels)
            if done % self.every == 0:
                self.draw(state.weights, self.folder / f"step_{done:08d}.png")
            return state, metrics

        return stepped

    def draw(self, weights: Weights, path: Path) -> None:
        """Some of the frames, each over what the codec makes of it, as a PNG."""
        some = choose_shown(self.unseen)
        drawn = to_bytes(np.asarray(_round_trip(weights, jnp.asarray(to_unit(some)), self.config)))
        write_sheet([some, drawn], path)


@partial(jax.jit, static_argnames="config")
def _round_trip(
    weights: Weights, pixels: Float[Array, "Z Y X C"], config: VQGAN
) -> Float[Array, "Z Y X C"]:
    return decode(weights, encode(weights, pixels, config), config)


def train_codec(
    recipe: CodecRecipe | FolderCodecRecipe,
    batches: Callable[[int], Float[np.ndarray, "Z Y X 3"]],
    folder: Path,
    announce: Announce,
    *,
    judges: Judges = PIXELS_ALONE,
    features: Features | None = None,
    sheets: Sheets | None = None,
) -> Weights:
    """The weights after the last step. Goes on from the newest checkpoint in `folder`."""
    identity: dict[str, Any] = {
        "model": asdict(recipe.model),
        "training": asdict(recipe.training),
    }
    if judges != PIXELS_ALONE:
        identity["judges"] = asdict(judges)
    if features is not None:
        identity["features"] = fingerprint(features.weights)
    state = jax.jit(lambda: start_codec(recipe.model, recipe.training, judges))()
    step = make_codec_step(
        recipe.model, recipe.training, judges, None if features is None else features.weights
    )
    first = batches(0)
    trained = fit(
        state=state,
        step=step if sheets is None else sheets.around(step),
        batches=batches,
        loop=Loop(steps=recipe.training.steps, save_every=recipe.save_every),
        folder=folder,
        identity=json.loads(json.dumps(identity)),
        flops_per_step=count_flops(step, state, first),
        tokens_per_step=len(first) * recipe.model.side**2,
        announce=announce,
    )
    return trained.weights


def fingerprint(weights: Any) -> str:
    """The sha256 of all numbers of some weights, in their order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def count_flops(step: Callable[..., Any], *arguments: Any) -> float:
    """Floating point operations of a step, as XLA counts them; 0 where it does not."""
    return float((jax.jit(step).lower(*arguments).cost_analysis() or {}).get("flops", 0.0))


def measure(codec: Codec, unseen: Mapping[str, Frames], sheet: Path, announce: Announce) -> None:
    """Announce how well pictures that it never saw come back, by name, and draw some as `sheet`."""
    rows, used = [], set()
    for name, frames in unseen.items():
        codes = codec.encode(frames)
        drawn = codec.decode(codes)
        used |= set(np.unique(codes).tolist())
        announce(f"{name}: {fidelity(frames, drawn).mean():.2f} dB over {len(frames)} frames")
        rows += [choose_shown(some) for some in (frames, drawn)]
    announce(f"codes in use: {len(used)} of {codec.config.codebook}")
    write_sheet(rows, sheet)


def choose_shown(frames: Frames) -> UInt8[np.ndarray, "_ Y X 3"]:
    """`SHOWN` of the frames, evenly chosen; the same one again where there are fewer."""
    return frames[np.linspace(0, len(frames) - 1, SHOWN).astype(int)]


def write_sheet(rows: list[Frames], path: Path) -> None:
    """Rows of pictures as a PNG, whole or not at all."""
    with whole(path) as draft:
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(
            draft
        )


def draw_shapes(unseen: Unseen, size: int) -> Frames:
    """Two moments of each of some scenes, every other one over a held-out frame."""
    rng = np.random.default_rng(SCENES_SEED)
    pictures = []
    for i in range(SCENES):
        over = None if i % 2 else unseen[int(rng.integers(len(unseen)))]
        pictures.append(draw(sample_scene(rng, film=over), frames=2, size=size))
    return np.concatenate(pictures)


def fidelity(frames: Frames, drawn: Frames) -> Float[np.ndarray, "Z"]:
    """Peak signal to noise of each frame, in dB."""
    error = (frames / 255 - drawn / 255) ** 2
    return -10 * np.log10(np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))
