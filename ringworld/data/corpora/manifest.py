"""The manifest of a folder of shards: counts, hashes, tokenizer and codec, films and pictures.

Texts and tables are hashed before a build begins. Films and pictures are hashed as they are read,
and noted beside the shard, in `NAME-00000.media.json`; a build that is run again compares them, so
that no shard of a film that has changed is kept.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ringworld.config import from_dict
from ringworld.data.corpora.reader import Input, Partition
from ringworld.errors import InputError
from ringworld.files import hash_file, whole
from ringworld.text.load import load_tokenizer, read_tokenizer
from ringworld.vocab import Vocabulary

MANIFEST = "manifest.json"
REPORT = "report.json"
SCHEMA_VERSION = 1
NO_TOKEN = -1  # what stands for the first token of a tokenizer that has none


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Examples, their tokens, how many of these are vision ids, and how many are learned."""

    examples: int = 0
    tokens: int = 0
    vision: int = 0
    learned: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of both, field by field."""
        names = [own.name for own in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class TokenizerNote:
    """Which tokenizer made the text ids: the sha256 of its tokenizer.json, its number of ids, and
    the ids of the tokens before a text (-1 for none) and after it.
    """

    sha256: str
    size: int
    bos: int
    eos: int


@dataclass(frozen=True, kw_only=True)
class CodecNote:
    """Which codec made the codes: its hash, frame size in pixels, codebook, codes of a frame."""

    sha256: str
    size: int
    codes: int
    codes_per_frame: int


@dataclass(frozen=True, kw_only=True)
class ShardNote:
    """One file: its source, its hash and what it holds."""

    file: str
    source: str
    sha256: str
    bytes: int
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole folder. `skipped` is how many rows were bad and left out.

    `forms` has the sources whose every row became several examples, one behind another, and how
    many: one for each order of text and vision.
    """

    schema: int
    tokenizer: TokenizerNote
    codec: CodecNote | None
    counts: Counts
    sources: dict[str, Counts]
    skipped: int
    shards: tuple[ShardNote, ...]
    forms: dict[str, int] = field(default_factory=dict)

    @property
    def text_ids(self) -> int:
        """How many text ids there are."""
        return self.tokenizer.size

    @property
    def vision_ids(self) -> int:
        """How many vision ids there are: the codes and the two frame markers."""
        return 0 if self.codec is None else self.codec.codes + 2

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the examples were written in."""
        return make_vocabulary(self.tokenizer, self.codec)


def note_tokenizer(path: Path) -> TokenizerNote:
    """What the manifest says of the tokenizer at `path`, a model folder or a file.

    Raises InputError when it is missing or broken, or has no token that ends a text.
    """
    tokenizer, data = load_tokenizer(path), read_tokenizer(path) or b""
    return TokenizerNote(
        sha256=hashlib.sha256(data).hexdigest(),
        size=tokenizer.size,
        bos=tokenizer.bos_ids[0] if tokenizer.bos_ids else NO_TOKEN,
        eos=tokenizer.eos,
    )


def make_vocabulary(tokenizer: TokenizerNote, codec: CodecNote | None) -> Vocabulary:
    """The vocabulary of a tokenizer and a codec, as small as it can be."""
    return Vocabulary(
        text=tokenizer.size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        codes=codec.codes if codec else 0,
        codes_per_frame=codec.codes_per_frame if codec else 0,
        vision_rows=codec.codes + 2 if codec else 0,
    )


def read_shard_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises InputError when there is none, it is not whole, its counts contradict each other, or it
    is of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished token shards: run `ringworld data build` to the end first"
        )
    table = read_json(path)
    if isinstance(table, dict) and table.get("schema") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has the schema {table.get('schema')} and this program reads "
            f"{SCHEMA_VERSION}: build the shards again"
        )
    manifest = from_dict(Manifest, table, str(path))
    if any(Path(shard.file).name != shard.file for shard in manifest.shards):
        raise InputError(f"{path} names a file of another folder: build the shards again")
    total = sum((shard.counts for shard in manifest.shards), Counts())
    if (total, add_up(manifest.sources, manifest.shards)) != (manifest.counts, manifest.sources):
        raise InputError(f"{path} has counts that do not add up: build the shards again")
    return manifest


def add_up(sources: Iterable[str], shards: Sequence[ShardNote]) -> dict[str, Counts]:
    """What the shards of each source hold together."""
    return {
        name: sum((shard.counts for shard in shards if shard.source == name), Counts())
        for name in sources
    }


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds. Raises InputError when it is not whole."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not whole JSON: build the shards again") from error


def write_json(path: Path, value: Any) -> None:
    """A dataclass as JSON, whole or not at all; the same value gives the same bytes."""
    with whole(path) as draft:
        draft.write_text(json.dumps(asdict(value), indent=1) + "\n", "utf-8")


def hash_codec(folder: Path) -> str:
    """The identity of a codec: the sha256 over those of its config and of its weights.

    Other files of its folder are notes. Raises InputError when it is not there.
    """
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    lines = [f"{name} {hash_file(folder / name)}\n" for name in ("config.json", *weights)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---- films and pictures


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
