"""What a build reads: the files of its sources cut into partitions, and the rows of a partition.

Partitions are cut by the input alone (so many files, lines or rows), never by who reads them, and
each becomes one shard: that is why any number of workers writes the same bytes. Of a folder all
files count whose names end as the source asks, in small letters or capitals, at any depth, but for
hidden ones (a name, or that of a folder on the way, begins with a dot); what is left out is listed.
A row that cannot be read is told with its file and line; blank lines are no rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.corpora.spec import AnySource, Spec, TextSource
from ringworld.errors import InputError
from ringworld.files import find_name, hash_file

TABLES = (".jsonl", ".parquet")
# A line is read whole. An hour of film at one frame a second, as LWM's codes, is 5 MB.
LONGEST_LINE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file that is read, its path from the spec's folder, and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file in the folder of a source that is not read, and why."""

    source: str
    file: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Some rows of one source: what one worker reads at a time, and one shard holds.

    `source` is its place in the spec, `files` the files. Of a single file of rows, `start` and
    `stop` are bytes (JSONL) or rows (Parquet), and `line` is the first row's number, from 1.
    """

    shard: str
    source: int
    files: tuple[str, ...]
    start: int = 0
    stop: int = 0
    line: int = 1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the sources of a spec read: every file with its hash, the partitions, and the files in
    their folders that are not read."""

    files: tuple[Input, ...]
    partitions: tuple[Partition, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its number in its file, from 1, the folder its paths start from, and `read`."""

    origin: str
    line: int
    folder: Path
    read: Callable[[], Any]


def cut_partitions(spec: Spec, folder: Path) -> Inputs:
    """The files of a spec, which lies in `folder`, and their partitions, always in the same order.

    Raises InputError when a source has nothing to read.
    """
    inputs: list[Input] = []
    partitions: list[Partition] = []
    left_out: list[LeftOut] = []
    for place, source in enumerate(spec.sources):
        files, others = find_files(source, folder)
        left_out += others
        cuts: list[Partition] = []
        if isinstance(source, TextSource):
            inputs += [Input(file=file, sha256=hash_file(folder / file)) for file in files]
            for i in range(0, len(files), source.rows_per_shard):
                some = tuple(files[i : i + source.rows_per_shard])
                cuts.append(Partition(shard="", source=place, files=some, line=i + 1))
        else:
            for file in files:
                cut = _cut_lines if is_jsonl(file) else _cut_rows
                digest, edges = cut(folder / file, source.rows_per_shard)
                inputs.append(Input(file=file, sha256=digest))
                for (start, line), (stop, _) in zip(edges, edges[1:], strict=False):
                    cuts.append(
                        Partition(
                            shard="", source=place, files=(file,), start=start, stop=stop, line=line
                        )
                    )
        if not cuts:
            raise InputError(f"{source.name}: {folder / source.path} holds no rows: fill it")
        for i, partition in enumerate(cuts):
            partitions.append(replace(partition, shard=f"{source.name}-{i:05d}.arrow"))
    return Inputs(files=tuple(inputs), partitions=tuple(partitions), left_out=tuple(left_out))


def find_files(source: AnySource, folder: Path) -> tuple[list[str], list[LeftOut]]:
    """The files of a source, sorted, as paths from `folder`, and those beside them left out.

    Raises InputError without any, and for a name that is no text, as shards could not tell it.
    """
    suffixes = source.suffixes if isinstance(source, TextSource) else TABLES
    endings = tuple(suffix.lower() for suffix in suffixes)
    place = find_name(folder, source.path)
    path = folder / place
    if path.is_file() and path.name.lower().endswith(endings):
        return [place], []
    if not path.exists():
        raise InputError(f"{source.name}: there is nothing at {path}: correct its path")
    files: list[str] = []
    left_out: list[LeftOut] = []
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        file = (Path(place) / name).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and name.lower().endswith(endings):
            files.append(file)
            continue
        why = "hidden" if hidden else f"does not end in {' or '.join(suffixes)}"
        left_out.append(LeftOut(source=source.name, file=file, why=why))
    if not files:
        raise InputError(
            f"{source.name}: {path} holds no file that ends in {' or '.join(suffixes)}: "
            "give another path"
        )
    if unnamed := next((name for name in files if not is_text(name)), None):
        raise InputError(f"{source.name}: the name of {folder / unnamed} is not UTF-8: rename it")
    return files, [other for other in left_out if is_text(other.file)]


def is_jsonl(file: str) -> bool:
    """Whether a table is lines of JSON; else it is Parquet."""
    return file.lower().endswith(".jsonl")


def is_text(name: str) -> bool:
    """Whether a name is whole characters; the system gives other bytes as half characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _cut_lines(path: Path, partition: int) -> tuple[str, list[tuple[int, int]]]:
    """The hash of a JSONL, and (byte, line number) where each partition starts, then of its end."""
    digest, at, number, edges = hashlib.sha256(), 0, 0, []
    for number, line in enumerate(_lines(path), 1):
        if (number - 1) % partition == 0:
            edges.append((at, number))
        digest.update(line)
        at += len(line)
    return digest.hexdigest(), [*edges, (at, number + 1)]


def _cut_rows(path: Path, partition: int) -> tuple[str, list[tuple[int, int]]]:
    """The hash of a Parquet file; (row, number) of each partition's start, then of the end."""
    with _open_parquet(path) as file:
        rows = file.metadata.num_rows
    return hash_file(path), [(row, row + 1) for row in (*range(0, rows, partition), rows)]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                yield line
    except OSError as error:
        raise InputError(f"{path} cannot be read: check its permissions") from error


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not whole Parquet: copy or write it again") from error


# ---- the rows of a partition


def read_rows(partition: Partition, source: AnySource, folder: Path) -> Iterator[Row]:
    """The rows of a partition. `Row.read` raises InputError when a row is broken."""
    if isinstance(source, TextSource):
        for i, file in enumerate(partition.files):
            path = folder / file
            read = partial(_read_text, path)
            yield Row(origin=file, line=partition.line + i, folder=path.parent, read=read)
        return
    file = partition.files[0]
    rows = _json_rows if is_jsonl(file) else _parquet_rows
    beside = (folder / file).parent
    for line, read in rows(folder / file, partition):
        yield Row(origin=f"{file}:{line}", line=line, folder=beside, read=read)


def _read_text(path: Path) -> str:
    try:
        return decode_utf8(path.read_bytes())
    except OSError as error:
        raise InputError("the file cannot be read: check its permissions") from error


def _json_rows(path: Path, partition: Partition) -> Iterator[tuple[int, Callable[[], Any]]]:
    with path.open("rb") as file:
        file.seek(partition.start)
        number = partition.line
        while file.tell() < partition.stop:
            line = file.readline(LONGEST_LINE)
            if line.strip():
                yield number, partial(parse_line, line)
            number += 1


def _parquet_rows(path: Path, partition: Partition) -> Iterator[tuple[int, Callable[[], Any]]]:
    with _open_parquet(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            start, stop = max(partition.start - first, 0), min(partition.stop - first, count)
            if start < stop:
                try:
                    table = file.read_row_group(group)
                except (pa.ArrowException, OSError) as error:
                    raise InputError(f"{path} is not whole Parquet: write it again") from error
                for i in range(start, stop):
                    yield first + i + 1, partial(_parquet_row, table, i)
            first += count


def _parquet_row(table: pa.Table, row: int) -> Mapping[str, Any]:
    try:
        return table.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise InputError("a text is not UTF-8: write it as UTF-8 or leave it out") from error


def decode_utf8(written: bytes) -> str:
    """UTF-8, with or without a byte order mark. Raises InputError for anything else."""
    try:
        return written.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start + 1} is not UTF-8: write the text as UTF-8 or leave it out"
        ) from error


def parse_line(line: bytes) -> Mapping[str, Any]:
    """A line of JSONL. Raises InputError when it is no JSON object in UTF-8."""
    written = decode_utf8(line)
    try:
        row = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise InputError("the line is not JSON: write one object a line") from error
    if not isinstance(row, dict):
        raise InputError("the line is no JSON object: write one object a line")
    return row
