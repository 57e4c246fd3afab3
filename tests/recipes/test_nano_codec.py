"""The nano codec that ships: it is small, alive, and what it draws can still be named."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from ringworld.media.codec import Codec
from ringworld.models.vqgan import NANO_VQGAN
from ringworld.tasks.shapes import SHAPE_COLOURS, Scene, Thing, draw, sample_scene
from ringworld.weights.codecs import load_codec

FOLDER = Path(str(files("ringworld"))) / "assets" / "nano" / "codec"
SIZE = 64


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec(FOLDER)


def test_nano_codec_is_small_and_of_its_size(codec):
    assert (FOLDER / "model.safetensors").stat().st_size <= 2.4e6
    assert (FOLDER / "training.jsonl").stat().st_size <= 60e3
    assert codec.config == NANO_VQGAN


def test_shapes_come_back_from_their_codes(codec):
    rng = np.random.default_rng(5)
    frames = np.concatenate([draw(sample_scene(rng), frames=2, size=SIZE) for _ in range(24)])
    codes = codec.encode(frames)
    error = ((codec.decode(codes) / 255 - frames / 255) ** 2).mean(axis=(1, 2, 3))
    assert (-10 * np.log10(error)).mean() > 23
    assert len(np.unique(codes)) > NANO_VQGAN.codebook / 3


def test_colours_and_places_of_shapes_survive(codec):
    names, table = list(SHAPE_COLOURS), np.asarray(list(SHAPE_COLOURS.values()), np.float64)
    places = [(x, y) for x in (0.3, 0.7) for y in (0.3, 0.7)]
    for shape in ("circle", "square", "triangle"):
        scenes = [_scene(name, shape, x, y) for name in names for x, y in places]
        drawn = codec.decode(codec.encode(np.concatenate([draw(s, frames=1) for s in scenes])))
        for scene, picture in zip(scenes, drawn, strict=True):
            thing = scene.things[0]
            row, column = int(thing.y * SIZE), int(thing.x * SIZE)
            seen = picture[row : row + 4, column - 2 : column + 2].mean(axis=(0, 1))
            assert names[((table - seen) ** 2).sum(axis=1).argmin()] == thing.colour
            assert picture[-row - 4 : -row, -column - 2 : -column + 2].mean() < 80


def _scene(colour: str, shape: str, x: float, y: float) -> Scene:
    thing = Thing(colour=colour, shape=shape, motion="still", x=x, y=y, radius=0.18, travel=0.0)
    return Scene(things=(thing,), ground=40)
