"""One portion of a build: rows to examples to a shard, and what was bad among them."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ringworld.data.codec import load_codec
from ringworld.data.dialects import SAMPLING, read_media, read_talk
from ringworld.data.fields import make_fields
from ringworld.data.footage import Encoder
from ringworld.data.intake import Portion, Row, read_rows
from ringworld.data.manifest import (
    CodecNote,
    ShardNote,
    TokenizerNote,
    hash_file,
    make_vocabulary,
    write_json,
)
from ringworld.data.shards import Record, find_fault, write_shard
from ringworld.data.spec import AnySource, Captions, Chat, Documents, Fields, Sampling, Spec, Text
from ringworld.data.talk import (
    Draft,
    finish,
    make_caption,
    make_document,
    make_talk,
    ready,
    reorder,
)
from ringworld.data.tokenizer import Tokenizer, load_tokenizer
from ringworld.errors import InputError

NOTES = "notes"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every portion needs: the spec and its folder, its parts, and where to write."""

    spec: Spec
    folder: Path
    tokenizer: Path
    codec: Path | None
    tokenizer_note: TokenizerNote
    codec_note: CodecNote | None
    out: Path


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A row that was left out: file and line, and why."""

    origin: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PortionNote:
    """What became of a portion: its shard, None where no row was good, and its bad rows."""

    portion: str
    shard: ShardNote | None
    bad: tuple[Bad, ...]


def build_portion(job: Job, portion: Portion) -> PortionNote:
    """Write the shard of a portion, then its note; the same portion gives the same bytes.

    Raises InputError for a bad row where these are refused.
    """
    work = Work(job, portion)
    path = job.out / portion.shard
    counts = write_shard(path, work.records())
    bad = tuple(Bad(origin=origin, why=why) for _, origin, why in sorted(work.bad))
    shard = None
    if counts.examples:
        shard = ShardNote(
            file=portion.shard,
            source=work.source.name,
            sha256=hash_file(path),
            bytes=path.stat().st_size,
            counts=counts,
        )
    else:
        path.unlink()
    note = PortionNote(portion=portion.shard, shard=shard, bad=bad)
    write_json(note_path(job.out, portion), note)
    return note


def note_path(out: Path, portion: Portion) -> Path:
    """Where the note of a portion is kept until the manifest is written."""
    return out / NOTES / f"{portion.shard}.json"


class Work:
    """The rows of one portion on their way to records; `bad` grows as they are read."""

    def __init__(self, job: Job, portion: Portion) -> None:
        self.job, self.portion = job, portion
        self.source: AnySource = job.spec.sources[portion.source]
        self.tokenizer = _tokenizer(job.tokenizer)
        self.vocabulary = make_vocabulary(job.tokenizer_note, job.codec_note)
        self.encoder = None if job.codec is None else Encoder(load_codec_once(job.codec))
        self.bad: list[tuple[int, str, str]] = []

    def records(self) -> Iterator[Record]:
        """The good rows in order, each as soon as its codes are known."""
        waiting: deque[tuple[Row, Draft]] = deque()
        for row in read_rows(self.portion, self.source, self.job.folder):
            try:
                waiting.append((row, self.draft(row)))
            except InputError as error:
                self.refuse(row, error)
            while waiting and ready(waiting[0][1]):
                yield from self.finished(*waiting.popleft())
        if self.encoder is not None:
            self.encoder.flush()
        for row, draft in waiting:
            yield from self.finished(row, draft)

    def draft(self, row: Row) -> Draft:
        """The example of a row, its films being encoded."""
        source, content = self.source, row.read()
        if isinstance(source, Text):
            return make_document(check_text(content, "the document"), self.tokenizer)
        check_words(content)
        if isinstance(source, Documents):
            written = check_text(content.get(source.column), f"the column {source.column}")
            return make_document(written, self.tokenizer)
        if isinstance(source, Fields):
            return [make_fields(content, row.line, source, self.tokenizer, self.vocabulary)]
        assert self.encoder is not None, "a build with media has a codec"
        rules = Sampling(**{name: getattr(source, name) for name in SAMPLING})
        order = self.order(source, row)
        if isinstance(source, Chat):
            turns = reorder(read_talk(content, row.folder, rules), order)
            return make_talk(turns, self.encoder.add, self.tokenizer)
        return self.caption(source, row, content, order, rules)

    def caption(
        self, source: Captions, row: Row, content: Mapping[str, Any], order: str, rules: Sampling
    ) -> Draft:
        """The example of a picture or a film and its caption."""
        kind = next((kind for kind in ("video", "image") if content.get(kind)), None)
        if kind is None:
            raise InputError("the row has neither a video nor an image: add the path of one")
        words = ""
        if order != "vision":
            words = check_text(content.get(source.caption), f"the key {source.caption}")
        media = read_media(content[kind], kind, row.folder, rules, beside=content)
        assert self.encoder is not None, "a build with media has a codec"
        return make_caption(media, words.strip(), order, self.encoder.add, self.tokenizer)

    def order(self, source: Chat | Captions, row: Row) -> str:
        """The form of this row, drawn by the seed, the source and the row, and nothing else."""
        file = crc32(self.portion.files[0].encode())
        rng = np.random.default_rng((self.job.spec.seed, self.portion.source, file, row.line))
        return source.orders[int(rng.integers(len(source.orders)))]

    def finished(self, row: Row, draft: Draft) -> Iterator[Record]:
        """The record of a draft, unless it cannot be trained on."""
        try:
            record = finish(draft, row.origin, self.tokenizer, self.vocabulary)
            vocabulary = self.vocabulary
            fault = find_fault(record.example, vocabulary.text, vocabulary.vision_rows)
            if fault:
                raise InputError(f"the example {fault}: correct the row or leave it out")
            yield record
        except InputError as error:
            self.refuse(row, error)

    def refuse(self, row: Row, error: InputError) -> None:
        """Note a bad row, or raise InputError where bad rows are refused."""
        if self.job.spec.on_bad == "refuse":
            raise InputError(f"{row.origin}: {error}") from error
        self.bad.append((row.line, row.origin, str(error)))


def check_text(value: Any, name: str) -> str:
    """A text that says something. Raises InputError for an empty one, or for what is none."""
    if not isinstance(value, str):
        raise InputError(f"{name} is missing or no text: add it")
    check_words(value)
    if not value.strip():
        raise InputError(f"{name} is empty: fill it or leave the row out")
    return value


def check_words(value: Any) -> None:
    """Raise InputError where a text, however deep, holds half a character (a lone surrogate)."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "a text holds half a character: write it as UTF-8 or leave it out"
            ) from error
    elif isinstance(value, dict):
        for inner in value.values():
            check_words(inner)
    elif isinstance(value, list) and value and not isinstance(value[0], int):
        for inner in value:
            check_words(inner)


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


load_codec_once = lru_cache(maxsize=1)(load_codec)
