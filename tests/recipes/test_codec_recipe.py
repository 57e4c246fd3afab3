"""How the shipped codec is made, in miniature: a tiny codec from a film of noise."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringworld import cli
from ringworld.errors import InputError
from ringworld.media.clip import write_animation
from ringworld.models.vqgan import NANO_VQGAN, VQGAN
from ringworld.recipes import pixels
from ringworld.recipes.codec import CodecStage, nano_codec
from ringworld.recipes.pixels import FilmPictures, PixelMix, pixel_batches
from ringworld.recipes.recipe import Recipe
from ringworld.train.codec import CodecTraining
from ringworld.weights.codecs import load_codec
from ringworld.weights.shipped import NANO

TINY = VQGAN(size=16, channels=8, multipliers=(1, 2), blocks=1, groups=4, codebook=16, width=8)
STAGE = CodecStage(
    name="codec",
    model=TINY,
    training=CodecTraining(steps=3, warmup=1, learning_rate=1e-3),
    save_every=1,
)
FILM = FilmPictures(mix=PixelMix(size=16, batch=2), fps=1.0, rows=18, columns=32, end=470.0)
RECIPE = Recipe(name="nano-codec", stages=(STAGE,), data=FILM)


@pytest.fixture(autouse=True)
def film(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film of eight minutes at one frame a second, twice as wide as high."""
    path = tmp_path_factory.mktemp("samples") / "film.mp4"
    scenes = np.random.default_rng(0).integers(0, 256, (16, 4, 8, 3), np.uint8)
    write_animation(path, scenes.repeat(31, axis=0).repeat(8, axis=1).repeat(8, axis=2), 1.0)
    monkeypatch.setattr(pixels, "fetch", lambda name: path)


def losses(folder: Path) -> list[float]:
    """The loss of each step that the folder's record holds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def stop_at(step: int) -> Callable[..., Callable[[int], np.ndarray]]:
    """`pixel_batches`, but the batch of `step` is never made."""

    def batches(film: np.ndarray, mix: PixelMix) -> Callable[[int], np.ndarray]:
        whole = pixel_batches(film, mix)

        def batch(n: int) -> np.ndarray:
            if n == step:
                raise InterruptedError
            return whole(n)

        return batch

    return batches


def test_a_codec_is_made_goes_on_after_a_stop_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said: list[str] = []
    done = RECIPE.run(whole, said.append)
    assert any(line.startswith("held-out film: ") for line in said)
    assert Image.open(whole / "sheet.png").size == (160, 64)
    codec = load_codec(done)
    frames = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    codes = codec.encode(frames)
    assert codec.config == TINY and codes.shape == (3, TINY.side**2)
    assert codec.decode(codes).shape == frames.shape

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(pixels, "pixel_batches", stop_at(2))
        RECIPE.run(stopped, said.append)
    said.clear()
    RECIPE.run(stopped, said.append)
    assert any("going on from step" in line for line in said)
    assert losses(stopped) == losses(whole) and len(losses(whole)) == 3

    said.clear()
    assert RECIPE.run(stopped, said.append) == stopped / "codec"
    assert said == []
    with pytest.raises(InputError, match=r"another recipe \(data.fps was 1.0, is 2.0\)"):
        replace(RECIPE, data=replace(FILM, fps=2.0)).run(whole, said.append)


def test_held_out_minutes_and_credits_are_not_learned_from(tmp_path: Path) -> None:
    learned, unseen = FILM.read(pixels.fetch("film"), tmp_path, lambda said: None)
    assert learned.shape == (470 - 60 - 60 - 50, 18, 32, 3)
    assert unseen.shape == (180, 16, 16, 3)


def test_the_command_line_trains_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    words = ["train", "nano-codec", "--folder", str(tmp_path), "--stages.0.training.steps", "400"]
    cli.run(words, lambda said: None)
    (stage,) = nano_codec().stages
    longer = replace(stage, training=replace(stage.training, steps=400))
    assert seen == [replace(nano_codec(), stages=(longer,))]
    with pytest.raises(InputError, match="nano-codec"):
        cli.run(["train", "gpt-9"], lambda said: None)


def test_the_recipe_is_that_of_the_codec_that_ships() -> None:
    folder = NANO / "codec"
    about = json.loads((folder / "training.jsonl").read_text().splitlines()[0])
    recipe = nano_codec()
    (stage,) = recipe.stages
    assert stage.model == NANO_VQGAN == load_codec(folder).config
    assert stage.training.learning_rate == about["learning_rate"]
    assert stage.training.warmup == about["warmup"]
    mix = recipe.data.mix
    assert [mix.batch, mix.shapes, mix.on_film, mix.seed] == [
        about[name] for name in ("batch", "shapes", "on_film", "seed")
    ]
    assert list(pixels.HELD_MINUTES) == about["held_out_minutes"]


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    other = replace(FILM, mix=PixelMix(size=8, batch=2))
    with pytest.raises(InputError, match="model.size"):
        replace(RECIPE, data=other).run(tmp_path / "run", lambda said: None)
    assert not (tmp_path / "run").exists()


def test_a_finished_codec_goes_on_when_it_is_given_more_steps(tmp_path: Path) -> None:
    RECIPE.run(tmp_path, lambda said: None)
    first, said = (tmp_path / "codec" / "model.safetensors").read_bytes(), []
    longer = replace(STAGE, training=replace(STAGE.training, steps=5))
    done = replace(RECIPE, stages=(longer,)).run(tmp_path, said.append)
    assert any("from 3 to 5 steps" in line for line in said)
    assert len(losses(tmp_path)) == 5 and (done / "model.safetensors").read_bytes() != first
    assert (tmp_path / "3-steps-codec" / "model.safetensors").read_bytes() == first
