"""A folder of films and pictures to train a codec on, decoded once into one file on the disk.

    CACHE/frames.bin       the frames, bytes [Z, Y, X, 3], one after the other
    CACHE/journal.jsonl    a line a file: its name, and how many frames it gave
    CACHE/pictures.json    written last: the number of frames, their shape, what was left out

Files are taken in the order of their paths, so the same folder gives the same bytes. A decoding
that was stopped goes on after the last file that is whole. The frames are mapped, never read as a
whole: what is in memory is a batch, and while decoding one frame of a film or `AHEAD` pictures.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ringworld.errors import InputError
from ringworld.files import alone_in, whole, writing_to
from ringworld.media.clip import read_clip, stream_clip
from ringworld.media.sampling import FrameSampling
from ringworld.progress import Announce
from ringworld.recipes.pixels import CodecData, Frames, PictureData, crop, to_unit

STILLS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
FILMS = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".gif",
        ".mpg",
        ".mpeg",
        ".m1v",
        ".m2v",
        ".vob",
        ".ts",
        ".m2ts",
        ".mts",
        ".ogv",
        ".asf",
        ".wmv",
        ".flv",
        ".3gp",
        ".3g2",
        ".rm",
        ".rmvb",
    }
)
AHEAD = 32  # pictures decoded together: each has a process of its own, which takes long to start
# One frame in so many is kept from training, to be drawn and measured.
HELD_ONE_IN = 20
MEASURED = 512  # held-out frames, at most


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which frames are decoded, how large, and what a batch takes of them.

    Of a film the moments of `sampling`; a picture is one frame. Every frame is cut to `rows` x
    `columns` pixels: scaled until it covers them, the middle kept. A batch is `batch` random
    windows of frames, mirrored half of the time. Up to `may_skip` files that cannot be read are
    left out, each with a sentence; one more ends the run.
    """

    rows: int
    """the height of a decoded frame in pixels"""
    columns: int
    """the width of a decoded frame in pixels"""
    batch: int
    """pictures a step"""
    seed: int = 0
    """draws the windows"""
    sampling: FrameSampling = field(default_factory=FrameSampling)
    """which frames of a film are taken"""
    may_skip: int = 0
    """how many files that cannot be read are left out before one ends the run"""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.batch) < 1:
            raise InputError("a batch needs at least one picture of at least one pixel: raise both")
        if self.may_skip < 0:
            raise InputError("may_skip counts files: set it to 0 or more")


@dataclass(frozen=True)
class Pictures:
    """Decoded frames, mapped from the disk, and the places of those learned and held out."""

    frames: Frames
    learned: Int[np.ndarray, "_"]
    held: Int[np.ndarray, "_"]


@dataclass(frozen=True, kw_only=True)
class FolderPictures(PictureData):
    """All films and pictures below `folder`, cut into `windows`."""

    windows: Windows
    """how frames are decoded, and what a batch takes of them"""
    folder: Path = Path("pictures")
    """the folder of films and pictures"""

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of the names and sizes of the files; None where there is no folder."""
        return {"folder": hash_listing(self.folder) if self.folder.is_dir() else None}

    def check(self, size: int, cache: Path) -> None:
        """Raise InputError when frames have no windows of the size, or there are no pictures."""
        if min(self.windows.rows, self.windows.columns) < size:
            raise InputError(
                f"frames of {self.windows.rows} x {self.windows.columns} pixels have no windows of "
                f"{size}: raise windows.rows and windows.columns to model.size or more"
            )
        if not cache.exists():
            find_media(self.folder)

    def open(self, size: int, cache: Path, announce: Announce) -> CodecData:
        """Windows of the frames; held out are the ends of films and some pictures."""
        pictures = read_folder(self.folder, self.windows, cache, announce)
        held = {"held-out frames": middles(pictures, size, MEASURED)}
        return CodecData(picture_batches(pictures, self.windows, size), held)


def find_media(folder: Path) -> list[Path]:
    """The films and pictures below a folder by their endings, in the order of their paths.

    Hidden files and folders are passed over. Raises InputError when there is no such folder, or
    nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one that holds films or pictures")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in STILLS | FILMS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        endings = ", ".join(sorted(STILLS | FILMS))
        raise InputError(f"{folder} holds no film and no picture: put files there ({endings})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_folder(folder: Path, windows: Windows, cache: Path, announce: Announce) -> Pictures:
    """All frames below `folder`, decoded into `cache` at the first call; later calls read it.

    Raises InputError when there is nothing to read or only one frame, when more files than
    `may_skip` cannot be read, when another process decodes into `cache`, and when the disk is full.
    """
    done = cache / "pictures.json"
    if not done.exists():
        files = find_media(folder)
        announce(f"decoding {len(files)} files of {folder}")
        with writing_to(cache), alone_in(cache):
            decode_pictures(files, folder, windows, cache, announce)
        entries = read_journal(cache)
        counts = [entry["frames"] for entry in entries]
        if sum(counts) < 2:
            raise InputError(
                f"{folder} gives {sum(counts)} frames, and 2 are the least, one to learn from and "
                "one to measure on: add pictures, or sample more moments of the films"
            )
        skipped = [entry["name"] for entry in entries if not entry["frames"]]
        note = {"frames": sum(counts), "rows": windows.rows, "columns": windows.columns}
        with whole(done) as draft:
            draft.write_text(json.dumps(note | {"skipped": skipped}, indent=1) + "\n")
    counts = [entry["frames"] for entry in read_journal(cache)]
    shape = (sum(counts), windows.rows, windows.columns, 3)
    check_length(cache, math.prod(shape))
    frames = np.memmap(cache / "frames.bin", np.uint8, mode="r", shape=shape)
    held = choose_held(counts)
    return Pictures(frames, np.setdiff1d(np.arange(len(frames)), held), held)


def decode_pictures(
    files: list[Path], folder: Path, windows: Windows, cache: Path, announce: Announce
) -> None:
    """Append the frames of the files that the journal lacks, each file whole or not at all."""
    entries = read_journal(cache)
    size = windows.rows * windows.columns * 3
    known = {entry["name"] for entry in entries}
    skipped = sum(not entry["frames"] for entry in entries)
    left = [path for path in files if path.relative_to(folder).as_posix() not in known]
    with ExitStack() as stack:
        frames = stack.enter_context(open(cache / "frames.bin", "ab"))
        journal = stack.enter_context(open(cache / "journal.jsonl", "a"))
        end = size * sum(entry["frames"] for entry in entries)
        check_length(cache, end)
        frames.truncate(end)
        for path, parts in stream_files(left, windows):
            count = 0
            try:
                for part in parts:
                    frames.write(part.data)
                    count += 1
            except InputError as error:
                skipped += 1
                if skipped > windows.may_skip:
                    raise InputError(
                        f"{str(error).rstrip('.')}; or raise windows.may_skip from "
                        f"{windows.may_skip} to leave such files out"
                    ) from error
                announce(f"left out: {error}")
                frames.flush()
                frames.truncate(end)
                count = 0
            end += count * size
            frames.flush()
            os.fsync(frames.fileno())
            name = path.relative_to(folder).as_posix()
            journal.write(json.dumps({"name": name, "frames": count}) + "\n")
            journal.flush()


def check_length(cache: Path, needed: int) -> None:
    """Raise InputError when the frames on the disk are fewer bytes than the journal says."""
    if (found := (cache / "frames.bin").stat().st_size) < needed:
        raise InputError(
            f"{cache / 'frames.bin'} has {found} bytes and its journal says {needed}: remove the "
            f"folder {cache} and run again"
        )


def read_journal(cache: Path) -> list[dict[str, Any]]:
    """The files that are decoded, in order; a line that a kill cut short is taken off the file."""
    path = cache / "journal.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text[: text.rfind("\n") + 1]
    if lines != text:
        with whole(path) as draft:
            draft.write_text(lines, encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()]


def stream_files(
    files: Iterable[Path], windows: Windows
) -> Iterator[tuple[Path, Iterator[UInt8[np.ndarray, "Y X 3"]]]]:
    """Each file and its frames, in order. The frames raise InputError as the door for media does.

    Pictures are decoded `AHEAD` at a time on all cores, films frame by frame when their turn comes.
    """
    files = list(files)
    size = {"size": windows.rows, "columns": windows.columns}

    def film(path: Path) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
        return (frame for _, frame in stream_clip(path, windows.sampling, **size))

    def still(path: Path) -> Frames | InputError:
        try:
            return read_clip(path, windows.sampling, **size).frames
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pictures") as pool:
        for first in range(0, len(files), AHEAD):
            some = files[first : first + AHEAD]
            stills = [path for path in some if path.suffix.lower() in STILLS]
            decoded = dict(zip(stills, pool.map(still, stills), strict=True))
            for path in some:
                yield path, _unfold(decoded.pop(path)) if path in decoded else film(path)


def _unfold(found: Frames | InputError) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    if isinstance(found, InputError):
        raise found
    yield from found


def choose_held(counts: list[int]) -> Int[np.ndarray, "_"]:
    """The places of the frames that are kept from training, where files gave so many frames each.

    Of a film the end, since neighbouring frames are nearly equal: one frame in `HELD_ONE_IN`, one
    at least. Of the pictures the first and every `HELD_ONE_IN`-th after it.
    """
    held, place, stills = [], 0, 0
    for count in counts:
        if count == 1:
            if stills % HELD_ONE_IN == 0:
                held.append(place)
            stills += 1
        else:
            held += range(place + count + -count // HELD_ONE_IN, place + count)
        place += count
    return np.asarray(held, np.int64)


def picture_batches(
    pictures: Pictures, windows: Windows, size: int
) -> Callable[[int], Float[np.ndarray, "Z Y X 3"]]:
    """The function from a step to its batch of windows of `size` x `size` pixels in [-1, 1].

    A window is a function of the seed, the step and its place in the batch.
    """

    def picture(step: int, place: int) -> UInt8[np.ndarray, "y x 3"]:
        rng = np.random.default_rng((windows.seed, step, place))
        chosen = pictures.learned[rng.integers(len(pictures.learned))]
        return crop(rng, pictures.frames[chosen : chosen + 1], size)

    return lambda step: to_unit(np.stack([picture(step, z) for z in range(windows.batch)]))


def middles(pictures: Pictures, size: int, most: int) -> Frames:
    """The middle `size` x `size` pixels of up to `most` held-out frames, evenly chosen."""
    places = np.linspace(0, len(pictures.held) - 1, min(most, len(pictures.held))).astype(int)
    y, x = ((side - size) // 2 for side in pictures.frames.shape[1:3])
    some = [pictures.frames[z, y : y + size, x : x + size] for z in pictures.held[places]]
    return np.stack(some)


def hash_listing(folder: Path) -> str:
    """The sha256 of the names and sizes of all films and pictures below a folder."""
    found = [
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in find_media(folder)
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
