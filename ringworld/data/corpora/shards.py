"""Token shards: examples in Arrow files that are memory-mapped, hashed, and read in any order.

A folder of shards holds

    manifest.json     what is in it: counts, the sha256 of every file, the tokenizer, the codec
    NAME-00000.arrow  some examples of the source NAME, one record each
    tokenizer.json    what turns the ids back into text

The manifest is written last, so a folder without one is no data. A record is

    tokens   int32    text ids and image codes in one stream
    runs     int32    how many tokens of text, then of vision, then of text, and so on
    weights  float32  the weight of predicting each token, one a span ...
    spans    int32    ... and the tokens that each span has
    seconds  float64  when each frame was on the screen, where that is known
    origin   utf8     file and line
"""

import bisect
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index as whole_number
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int, Shaped

from ringworld.data.corpora.manifest import (
    Counts,
    Manifest,
    ShardNote,
    hash_codec,
    note_tokenizer,
    read_shard_manifest,
)
from ringworld.data.example import Example
from ringworld.distributed import own_part
from ringworld.errors import InputError
from ringworld.files import hash_file, whole

# Tokens that are collected before they are written: 4 MiB, whatever the length of the shard.
BATCH_TOKENS = 1 << 20
# Readers that are kept open; each is a mapping, a file and some kilobytes.
OPEN_SHARDS = 64
RECORD_KIND = b"ringworld tokens 1"
RECORD_SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("runs", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("spans", pa.list_(pa.int32())),
        ("seconds", pa.list_(pa.float64())),
        ("origin", pa.utf8()),
    ],
    metadata={b"kind": RECORD_KIND},
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """An example, the timestamps of its frames (none where unknown), and where it came from."""

    example: Example
    seconds: Float64[np.ndarray, "Z"]
    origin: str


@dataclass(frozen=True, eq=False)
class Columns:
    """A record batch as mapped arrays: of each list column what its rows hold, and from where on.

    Asking Arrow for a row costs more than reading it, and packed rows ask for thousands.
    """

    values: dict[str, Shaped[np.ndarray, "n"]]
    starts: dict[str, Int[np.ndarray, "rows_and_1"]]
    origins: pa.StringArray

    def __len__(self) -> int:
        """The number of examples in the batch."""
        return len(self.origins)

    def row(self, name: str, row: int) -> Shaped[np.ndarray, "n"]:
        """What one row of a column holds, not copied."""
        starts = self.starts[name]
        return self.values[name][starts[row] : starts[row + 1]]


# ---- writing


def write_shard(path: Path, records: Iterable[Record]) -> Counts:
    """Write a shard whole or not at all, holding no more than `BATCH_TOKENS` and one example.

    The same records give the same bytes. Raises InputError when the disk is full or fails.
    """
    counts, held, tokens = Counts(), list[Record](), 0
    with whole(path) as draft, pa.ipc.new_file(str(draft), RECORD_SCHEMA) as file:
        for record in records:
            held.append(record)
            tokens += len(record.example)
            if tokens >= BATCH_TOKENS:
                batch, more = _batch(held)
                file.write_batch(batch)
                counts += more
                held, tokens = [], 0
        if held:
            batch, more = _batch(held)
            file.write_batch(batch)
            counts += more
    return counts


def _batch(records: Sequence[Record]) -> tuple[pa.RecordBatch, Counts]:
    """The records and what they hold, all rows at once, as short ones are many."""
    examples = [record.example for record in records]
    rows = np.cumsum([0, *map(len, examples)])
    tokens, vision, weights = (
        np.concatenate([getattr(example, name) for example in examples])
        for name in ("tokens", "vision", "weights")
    )
    edges, spans = _find_runs(weights, rows)
    turns, runs = _find_runs(vision, rows)
    lengths = np.diff(turns, append=len(vision))
    seen_first = vision[rows[:-1]]
    columns = [
        _lists(tokens, rows, np.int32),
        _lists(
            np.insert(lengths, runs[:-1][seen_first], 0),
            runs + np.cumsum([0, *seen_first]),
            np.int32,
        ),
        _lists(weights[edges], spans, np.float32),
        _lists(np.diff(edges, append=len(weights)), spans, np.int32),
        _lists(
            np.concatenate([record.seconds for record in records]),
            np.cumsum([0, *(len(record.seconds) for record in records)]),
            np.float64,
        ),
        pa.array([record.origin for record in records], pa.utf8()),
    ]
    counts = Counts(
        examples=len(examples),
        tokens=len(tokens),
        vision=int(vision.sum()),
        learned=int(np.count_nonzero(weights)),
    )
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA), counts


def _lists(
    values: Shaped[np.ndarray, "n"], rows: Int[np.ndarray, "rows_and_1"], dtype: type[np.generic]
) -> pa.ListArray:
    return pa.ListArray.from_arrays(rows.astype(np.int32), values.astype(dtype))


def _find_runs(
    values: Shaped[np.ndarray, "n"], rows: Int[np.ndarray, "rows_and_1"]
) -> tuple[Int[np.ndarray, "r"], Int[np.ndarray, "rows_and_1"]]:
    """Where runs of equal values begin, each row anew, and the first run of each row."""
    begins = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    begins[rows[:-1]] = True
    edges = np.flatnonzero(begins)
    return edges, np.searchsorted(edges, rows)


# ---- reading


class Shards(Sequence[Example]):
    """The examples of a folder, any of them read when it is asked for.

    Opening reads the manifest and compares the size of each file; `verify` compares their hashes.
    Every example that is read has its ids checked against the vocabularies.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder. Raises InputError when it is no data, or a file is missing or cut."""
        self.folder = Path(folder)
        self.manifest: Manifest = read_shard_manifest(self.folder)
        for shard in self.manifest.shards:
            _check_size(self.folder / shard.file, shard)
        counts = [shard.counts.examples for shard in self.manifest.shards]
        self._first = np.cumsum([0, *counts])
        self._open: dict[int, list[Columns]] = {}

    def __len__(self) -> int:
        """The number of examples in all shards."""
        return int(self._first[-1])

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path]]:
        """A copy for another process: the folder is opened again there."""
        return Shards, (self.folder,)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Example | list[Example]:
        """One example, its tokens not copied. Raises InputError when it is damaged."""
        if isinstance(index, slice):
            return [self.record(i).example for i in range(*index.indices(len(self)))]
        return self.record(index).example

    def record(self, index: SupportsIndex) -> Record:
        """One example with its timestamps and its origin."""
        wanted = whole_number(index)
        if not -len(self) <= wanted < len(self):
            raise IndexError(f"there are {len(self)} examples, none is {wanted}")
        number, row = self._find(wanted % len(self))
        shard = self.manifest.shards[number]
        for batch in self._batches(number):
            if row < len(batch):
                with _said_damaged(self.folder / shard.file):
                    record = _read_row(batch, row)
                self._check_ids(record, shard)
                return record
            row -= len(batch)
        raise _damaged(self.folder / shard.file)

    def source(self, index: int) -> str:
        """The name of the source that an example came from."""
        return self.manifest.shards[self._find(index)[0]].source

    def indices(self, source: str) -> Int[np.ndarray, "n"]:
        """The examples of one source. Raises InputError when there is none."""
        names = [shard.source for shard in self.manifest.shards]
        if source not in names:
            raise InputError(
                f"{self.folder} has no example of a source {source}: use "
                f"{', '.join(sorted(set(names))) or 'another folder'}"
            )
        ends = zip(names, self._first[:-1], self._first[1:], strict=True)
        return np.concatenate([np.arange(a, b) for name, a, b in ends if name == source])

    @property
    def lengths(self) -> Int[np.ndarray, "n"]:
        """The tokens of every example, in order, without reading them."""
        parts = [
            np.diff(batch.starts["tokens"])
            for number in range(len(self.manifest.shards))
            for batch in self._batches(number)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)

    def verify(self) -> None:
        """Compare the hash of every file with the manifest's. Raises InputError for the first.

        Of several processes each compares its share of the files.
        """
        for shard in own_part(self.manifest.shards):
            path = self.folder / shard.file
            if hash_file(path) != shard.sha256:
                raise _damaged(path)

    def check_parts(self, tokenizer: Path, codec: Path | None) -> None:
        """Raise InputError unless the shards were made with this tokenizer and this codec.

        A tokenizer is its file and the tokens that it names for the ends of a text. The codec
        counts only where there are vision ids.
        """
        made = self.manifest
        self.check_tokenizer(tokenizer)
        note = note_tokenizer(tokenizer)
        if (note.bos, note.eos) != (made.tokenizer.bos, made.tokenizer.eos):
            raise InputError(
                f"{self.folder} begins and ends texts otherwise than the names beside {tokenizer} "
                "say: build it again with this one, or train a model that has its own"
            )
        if made.codec is None or made.counts.vision == 0:
            return
        if codec is None or hash_codec(codec) != made.codec.sha256:
            raise InputError(
                f"{self.folder} was made with another codec than {codec or 'none'}: build it "
                "again with this one, or train a model that has its own"
            )

    def check_tokenizer(self, tokenizer: Path) -> None:
        """Raise InputError unless the shards were made with this tokenizer."""
        if note_tokenizer(tokenizer).sha256 != self.manifest.tokenizer.sha256:
            raise InputError(
                f"{self.folder} was made with another tokenizer than {tokenizer}: build it again "
                "with this one, or train a model that has its own"
            )

    def _find(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._first, index) - 1
        return number, index - int(self._first[number])

    def _batches(self, number: int) -> list[Columns]:
        """The record batches of a shard, mapped; the least lately opened shard is let go."""
        if number not in self._open:
            shard = self.manifest.shards[number]
            if len(self._open) >= OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            self._open[number] = _open_shard(self.folder / shard.file, shard)
        return self._open[number]

    def _check_ids(self, record: Record, shard: ShardNote) -> None:
        fault = find_fault(record.example, self.manifest.text_ids, self.manifest.vision_ids)
        if fault:
            raise InputError(
                f"{self.folder / shard.file}, from {record.origin}, {fault}: build it again"
            )


def find_fault(example: Example, text_ids: int, vision_ids: int) -> str:
    """What makes an example untrainable, in words that follow its name; "" for nothing."""
    if len(example) < 2:
        return "has nothing to predict"
    sizes = np.where(example.vision, vision_ids, text_ids)
    wrong = np.flatnonzero((example.tokens < 0) | (example.tokens >= sizes))
    if len(wrong):
        at = int(wrong[0])
        kind = "vision id" if example.vision[at] else "text id"
        return f"has the {kind} {example.tokens[at]}, which is not from 0 to {sizes[at] - 1}"
    if not (example.weights.min() >= 0 and example.weights.max() < math.inf):
        return "has a loss weight that is negative or no number"
    return "" if example.weights[1:].any() else "has nothing to learn"


def _read_row(batch: Columns, row: int) -> Record:
    tokens, runs = batch.row("tokens", row), batch.row("runs", row)
    example = Example(
        tokens,
        _expand(np.arange(len(runs)) % 2 == 1, runs, len(tokens)),
        _expand(batch.row("weights", row), batch.row("spans", row), len(tokens)),
    )
    seconds, origin = batch.row("seconds", row), batch.origins[row].as_py()
    return Record(example=example, seconds=seconds, origin=origin)


def _expand(
    values: Shaped[np.ndarray, "r"], counts: Int[np.ndarray, "r"], length: int
) -> Shaped[np.ndarray, "n"]:
    if len(values) != len(counts) or counts.sum() != length:
        raise ValueError("runs do not add up to the tokens")
    return np.repeat(values, counts)


def _open_shard(path: Path, shard: ShardNote) -> list[Columns]:
    _check_size(path, shard)
    with _said_damaged(path):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        if not reader.schema.equals(RECORD_SCHEMA, check_metadata=True) or any(
            column.null_count for batch in batches for column in batch.columns
        ):
            raise ValueError("another schema")
        if sum(batch.num_rows for batch in batches) != shard.counts.examples:
            raise ValueError("another number of examples")
        return [_map(batch) for batch in batches]


def _map(batch: pa.RecordBatch) -> Columns:
    lists = {name: batch.column(name) for name in RECORD_SCHEMA.names if name != "origin"}
    return Columns(
        values={name: own.values.to_numpy(zero_copy_only=True) for name, own in lists.items()},
        starts={name: own.offsets.to_numpy() for name, own in lists.items()},
        origins=batch.column("origin"),
    )


@contextmanager
def _said_damaged(path: Path) -> Generator[None, None, None]:
    """Say plainly what Arrow and numpy say of bytes that are not what was written."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is not what was written: delete its folder and build it again")


def _check_size(path: Path, shard: ShardNote) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: copy the folder again, or build it again")
    if path.stat().st_size != shard.bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes and not {shard.bytes}: copy the folder again, "
            "or build it again"
        )
