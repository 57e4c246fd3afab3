"""The language model within a world model is written without its sight, and reads as it did."""

from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.recipes.recipe import Recipe
from ringworld.train.language_model import LanguageModel
from ringworld.train.stage import Data
from ringworld.weights.folder import load_folder
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO
from tests.scores import assert_same_scores


def test_the_weights_of_text_stay_and_those_of_sight_go(tmp_path: Path) -> None:
    stage = LanguageModel(name="text")
    stage.check(Data(), NANO, tmp_path)
    sizes = stage.output_config(open_model(NANO).config)
    made = stage.run(Data(), NANO, tmp_path, print)
    assert open_model(made).config == sizes and sizes.vocabulary.codes == 0
    assert open_model(made).codec is None and not (made / "codec").exists()
    (_, _, before), (_, _, after) = load_folder(NANO), load_folder(made)
    assert before.keys() - after.keys() == {"vision_embed", "heads.vision"}
    for name, weight in after.items():
        np.testing.assert_array_equal(weight, before[name], err_msg=name)
    assert_same_scores((NANO, made))


def test_without_a_model_to_start_from_it_says_so(tmp_path: Path) -> None:
    stage = LanguageModel(name="text")
    recipe = Recipe(name="toys", stages=(stage,), data=Data())
    with pytest.raises(InputError, match="stage text has no model: give the recipe a start"):
        recipe.run(tmp_path / "run", print)
    with pytest.raises(InputError, match="stage text has no model: give the recipe a start"):
        stage.output_config(None)
