"""Which films and pictures a shard was made of: their paths and the sha256 of what was read.

Texts and tables are hashed before a build begins. Media are hashed as they are read, which costs
little beside decoding them, and are noted beside the shard, in `NAME-00000.media.json`. A build
that is given again compares them: a film that changed would otherwise stay in the shards unseen.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ringworld.config import from_dict
from ringworld.data.corpora.manifest import read_json, write_json
from ringworld.data.corpora.reader import Input, Partition
from ringworld.errors import InputError
from ringworld.files import hash_file


@dataclass(frozen=True, kw_only=True)
class MediaNote:
    """The films and pictures that the rows of a partition show, bad rows included."""

    media: tuple[Input, ...]


def hash_media(path: Path, folder: Path) -> Input:
    """What a file is now; its path is that from the spec's folder, where it lies in it."""
    inside = path.is_relative_to(folder)
    name = (path.relative_to(folder) if inside else path).as_posix()
    return Input(file=name, sha256=hash_file(path))


def write_media(out: Path, partition: Partition, media: Iterable[Input]) -> None:
    """Note what was read for a partition, whole or not at all."""
    note = MediaNote(media=tuple(sorted(media, key=lambda one: one.file)))
    write_json(media_path(out, partition), note)


def media_path(out: Path, partition: Partition) -> Path:
    """Where the media of a partition are noted."""
    return (out / partition.shard).with_suffix(".media.json")


def check_media(out: Path, folder: Path, partitions: Sequence[Partition], workers: int) -> None:
    """Compare the films and pictures of these partitions with what was read, `workers` at a time.

    Raises InputError for the first that is another or is gone.
    """
    read: dict[str, str] = {}
    for path in (media_path(out, partition) for partition in partitions):
        if path.exists():
            note = from_dict(MediaNote, read_json(path), str(path))
            read |= {one.file: one.sha256 for one in note.media}
    with ThreadPoolExecutor(workers) as pool:
        for file, found in zip(
            read, pool.map(lambda name: _hash(folder / name), read), strict=True
        ):
            if found != read[file]:
                raise InputError(
                    f"{file} is not what it was when {out} was built from it: put it back, or "
                    "build in another folder"
                )


def _hash(path: Path) -> str:
    """The sha256 of a file, or nothing when it is gone."""
    return hash_file(path) if path.is_file() else ""
