"""A film becomes codes batch by batch, in memory that its length does not change."""

import tracemalloc

import jax
import numpy as np
import pytest
from painted import film, numbers

from ringworld.data.codec import BATCH, Codec
from ringworld.data.example import frames, join, text
from ringworld.data.film import encode_film, stream_batches
from ringworld.data.media import read_clip
from ringworld.data.pick import Pick
from ringworld.data.sandbox import MediaLimits
from ringworld.errors import InputError
from ringworld.models.vqgan import VQGAN, specs
from ringworld.params import init
from ringworld.vocab import LWM

TINY = VQGAN(size=32, channels=8, multipliers=(1, 2), blocks=1, groups=4, codebook=16, width=8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(TINY, jax.jit(lambda: init(specs(TINY), 0))())


def test_a_film_has_the_codes_of_its_frames_and_their_times(tmp_path, codec):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(BATCH + 9)])
    pick, heard = Pick(start=0.2), []
    coded = encode_film(path, codec, pick, on_frame=lambda at, length: heard.append((at, length)))
    clip = read_clip(path, pick, size=TINY.size)
    assert np.array_equal(coded.codes, codec.encode(clip.frames))
    assert np.array_equal(coded.seconds, clip.seconds)
    assert [at for at, _ in heard] == [clip.seconds[BATCH - 1], clip.seconds[-1]]
    assert all(length == pytest.approx(7.3, abs=0.1) for _, length in heard)


def test_a_film_that_breaks_off_is_refused_though_batches_were_encoded(tmp_path, codec):
    noise = np.random.default_rng(0).integers(0, 255, (200, 32, 32, 3), np.uint8)
    path = film(tmp_path / "film.mkv", [k / 10 for k in range(200)], picture=noise.__getitem__)
    content = path.read_bytes()
    with pytest.raises(InputError, match="is cut short"):
        encode_film(content[: len(content) * 3 // 4], codec, Pick())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path):
    path = film(tmp_path / "film.mp4", [float(k) for k in range(400)])
    limits = MediaLimits(memory=300 << 20, threads=1)  # of which its programs fill 130

    def peak(rate: float) -> tuple[int, int]:
        tracemalloc.start()
        batches = stream_batches(path, Pick(fps=rate), size=256, count=8, limits=limits)
        count = sum(len(batch.seconds) for batch in batches)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, most

    (few, short), (many, long) = peak(0.1), peak(10.0)
    assert few == 40 and many == pytest.approx(4000, abs=10)
    assert many * 256 * 256 * 3 > 2 * limits.memory
    # Two batches and two frames on their way; a tenth for lists and paths.
    assert max(short, long) < 1.1 * (2 * 8 + 2) * 256 * 256 * 3
    assert long < 1.1 * short


@pytest.mark.slow
def test_an_hour_at_one_frame_a_second_is_one_document_of_a_million_tokens(tmp_path, codec):
    path = film(
        tmp_path / "film.mp4", [float(k) for k in range(3600)], coding={"preset": "ultrafast"}
    )
    seen = [
        n for batch in stream_batches(path, Pick(fps=1.0), size=32) for n in numbers(batch.frames)
    ]
    assert seen == list(range(3600))
    coded = encode_film(path, codec, Pick(fps=1.0))
    assert np.array_equal(coded.seconds, np.arange(3600.0))
    assert np.array_equal(
        coded.codes[[77]],
        codec.encode(read_clip(path, Pick(fps=1.0, start=77.0, end=78.0), size=32).frames),
    )
    whole = join([text([0] * 3, 0.0), frames(coded.codes, LWM, 1.0), text([0] * 3, 0.0)])
    assert len(whole) == 925_206
