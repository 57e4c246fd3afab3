"""More layers: the model computes what it did, and what was copied learns at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.train.more_layers import MoreLayers
from ringworld.train.stage import Data
from ringworld.weights.depth import OUTPUTS, place_layers
from ringworld.weights.folder import load_folder
from ringworld.weights.open import open_model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO
from tests.scores import assert_same_scores


def test_copies_are_spread_evenly_behind_the_layers_that_they_copy() -> None:
    assert place_layers(4, 4) == [(0, False), (1, False), (2, False), (3, False)]
    spread = [(0, False), (0, True), (1, False), (2, False), (2, True), (3, False)]
    assert place_layers(4, 6) == spread
    assert place_layers(2, 6) == [(i // 3, i % 3 > 0) for i in range(6)]
    with pytest.raises(InputError, match="has 4 layers and 3 are asked for: ask for at least 4"):
        place_layers(4, 3)
    with pytest.raises(InputError, match="layers is 0: use 1 or more"):
        MoreLayers(name="more", layers=0)


@pytest.mark.parametrize("theirs", [False, True])
def test_a_deeper_model_computes_what_it_did(tmp_path: Path, theirs: bool) -> None:
    source = tmp_path / "theirs" if theirs else NANO
    if theirs:  # its weights are pieces, a layer each
        convert(NANO, source, None, print)
    stage = MoreLayers(name="deeper", layers=6)
    stage.check(Data(), source, tmp_path)
    made = stage.run(Data(), source, tmp_path / "run", print)
    before = open_model(source).config
    assert open_model(made).config == stage.output_config(before)
    assert stage.output_config(before) == replace(before, llama=replace(before.llama, layers=6))
    (_, _, old), (_, _, new) = load_folder(NANO), load_folder(made)
    for name, weight in new.items():
        if not name.startswith("blocks."):
            np.testing.assert_array_equal(weight, old[name], err_msg=name)
            continue
        for at, (layer, copied) in enumerate(place_layers(4, 6)):
            wanted = old[name][layer] * (0 if copied and name in OUTPUTS else 1)
            np.testing.assert_array_equal(weight[at], wanted, err_msg=name)
    assert_same_scores((NANO, made))


def test_without_a_model_to_start_from_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage more has no model: give the recipe a start"):
        MoreLayers(name="more", layers=6).run(Data(), None, tmp_path, print)
