"""A model that gets another codec keeps its words, and forgets the codes."""

from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.recipes.recipe import Recipe
from ringworld.train.new_codec import NewCodec
from ringworld.train.stage import Data
from ringworld.weights.codecs import load_codec
from ringworld.weights.folder import load_folder
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO, SHAPES_CODEC


def test_layers_and_words_stay_and_the_vision_table_and_head_begin_anew(tmp_path: Path) -> None:
    stage = NewCodec(name="codec", codec=SHAPES_CODEC)
    stage.check(Data(), NANO, tmp_path)
    assert not stage.kept(tmp_path)
    sizes = stage.output_config(open_model(NANO).config)
    made = stage.run(Data(), NANO, tmp_path, print)
    assert stage.kept(tmp_path)
    assert open_model(made).config == sizes and sizes.vocabulary.codes == 1024
    (_, _, before), (_, _, after) = load_folder(NANO), load_folder(made)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"vision_embed", "heads.vision"}
    assert not np.any(after["heads.vision"])
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    codes = [load_codec(path).encode(frames) for path in (made / "codec", SHAPES_CODEC)]
    np.testing.assert_array_equal(*codes)
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert stage.run(Data(), NANO, tmp_path, print) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == written


def test_without_a_model_to_start_from_it_says_so(tmp_path: Path) -> None:
    stage = NewCodec(name="codec", codec=SHAPES_CODEC)
    recipe = Recipe(name="toys", stages=(stage,), data=Data())
    with pytest.raises(InputError, match="stage codec has no model: give the recipe a start"):
        recipe.run(tmp_path / "run", print)
    with pytest.raises(InputError, match="stage codec has no model: give the recipe a start"):
        stage.output_config(None)


def test_a_codec_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        NewCodec(name="codec", codec=tmp_path / "nothing").check(Data(), NANO, tmp_path)
