"""Safetensors, read without a copy and written without a whole model in memory.

    8 bytes     the length of the header
    header      JSON: {name: {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [a, b]}}
    bytes       the tensors, back to back

A file that is read is checked whole before anything of it is used, and stays on the disk: its
tensors are views of mapped memory. Format: huggingface/safetensors.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ringworld.distributed import barrier, is_first
from ringworld.errors import InputError
from ringworld.files import parse_json_object

# The header of a model of 100,000 tensors is 10 MB; parsed, it takes some 30 times as much memory.
HEADER_BYTES = 16 << 20
METADATA = "__metadata__"
LONGEST_TENSOR_NAME = 256  # three times the longest of a published model
# What stands in place of a large file where Git LFS has not brought it.
POINTER = b"version https://git-lfs"
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a known dtype, which is read or made each time it is called."""

    read: Callable[[], np.ndarray]
    dtype: np.dtype

    def __call__(self) -> np.ndarray:
        """The tensor."""
        return self.read()

    def then(self, change: Callable[[np.ndarray], np.ndarray]) -> "LazyTensor":
        """The same tensor, changed by a function that keeps its dtype."""
        return LazyTensor(lambda: change(self.read()), self.dtype)


def lazy(array: np.ndarray) -> LazyTensor:
    """A tensor that is there already, such as a view of a file."""
    return LazyTensor(lambda: array, array.dtype)


@dataclass(frozen=True)
class LazyWeight:
    """A weight that is read piece by piece, which follow one another along its first axis.

    `names` are those of the pieces in the files that they come from, where these have others.
    """

    shape: tuple[int, ...]
    reads: tuple[LazyTensor, ...]
    names: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds all pieces: theirs, or a wider one where they differ."""
        return wider({read.dtype for read in self.reads})

    def __iter__(self) -> Iterator[np.ndarray]:
        """The pieces, each read when it is asked for."""
        return (read() for read in self.reads)


Table = Mapping[str, np.ndarray | LazyWeight]
"""Weights by name."""


@dataclass(frozen=True)
class DividedWeight:
    """A weight that lies on devices: the blocks that this process writes, and where each begins."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: tuple[tuple[tuple[int, ...], LazyTensor], ...]


Written = np.ndarray | LazyWeight | DividedWeight


def wider(dtypes: set[np.dtype]) -> np.dtype:
    """The dtype of one kind of floats, or of several one that holds them all: 32 or 64 bits."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def each_block(name: str, weight: Written) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """The blocks of a weight: the name by which a user finds each, where it begins, and itself."""
    if isinstance(weight, DividedWeight):
        yield from ((name, start, read()) for start, read in weight.blocks)
        return
    for known, first, piece in each_piece(name, weight, 0, weight.shape[0] if weight.shape else 1):
        yield known, (first, *[0] * (len(weight.shape) - 1))[: len(weight.shape)], piece


def each_piece(
    name: str, weight: np.ndarray | LazyWeight, first: int, past: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """The pieces of a weight that hold its rows from `first` to before `past`.

    Each comes with the name by which a user finds it and its first row; it may have other rows too.
    """
    if isinstance(weight, np.ndarray):
        yield name, 0, weight
        return
    by_row = len(weight.reads) == weight.shape[0]
    row = 0
    for i, read in enumerate(weight.reads):
        if by_row and not first <= i < past:
            row += 1
            continue
        piece = read()
        yield (weight.names[i] if weight.names else name), row, piece
        row += len(piece)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, as views of the file.

    Raises InputError when the file is missing, cut short, or says of itself what is not so.
    """
    if not file.is_file():
        raise InputError(f"there is no {file}: give the folder of a saved model")
    with file.open("rb") as opened:
        size = file.stat().st_size
        if opened.read(len(POINTER)) == POINTER:
            raise InputError(f"{file} only names the weights (Git LFS): run git lfs pull there")
        opened.seek(0)
        length = struct.unpack("<Q", opened.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, HEADER_BYTES):
            raise _damaged(file, f"{size} bytes with a header of {length}")
        header = _parse(file, opened.read(length))
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    views, end = {}, 0
    entries = sorted(header.items(), key=lambda entry: _offsets(file, *entry))
    for name, entry in entries:
        dtype, shape = _kind(file, name, entry)
        first, past = _offsets(file, name, entry)
        count, there = math.prod(shape), size - 8 - length
        if past > there:
            raise _damaged(file, f"the tensor {name} ends {past - there:,} bytes after the file")
        if first != end:
            what = "lies over" if first < end else "leaves a gap behind"
            raise _damaged(
                file, f"the tensor {name} at byte {first:,} {what} the one that ends at {end:,}"
            )
        if past - first != count * dtype.itemsize:
            raise _damaged(
                file,
                f"the tensor {name} of shape {shape} takes {count * dtype.itemsize:,} bytes and "
                f"its place has {past - first:,}",
            )
        views[name] = np.frombuffer(data, dtype, count, 8 + length + first).reshape(shape)
        end = past
    if 8 + length + end != size:
        raise _damaged(file, f"{size - 8 - length - end} bytes at its end belong to no tensor")
    return {name: views[name] for name in header}


def write_tensors(file: Path, table: Mapping[str, Written]) -> None:
    """Write a new safetensors file, one piece in memory at a time.

    Pieces of several dtypes are written in one that holds them all, such as float32 for float16 and
    bfloat16. Where several processes compute together, all call this, and each writes the blocks
    that its table has. Raises InputError when a piece holds what is no number.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    dtypes, end = {}, 0
    for name, weight in table.items():
        dtypes[name] = weight.dtype
        first, end = end, end + math.prod(weight.shape) * dtypes[name].itemsize
        header[name] = {
            "dtype": CODES[dtypes[name]],
            "shape": list(weight.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if is_first():
        with file.open("xb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + end)
    barrier()
    with file.open("r+b", buffering=0) as opened:
        for name, weight in table.items():
            begin = 8 + len(text) + header[name]["data_offsets"][0]
            for known, start, piece in each_block(name, weight):
                check_numbers(known, piece)
                block = np.ascontiguousarray(piece, dtypes[name]).reshape(piece.shape)
                _write_block(opened, begin, weight.shape, start, block)
                let_go(piece)
        os.fsync(opened.fileno())
    barrier()


def _write_block(
    file: RawIOBase, begin: int, shape: tuple[int, ...], start: tuple[int, ...], block: np.ndarray
) -> None:
    """Write a block of a tensor that begins at a byte of the file: what lies together at once.

    Processes that write parts of one page of a file at the same time must not map it: a network
    file system would write the whole page back for each of them.
    """
    whole = len(shape)
    while whole and block.shape[whole - 1] == shape[whole - 1]:
        whole -= 1
    apart = max(whole - 1, 0)  # the axes before this one jump in the file
    steps = [block.dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    origin = begin + sum(step * at for step, at in zip(steps, start, strict=True))
    for at in np.ndindex(*block.shape[:apart]):
        file.seek(origin + sum(step * i for step, i in zip(steps, at, strict=False)))
        left = memoryview(block[at].reshape(-1).view(np.uint8))
        while left:
            left = left[file.write(left) :]


def check_numbers(name: str, piece: np.ndarray) -> None:
    """Raise InputError when a weight holds what is not a number."""
    if not all_finite(piece):
        raise InputError(
            f"the tensor {name} holds NaN or infinity: use weights of a run that did not diverge"
        )


def all_finite(array: np.ndarray) -> bool:
    """Whether every number is one.

    The least and the greatest tell without another array; of 16 bits, where NumPy is five times
    slower to find them than to look at each, the answers are made first.
    """
    with np.errstate(all="ignore"):
        if array.dtype.itemsize <= 2:
            return bool(np.isfinite(array).all())
        return bool(np.isfinite(array.min(initial=0)) and np.isfinite(array.max(initial=0)))


def let_go(piece: np.ndarray) -> None:
    """Give the memory of the file that a piece is a view of back to the system.

    Pages of a mapped file count as a program's own until somebody needs them; read again, they come
    from the file.
    """
    owner: Any = piece
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def _damaged(file: Path, what: str) -> InputError:
    return InputError(f"{file} is damaged or cut short ({what}): copy it again")


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parse_json_object(text)
    except ValueError as error:
        raise _damaged(file, f"its header is not whole JSON: {error}") from error
    header.pop(METADATA, None)
    if not all(isinstance(entry, dict) for entry in header.values()):
        raise _damaged(file, "its header does not describe tensors")
    if not all(name.isprintable() and len(name) <= LONGEST_TENSOR_NAME for name in header):
        raise _damaged(file, f"a tensor's name cannot be written in {LONGEST_TENSOR_NAME} letters")
    return header


def _offsets(file: Path, name: str, entry: dict[str, Any]) -> tuple[int, int]:
    said = entry.get("data_offsets")
    if not (isinstance(said, list) and len(said) == 2 and _sizes(said)):
        raise _damaged(file, f"the tensor {name} does not say where it lies")
    return said[0], said[1]


def _kind(file: Path, name: str, entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...]]:
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(
            f"the tensor {name} of {file} is stored as {code!a:.40}: "
            f"use weights stored as one of {', '.join(DTYPES)}"
        )
    if not (isinstance(shape, list) and len(shape) <= 32 and _sizes(shape)):
        raise _damaged(file, f"the tensor {name} has no shape")
    return DTYPES[code], tuple(shape)


def _sizes(numbers: list[Any]) -> bool:
    """Whether all are whole numbers that a file can have."""
    return all(type(n) is int and 0 <= n < 2**48 for n in numbers)
