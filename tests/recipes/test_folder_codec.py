"""A codec from a folder of films and pictures, in miniature: with all losses, resumed, shown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ringworld import cli
from ringworld.errors import InputError
from ringworld.media.clip import write_animation
from ringworld.models import vgg
from ringworld.models.patchgan import PatchGAN
from ringworld.models.vgg import VGG
from ringworld.models.vqgan import VQGAN
from ringworld.params import init
from ringworld.recipes import pictures
from ringworld.recipes.codec import CodecStage, folder_codec
from ringworld.recipes.pictures import FolderPictures, Windows, picture_batches
from ringworld.recipes.recipe import Recipe
from ringworld.train.adversarial import VQGANLosses
from ringworld.train.codec import CodecTraining
from ringworld.weights.codecs import load_codec
from ringworld.weights.folder import save_folder

EYE = VGG(widths=(2, 3), depths=(1, 1))
STAGE = CodecStage(
    name="codec",
    model=VQGAN(size=8, channels=4, multipliers=(1, 2), blocks=1, groups=2, codebook=8, width=4),
    training=CodecTraining(steps=4, warmup=1, learning_rate=1e-3),
    losses=VQGANLosses(
        perceptual=1.0,
        adversarial=0.5,
        adversarial_start=1,
        discriminator=PatchGAN(channels=2, halvings=1, groups=2),
    ),
    sheet_every=2,
    save_every=1,
)


WINDOWS = Windows(rows=10, columns=12, batch=2)


def change(recipe: Recipe, data: dict[str, Any], **stage: Any) -> Recipe:
    """The recipe with other settings of its data and of its stage."""
    stages = (replace(recipe.stages[0], **stage),)
    return replace(recipe, stages=stages, data=replace(recipe.data, **data))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The recipe on two pictures and a film, with features of a tiny VGG."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    write_animation(folder / "film.mp4", rng.integers(0, 256, (4, 16, 16, 3), np.uint8), 1.0)
    eye = tmp_path / "eye"
    save_folder(eye, "vgg", EYE, init(vgg.vgg_specs(EYE), 0), jnp.float32)
    data = FolderPictures(folder=folder, windows=WINDOWS)
    return Recipe(name="folder-codec", stages=(replace(STAGE, features=eye),), data=data)


def rows(folder: Path) -> list[dict[str, float]]:
    """What the record says of each step, but for times."""
    timed = {"seconds", "wait_s", "tokens_per_s", "mfu"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_an_adversarial_codec_is_made_goes_on_after_a_stop_and_is_not_made_twice(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said: list[str] = []
    done = recipe.run(whole, said.append)
    assert any(line.startswith("held-out frames: ") for line in said)
    assert load_codec(done).config == STAGE.model
    assert Image.open(whole / "sheet.png").size == (80, 16)
    sheets = sorted(path.name for path in (whole / "sheets").iterdir())
    assert sheets == ["step_00000002.png", "step_00000004.png"]
    record = rows(whole)
    assert len(record) == 4
    for name in (
        "loss",
        "perceptual",
        "generator_loss",
        "used",
        "perplexity",
        "running_perplexity",
    ):
        assert all(np.isfinite(row[name]) for row in record)
    started = [False, True, True, True]
    assert [row["adversarial_weight"] > 0 for row in record] == started
    for name in ("discriminator_loss", "discriminator_accuracy"):
        assert [row[name] is not None for row in record] == started

    def stops(*given: object) -> object:
        batches = picture_batches(*given)

        def batch(n: int) -> np.ndarray:
            if n == 3:
                raise InterruptedError
            return batches(n)

        return batch

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(pictures, "picture_batches", stops)
        recipe.run(stopped, said.append)
    said.clear()
    recipe.run(stopped, said.append)
    assert any("going on from step" in line for line in said)
    assert rows(stopped) == record
    for name in ("codec/model.safetensors", "sheet.png", *(f"sheets/{name}" for name in sheets)):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()

    said.clear()
    assert recipe.run(stopped, said.append) == stopped / "codec"
    assert said == []
    with pytest.raises(
        InputError, match=r"another recipe \(stages.0.features was \w{12}, is absent"
    ):
        change(recipe, {}, features=None).run(whole, said.append)


def test_without_features_and_discriminator_the_loss_is_of_pixels_alone(
    recipe: Recipe, tmp_path: Path
) -> None:
    plain = change(recipe, {}, features=None, losses=VQGANLosses())
    plain.run(tmp_path / "run", lambda said: None)
    record = rows(tmp_path / "run")[0]
    assert not {"perceptual", "generator_loss", "discriminator_accuracy"} & set(record)


def test_a_sheet_shows_originals_over_what_is_made_of_them(recipe: Recipe, tmp_path: Path) -> None:
    recipe.run(tmp_path / "run", lambda said: None)
    sheet = np.asarray(Image.open(tmp_path / "run" / "sheets" / "step_00000004.png"))
    assert sheet.shape == (16, 80, 3)
    frames = np.fromfile(tmp_path / "run" / "data" / "frames.bin", np.uint8).reshape(-1, 10, 12, 3)
    np.testing.assert_array_equal(sheet[:8, :8], frames[0, 1:9, 2:10])
    np.testing.assert_array_equal(sheet[:8, -8:], frames[5, 1:9, 2:10])
    assert (sheet[8:] != sheet[:8]).any()


def test_bad_input_is_one_sentence_and_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    bad = {
        "no folder": change(recipe, {"folder": tmp_path / "nowhere"}),
        "no film and no picture": change(recipe, {"folder": tmp_path / "empty"}),
        "there is no": change(recipe, {}, features=tmp_path / "nowhere"),
        "windows.rows": change(recipe, {"windows": replace(WINDOWS, rows=7)}),
    }
    for said, wrong in bad.items():
        with pytest.raises(InputError, match=said):
            wrong.run(run, lambda said: None)
        assert not run.exists()
    with pytest.raises(InputError, match="sheet_every"):
        change(recipe, {}, sheet_every=0)
    with pytest.raises(InputError, match="no patch"):
        change(recipe, {}, losses=VQGANLosses(adversarial=1.0))


def test_a_run_goes_on_with_more_files_left_out_than_were_allowed_at_first(
    recipe: Recipe, tmp_path: Path
) -> None:
    (recipe.data.folder / "broken.png").write_bytes(b"no picture at all")
    run = tmp_path / "run"
    with pytest.raises(InputError, match="raise windows.may_skip from 0"):
        recipe.run(run, lambda said: None)
    lenient = change(recipe, {"windows": replace(WINDOWS, may_skip=1)})
    assert lenient.run(run, lambda said: None) == run / "codec"


def test_a_codec_whose_pictures_were_moved_or_removed_goes_on(
    recipe: Recipe, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    recipe.run(run, lambda said: None)
    recipe.data.folder.rename(moved)
    (run / "sheet.png").unlink()
    assert recipe.run(run, lambda said: None) == run / "codec"
    assert change(recipe, {"folder": moved}).run(run, lambda said: None) == run / "codec"
    (moved / "b.jpg").unlink()
    with pytest.raises(InputError, match="another recipe .data.folder was"):
        change(recipe, {"folder": moved}).run(run, lambda said: None)


def test_a_codec_that_no_run_made_is_neither_taken_nor_overwritten(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "run" / "codec").mkdir(parents=True)
    with pytest.raises(InputError, match="codec exists already"):
        recipe.run(tmp_path / "run", lambda said: None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["codec"]


def test_the_command_line_trains_a_codec_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    words = ["train", "folder-codec", "--folder", str(tmp_path), "--data.folder", "mine"]
    words += [
        "--data.windows.sampling.fps",
        "2",
        "--stages.0.losses.adversarial",
        "0",
        "--stages.0.features",
        "vgg16.h5",
    ]
    cli.run(words, lambda said: None)
    recipe = folder_codec()
    windows, losses = recipe.data.windows, recipe.stages[0].losses
    wanted = change(
        recipe,
        {
            "folder": Path("mine"),
            "windows": replace(windows, sampling=replace(windows.sampling, fps=2.0)),
        },
        features=Path("vgg16.h5"),
        losses=replace(losses, adversarial=0.0),
    )
    assert seen == [wanted]
