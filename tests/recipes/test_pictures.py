"""A folder of films and pictures: decoded once, in order, and windows of it by seed and step."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringworld.errors import InputError
from ringworld.files import alone_in
from ringworld.media.clip import read_clip, write_animation
from ringworld.media.sampling import FrameSampling
from ringworld.recipes import pictures
from ringworld.recipes.pictures import (
    Pictures,
    Windows,
    choose_held,
    find_media,
    middles,
    picture_batches,
    read_folder,
)
from ringworld.recipes.pixels import to_bytes

WINDOWS = Windows(rows=16, columns=20, batch=4)
STILLS = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and a film of five seconds, in folders, beside what is neither."""
    folder = tmp_path / "folder"
    (folder / "b" / ".hidden").mkdir(parents=True)
    for name, still in zip(("a.png", "b/c.PNG", "z.webp"), STILLS, strict=True):
        Image.fromarray(still).save(folder / name, lossless=True)
    scenes = np.random.default_rng(1).integers(0, 256, (5, 4, 5, 3), np.uint8)
    write_animation(folder / "b" / "film.mp4", scenes.repeat(4, axis=1).repeat(4, axis=2), 1.0)
    (folder / "notes.txt").write_text("not media")
    (folder / "b" / ".hidden" / "d.png").write_bytes(b"not looked at")
    return folder


def read(folder: Path, cache: Path, windows: Windows = WINDOWS) -> Pictures:
    """The folder, read in silence."""
    return read_folder(folder, windows, cache, lambda said: None)


def test_films_and_pictures_are_found_in_the_order_of_their_paths(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in find_media(folder)]
    assert names == ["a.png", "b/c.PNG", "b/film.mp4", "z.webp"]


def test_frames_are_those_of_the_files_and_are_decoded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(folder, tmp_path / "cache")
    film = read_clip(folder / "b" / "film.mp4", FrameSampling(fps=1.0), size=16, columns=20).frames
    wanted = np.concatenate([STILLS[:2], film, STILLS[2:]])
    np.testing.assert_array_equal(found.frames, wanted)
    assert isinstance(found.frames, np.memmap)
    assert found.held.tolist() == [0, 6]
    assert found.learned.tolist() == [1, 2, 3, 4, 5, 7]

    monkeypatch.setattr(pictures, "stream_files", None)
    again = read(tmp_path / "gone", tmp_path / "cache")
    np.testing.assert_array_equal(again.frames, wanted)


def test_of_a_film_the_picked_moments_are_taken(folder: Path, tmp_path: Path) -> None:
    windows = replace(WINDOWS, sampling=FrameSampling(num_frames=2))
    assert len(read(folder, tmp_path / "cache", windows).frames) == 3 + 2


def test_decoding_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(folder, tmp_path / "whole")
    stream = pictures.stream_clip

    def stopped(*given: object, **named: object) -> Iterator[tuple[float, np.ndarray]]:
        frames = stream(*given, **named)
        yield next(frames)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pictures, "stream_clip", stopped)
        read(folder, tmp_path / "cache")
    journal = tmp_path / "cache" / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('{"name": "b/fi')  # as a kill leaves it
    again = read(folder, tmp_path / "cache")
    np.testing.assert_array_equal(again.frames, whole.frames)
    for name in ("frames.bin", "journal.jsonl", "pictures.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_memory_does_not_grow_with_the_film(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(*given: object, **named: object) -> Iterator[tuple[float, np.ndarray]]:
        return ((float(n), np.full((16, 20, 3), n % 256, np.uint8)) for n in range(20_000))

    monkeypatch.setattr(pictures, "stream_clip", long)
    tracemalloc.start()
    found = read(folder, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.frames.nbytes > 19e6
    # What else is in memory: three decoded pictures, and the places of 20,003 frames a few times.
    assert peak < 4e6


def test_a_file_that_cannot_be_read_is_refused_or_left_out_as_allowed(
    folder: Path, tmp_path: Path
) -> None:
    content = (folder / "b" / "film.mp4").read_bytes()
    (folder / "b" / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "bad.png").write_bytes(b"no picture at all")
    with pytest.raises(InputError, match="cut.mp4 .*windows.may_skip from 0"):
        read(folder, tmp_path / "cache")
    with pytest.raises(InputError, match="bad.png .*windows.may_skip from 1"):
        read(folder, tmp_path / "cache", replace(WINDOWS, may_skip=1))
    said: list[str] = []
    cache = tmp_path / "lenient"
    found = read_folder(folder, replace(WINDOWS, may_skip=2), cache, said.append)
    assert len(found.frames) == 8
    assert [line.split()[2] for line in said if "left out" in line] == ["cut.mp4", "bad.png"]
    note = json.loads((cache / "pictures.json").read_text())
    assert note["skipped"] == ["b/cut.mp4", "bad.png"]


def test_frames_cut_short_on_the_disk_are_refused(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "cache")
    with (tmp_path / "cache" / "frames.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match="has 100 bytes"):
        read(folder, tmp_path / "cache")


def test_one_process_at_a_time_decodes_into_a_folder(folder: Path, tmp_path: Path) -> None:
    with alone_in(tmp_path / "cache"), pytest.raises(InputError, match="another run"):
        read(folder, tmp_path / "cache")
    assert len(read(folder, tmp_path / "cache").frames) == 8


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        find_media(tmp_path / "nowhere")
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(InputError, match="no film and no picture"):
        find_media(tmp_path)
    Image.fromarray(STILLS[0]).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="gives 1 frames"):
        read(tmp_path, tmp_path / "cache")
    with pytest.raises(InputError, match="at least one"):
        replace(WINDOWS, batch=0)
    with pytest.raises(InputError, match="may_skip"):
        replace(WINDOWS, may_skip=-1)


def test_ends_of_films_and_one_picture_in_twenty_are_held_out() -> None:
    assert choose_held([1] * 41).tolist() == [0, 20, 40]
    assert choose_held([40]).tolist() == [38, 39]
    assert choose_held([1, 0, 2, 1, 21]).tolist() == [0, 2, 23, 24]


def test_a_window_is_a_function_of_seed_step_and_place() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (6, 16, 20, 3), np.uint8)
    some = Pictures(frames, np.arange(5), np.asarray([5]))
    batches = picture_batches(some, WINDOWS, 16)
    first = batches(3)
    batches(4)
    np.testing.assert_array_equal(batches(3), first)
    fewer = picture_batches(some, replace(WINDOWS, batch=2), 16)
    np.testing.assert_array_equal(fewer(3), first[:2])
    assert (batches(4) != first).any()
    assert (picture_batches(some, replace(WINDOWS, seed=1), 16)(3) != first).any()
    assert len({picture.tobytes() for picture in first}) > 1

    windows = {frames[z, :, x : x + 16].tobytes(): False for z in range(5) for x in range(5)}
    windows |= {
        frames[z, :, x : x + 16][:, ::-1].tobytes(): True for z in range(5) for x in range(5)
    }
    drawn = [windows[w.tobytes()] for step in range(10) for w in to_bytes(batches(step))]
    assert 10 < sum(drawn) < 30  # of 40, mirrored


def test_held_out_frames_are_shown_in_their_middle() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (6, 16, 20, 3), np.uint8)
    some = Pictures(frames, np.arange(1), np.arange(1, 6))
    np.testing.assert_array_equal(middles(some, 16, 3), frames[[1, 3, 5], :, 2:18])
    assert len(middles(some, 16, 100)) == 5
