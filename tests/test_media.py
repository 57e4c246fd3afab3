"""Films and pictures come in through one door, with true times, or are refused in one sentence."""

import os
import signal
import struct
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ringworld.data.media import (
    read_image,
    read_video,
    stream_clip,
    write_animation,
)
from ringworld.data.pick import Pick
from ringworld.data.sandbox import MediaLimits
from ringworld.errors import InputError

STEP = 6
SIZE = 32


def paint(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A grey frame that carries its number as its brightness."""
    return np.full((height, width, 3), 10 + STEP * number, np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames carry."""
    middle = frames[:, SIZE // 2, SIZE // 2].mean(-1)
    return [round((float(level) - 10) / STEP) for level in middle]


def film(
    path: Path,
    times: list[float],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    picture: Callable[[int], np.ndarray] = paint,
) -> Path:
    """Write numbered frames with these timestamps in seconds, on a clock of milliseconds."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 8
        for number, moment in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def refusal(source: str | Path | bytes, **asked: Any) -> str:
    """The sentence with which a film is refused; it tells nothing of our insides."""
    with pytest.raises(InputError) as caught:
        read_video(source, fps=asked.pop("fps", 2.0), size=asked.pop("size", SIZE), **asked)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not any(leak in sentence for leak in ("0x", "Traceback", "Errno", "\n", "decoder-"))
    return sentence


def children() -> list[int]:
    """The processes that this thread has started and not yet seen end."""
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


UNEVEN = [0.0, 0.1, 0.15, 0.7, 1.3, 1.35, 1.4, 2.6, 2.7, 4.0, 4.1]


@pytest.mark.parametrize("name", ["film.mkv", "film.mp4"])
def test_timestamps_are_the_containers_own_in_a_film_of_uneven_rate(tmp_path, name):
    clip = read_video(film(tmp_path / name, UNEVEN), fps=1.0, size=SIZE)
    assert clip.seconds.tolist() == pytest.approx([0.0, 0.7, 1.4, 2.7, 4.0])
    assert numbers(clip.frames) == [0, 3, 6, 8, 9]
    assert clip.frames.shape == (5, SIZE, SIZE, 3.0)
    assert clip.frames.dtype == np.uint8


def test_the_native_rate_gives_every_frame_once_though_the_clock_rounds(tmp_path):
    path = film(tmp_path / "film.mkv", [k / 30 for k in range(36)])
    assert numbers(read_video(path, fps=30.0, size=SIZE).frames) == list(range(36))


def test_a_part_of_a_film_is_that_part_of_the_whole(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(40)])
    whole = read_video(path, fps=5.0, size=SIZE)
    part = read_video(path, fps=5.0, size=SIZE, start=1.8, end=3.0)
    assert np.array_equal(part.frames, whole.frames[9:15])
    assert np.array_equal(part.seconds, whole.seconds[9:15])


def test_a_start_after_the_end_is_refused(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(10)])
    assert "shorter than the start" in refusal(path, start=9.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("late_index.mp4", {}), ("early_index.mp4", {"movflags": "faststart"}), ("film.mkv", {})],
)
def test_a_truncated_film_is_one_sentence(tmp_path, name, options):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    path = film(
        tmp_path / name, [k / 10 for k in range(30)], options=options, picture=noise.__getitem__
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert refusal(path) == f"{name} is cut short: copy or download it again."


def test_a_truncated_gif_is_refused(tmp_path):
    path = tmp_path / "film.gif"
    write_animation(path, np.stack([paint(k) for k in range(9)]), 3.0)
    assert numbers(read_video(path, fps=3.0, size=SIZE).frames)[:2] == [0, 1]
    path.write_bytes(path.read_bytes()[:-40])
    assert "cut short" in refusal(path)


def test_what_is_no_film_is_named_as_such(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("It was the best of times, it was the worst of times. " * 99)
    assert "is neither a film nor a picture" in refusal(text)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "is empty" in refusal(empty)
    assert "not a regular file" in refusal(tmp_path)
    assert "There is no file" in refusal(tmp_path / "missing.mp4")
    assert "There is no file" in refusal(text / "inside.mp4")


def test_a_playlist_cannot_open_its_neighbours(tmp_path):
    film(tmp_path / "secret.mp4", [k / 10 for k in range(10)])
    playlist = tmp_path / "film.mp4"
    playlist.write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    assert "is neither a film nor a picture" in refusal(playlist)


def test_a_file_of_sound_has_no_pictures(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    assert "no picture track" in refusal(path)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"bytes": 100}, "too large"),
        ({"pixels": 48 * 64 - 1}, "frames of more than 3,071 pixels"),
        ({"frames": 3}, "more than 3 frames"),
        ({"seconds": 1.0}, "lasts longer than 1 s"),
        ({"timeout": 0.01}, "takes longer than 0.01 s"),
        ({"memory": 64 << 20}, "needs more"),
    ],
)
def test_every_limit_is_kept(tmp_path, limits, words):
    path = film(tmp_path / "film.mkv", [k / 10 for k in range(30)])
    assert words in refusal(path, limits=MediaLimits(**limits))


def test_too_many_frames_are_refused_before_they_are_decoded(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    stream = stream_clip(path, Pick(fps=1000.0), size=SIZE, limits=MediaLimits(frames=50))
    with pytest.raises(InputError, match="lower the frame rate"):
        next(stream)


@pytest.mark.parametrize("asked", [{"fps": 0.0}, {"size": 0}, {"start": -1.0}, {"end": 0.0}])
def test_a_request_without_meaning_is_refused(tmp_path, asked):
    refusal(tmp_path / "never_opened.mp4", **asked)


def test_damaged_films_end_in_frames_or_one_sentence(tmp_path):
    whole = film(tmp_path / "film.mkv", [k / 10 for k in range(30)]).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(8):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 40):
            content[place] = int(rng.integers(256))
        try:
            clip = read_video(bytes(content), fps=2.0, size=SIZE)
            assert (np.diff(clip.seconds) >= 0).all()
        except InputError as error:
            assert str(error).startswith("The file ")


def test_a_killed_decoder_is_one_sentence_and_an_unwanted_one_ends(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    stream = stream_clip(path, Pick(fps=1000.0), size=512)
    next(stream)
    (decoder,) = children()
    os.kill(decoder, signal.SIGKILL)
    with pytest.raises(InputError, match="is damaged"):
        for _ in stream:
            pass
    other = stream_clip(path, Pick(fps=1000.0), size=512)
    next(other)
    other.close()
    assert children() == []


def test_time_spent_on_the_frames_is_not_the_decoders(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    limits = MediaLimits(timeout=2.0)
    stream = stream_clip(path, Pick(fps=1000.0), size=256, limits=limits)
    next(stream)
    before = time.monotonic()
    time.sleep(2.2)
    assert sum(1 for _ in stream) > 2000
    assert time.monotonic() - before > limits.timeout


def test_the_centre_is_kept_and_the_shorter_side_fits(tmp_path):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, 24:72] = 255
    path = film(tmp_path / "film.mkv", [0.0, 0.5], picture=lambda _: picture)
    frame = read_video(path, fps=1.0, size=48).frames[0]
    assert frame[:, 2:-2].min() > 200
    whole = read_video(path, fps=1.0, size=24, columns=48).frames[0]
    assert whole.shape == (24, 48, 3)
    assert whole[:, 14:-14].min() > 200 and whole[:, :10].max() < 55
    with pytest.raises(InputError, match="frame size"):
        read_video(path, fps=1.0, size=24, columns=0)


def test_a_film_held_sideways_is_turned_upright(tmp_path):
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:24] = 255
    path = film(tmp_path / "film.mp4", [0.0, 0.5], picture=lambda _: picture)
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(upright, content.index(b"tkhd"))
    turned = content[:place] + clockwise + content[place + len(upright) :]
    frame = read_video(turned, fps=1.0, size=48).frames[0]
    assert frame[:, 30:].min() > 200
    assert frame[:, :18].max() < 55


def test_a_caller_hears_how_far_the_reading_is(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    heard: list[tuple[float, float]] = []
    read_video(path, fps=1.0, size=SIZE, on_frame=lambda at, length: heard.append((at, length)))
    assert [at for at, _ in heard] == [0.0, 1.0, 2.0]
    assert all(length == pytest.approx(3.0, abs=0.15) for _, length in heard)


def test_a_picture_comes_through_the_same_door(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(paint(9)).save(path)
    assert numbers(read_image(path, size=SIZE)[None]) == [9]
    with pytest.raises(InputError, match="more than 100 pixels"):
        read_image(path, size=SIZE, limits=MediaLimits(pixels=100))
    with pytest.raises(InputError, match="is cut short"):
        read_image(path.read_bytes()[:60], size=SIZE)
    with pytest.raises(InputError, match="is not a picture"):
        read_image(b"GIF is what this is not", size=SIZE)


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_a_written_animation_reads_back(tmp_path, name):
    frames = np.stack([paint(k, 33, 33) for k in range(6)])
    write_animation(tmp_path / name, frames, 5.0)
    clip = read_video(tmp_path / name, fps=5.0, size=SIZE)
    assert clip.seconds.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert numbers(clip.frames) == list(range(6))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_animation_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.gif or \.mp4"):
        write_animation(tmp_path / "clip.png", np.zeros((1, 8, 8, 3), np.uint8), 5.0)
    with pytest.raises(InputError, match="at least one frame"):
        write_animation(tmp_path / "clip.gif", np.zeros((0, 8, 8, 3), np.uint8), 5.0)
    with pytest.raises((TypeError, ValueError)):
        write_animation(tmp_path / "clip.gif", np.zeros((1, 8, 8, 5), np.uint8), 5.0)
    assert list(tmp_path.iterdir()) == []
