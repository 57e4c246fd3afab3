"""Bounds-checked reading of foreign binary files: nothing is taken that the file does not hold.

Every length that a file names is compared with what is left of it before anything is made, so that
a file costs memory in proportion to its size and no more. Arrays stay in the file until they are
read: a `Stored` is a type, a shape and where the bytes lie.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ringworld.errors import InputError
from ringworld.weights.tensors import all_finite

# What an array of weights may be made of, by the name that numpy gives it.
STORED_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Beyond any array there is; products of so few numbers are made without harm.
MOST_AXES = 8


def open_bytes(path: Path) -> memoryview:
    """The bytes of a file, read as they are used. Raises InputError when there are none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty: copy it again")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Cursor:
    """A place in some bytes, moved by reading. Raises InputError where they end too soon."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.place = 0

    @property
    def left(self) -> int:
        """The bytes from here to the end."""
        return len(self.data) - self.place

    def broken(self, what: str) -> InputError:
        """What is wrong with the file, as the sentence that the user reads."""
        return InputError(f"{self.path} is broken near byte {self.place} ({what}): copy it again")

    def need(self, size: int, what: str) -> None:
        """Raise InputError when fewer than `size` bytes are left for `what`."""
        if size > self.left:
            raise self.broken(f"{what} needs {size} bytes and {self.left} are left")

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes, not copied."""
        self.need(size, what)
        self.place += size
        return self.data[self.place - size : self.place]

    def inside(self, size: int, what: str) -> "Cursor":
        """The next bytes, to be read on their own."""
        return Cursor(self.take(size, what), self.path)

    def value(self, form: str, what: str = "a number") -> Any:
        """The next number or boolean, a format of `struct` with its byte order."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def number(self, form: str, what: str = "a number") -> int:
        """The next whole number."""
        return self.value(form, what)

    def text(self, size: int, most: int, what: str) -> str:
        """The next `size` bytes as text of at most `most`."""
        if size > most:
            raise self.broken(f"{what} of {size} bytes, and {most} are the most")
        try:
            return str(self.take(size, what), "utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not UTF-8") from None


@dataclass(frozen=True)
class Stored:
    """An array that lies in a file, in one part or in several whose bytes follow one another."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: tuple[memoryview, ...]

    def read(self) -> np.ndarray:
        """All of it, copied out of the file."""
        return self._numbers(0, math.prod(self.shape)).reshape(self.shape)

    def row(self, index: int) -> np.ndarray:
        """One entry of the first axis, copied."""
        size = math.prod(self.shape[1:])
        return self._numbers(index * size, (index + 1) * size).reshape(self.shape[1:])

    def _numbers(self, first: int, past: int) -> np.ndarray:
        """A run of its numbers."""
        width, found, start = self.dtype.itemsize, [], 0
        for part in self.parts:
            count = len(part) // width
            a, b = max(first - start, 0), min(past - start, count)
            if a < b:
                found.append(np.frombuffer(part[a * width : b * width], self.dtype))
            start += count
        if not found:
            return np.zeros(0, self.dtype)
        return np.concatenate(found)


def store(name: str, shape: object, parts: tuple[memoryview, ...], where: Cursor) -> Stored:
    """An array of the type `name` whose shape and bytes agree.

    Raises InputError when the type is none of weights, or the bytes are too many or too few.
    """
    if name not in STORED_DTYPES:
        raise where.broken(f"an array of type {name[:20]!r}, which no weight has")
    whole = isinstance(shape, list | tuple) and len(shape) <= MOST_AXES
    if not whole or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise where.broken("a shape that is none")
    dtype, held = STORED_DTYPES[name], sum(len(part) for part in parts)
    if math.prod(shape) * dtype.itemsize != held or any(len(p) % dtype.itemsize for p in parts):
        raise where.broken(f"an array {list(shape)} of {name} in {held} bytes")
    return Stored(dtype, tuple(shape), parts)


def check_finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array, if every number of it is one. Raises InputError that names the tensor."""
    if not all_finite(array):
        raise InputError(
            f"the tensor {name} in {path} holds numbers that are not finite: use weights that were "
            "saved before the training broke down"
        )
    return array


def rows_to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys from the order of pairs (2i, 2i + 1) to that of (i, i + H/2).

    The first axis is that of the heads' features, as in Hugging Face's matrices and biases; the
    first order is Meta's, which LWM and GGUF keep.
    """
    apart = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return apart.swapaxes(1, 2).reshape(rows.shape)
