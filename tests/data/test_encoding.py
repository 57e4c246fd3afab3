"""A film becomes codes batch by batch, in memory that its length does not change."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from painted import film, numbers

from ringworld.data.corpora.encoding import EncodedMedia, Encoder, Media, stream_frames
from ringworld.data.example import frames, join, text
from ringworld.errors import InputError
from ringworld.media.clip import read_clip, stream_clip
from ringworld.media.codec import BATCH, Codec
from ringworld.media.sampling import FrameSampling
from ringworld.media.sandbox import MediaLimits
from ringworld.models.vqgan import VQGAN, vqgan_specs
from ringworld.params import init
from ringworld.vocab import LWM_VOCABULARY

TINY = VQGAN(size=32, channels=8, multipliers=(1, 2), blocks=1, groups=4, codebook=16, width=8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(TINY, jax.jit(lambda: init(vqgan_specs(TINY), 0))())


def media(source: Path | bytes, fps: float = 1.0, start: float = 0.0) -> Media:
    """A film and the rate at which its frames are taken."""
    return Media(source=source, still=False, sampling=FrameSampling(fps=fps, video_start=start))


def test_films_have_the_codes_of_their_frames_and_their_times(tmp_path, codec):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(BATCH + 9)])
    encoder, made = Encoder(codec), list[EncodedMedia]()
    for start in (0.2, 3.0):
        made.append(encoder.add(media(path, fps=10.0, start=start)))
    assert [one.is_complete for one in made] == [False, False]
    encoder.flush()
    for one, start in zip(made, (0.2, 3.0), strict=True):
        clip = read_clip(path, FrameSampling(fps=10.0, video_start=start), size=TINY.size)
        assert np.array_equal(one.codes, codec.encode(clip.frames))
        assert one.moments == clip.seconds.tolist()


def test_a_film_that_breaks_off_is_refused_though_batches_were_encoded(tmp_path, codec):
    noise = np.random.default_rng(0).integers(0, 255, (200, 32, 32, 3), np.uint8)
    path = film(tmp_path / "film.mkv", [k / 10 for k in range(200)], picture=noise.__getitem__)
    content, encoder = path.read_bytes(), Encoder(codec)
    with pytest.raises(InputError, match="is cut short"):
        encoder.add(media(content[: len(content) * 3 // 4], fps=10.0))
    whole = encoder.add(media(content))
    encoder.flush()
    assert np.array_equal(
        whole.codes, codec.encode(read_clip(content, FrameSampling(fps=1.0), size=32).frames)
    )


class Uncoded(Codec):
    """A codec that takes no memory."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return np.zeros((len(pixels), 1), np.int32)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path, codec):
    path = film(tmp_path / "film.mp4", [float(k) for k in range(400)])
    side = 256

    def peak(rate: float) -> tuple[int, int]:
        encoder = Encoder(Uncoded(replace(TINY, size=side), codec.weights))
        tracemalloc.start()
        footage = encoder.add(media(path, fps=rate))
        encoder.flush()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return len(footage.codes), most

    (few, short), (many, long) = peak(0.2), peak(10.0)
    assert few == 80 and many == pytest.approx(4000, abs=10)
    # A batch, its copy for the codec and two frames on their way; a tenth for lists and paths.
    assert max(short, long) < 1.1 * (2 * BATCH + 2) * side * side * 3
    limits = MediaLimits(memory=300 << 20, threads=1)  # of which its programs fill 130
    seen = sum(1 for _ in stream_clip(path, FrameSampling(fps=10.0), size=side, limits=limits))
    assert seen == many and many * side * side * 3 > 2 * limits.memory


@pytest.mark.slow
def test_an_hour_at_one_frame_a_second_is_one_document_of_a_million_tokens(tmp_path, codec):
    path = film(
        tmp_path / "film.mp4", [float(k) for k in range(3600)], coding={"preset": "ultrafast"}
    )
    seen = [n for _, pixels in stream_frames(media(path), 32) for n in numbers(pixels[None])]
    assert seen == list(range(3600))
    encoder = Encoder(codec)
    coded = encoder.add(media(path))
    encoder.flush()
    assert coded.moments == [float(k) for k in range(3600)]
    assert np.array_equal(
        coded.codes[[77]],
        codec.encode(
            read_clip(
                path, FrameSampling(fps=1.0, video_start=77.0, video_end=78.0), size=32
            ).frames
        ),
    )
    whole = join([text([0] * 3, 0.0), frames(coded.codes, LWM_VOCABULARY, 1.0), text([0] * 3, 0.0)])
    assert len(whole) == 925_206
