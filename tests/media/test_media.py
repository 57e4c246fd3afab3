"""Films and pictures come in through one door, with true times, or are refused in one sentence."""

import io
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import SIDE, film, numbers, paint, song
from PIL import Image

from ringworld.errors import InputError
from ringworld.media import sandbox
from ringworld.media.clip import (
    read_clip,
    read_image,
    stream_clip,
    write_animation,
)
from ringworld.media.sampling import FrameSampling
from ringworld.media.sandbox import UNTRUSTED, MediaLimits

SIZE = 32


def refusal(
    source: str | Path | bytes,
    *,
    fps: float = 2.0,
    start: float = 0.0,
    size: int = SIZE,
    **asked: Any,
) -> str:
    """The sentence with which a film is refused; it tells nothing of our insides."""
    with pytest.raises(InputError) as caught:
        read_clip(source, FrameSampling(fps=fps, video_start=start), size=size, **asked)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not any(leak in sentence for leak in ("0x", "Traceback", "Errno", "\n", "decoder-"))
    return sentence


def fork_server() -> int:
    """The process id of the fork server, which is started by the call if none runs."""
    with Image.new("RGB", (1, 1)) as picture, io.BytesIO() as file:
        picture.save(file, "PNG")
        read_image(file.getvalue(), size=1)
    assert sandbox.FORK_SERVER.current is not None
    return sandbox.FORK_SERVER.current.process.pid


def decoders() -> list[int]:
    """The decoders that are at work."""
    pid = fork_server()
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


UNEVEN = [0.0, 0.1, 0.15, 0.7, 1.3, 1.35, 1.4, 2.6, 2.7, 4.0, 4.1]
EVEN = [k / 10 for k in range(40)]
# Three frames in four are coded after a later one, and groups refer to their neighbours.
REORDERED = {"bf": "3", "x264-params": "bframes=3:b-adapt=0:scenecut=0:open-gop=1:log-level=-1"}
HEVC = {"x265-params": "bframes=3:b-adapt=0:scenecut=0:keyint=8:open-gop=1:log-level=none"}
FILMS = [
    ("film.mkv", UNEVEN, {"coding": REORDERED}),
    ("film.mp4", UNEVEN, {"coding": REORDERED}),
    ("even.mp4", EVEN, {"coding": REORDERED}),
    ("hevc.mp4", EVEN, {"codec": "libx265", "coding": HEVC}),
    ("late.mkv", [5 + t for t in UNEVEN], {"coding": REORDERED}),
    ("late.mp4", [5 + t for t in UNEVEN], {"coding": REORDERED}),
    ("after_sound.mp4", [2 + t for t in EVEN], {"coding": REORDERED, "sound": 6.0}),
    ("film.webm", UNEVEN, {"codec": "libvpx-vp9", "coding": {"deadline": "realtime"}}),
    ("film.avi", EVEN, {"codec": "mpeg4", "coding": {"bf": "2"}, "clock": Fraction(1, 10)}),
]
SAMPLINGS = [
    FrameSampling(fps=None),
    FrameSampling(fps=None, video_start=1.32, video_end=2.7),
    FrameSampling(fps=1.0, video_end=4.0),
    FrameSampling(fps=5.0, video_start=1.85, video_end=3.0),
    FrameSampling(num_frames=7, video_end=3.5),
    FrameSampling(num_frames=3, video_start=1.0, video_end=2.0),
    FrameSampling(fps=1.0, min_frames=6, video_end=3.9),
    FrameSampling(fps=10.0, max_frames=5, video_start=0.2, video_end=3.7),
    FrameSampling(fps=3.0, min_frames=2, max_frames=50, video_end=3.5),
    FrameSampling(num_frames=40, max_frames=6, video_end=3.7),
    FrameSampling(num_frames=2, min_frames=5, video_end=3.9),
]


def on_screen(times: list[float], sampling: FrameSampling) -> list[int]:
    """The frames that the definition of `FrameSampling` takes of these, in exact milliseconds."""
    stamps = [round(1000 * (t - times[0])) for t in times]
    # A float that says 2.7 is a little more than that: what is meant is what is written.
    start, end = (
        Fraction(str(moment)) * 1000
        for moment in (sampling.video_start, sampling.video_end or times[-1] - times[0] + 1)
    )
    if sampling.fps is None and sampling.num_frames is None:
        leaves = [*stamps[1:], stamps[-1] + 1]
        return [n for n, t in enumerate(stamps) if t < end and leaves[n] > start]
    natural = sampling.num_frames or -((start - end) * Fraction(sampling.fps) // 1000)
    count = max(min(natural, sampling.max_frames or natural), sampling.min_frames or 1)
    step = (end - start) / count
    if sampling.num_frames is None and count == natural:
        step = 1000 / Fraction(sampling.fps)
    moments = [start + k * step + Fraction(1, 2) for k in range(count)]
    return [sum(stamp <= moment for stamp in stamps) - 1 for moment in moments]


@pytest.mark.parametrize(("name", "times", "made"), FILMS, ids=[f[0] for f in FILMS])
def test_timestamps_are_the_containers_own_in_a_film_of_uneven_rate(tmp_path, name, times, made):
    path = film(tmp_path / name, times, **made)
    for sampling in SAMPLINGS:
        clip = read_clip(path, sampling, size=SIZE)
        taken = on_screen(times, sampling)
        assert numbers(clip.frames) == taken, sampling
        # Containers round to milliseconds or finer.
        expected = [times[n] - times[0] for n in taken]
        assert clip.seconds.tolist() == pytest.approx(expected, abs=1e-3), sampling
    assert clip.frames.shape[1:] == (SIZE, SIZE, 3)
    assert clip.frames.dtype == np.uint8


def test_the_length_of_a_film_bounds_what_no_end_was_asked_of(tmp_path):
    path = film(tmp_path / "film.mp4", EVEN)
    assert numbers(read_clip(path, FrameSampling(num_frames=4), size=SIZE).frames) == [
        0,
        10,
        20,
        30,
    ]
    every = read_clip(path, FrameSampling(fps=20.0, max_frames=40), size=SIZE)
    assert numbers(every.frames) == list(range(40))
    last = read_clip(path, FrameSampling(num_frames=3, video_start=3.7), size=SIZE)
    assert numbers(last.frames) == [37, 38, 39]


def test_an_edit_list_that_skips_the_beginning_is_obeyed(tmp_path):
    content = film(tmp_path / "film.mp4", EVEN, coding=REORDERED).read_bytes()
    place = content.index(b"elst") + 12
    length, begin = struct.unpack(">Ii", content[place : place + 8])
    clock = struct.unpack(">I", content[content.index(b"mdhd") + 16 :][:4])[0]
    edit = struct.pack(">Ii", length - 1200, begin + clock * 12 // 10)
    edited = content[:place] + edit + content[place + 8 :]
    clip = read_clip(edited, FrameSampling(fps=None), size=SIZE)
    assert numbers(clip.frames) == list(range(12, 40))
    assert clip.seconds[0] == 0
    part = read_clip(edited, FrameSampling(fps=5.0, video_start=0.5, video_end=1.5), size=SIZE)
    assert numbers(part.frames) == [17, 19, 21, 23, 25]


def test_the_native_rate_gives_every_frame_once_though_the_clock_rounds(tmp_path):
    path = film(tmp_path / "film.mkv", [k / 30 for k in range(36)])
    assert numbers(read_clip(path, FrameSampling(fps=30.0), size=SIZE).frames) == list(range(36))


@pytest.mark.parametrize(
    ("name", "rate", "made"),
    [
        ("film.mkv", Fraction(30), {}),
        ("film.mp4", Fraction(24), {"clock": Fraction(1, 24)}),
        ("odd.mkv", Fraction(30000, 1001), {}),
    ],
)
def test_a_part_has_the_frame_at_its_start_and_not_the_one_at_its_end(tmp_path, name, rate, made):
    times = [float(k / rate) for k in range(31)]
    path = film(tmp_path / name, times, **made)
    whole = list(range(math.ceil(rate)))
    # Matroska's milliseconds put a third of these frames before their time and a third after it.
    for k, fps in product((1, 2, 3, 11, 22, 23), (None, float(rate))):
        before, after = (
            FrameSampling(fps=fps, video_end=times[k]),
            FrameSampling(fps=fps, video_start=times[k], video_end=1.0),
        )
        taken = [numbers(read_clip(path, part, size=SIZE).frames) for part in (before, after)]
        assert taken == [whole[:k], whole[k:]], (k, fps)


def test_a_part_shorter_than_a_tick_is_the_frame_on_the_screen(tmp_path):
    path = film(tmp_path / "film.mkv", EVEN)
    for asked in ({"fps": None}, {"fps": 1.0}, {"num_frames": 1}):
        sampling = FrameSampling(video_start=1.0, video_end=1.0002, **asked)
        assert numbers(read_clip(path, sampling, size=SIZE).frames) == [10], asked


def test_a_part_of_a_film_is_that_part_of_the_whole(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(40)])
    whole = read_clip(path, FrameSampling(fps=5.0), size=SIZE)
    part = read_clip(path, FrameSampling(fps=5.0, video_start=1.8, video_end=3.0), size=SIZE)
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
    assert numbers(read_clip(path, FrameSampling(fps=3.0), size=SIZE).frames)[:2] == [0, 1]
    path.write_bytes(path.read_bytes()[:-40])
    assert "cut short" in refusal(path)


def test_what_is_no_film_is_named_as_such(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("It was the best of times, it was the worst of times. " * 99)
    assert "is neither a film nor a picture" in refusal(text)
    assert "ffmpeg -i FILM NEW.mp4" in refusal(text)
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
    assert "no picture track" in refusal(song(tmp_path / "song.mp4"))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"bytes": 100}, "too large"),
        ({"pixels": SIDE * SIDE - 1}, "frames of more than 4,095 pixels"),
        ({"frames": 3}, "more than 3 frames"),
        ({"seconds": 1.0}, "lasts longer than 1 s"),
        ({"timeout": 1e-4}, "stood still for 0.0001 s"),
        ({"memory": 64 << 20}, "needs more"),
    ],
)
def test_every_limit_is_kept(tmp_path, limits, words):
    path = film(tmp_path / "film.mkv", [k / 10 for k in range(30)])
    assert words in refusal(path, limits=MediaLimits(**limits))


def test_a_decoder_that_stands_still_is_given_up(tmp_path, monkeypatch):
    path = film(tmp_path / "film.mkv", [k / 10 for k in range(30)])
    start = sandbox.FORK_SERVER.start_decoder

    def start_and_stop(*asked: Any) -> tuple[sandbox.ForkServer, int]:
        server, process = start(*asked)
        os.kill(process, signal.SIGSTOP)
        return server, process

    monkeypatch.setattr(sandbox.FORK_SERVER, "start_decoder", start_and_stop)
    assert "stood still for 0.5 s" in refusal(path, limits=MediaLimits(timeout=0.5))


def test_a_decoder_that_computes_is_waited_for_as_it_does(monkeypatch):
    """Each look finds it further; time to wait comes of what it has computed since the last."""
    computed = iter([0.1, 0.25, 0.25])
    monkeypatch.setattr(sandbox, "count_processor_seconds", lambda process: next(computed))
    pipe, theirs = os.pipe()
    server = sandbox.ForkServer.__new__(sandbox.ForkServer)  # of which nothing is asked
    output = sandbox.DecoderOutput(server, 0, pipe, 0.01)
    monkeypatch.setattr(sandbox, "SMALLEST_SHARE", 0.2)
    begun = time.monotonic()
    assert len(output.read(1)) == 0 and output.diagnose() == "time"
    assert next(computed, None) is None
    assert time.monotonic() - begun >= 0.01 + 0.2 * 0.25
    os.close(pipe)
    os.close(theirs)


def test_what_a_process_computes_is_counted():
    before, own = sandbox.count_processor_seconds(os.getpid()), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    # The system counts in hundredths, and other threads of the tests may compute too.
    assert sandbox.count_processor_seconds(os.getpid()) - before >= 0.18
    assert sandbox.count_processor_seconds(1 << 30) == 0


def test_a_longer_part_of_a_film_may_compute_longer(tmp_path):
    path = film(tmp_path / "film.mp4", [float(k) for k in range(41)])
    limits = replace(UNTRUSTED, processor=2, pace=0.25, seconds=100.0)
    for end in (8.0, 20.0):
        stream = stream_clip(path, FrameSampling(fps=50.0, video_end=end), size=512, limits=limits)
        next(stream)
        (decoder,) = decoders()
        limits_kept = Path(f"/proc/{decoder}/limits").read_text()
        [kept] = re.findall(r"Max cpu time +(.*?) +seconds", limits_kept)
        assert kept.split() == [str(2 + int(end / 4)), str(2 + 25 + 1)]
        stream.close()


def test_too_many_frames_are_refused_before_they_are_decoded(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    stream = stream_clip(path, FrameSampling(fps=1000.0), size=SIZE, limits=MediaLimits(frames=50))
    with pytest.raises(InputError, match="lower the frame rate"):
        next(stream)


@pytest.mark.parametrize(
    "asked",
    [
        {"fps": 0.0},
        {"fps": float("nan")},
        {"video_start": -1.0},
        {"video_start": float("nan")},
        {"video_end": 0.0},
        {"video_start": 2.0, "video_end": 1.0},
        {"video_end": float("inf")},
        {"num_frames": 0},
        {"fps": None, "max_frames": 3},
        {"num_frames": 2, "min_frames": 3, "max_frames": 2},
        {"fps": 1.0, "min_frames": 3, "max_frames": 2},
    ],
)
def test_a_frame_sampling_without_meaning_is_refused(asked):
    with pytest.raises(InputError):
        FrameSampling(**asked)


def test_a_size_without_meaning_is_refused(tmp_path):
    for size in (0, 5000):
        assert "frame size" in refusal(tmp_path / "never_opened.mp4", size=size)


def test_a_confined_process_cannot_open_write_or_connect():
    tries = """
import importlib.util, os, socket, sys
spec = importlib.util.spec_from_file_location("forkserver", sys.argv[1])
forkserver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forkserver)
forkserver.load_decoder().confine(memory=512 << 20, cpu_seconds=5, most_cpu_seconds=5)
deeds = [
    lambda: open("/etc/hostname"),
    lambda: os.open(".", os.O_RDONLY),
    lambda: socket.socket(),
    lambda: os.pipe(),
    lambda: bytearray(1 << 30),
]
for deed in deeds:
    try:
        deed()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""
    program = sandbox.PROGRAM
    done = subprocess.run(
        [sys.executable, "-I", "-c", tries, str(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["OSError"] * 4 + ["MemoryError"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_by_its_exif(orientation):
    upright = Image.fromarray(paint(0b0001_0011_0111_0010))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it, as a transposition
    held = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        held.save(file, kind, exif=exif)
        clip = read_clip(file.getvalue(), FrameSampling(num_frames=5), size=SIZE)
        assert numbers(clip.frames) == [0b0001_0011_0111_0010], kind
        assert clip.seconds.tolist() == [0.0]


@pytest.mark.parametrize(("high", "wide"), [(90, 37), (37, 90), (64, 64), (100, 41), (257, 255)])
def test_a_picture_is_resized_and_cut_as_lwm_does(rng, high, wide):
    picture = Image.fromarray(rng.integers(0, 256, (high, wide, 3), np.uint8))
    scale = SIZE / min(high, wide)
    larger = picture.resize((max(SIZE, int(wide * scale)), max(SIZE, int(high * scale))))
    left, top = round((larger.width - SIZE) / 2), round((larger.height - SIZE) / 2)
    expected = np.asarray(larger.crop((left, top, left + SIZE, top + SIZE)))
    file = io.BytesIO()
    picture.save(file, "PNG")
    assert np.array_equal(read_image(file.getvalue(), size=SIZE), expected)


def test_damaged_films_end_in_frames_or_one_sentence(tmp_path):
    whole = film(tmp_path / "film.mkv", [k / 10 for k in range(30)]).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(8):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 40):
            content[place] = int(rng.integers(256))
        try:
            clip = read_clip(bytes(content), FrameSampling(fps=2.0), size=SIZE)
            assert (np.diff(clip.seconds) >= 0).all()
        except InputError as error:
            assert str(error).startswith("The file ")


def test_a_killed_decoder_is_one_sentence_and_an_unwanted_one_ends(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    assert decoders() == []
    stream = stream_clip(path, FrameSampling(fps=1000.0), size=512)
    next(stream)
    (decoder,) = decoders()
    os.kill(decoder, signal.SIGKILL)
    with pytest.raises(InputError, match="is damaged"):
        for _ in stream:
            pass
    other = stream_clip(path, FrameSampling(fps=1000.0), size=512)
    next(other)
    assert len(decoders()) == 1
    other.close()
    assert decoders() == []


def test_every_file_has_a_process_of_its_own(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    streams = [stream_clip(path, FrameSampling(fps=1000.0), size=256) for _ in range(3)]
    first = [next(stream)[1].tolist() for stream in streams]
    assert first[0] == first[1] == first[2] and len(set(decoders())) == 3
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for pid in decoders() for fd in (0, 1, 2)]
    assert held == [str(path), os.devnull, os.devnull] * 3
    for stream in streams:
        stream.close()


def test_a_killed_fork_server_spoils_the_films_that_are_read_and_no_other(tmp_path):
    path = film(tmp_path / "film.mp4", EVEN)
    whole = read_clip(path, FrameSampling(fps=None), size=SIZE)
    stream = stream_clip(path, FrameSampling(fps=1000.0), size=512)
    next(stream)
    (decoder,), before = decoders(), fork_server()
    os.kill(before, signal.SIGKILL)
    os.kill(decoder, signal.SIGKILL)
    with pytest.raises(InputError, match="is damaged"):
        for _ in stream:
            pass
    again = read_clip(path, FrameSampling(fps=None), size=SIZE)
    assert np.array_equal(again.frames, whole.frames) and fork_server() != before


def test_a_fork_server_ends_with_who_started_it():
    program = (
        "import io, os; from PIL import Image; from ringworld.media import clip, sandbox; "
        "file = io.BytesIO(); Image.new('RGB', (1, 1)).save(file, 'PNG'); "
        "clip.read_image(file.getvalue(), size=1); "
        "print(sandbox.FORK_SERVER.current.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    ended, until = Path(f"/proc/{done.stdout.strip()}"), time.monotonic() + 60
    while ended.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not ended.exists()


def test_time_spent_on_the_frames_is_not_the_decoders(tmp_path, monkeypatch):
    path = film(tmp_path / "film.mp4", EVEN)
    stream = stream_clip(path, FrameSampling(fps=None), size=256, limits=MediaLimits(timeout=600.0))
    spent = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(sandbox.time, "monotonic", lambda: clock() + sum(spent))
    for _ in stream:
        spent.append(601.0)
    assert len(spent) == 1 + len(EVEN)


def test_the_centre_is_kept_and_the_shorter_side_fits(tmp_path):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, 24:72] = 255
    path = film(tmp_path / "film.mkv", [0.0, 0.5], picture=lambda _: picture)
    frame = read_clip(path, FrameSampling(fps=1.0), size=48).frames[0]
    assert frame[:, 2:-2].min() > 200
    whole = read_clip(path, FrameSampling(fps=1.0), size=24, columns=48).frames[0]
    assert whole.shape == (24, 48, 3)
    assert whole[:, 14:-14].min() > 200 and whole[:, :10].max() < 55
    with pytest.raises(InputError, match="frame size"):
        read_clip(path, FrameSampling(fps=1.0), size=24, columns=0)


def test_a_film_held_sideways_is_turned_upright(tmp_path):
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:24] = 255
    path = film(tmp_path / "film.mp4", [0.0, 0.5], picture=lambda _: picture)
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(upright, content.index(b"tkhd"))
    turned = content[:place] + clockwise + content[place + len(upright) :]
    frame = read_clip(turned, FrameSampling(fps=1.0), size=48).frames[0]
    assert frame[:, 30:].min() > 200
    assert frame[:, :18].max() < 55


def test_a_caller_hears_how_far_the_reading_is(tmp_path):
    path = film(tmp_path / "film.mp4", [k / 10 for k in range(30)])
    heard: list[tuple[float, float]] = []
    read_clip(
        path,
        FrameSampling(fps=1.0),
        size=SIZE,
        on_frame=lambda at, length: heard.append((at, length)),
    )
    assert [at for at, _ in heard] == [0.0, 1.0, 2.0]
    assert all(length == pytest.approx(3.0, abs=0.15) for _, length in heard)


def test_a_picture_comes_through_the_same_door(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(paint(9)).save(path)
    assert numbers(read_image(path, size=SIZE)[None]) == [9]
    with pytest.raises(InputError, match="more than 100 pixels"):
        read_image(path, size=SIZE, limits=MediaLimits(picture_pixels=100))
    with pytest.raises(InputError, match="is cut short"):
        read_image(path.read_bytes()[:60], size=SIZE)
    with pytest.raises(InputError, match="is not a picture"):
        read_image(b"GIF is what this is not", size=SIZE)


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip.webm"])
def test_a_written_animation_reads_back(tmp_path, name):
    frames = np.stack([paint(k, 33) for k in range(6)])
    write_animation(tmp_path / name, frames, 5.0)
    clip = read_clip(tmp_path / name, FrameSampling(fps=5.0), size=SIZE)
    assert clip.seconds.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert numbers(clip.frames) == list(range(6))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_animation_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.gif, \.mp4 or \.webm"):
        write_animation(tmp_path / "clip.png", np.zeros((1, 8, 8, 3), np.uint8), 5.0)
    with pytest.raises(InputError, match="at least one frame"):
        write_animation(tmp_path / "clip.gif", np.zeros((0, 8, 8, 3), np.uint8), 5.0)
    with pytest.raises((TypeError, ValueError)):
        write_animation(tmp_path / "clip.gif", np.zeros((1, 8, 8, 5), np.uint8), 5.0)
    assert list(tmp_path.iterdir()) == []
