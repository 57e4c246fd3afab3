"""Pictures to train a codec on: windows of film frames, and coloured shapes over film or grey.

A batch is a function of the seed and the step, so a run that stops goes on with the same pictures.
Whole minutes of a film are held out by the clock, because neighbouring frames are nearly equal.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ringworld.data.samples import HELD_MINUTES, write_arrays
from ringworld.errors import InputError
from ringworld.fetch import fetch
from ringworld.media.clip import read_clip
from ringworld.media.sampling import FrameSampling
from ringworld.progress import Announce
from ringworld.tasks.shapes import draw, sample_scene
from ringworld.train.stage import Data

Frames = UInt8[np.ndarray, "Z Y X 3"]
HeldOut = UInt8[np.ndarray, "z y x 3"]  # of another number and size than the frames beside them

MOMENTS = 4  # frames taken of each scene of shapes
SCENES = 40  # of moving shapes, to measure on
SCENES_SEED = 99


class CodecData(NamedTuple):
    """What a codec learns from, and what it is measured on.

    `batches(step)` are pictures in [-1, 1]; `held_out` are frames by what they are called.
    """

    batches: Callable[[int], Float[np.ndarray, "Z Y X 3"]]
    held_out: Mapping[str, Frames]


class PictureData(Data, ABC):
    """Pictures for a codec."""

    def check(self, size: int, cache: Path) -> None:
        """Raise InputError when the pictures cannot be used for a codec of `size` pixels."""

    @abstractmethod
    def open(self, size: int, cache: Path, announce: Announce) -> CodecData:
        """The pictures of `size` x `size` pixels; what is decoded is kept in the folder `cache`."""


@dataclass(frozen=True, kw_only=True)
class PixelMix:
    """What a batch of square pictures is made of: moving shapes, and windows of film frames."""

    size: int
    """the side of a picture in pixels"""
    batch: int
    """pictures a step"""
    seed: int = 0
    """draws the pictures"""
    shapes: float = 0.4
    """the share of pictures that show moving shapes"""
    on_film: float = 0.5
    """the share of these whose background is a film frame; the others are grey"""

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch < 1:
            raise InputError("a batch needs at least one picture of at least one pixel: raise both")
        if not (0 <= self.shapes <= 1 and 0 <= self.on_film <= 1):
            raise InputError("shapes and on_film are shares: set both between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class FilmPictures(PictureData):
    """Frames of the sample film, and moving shapes over such frames.

    The film is read at `fps` frames a second of `rows` x `columns` pixels until the second `end`,
    where its credits begin; the minutes held out everywhere in the package are held out here.
    """

    mix: PixelMix
    """what a batch is made of"""
    fps: float
    """frames a second that are read of the film"""
    rows: int
    """the height of a frame in pixels"""
    columns: int
    """the width of a frame in pixels"""
    end: float
    """the second of the film where reading ends"""

    def check(self, size: int, cache: Path) -> None:
        """Raise InputError when the pictures are not of the codec's size."""
        if self.mix.size != size:
            raise InputError(
                f"the pictures are of {self.mix.size} pixels and the codec of {size}: set "
                "data.mix.size and the stage's model.size to the same"
            )

    def open(self, size: int, cache: Path, announce: Announce) -> CodecData:
        """Windows of the frames and shapes; held out are the film's minutes and some shapes."""
        learned, unseen = self.read(fetch("film"), cache, announce)
        held_out = {"held-out film": unseen, "shapes": draw_shapes(unseen, size)}
        return CodecData(pixel_batches(learned, self.mix), held_out)

    def read(self, film: Path, cache: Path, announce: Announce) -> tuple[Frames, HeldOut]:
        """The frames to learn from, and the held-out ones; kept in `cache`."""
        kept = cache / "pictures.npz"
        if not kept.exists():
            announce(f"decoding {film.name} at {self.fps:g} frames a second")
            sampling = FrameSampling(fps=self.fps, video_end=self.end)
            clip = read_clip(film, sampling, size=self.rows, columns=self.columns)
            unseen = [
                read_clip(
                    film,
                    FrameSampling(fps=1.0, video_start=s, video_end=s + 60),
                    size=self.mix.size,
                ).frames
                for s in (60.0 * minute for minute in HELD_MINUTES)
            ]
            learned = clip.frames[~held_out(clip.seconds, HELD_MINUTES)]
            write_arrays(kept, learned=learned, unseen=np.concatenate(unseen))
        with np.load(kept) as arrays:
            return arrays["learned"], arrays["unseen"]


def held_out(seconds: Float[np.ndarray, "Z"], minutes: Iterable[int]) -> Bool[np.ndarray, "Z"]:
    """Which frames, shown at these seconds of a film, belong to the minutes kept for evaluation.

    Minute 2 is the time from 2:00 to 3:00.
    """
    return np.isin(np.floor(seconds / 60), list(minutes))


def to_unit(pixels: UInt8[np.ndarray, "Z Y X 3"]) -> Float[np.ndarray, "Z Y X 3"]:
    """Bytes as float32 in [-1, 1], the range of a codec."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_bytes(pixels: Float[np.ndarray, "Z Y X 3"]) -> UInt8[np.ndarray, "Z Y X 3"]:
    """Pictures in [-1, 1] as bytes, clipped."""
    return np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


def pixel_batches(
    film: UInt8[np.ndarray, "Z Y X 3"], mix: PixelMix
) -> Callable[[int], Float[np.ndarray, "Z Y X 3"]]:
    """The function from a step to its batch of pictures in [-1, 1].

    `film` may be memory-mapped and its frames larger than a picture: a random window is taken, and
    half of them are mirrored. Raises InputError when there are no frames or they are too small.
    """
    if len(film) == 0 or min(film.shape[1:3]) < mix.size:
        raise InputError(
            f"a film of shape {film.shape} has no windows of {mix.size} x {mix.size} pixels: "
            "give at least one frame, or a smaller size"
        )
    shaped = round(mix.batch * mix.shapes)

    def batch(step: int) -> Float[np.ndarray, "Z Y X 3"]:
        rng = np.random.default_rng((mix.seed, step))
        drawn = _shapes(rng, film, shaped, mix)
        plain = [crop(rng, film, mix.size) for _ in range(mix.batch - len(drawn))]
        return to_unit(np.stack([*drawn, *plain]))

    return batch


def crop(
    rng: np.random.Generator, film: UInt8[np.ndarray, "Z Y X 3"], size: int
) -> UInt8[np.ndarray, "y x 3"]:
    """A random window of a random frame, mirrored half of the time."""
    frames, rows, columns, _ = film.shape
    frame = film[rng.integers(frames)]
    y, x = rng.integers(rows - size + 1), rng.integers(columns - size + 1)
    cut = frame[y : y + size, x : x + size]
    return np.ascontiguousarray(cut[:, ::-1] if rng.random() < 0.5 else cut)


def _shapes(
    rng: np.random.Generator, film: UInt8[np.ndarray, "Z Y X 3"], count: int, mix: PixelMix
) -> list[UInt8[np.ndarray, "y x 3"]]:
    """`count` pictures of shapes, `MOMENTS` of each scene."""
    pictures: list[np.ndarray] = []
    while len(pictures) < count:
        ground = crop(rng, film, mix.size) if rng.random() < mix.on_film else None
        scene = sample_scene(rng, film=ground)
        pictures.extend(draw(scene, frames=MOMENTS, size=mix.size))
    return pictures[:count]


def draw_shapes(unseen: Frames, size: int) -> UInt8[np.ndarray, "shown Y X 3"]:
    """Two moments of each of some scenes, every other one over a held-out frame."""
    rng = np.random.default_rng(SCENES_SEED)
    pictures = []
    for i in range(SCENES):
        over = None if i % 2 else unseen[int(rng.integers(len(unseen)))]
        pictures.append(draw(sample_scene(rng, film=over), frames=2, size=size))
    return np.concatenate(pictures)
