"""Codecs: the shipped one from a film and moving shapes, yours from a folder of films and pictures.

ringworld train nano-codec --folder F
ringworld train folder-codec --data.folder PICTURES --folder F

F/run.json        the resolved recipe
F/data/           the frames, decoded once
F/metrics.jsonl   one line a step
F/sheets/         of a folder's codec: held-out frames and their reconstructions on the way
F/codec/          the codec, in bfloat16
F/sheet.png       held-out frames (and shapes) over their reconstructions
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from ringworld.distributed import check_alone
from ringworld.errors import InputError
from ringworld.files import whole
from ringworld.media.codec import Codec
from ringworld.mesh import on_a_mesh
from ringworld.models.patchgan import PatchGAN
from ringworld.models.vqgan import NANO_VQGAN, VQGAN, VQGANWeights, decode, encode
from ringworld.progress import Announce
from ringworld.recipes.pictures import FolderPictures, Windows
from ringworld.recipes.pixels import (
    CodecData,
    FilmPictures,
    Frames,
    PictureData,
    PixelMix,
    to_bytes,
    to_unit,
)
from ringworld.recipes.recipe import RECORD, Recipe
from ringworld.train.adversarial import PIXELS_ALONE, VQGANLosses
from ringworld.train.build import Metrics, Step, TrainState, abstract_of
from ringworld.train.checkpoint import FOLDER as CHECKPOINTS
from ringworld.train.checkpoint import find_steps
from ringworld.train.codec import CodecTraining, continue_codec, make_codec_step, start_codec
from ringworld.train.loop import Loop, fit
from ringworld.train.stage import Stage
from ringworld.weights.codecs import load_codec, open_codec
from ringworld.weights.file_names import CODEC
from ringworld.weights.folder import save_folder
from ringworld.weights.open import hash_model
from ringworld.weights.vgg import Features, load_features

SHEET = "sheet.png"
SHEETS = "sheets"
SHOWN_PICTURES = 10  # pictures in a row of the sheet


@dataclass(frozen=True, kw_only=True)
class CodecStage(Stage[PictureData]):
    """A codec from fresh weights, or from those of the codec that the recipe starts from.

    `features` is a file or a folder for `ringworld.weights.vgg`; without it there is no perceptual
    loss. With `sheet_every` a sheet of held-out frames is drawn after so many steps, again and
    again.
    """

    model: VQGAN
    """the sizes of the codec"""
    training: CodecTraining
    """how long and how fast it learns"""
    losses: VQGANLosses = PIXELS_ALONE
    """the losses beside that of the pixels"""
    features: Path | None = None
    """a VGG for the perceptual loss: a folder, or the file of `ringworld fetch vgg16`"""
    sheet_every: int | None = None
    """steps between two sheets of held-out frames"""
    save_every: int = 100
    """steps between two checkpoints"""

    def __post_init__(self) -> None:
        if self.sheet_every is not None and self.sheet_every < 1:
            raise InputError(f"sheet_every is {self.sheet_every}: make it 1 or more")
        if self.losses.adversarial:
            self.losses.discriminator.side(self.model.size)

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the features."""
        return {} if self.features is None else {"features": hash_model(self.features)}

    def check(self, data: PictureData, source: Path | None, folder: Path) -> None:
        """Raise InputError for pictures, features or a folder that cannot be used."""
        check_alone("a codec")
        data.check(self.model.size, folder / "data")
        self.load_features()
        if source is not None and (found := open_codec(source)[0]) != self.model:
            raise InputError(
                f"{source} holds a codec of other sizes ({found}): set the stage's model to these"
            )
        if (folder / CODEC).exists() and not (folder / RECORD).exists():
            raise InputError(
                f"{folder / CODEC} exists already, and no run made it: use another folder"
            )

    def kept(self, folder: Path) -> bool:
        """Whether there is a checkpoint or the codec."""
        return (folder / CODEC).exists() or bool(find_steps(folder / CHECKPOINTS))

    @on_a_mesh
    def run(self, data: PictureData, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Train the codec in `folder`, going on where it stopped; returns the codec's folder."""
        done, sheet = folder / CODEC, folder / SHEET
        if done.exists() and sheet.exists():
            return done
        opened = data.open(self.model.size, folder / "data", announce)
        if not done.exists():
            weights = train_codec(self, opened, folder, announce, source)
            save_folder(done, "vqgan", self.model, weights, jnp.bfloat16)
        measure(load_codec(done), opened.held_out, sheet, announce)
        return done

    def extend(self, folder: Path, steps: int) -> str:
        """Set aside the codec of the first `steps` steps, and its sheet."""
        for name in (CODEC, SHEET):
            if (folder / name).exists():
                (folder / name).rename(folder / f"{steps}-steps-{name}")
        return (
            f"the codec goes on from {steps} to {self.training.steps} steps: its cosine schedule "
            "now spans all of them, so the learning rate rises again"
        )

    def load_features(self) -> Features | None:
        """The features of the perceptual loss, None without. Raises InputError as their reader."""
        if self.features is None:
            return None
        features = load_features(self.features)
        features.config.check(self.model.size)
        return features


def nano_codec() -> Recipe:
    """The shipped codec."""
    return Recipe(
        name="nano-codec",
        stages=(
            CodecStage(
                name="codec",
                model=NANO_VQGAN,
                training=CodecTraining(steps=3300, warmup=200, learning_rate=2e-3),
            ),
        ),
        data=FilmPictures(
            mix=PixelMix(size=NANO_VQGAN.size, batch=16), fps=8.0, rows=72, columns=128, end=490.0
        ),
    )


def shapes_codec() -> Recipe:
    """The codec of nano-world: moving shapes on plain grounds, each tile encoded by itself.

    Where an encoder sees the frame, a thing changes the codes of the ground everywhere; a model of
    tiles sees the ground's code where nothing is.
    """
    model = replace(NANO_VQGAN, codebook=1024, tiles=True)
    return Recipe(
        name="shapes-codec",
        stages=(
            CodecStage(
                name="codec",
                model=model,
                training=CodecTraining(
                    steps=2500, warmup=100, learning_rate=2e-3, seed=3, worst=0.01
                ),
            ),
        ),
        data=FilmPictures(
            mix=PixelMix(size=model.size, batch=16, seed=3, shapes=1.0, on_film=0.0),
            fps=8.0,
            rows=72,
            columns=128,
            end=490.0,
        ),
    )


def folder_codec() -> Recipe:
    """A codec of the shipped one's size from your pictures, with a discriminator from 4,000 on."""
    return Recipe(
        name="folder-codec",
        stages=(
            CodecStage(
                name="codec",
                model=NANO_VQGAN,
                training=CodecTraining(steps=6000, warmup=200, learning_rate=2e-3),
                losses=VQGANLosses(
                    perceptual=1.0,
                    adversarial=0.1,
                    adversarial_start=4000,
                    discriminator=PatchGAN(channels=32, halvings=3),
                ),
                sheet_every=500,
            ),
        ),
        data=FolderPictures(windows=Windows(rows=96, columns=96, batch=16)),
    )


@dataclass(frozen=True)
class Sheets:
    """Sheets of held-out frames and their reconstructions, one after every `every` steps."""

    folder: Path
    every: int
    config: VQGAN
    unseen: Frames

    def around(self, step: Step) -> Step:
        """`step`, and `step_00000500.png` drawn after the 500th, if that is one of them.

        Steps are counted here: to ask the state for its number would be to wait for it.
        """
        done: int | None = None

        def stepped(state: TrainState, pixels: Any) -> tuple[TrainState, Metrics]:
            nonlocal done
            done = (int(state.step) if done is None else done) + 1
            state, metrics = step(state, pixels)
            if done % self.every == 0:
                self.draw(state.weights, self.folder / f"step_{done:08d}.png")
            return state, metrics

        return stepped

    def draw(self, weights: VQGANWeights, path: Path) -> None:
        """Write some of the frames, each over its reconstruction, as a PNG."""
        some = choose_shown(self.unseen)
        drawn = to_bytes(np.asarray(_round_trip(weights, jnp.asarray(to_unit(some)), self.config)))
        write_sheet([some, drawn], path)


@partial(jax.jit, static_argnames="config")
def _round_trip(
    weights: VQGANWeights, pixels: Float[Array, "Z Y X C"], config: VQGAN
) -> Float[Array, "Z Y X C"]:
    return decode(weights, encode(weights, pixels, config), config)


def train_codec(
    stage: CodecStage,
    data: CodecData,
    folder: Path,
    announce: Announce,
    source: Path | None = None,
) -> VQGANWeights:
    """The weights after the last step. Goes on from the newest checkpoint in `folder`.

    Without one it begins with the codec `source`, or with fresh weights.
    """
    model, training, losses = stage.model, stage.training, stage.losses
    features = stage.load_features()
    # More steps may be asked for later: how many they are is no part of what the run is.
    identity: dict[str, Any] = {
        "model": asdict(model),
        "training": {name: x for name, x in asdict(training).items() if name != "steps"},
    }
    if losses != PIXELS_ALONE:
        identity["losses"] = asdict(losses)
    if features is not None:
        identity["features"] = fingerprint(features.weights)
    seen = None if features is None else features.weights
    state, first = jax.jit(lambda: start_codec(model, training, losses))(), data.batches(0)
    latents = len(first) * model.side**2
    if source is not None:
        state = continue_codec(state, load_codec(source).weights, latents)
    step = report_flops(make_codec_step(model, training, losses, seen), stage, seen, first)
    if stage.sheet_every is not None:
        frames = next(iter(data.held_out.values()))
        step = Sheets(folder / SHEETS, stage.sheet_every, model, frames).around(step)
    trained = fit(
        abstract=abstract_of(state),
        begin=lambda: state,
        step=step,
        batches=data.batches,
        loop=Loop(steps=training.steps, save_every=stage.save_every),
        folder=folder,
        identity=json.loads(json.dumps(identity)),
        tokens_per_step=latents,
        dtype=jnp.float32,
        announce=announce,
    )
    return trained.weights


def fingerprint(weights: Any) -> str:
    """The sha256 of all numbers of some weights, in their order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def report_flops(
    step: Step, stage: CodecStage, features: Any, pixels: Float[np.ndarray, "Z Y X 3"]
) -> Step:
    """`step` with the metric `flops`: its floating point operations, as XLA counts them.

    Those before the discriminator starts are counted on a step without one, because XLA counts both
    branches of a condition. Where it does not count there is no such metric.
    """

    def count(losses: VQGANLosses) -> float | None:
        state = jax.eval_shape(lambda: start_codec(stage.model, stage.training, losses))
        counted = make_codec_step(stage.model, stage.training, losses, features)
        return (jax.jit(counted).lower(state, pixels).cost_analysis() or {}).get("flops")

    before, after = (count(replace(stage.losses, adversarial=0.0)), count(stage.losses))
    if before is None or after is None:
        return step

    def stepped(state: TrainState, pixels: Any) -> tuple[TrainState, Metrics]:
        flops = jnp.where(state.step >= stage.losses.adversarial_start, after, before)
        state, metrics = step(state, pixels)
        return state, metrics | {"flops": flops}

    return stepped


def measure(codec: Codec, unseen: Mapping[str, Frames], sheet: Path, announce: Announce) -> None:
    """Announce the PSNR of held-out frames by their name, and write some of them as `sheet`."""
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
    """`SHOWN_PICTURES` of the frames, evenly chosen; the same one again where there are fewer."""
    return frames[np.linspace(0, len(frames) - 1, SHOWN_PICTURES).astype(int)]


def write_sheet(rows: list[Frames], path: Path) -> None:
    """Rows of pictures as a PNG, whole or not at all."""
    with whole(path) as draft:
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(
            draft
        )


def fidelity(frames: Frames, drawn: Frames) -> Float[np.ndarray, "Z"]:
    """Peak signal to noise of each frame, in dB."""
    error = (frames / 255 - drawn / 255) ** 2
    return -10 * np.log10(np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))
