"""A codec takes any number of frames, and little for few."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ringworld.media import codec as codec_module
from ringworld.media.codec import BATCH, BATCH_SIZES, Codec
from ringworld.models import vqgan
from ringworld.models.vqgan import VQGAN, vqgan_specs
from ringworld.params import init

TINY = VQGAN(size=16, channels=8, multipliers=(1, 2), blocks=1, groups=4, codebook=16, width=8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(TINY, jax.jit(lambda: init(vqgan_specs(TINY), 0))())


@pytest.mark.parametrize("count", [1, 2, 8, 9, BATCH, BATCH + 1, 2 * BATCH + 9])
def test_any_number_of_frames_has_the_codes_and_pixels_of_each_alone(
    codec: Codec, rng: np.random.Generator, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    encode, decode = codec_module._encode, codec_module._decode
    monkeypatch.setattr(
        codec_module, "_encode", lambda w, x, c: ran.append(len(x)) or encode(w, x, c)
    )
    monkeypatch.setattr(
        codec_module, "_decode", lambda w, x, c: ran.append(len(x)) or decode(w, x, c)
    )
    frames = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
    codes = codec.encode(frames)
    pixels = codec.decode(codes)
    last = min(size for size in BATCH_SIZES if size >= (count - 1) % BATCH + 1)
    assert ran == 2 * [*[BATCH] * ((count - 1) // BATCH), last]
    floats = frames / np.float32(127.5) - 1
    one = jax.jit(vqgan.encode, static_argnums=2)
    alone = [np.asarray(one(codec.weights, x[None], TINY)).ravel() for x in floats]
    assert np.array_equal(codes, alone)
    one = jax.jit(vqgan.decode, static_argnums=2)
    shown = [one(codec.weights, x.reshape(1, TINY.side, TINY.side), TINY)[0] for x in codes]
    # Half a step of a byte, and the rounding of float32.
    assert np.abs(pixels - (np.array(shown) + 1) * 127.5).max() < 0.501


def test_tiles_that_are_equal_are_encoded_once_and_have_the_codes_of_whole_frames(
    codec: Codec, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, ran = Codec(replace(TINY, tiles=True), codec.weights), list[int]()
    encode = codec_module._encode
    monkeypatch.setattr(
        codec_module, "_encode", lambda w, x, c: ran.append(len(x)) or encode(w, x, c)
    )
    few = rng.integers(0, 256, (5, 2, 2, 3), np.uint8)
    frames = few[rng.integers(5, size=(9, 8, 8))].swapaxes(2, 3).reshape(9, 16, 16, 3)
    codes = tiles.encode(frames)
    assert ran == [8], "the five tiles, in the batch that holds them"
    whole = jax.jit(vqgan.encode, static_argnums=2)
    alone = whole(codec.weights, frames / np.float32(127.5) - 1, tiles.config)
    assert np.array_equal(codes, np.asarray(alone).reshape(9, -1))
    assert len(np.unique(codes)) > 1
