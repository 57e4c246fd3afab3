"""GGUF, the container of llama.cpp: metadata and quantised tensors in one file.

    "GGUF", version, the numbers of tensors and of entries
    entries      name, type, value
    tensors      name, sizes (the fastest axis first), type, where it begins
    bytes        of each tensor, at multiples of the alignment

Every count and length is compared with the file before it is believed, and tensors may neither
leave the file nor lie over one another; `gguf.quants` does the arithmetic of the quantised types.
Format: ggml-org/ggml, docs/gguf.md.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ringworld.errors import InputError
from ringworld.weights.cursor import Cursor, check_finite, open_bytes
from ringworld.weights.tensors import POINTER

MAGIC = 0x46554747  # "GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment does not say
# What no file of weights comes near: 405B Llama has 1,138 tensors, vocabularies 300,000 words and
# merges, each of two.
MOST_TENSORS = 1 << 16
MOST_ENTRIES = 1 << 16
MOST_TEXTS = 1 << 21  # in all arrays together
LONGEST_KEY_NAME = 1 << 8
LONGEST_TEXT = 1 << 20
MOST_GGUF_AXES = 4
ENTRY_TEXT, ENTRY_ARRAY = 8, 9
ENTRY_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class TensorType:
    """A type of tensors: `block` numbers of it take `width` bytes."""

    name: str
    block: int
    width: int


# By their number in the file; those that can be turned into floats.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor in the file: its shape as NumPy has it, its type, and its bytes."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: TensorType
    content: memoryview

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what is read."""
        return PLAIN.get(self.kind.name, np.dtype(np.float32))

    def read(self) -> np.ndarray:
        """Its numbers, dequantised to float32 if they are not floats already."""
        if self.kind.name in PLAIN:
            plain = np.frombuffer(self.content, PLAIN[self.kind.name])
            array = plain.reshape(self.shape).copy()
        else:
            array = _dequantise(self.content, self.kind, self.shape)
        return check_finite(self.path, self.name, array)


def _dequantise(content: memoryview, kind: TensorType, shape: tuple[int, ...]) -> np.ndarray:
    # Half a second to import, and models of plain floats never need it.
    from gguf import GGMLQuantizationType, quants

    rows = np.frombuffer(content, np.uint8).reshape(*shape[:-1], -1)
    with np.errstate(
        all="ignore"
    ):  # the scales of a broken file are any numbers; `check_finite` tells
        return quants.dequantize(rows, GGMLQuantizationType[kind.name]).reshape(shape)


@dataclass(frozen=True)
class Container:
    """A whole file: numbers and texts by name, arrays of numbers as NumPy's, and the tensors."""

    path: Path
    entries: dict[str, Any]
    tensors: dict[str, Tensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, whatever its name: caches name files by their hash."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def read_container(path: Path) -> Container:
    """The entries and tensors of a GGUF file; the tensors stay in it. Raises InputError."""
    cursor = Cursor(open_bytes(path), path)
    if cursor.data[: len(POINTER)] == POINTER:
        raise InputError(f"{path} only names the weights (Git LFS): run git lfs pull there")
    if cursor.number("<I", "the beginning") != MAGIC:
        raise InputError(f"{path} does not begin with GGUF: give a .gguf file")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        raise InputError(f"{path} is GGUF of version {version}, and 2 and 3 are read: convert it")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MOST_TENSORS or entries > MOST_ENTRIES:
        raise cursor.broken(f"{tensors} tensors and {entries} entries")
    found = _read_entries(cursor, entries)
    return Container(path, found, _read_tensors(cursor, tensors, found))


def _read_entries(cursor: Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    texts = 0
    for _ in range(count):
        name = _text(cursor, LONGEST_KEY_NAME)
        if name in found:
            raise cursor.broken(f"the entry {name!a:.80} stands twice")
        kind = cursor.number("<I", "a type")
        found[name] = _read_array(cursor) if kind == ENTRY_ARRAY else _read_value(cursor, kind)
        texts += len(found[name]) if isinstance(found[name], list) else 0
        if texts > MOST_TEXTS:
            raise cursor.broken(f"more than {MOST_TEXTS} texts")
    return found


def _read_value(cursor: Cursor, kind: int) -> Any:
    if kind == ENTRY_TEXT:
        return _text(cursor, LONGEST_TEXT)
    if kind not in ENTRY_NUMBERS:
        raise cursor.broken(f"an entry of type {kind}")
    return cursor.value("<" + ENTRY_NUMBERS[kind])


def _read_array(cursor: Cursor) -> list[str] | np.ndarray:
    """An array of texts, or of numbers; arrays of arrays are in no model that is read."""
    kind, count = cursor.number("<I", "a type"), cursor.number("<Q")
    if kind == ENTRY_TEXT:
        if count > MOST_TEXTS:
            raise cursor.broken(f"{count} texts")
        cursor.need(count * 8, f"an array of {count} texts")
        return [_text(cursor, LONGEST_TEXT) for _ in range(count)]
    if kind not in ENTRY_NUMBERS:
        raise cursor.broken(f"an array of type {kind}")
    dtype = np.dtype("<" + ENTRY_NUMBERS[kind]) if kind != 7 else np.dtype(np.uint8)
    return np.frombuffer(cursor.take(count * dtype.itemsize, f"an array of {count}"), dtype)


def _text(cursor: Cursor, most: int) -> str:
    return cursor.text(cursor.number("<Q", "a length"), most, "a text")


def _read_tensors(cursor: Cursor, count: int, entries: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors, whose places are checked against the file and one another."""
    alignment = entries.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.broken("an alignment that is no power of 2")
    heads = [_read_head(cursor) for _ in range(count)]
    start = -(-cursor.place // alignment) * alignment
    found: dict[str, Tensor] = {}
    end, before = 0, "the header"
    for place, name, shape, kind, size in sorted(heads, key=lambda head: head[0]):
        if name in found:
            raise cursor.broken(f"the tensor {name} stands twice")
        if place % alignment:
            raise cursor.broken(f"the tensor {name} does not begin at a multiple of {alignment}")
        if place < end:
            raise cursor.broken(f"the tensor {name} lies over {before}")
        end, before = place + size, name
        if start + end > len(cursor.data):
            past = start + end - len(cursor.data)
            raise cursor.broken(f"the tensor {name} ends {past} bytes after the file")
        content = cursor.data[start + place : start + end]
        found[name] = Tensor(cursor.path, name, shape, kind, content)
    return found


def _read_head(cursor: Cursor) -> tuple[int, str, tuple[int, ...], TensorType, int]:
    """Where a tensor begins, its name, shape and type, and its bytes."""
    name = _text(cursor, LONGEST_KEY_NAME)
    if not name.isprintable():
        raise cursor.broken("a name that cannot be written")
    axes = cursor.number("<I", "a number of axes")
    if not 0 < axes <= MOST_GGUF_AXES:
        raise cursor.broken(f"the tensor {name} has {axes} axes")
    sizes = [cursor.number("<Q", "a size") for _ in range(axes)]
    number, place = cursor.number("<I", "a type"), cursor.number("<Q", "a place")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        readable = ", ".join(kind.name for kind in TENSOR_TYPES.values())
        raise InputError(
            f"the tensor {name} in {cursor.path} has the type {number}, which cannot be made "
            f"floats: convert it to one of {readable}"
        )
    if not all(0 < size < 1 << 48 for size in sizes) or sizes[0] % kind.block:
        raise cursor.broken(f"{name} has the sizes {sizes}, and its type blocks of {kind.block}")
    return place, name, tuple(reversed(sizes)), kind, math.prod(sizes) // kind.block * kind.width
