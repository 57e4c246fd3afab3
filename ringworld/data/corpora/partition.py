"""One portion of a build: rows to examples to a shard, and what was bad among them."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tokenizers import Encoding

from ringworld.data.corpora.chat_formats import SAMPLING, read_conversation, read_media
from ringworld.data.corpora.conversation import (
    Draft,
    See,
    finish,
    make_caption,
    make_document,
    make_talk,
    ready,
    reorder,
)
from ringworld.data.corpora.encoding import Encoder, Footage, Media
from ringworld.data.corpora.fields import make_fields
from ringworld.data.corpora.manifest import (
    CodecNote,
    ShardNote,
    TokenizerNote,
    make_vocabulary,
    write_json,
)
from ringworld.data.corpora.provenance import hash_media, write_media
from ringworld.data.corpora.reader import Input, Portion, Row, read_rows
from ringworld.data.corpora.shards import Record, find_fault, write_shard
from ringworld.data.corpora.spec import (
    AnySource,
    Captions,
    Chat,
    Documents,
    Fields,
    Spec,
    Text,
)
from ringworld.errors import InputError
from ringworld.files import hash_file
from ringworld.media.sampling import FrameSampling
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.codecs import load_codec

NOTES = "notes"
# Letters of documents that become tokens at one time, on every core, while those before them are
# written: enough that the cores are not kept waiting, and some ten megabytes.
LOT = 1 << 20


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
    if work.encoder is not None:
        write_media(job.out, portion, work.media.values())
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
    """The rows of one portion on their way to records; `bad` and `media` grow as they are read."""

    def __init__(self, job: Job, portion: Portion) -> None:
        self.job, self.portion = job, portion
        self.source: AnySource = job.spec.sources[portion.source]
        self.tokenizer = _tokenizer(job.tokenizer)
        self.vocabulary = make_vocabulary(job.tokenizer_note, job.codec_note)
        self.encoder: Encoder | None = None
        if isinstance(self.source, Chat | Captions) and job.codec is not None:
            self.encoder = Encoder(load_codec_once(job.codec))
        self.bad: list[tuple[int, str, str]] = []
        self.media: dict[Path, Input] = {}

    def records(self) -> Iterator[Record]:
        """The good rows in order, each as soon as its codes are known."""
        if isinstance(self.source, Text | Documents):
            yield from self.documents()
            return
        waiting: deque[tuple[Row, list[Draft]]] = deque()
        for row in read_rows(self.portion, self.source, self.job.folder):
            try:
                waiting.append((row, self.drafts(row)))
            except InputError as error:
                self.refuse(row, error)
            while waiting and all(map(ready, waiting[0][1])):
                yield from self.finished(*waiting.popleft())
        if self.encoder is not None:
            self.encoder.flush()
        for row, drafts in waiting:
            yield from self.finished(row, drafts)

    def documents(self) -> Iterator[Record]:
        """Documents, a lot of them becoming tokens while the lot before it is written."""
        encode = self.tokenizer.backend.encode_batch_fast
        with ThreadPoolExecutor(1) as pool:
            before: list[tuple[list[Row], Future[list[Encoding]]]] = []
            for rows, texts in self.lots():
                encoded = pool.submit(encode, texts, add_special_tokens=False)
                before.append((rows, encoded))
                if len(before) == 2:
                    yield from self.laid(*before.pop(0))
            for rows, encoded in before:
                yield from self.laid(rows, encoded)

    def lots(self) -> Iterator[tuple[list[Row], list[str]]]:
        """The texts of the good rows, about `LOT` letters at a time."""
        rows: list[Row] = []
        texts: list[str] = []
        letters = 0
        for row in read_rows(self.portion, self.source, self.job.folder):
            try:
                texts.append(self.written(row))
            except InputError as error:
                self.refuse(row, error)
                continue
            rows.append(row)
            letters += len(texts[-1])
            if letters >= LOT:
                yield rows, texts
                rows, texts, letters = [], [], 0
        if rows:
            yield rows, texts

    def laid(self, rows: Sequence[Row], encoded: Future[list[Encoding]]) -> Iterator[Record]:
        """The records of a lot."""
        for row, encoding in zip(rows, encoded.result(), strict=True):
            yield from self.finished(row, [make_document(encoding.ids, self.tokenizer)])

    def written(self, row: Row) -> str:
        """The document that a row is."""
        content = row.read()
        if isinstance(self.source, Documents):
            name = f"the column {self.source.column}"
            return check_text(content.get(self.source.column), name)
        return check_text(content, "the document")

    def drafts(self, row: Row) -> list[Draft]:
        """The examples of a row, its films being encoded: one, or one for each order."""
        source, content = self.source, row.read()
        check_words(content)
        if isinstance(source, Fields):
            return [[make_fields(content, row.line, source, self.tokenizer, self.vocabulary)]]
        assert isinstance(source, Chat | Captions), "documents are laid in lots"
        rules = FrameSampling(**{name: getattr(source, name) for name in SAMPLING})
        see = cache(self.see)  # what a row shows is read once, however many orders it is kept in
        if isinstance(source, Captions):
            return [
                self.caption(source, row, content, order, rules, see)
                for order in self.orders(source, row)
            ]
        turns = read_conversation(content, row.folder, rules)
        return [
            make_talk(reorder(turns, order), see, self.tokenizer)
            for order in self.orders(source, row)
        ]

    def see(self, media: Media) -> Footage:
        """Note which file a film or a picture is, and have it read."""
        if isinstance(media.source, Path) and media.source not in self.media:
            self.media[media.source] = hash_media(media.source, self.job.folder)
        assert self.encoder is not None, "a source of media has an encoder"
        return self.encoder.add(media)

    def caption(
        self,
        source: Captions,
        row: Row,
        content: Mapping[str, Any],
        order: str,
        rules: FrameSampling,
        see: See,
    ) -> Draft:
        """The example of a picture or a film and its caption."""
        kinds = [kind for kind in ("video", "image") if content.get(kind)]
        if len(kinds) != 1:
            held = "both a video and an image" if kinds else "neither a video nor an image"
            raise InputError(f"the row has {held}: give it the path of one")
        kind = kinds[0]
        words = ""
        if order != "vision":
            words = check_text(content.get(source.caption), f"the key {source.caption}")
        media = read_media(content[kind], kind, row.folder, rules, beside=content)
        return make_caption(media, words.strip(), order, see, self.tokenizer)

    def orders(self, source: Chat | Captions, row: Row) -> Sequence[str]:
        """The forms of this row: all, or one drawn by the seed, the source and the row alone."""
        if source.every_order:
            return source.orders
        file = crc32(self.portion.files[0].encode())
        rng = np.random.default_rng((self.job.spec.seed, self.portion.source, file, row.line))
        return [source.orders[int(rng.integers(len(source.orders)))]]

    def finished(self, row: Row, drafts: Sequence[Draft]) -> Iterator[Record]:
        """The records of a row, unless one of them cannot be trained on."""
        vocabulary, records = self.vocabulary, []
        for draft in drafts:
            record = finish(draft, row.origin, self.tokenizer, vocabulary)
            fault = find_fault(record.example, vocabulary.text, vocabulary.vision_rows)
            if fault:
                error = InputError(f"the example {fault}: correct the row or leave it out")
                self.refuse(row, error)
                return
            records.append(record)
        yield from records

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
