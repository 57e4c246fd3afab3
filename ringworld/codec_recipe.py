"""How the shipped codec is made: from a film and moving shapes, with whole minutes held out.

ringworld train nano-codec --folder F

F/run.json        the resolved recipe
F/data/           the frames, decoded once
F/metrics.jsonl   one line a step
F/codec/          the codec, in bfloat16
F/sheet.png       what the codec makes of held-out frames and shapes, each under its original
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ringworld.data.codec import Codec, load_codec
from ringworld.data.corpus import HELD_MINUTES, write_arrays
from ringworld.data.fetch import fetch
from ringworld.data.media import read_video
from ringworld.data.pixels import PixelMix, held_out, pixel_batches
from ringworld.data.shapes import draw, sample_scene
from ringworld.errors import InputError
from ringworld.files import whole
from ringworld.models.folder import save_folder
from ringworld.models.vqgan import NANO, VQGAN, Weights
from ringworld.train.codec import CodecTraining, make_codec_step, start_codec
from ringworld.train.loop import Loop, fit
from ringworld.train.record import record_run

Announce = Callable[[str], None]
Frames = UInt8[np.ndarray, "Z Y X 3"]
Unseen = UInt8[np.ndarray, "z y y 3"]  # frames of held-out minutes, as the model reads them

CODEC = "codec"
SHEET = "sheet.png"
SHOWN = 10  # pictures in a row of the sheet
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
        model=NANO,
        training=CodecTraining(steps=3300, warmup=200, learning_rate=2e-3),
        pictures=PixelMix(size=NANO.size, batch=16),
        fps=8.0,
        rows=72,
        columns=128,
        end=490.0,
    )


def run_codec_recipe(recipe: CodecRecipe, folder: Path, announce: Announce) -> Path:
    """Train the codec in `folder`, going on where it stopped; returns the codec's folder.

    Raises InputError when the folder holds another recipe's run.
    """
    record_run(recipe, folder)
    learned, unseen = read_pictures(recipe, fetch("film"), folder / "data", announce)
    done = folder / CODEC
    if not done.exists():
        weights = train_codec(recipe, learned, folder, announce)
        save_folder(done, "vqgan", recipe.model, weights, jnp.bfloat16)
    if not (folder / SHEET).exists():
        measure(load_codec(done), unseen, folder / SHEET, announce)
    return done


def read_pictures(
    recipe: CodecRecipe, film: Path, cache: Path, announce: Announce
) -> tuple[Frames, Unseen]:
    """The frames to learn from, and the held-out ones; kept in `cache`."""
    kept = cache / "pictures.npz"
    if not kept.exists():
        announce(f"decoding {film.name} at {recipe.fps:g} frames a second")
        clip = read_video(
            film, fps=recipe.fps, size=recipe.rows, columns=recipe.columns, end=recipe.end
        )
        unseen = [
            read_video(film, fps=1.0, size=recipe.model.size, start=s, end=s + 60).frames
            for s in (60.0 * minute for minute in HELD_MINUTES)
        ]
        learned = clip.frames[~held_out(clip.seconds, HELD_MINUTES)]
        write_arrays(kept, learned=learned, unseen=np.concatenate(unseen))
    with np.load(kept) as arrays:
        return arrays["learned"], arrays["unseen"]


def train_codec(recipe: CodecRecipe, film: Frames, folder: Path, announce: Announce) -> Weights:
    """The weights after the last step. Goes on from the newest checkpoint in `folder`."""
    identity = {"model": asdict(recipe.model), "training": asdict(recipe.training)}
    state = jax.jit(lambda: start_codec(recipe.model, recipe.training))()
    step = make_codec_step(recipe.model, recipe.training)
    batches = pixel_batches(film, recipe.pictures)
    trained = fit(
        state=state,
        step=step,
        batches=batches,
        loop=Loop(steps=recipe.training.steps, save_every=recipe.save_every),
        folder=folder,
        identity=json.loads(json.dumps(identity)),
        flops_per_step=count_flops(step, state, batches(0)),
        tokens_per_step=recipe.pictures.batch * recipe.model.side**2,
        announce=announce,
    )
    return trained.weights


def count_flops(step: Callable[..., Any], *arguments: Any) -> float:
    """Floating point operations of a step, as XLA counts them; 0 where it does not."""
    return float((jax.jit(step).lower(*arguments).cost_analysis() or {}).get("flops", 0.0))


def measure(codec: Codec, unseen: Unseen, sheet: Path, announce: Announce) -> None:
    """Announce how well held-out frames and shapes come back, and draw some as `sheet`."""
    shapes = draw_shapes(unseen, codec.config.size)
    rows, used = [], set()
    for name, frames in (("held-out film", unseen), ("shapes", shapes)):
        codes = codec.encode(frames)
        drawn = codec.decode(codes)
        used |= set(np.unique(codes).tolist())
        announce(f"{name}: {fidelity(frames, drawn).mean():.2f} dB over {len(frames)} frames")
        shown = np.linspace(0, len(frames) - 1, SHOWN).astype(int)
        rows += [np.concatenate(list(some[shown]), axis=1) for some in (frames, drawn)]
    announce(f"codes in use: {len(used)} of {codec.config.codebook}")
    with whole(sheet) as draft:
        Image.fromarray(np.concatenate(rows)).save(draft)


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
