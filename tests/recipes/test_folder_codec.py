"""A codec from a folder of films and pictures, in miniature: judged, resumed, drawn on its way."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ringworld import cli
from ringworld.cli import recipes
from ringworld.errors import InputError
from ringworld.media.clip import write_animation
from ringworld.models import vgg
from ringworld.models.patchgan import PatchGAN
from ringworld.models.vgg import VGG
from ringworld.models.vqgan import VQGAN
from ringworld.params import init
from ringworld.recipes import codec as codec_recipe
from ringworld.recipes.codec import FolderCodecRecipe, folder_codec, run_folder_recipe
from ringworld.recipes.pictures import Windows, picture_batches
from ringworld.train.adversarial import Judges
from ringworld.train.codec import CodecTraining
from ringworld.weights.codecs import load_codec
from ringworld.weights.folder import save_folder

EYE = VGG(widths=(2, 3), depths=(1, 1))
RECIPE = FolderCodecRecipe(
    name="folder-codec",
    model=VQGAN(size=8, channels=4, multipliers=(1, 2), blocks=1, groups=2, codebook=8, width=4),
    training=CodecTraining(steps=4, warmup=1, learning_rate=1e-3),
    judges=Judges(
        perceptual=1.0, adversarial=0.5, starts=1, critic=PatchGAN(channels=2, halvings=1, groups=2)
    ),
    windows=Windows(rows=10, columns=12, batch=2),
    sheet_every=2,
    save_every=1,
)


@pytest.fixture
def recipe(tmp_path: Path) -> FolderCodecRecipe:
    """The recipe on two pictures and a film, with features of a tiny VGG."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    write_animation(folder / "film.mp4", rng.integers(0, 256, (4, 16, 16, 3), np.uint8), 1.0)
    eye = tmp_path / "eye"
    save_folder(eye, "vgg", EYE, init(vgg.specs(EYE), 0), jnp.float32)
    return replace(RECIPE, pictures=folder, features=eye)


def rows(folder: Path) -> list[dict[str, float]]:
    """What the record says of each step, but for times."""
    timed = {"seconds", "wait_s", "tokens_per_s", "mfu"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_a_judged_codec_is_made_goes_on_after_a_stop_and_is_not_made_twice(
    recipe: FolderCodecRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said: list[str] = []
    done = run_folder_recipe(recipe, whole, said.append)
    assert any(line.startswith("held-out frames: ") for line in said)
    assert load_codec(done).config == recipe.model
    assert Image.open(whole / "sheet.png").size == (80, 16)
    sheets = sorted(path.name for path in (whole / "sheets").iterdir())
    assert sheets == ["step_00000002.png", "step_00000004.png"]
    record = rows(whole)
    assert len(record) == 4
    for name in ("loss", "perceptual", "critic_loss", "used", "perplexity", "running_perplexity"):
        assert all(np.isfinite(row[name]) for row in record)
    assert [row["critic_weight"] > 0 for row in record] == [False, True, True, True]

    def stops(*given: object) -> object:
        batches = picture_batches(*given)

        def batch(n: int) -> np.ndarray:
            if n == 3:
                raise InterruptedError
            return batches(n)

        return batch

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(codec_recipe, "picture_batches", stops)
        run_folder_recipe(recipe, stopped, said.append)
    said.clear()
    run_folder_recipe(recipe, stopped, said.append)
    assert any("going on from step" in line for line in said)
    assert rows(stopped) == record
    for name in ("codec/model.safetensors", "sheet.png", *(f"sheets/{name}" for name in sheets)):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()

    said.clear()
    assert run_folder_recipe(recipe, stopped, said.append) == stopped / "codec"
    assert said == []
    with pytest.raises(InputError, match="another recipe"):
        run_folder_recipe(replace(recipe, features=None), whole, said.append)


def test_without_features_and_critic_only_pixels_judge(
    recipe: FolderCodecRecipe, tmp_path: Path
) -> None:
    plain = replace(recipe, features=None, judges=Judges())
    run_folder_recipe(plain, tmp_path / "run", lambda said: None)
    assert not {"perceptual", "critic_loss", "told"} & set(rows(tmp_path / "run")[0])


def test_a_sheet_shows_originals_over_what_is_made_of_them(
    recipe: FolderCodecRecipe, tmp_path: Path
) -> None:
    run_folder_recipe(recipe, tmp_path / "run", lambda said: None)
    sheet = np.asarray(Image.open(tmp_path / "run" / "sheets" / "step_00000004.png"))
    assert sheet.shape == (16, 80, 3)
    frames = np.fromfile(tmp_path / "run" / "data" / "frames.bin", np.uint8).reshape(-1, 10, 12, 3)
    np.testing.assert_array_equal(sheet[:8, :8], frames[0, 1:9, 2:10])
    np.testing.assert_array_equal(sheet[:8, -8:], frames[5, 1:9, 2:10])
    assert (sheet[8:] != sheet[:8]).any()


def test_bad_input_is_one_sentence_and_leaves_nothing(
    recipe: FolderCodecRecipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    bad = {
        "no folder": {"pictures": tmp_path / "nowhere"},
        "no film and no picture": {"pictures": tmp_path / "empty"},
        "there is no": {"features": tmp_path / "nowhere"},
    }
    for said, change in bad.items():
        with pytest.raises(InputError, match=said):
            run_folder_recipe(replace(recipe, **change), run, lambda said: None)
        assert not run.exists()
    with pytest.raises(InputError, match="windows.rows"):
        replace(recipe, windows=Windows(rows=7, columns=12, batch=2))
    with pytest.raises(InputError, match="sheet_every"):
        replace(recipe, sheet_every=0)
    with pytest.raises(InputError, match="no patch"):
        replace(recipe, judges=Judges(adversarial=1.0))


def test_a_run_goes_on_with_more_files_left_out_than_were_allowed_at_first(
    recipe: FolderCodecRecipe, tmp_path: Path
) -> None:
    (recipe.pictures / "broken.png").write_bytes(b"no picture at all")
    run = tmp_path / "run"
    with pytest.raises(InputError, match="raise windows.may_skip from 0"):
        run_folder_recipe(recipe, run, lambda said: None)
    lenient = replace(recipe, windows=replace(recipe.windows, may_skip=1))
    assert run_folder_recipe(lenient, run, lambda said: None) == run / "codec"


def test_a_codec_that_no_run_made_is_neither_taken_nor_overwritten(
    recipe: FolderCodecRecipe, tmp_path: Path
) -> None:
    (tmp_path / "run" / "codec").mkdir(parents=True)
    with pytest.raises(InputError, match="codec exists already"):
        run_folder_recipe(recipe, tmp_path / "run", lambda said: None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["codec"]


def test_the_command_line_trains_a_codec_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(recipes, "_run", lambda recipe, folder, say: seen.append(recipe))
    words = ["train", "folder-codec", "--folder", str(tmp_path), "--pictures", "mine"]
    words += ["--windows.sampling.fps", "2", "--judges.adversarial", "0", "--features", "vgg16.h5"]
    cli.run(words, lambda said: None)
    recipe = folder_codec()
    wanted = replace(
        recipe,
        pictures=Path("mine"),
        features=Path("vgg16.h5"),
        windows=replace(recipe.windows, sampling=replace(recipe.windows.sampling, fps=2.0)),
        judges=replace(recipe.judges, adversarial=0.0),
    )
    assert seen == [wanted]
