"""One partition of a build: its rows become examples and a shard; bad rows are noted."""

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
    EncodeMedia,
    PendingExample,
    finish_example,
    is_complete,
    make_caption,
    make_conversation,
    make_document,
    reorder,
)
from ringworld.data.corpora.encoding import EncodedMedia, Encoder, Media
from ringworld.data.corpora.fields import make_fields
from ringworld.data.corpora.manifest import (
    CodecNote,
    ShardNote,
    TokenizerNote,
    hash_media,
    make_vocabulary,
    write_json,
    write_media,
)
from ringworld.data.corpora.reader import Input, Partition, Row, read_rows
from ringworld.data.corpora.shards import Record, find_fault, write_shard
from ringworld.data.corpora.spec import (
    AnySource,
    CaptionSource,
    ChatSource,
    DocumentSource,
    FieldSource,
    Spec,
    TextSource,
)
from ringworld.errors import InputError
from ringworld.files import hash_file
from ringworld.media.sampling import FrameSampling
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.codecs import load_codec

NOTES_FOLDER = "notes"
# Letters of documents that become tokens at one time, on every core, while those before them are
# written: enough that the cores are not kept waiting, and some ten megabytes.
BATCH_LETTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every partition needs: the spec and its folder, tokenizer, codec, output folder."""

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
class PartitionNote:
    """The result of a partition: its shard, None where no row was good, and its bad rows."""

    partition: str
    shard: ShardNote | None
    bad: tuple[Bad, ...]


def build_partition(job: Job, partition: Partition) -> PartitionNote:
    """Write the shard of a partition, then its note; the same partition gives the same bytes.

    Raises InputError for a bad row where these are refused.
    """
    work = PartitionBuilder(job, partition)
    path = job.out / partition.shard
    counts = write_shard(path, work.records())
    if work.encoder is not None:
        write_media(job.out, partition, work.media.values())
    bad = tuple(Bad(origin=origin, why=why) for _, origin, why in sorted(work.bad))
    shard = None
    if counts.examples:
        shard = ShardNote(
            file=partition.shard,
            source=work.source.name,
            sha256=hash_file(path),
            bytes=path.stat().st_size,
            counts=counts,
        )
    else:
        path.unlink()
    note = PartitionNote(partition=partition.shard, shard=shard, bad=bad)
    write_json(partition_note_path(job.out, partition), note)
    return note


def partition_note_path(out: Path, partition: Partition) -> Path:
    """Where the note of a partition is kept until the manifest is written."""
    return out / NOTES_FOLDER / f"{partition.shard}.json"


class PartitionBuilder:
    """Turns the rows of one partition into records; `bad` and `media` grow as rows are read."""

    def __init__(self, job: Job, partition: Partition) -> None:
        self.job, self.partition = job, partition
        self.source: AnySource = job.spec.sources[partition.source]
        self.tokenizer = _tokenizer(job.tokenizer)
        self.vocabulary = make_vocabulary(job.tokenizer_note, job.codec_note)
        self.encoder: Encoder | None = None
        if isinstance(self.source, ChatSource | CaptionSource) and job.codec is not None:
            self.encoder = Encoder(load_codec_once(job.codec))
        self.bad: list[tuple[int, str, str]] = []
        self.media: dict[Path, Input] = {}

    def records(self) -> Iterator[Record]:
        """The good rows in order, each as soon as its codes are known."""
        if isinstance(self.source, TextSource | DocumentSource):
            yield from self.documents()
            return
        waiting: deque[tuple[Row, list[PendingExample]]] = deque()
        for row in read_rows(self.partition, self.source, self.job.folder):
            try:
                waiting.append((row, self.examples(row)))
            except InputError as error:
                self.refuse(row, error)
            while waiting and all(map(is_complete, waiting[0][1])):
                yield from self.finished(*waiting.popleft())
        if self.encoder is not None:
            self.encoder.flush()
        for row, examples in waiting:
            yield from self.finished(row, examples)

    def documents(self) -> Iterator[Record]:
        """Documents: one batch of texts is tokenized while the batch before it is written."""
        encode = self.tokenizer.backend.encode_batch_fast
        with ThreadPoolExecutor(1) as pool:
            before: list[tuple[list[Row], Future[list[Encoding]]]] = []
            for rows, texts in self.text_batches():
                encoded = pool.submit(encode, texts, add_special_tokens=False)
                before.append((rows, encoded))
                if len(before) == 2:
                    yield from self.document_records(*before.pop(0))
            for rows, encoded in before:
                yield from self.document_records(rows, encoded)

    def text_batches(self) -> Iterator[tuple[list[Row], list[str]]]:
        """The texts of the good rows, in batches of about `BATCH_LETTERS` letters."""
        rows: list[Row] = []
        texts: list[str] = []
        letters = 0
        for row in read_rows(self.partition, self.source, self.job.folder):
            try:
                texts.append(self.document_text(row))
            except InputError as error:
                self.refuse(row, error)
                continue
            rows.append(row)
            letters += len(texts[-1])
            if letters >= BATCH_LETTERS:
                yield rows, texts
                rows, texts, letters = [], [], 0
        if rows:
            yield rows, texts

    def document_records(
        self, rows: Sequence[Row], encoded: Future[list[Encoding]]
    ) -> Iterator[Record]:
        """The records of a batch of tokenized documents."""
        for row, encoding in zip(rows, encoded.result(), strict=True):
            yield from self.finished(row, [make_document(encoding.ids, self.tokenizer)])

    def document_text(self, row: Row) -> str:
        """The text of a document's row. Raises InputError when it has none."""
        content = row.read()
        if isinstance(self.source, DocumentSource):
            name = f"the column {self.source.column}"
            return require_text(content.get(self.source.column), name)
        return require_text(content, "the document")

    def examples(self, row: Row) -> list[PendingExample]:
        """The examples of a row, one or one for each order; codes of media may come later."""
        source, content = self.source, row.read()
        check_words(content)
        if isinstance(source, FieldSource):
            return [[make_fields(content, row.line, source, self.tokenizer, self.vocabulary)]]
        assert isinstance(source, ChatSource | CaptionSource), "documents come in batches"
        rules = FrameSampling(**{name: getattr(source, name) for name in SAMPLING})
        encode = cache(self.encode_media)  # once a row, however many orders it is kept in
        if isinstance(source, CaptionSource):
            return [
                self.caption(source, row, content, order, rules, encode)
                for order in self.orders(source, row)
            ]
        turns = read_conversation(content, row.folder, rules)
        return [
            make_conversation(reorder(turns, order), encode, self.tokenizer)
            for order in self.orders(source, row)
        ]

    def encode_media(self, media: Media) -> EncodedMedia:
        """Read a film or a picture for encoding, and note its file and hash."""
        if isinstance(media.source, Path) and media.source not in self.media:
            self.media[media.source] = hash_media(media.source, self.job.folder)
        assert self.encoder is not None, "a source of media has an encoder"
        return self.encoder.add(media)

    def caption(
        self,
        source: CaptionSource,
        row: Row,
        content: Mapping[str, Any],
        order: str,
        rules: FrameSampling,
        encode: EncodeMedia,
    ) -> PendingExample:
        """The example of a picture or a film and its caption."""
        kinds = [kind for kind in ("video", "image") if content.get(kind)]
        if len(kinds) != 1:
            held = "both a video and an image" if kinds else "neither a video nor an image"
            raise InputError(f"the row has {held}: give it the path of one")
        kind = kinds[0]
        words = ""
        if order != "vision":
            words = require_text(content.get(source.caption), f"the key {source.caption}")
        media = read_media(content[kind], kind, row.folder, rules, beside=content)
        return make_caption(media, words.strip(), order, encode, self.tokenizer)

    def orders(self, source: ChatSource | CaptionSource, row: Row) -> Sequence[str]:
        """The forms of this row: all, or one drawn by the seed, the source and the row alone."""
        if source.every_order:
            return source.orders
        file = crc32(self.partition.files[0].encode())
        rng = np.random.default_rng((self.job.spec.seed, self.partition.source, file, row.line))
        return [source.orders[int(rng.integers(len(source.orders)))]]

    def finished(self, row: Row, examples: Sequence[PendingExample]) -> Iterator[Record]:
        """The records of a row, unless one of them cannot be trained on."""
        vocabulary, records = self.vocabulary, []
        for pending in examples:
            record = finish_example(pending, row.origin, self.tokenizer, vocabulary)
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


def require_text(value: Any, name: str) -> str:
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
