"""A model folder gets another codec, and keeps the rest."""

from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.train.other_codec import OtherCodec
from ringworld.train.stage import Data
from ringworld.weights.codecs import load_codec
from ringworld.weights.open import hash_model
from ringworld.weights.shipped import NANO, NANO_WORLD


def test_the_codec_is_another_and_the_weights_are_the_same(tmp_path: Path) -> None:
    stage = OtherCodec(name="codec", codec=NANO_WORLD / "codec")
    stage.check(Data(), NANO, tmp_path)
    assert not stage.kept(tmp_path)
    made = stage.run(Data(), NANO, tmp_path, lambda said: None)
    assert stage.kept(tmp_path) and stage.run(Data(), NANO, tmp_path, lambda said: None) == made
    assert hash_model(made / "codec") == hash_model(NANO_WORLD / "codec") != hash_model(NANO)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "about.txt"):
        assert (made / name).read_bytes() == (NANO / name).read_bytes()
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    codes = load_codec(made / "codec").encode(frames)
    np.testing.assert_array_equal(codes, load_codec(NANO_WORLD / "codec").encode(frames))


def test_a_codec_of_other_sizes_or_no_model_is_refused(tmp_path: Path) -> None:
    stage = OtherCodec(name="codec", codec=NANO_WORLD / "codec")
    with pytest.raises(InputError, match="needs a model folder with a codec"):
        stage.check(Data(), None, tmp_path)
    with pytest.raises(InputError):
        OtherCodec(name="codec", codec=tmp_path).check(Data(), NANO, tmp_path)
