"""Trees of arrays in msgpack, as flax and LWM's StreamingCheckpointer write them, read in place.

    flax        one map of maps, an array at every end
    streaming   [path, bytes] again and again; the bytes are the msgpack of one array

An array is the extension 1 (or 3, of one number) around [shape, type, bytes]; one of more than
2^30 bytes is a map with "__msgpack_chunked_array__" and its parts in order. Nothing is decoded but
names and shapes: the arrays stay in the file. Formats: github.com/msgpack/msgpack/blob/master/
spec.md, and `flax.serialization` as published.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringworld.weights.cursor import Cursor, Stored, open_bytes, store

# LWM's largest model has 80 layers of 9 tensors; an optimiser's state triples them.
MOST_VALUES = 100_000
DEEPEST = 32
LONGEST_KEY_TEXT = 1 << 12
CHUNKED = "__msgpack_chunked_array__"
FLAX_ARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax's extensions

# What a first byte of 0xc0 to 0xdf means: its kind and the number that follows, or its value.
CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBER_FORMS = {0xCA + i: f">{form}" for i, form in enumerate("fdBHIQbhiq")}
LENGTHS = {
    **dict(zip((0xC4, 0xC5, 0xC6), (("bytes", n) for n in (">B", ">H", ">I")), strict=True)),
    **dict(zip((0xC7, 0xC8, 0xC9), (("extension", n) for n in (">B", ">H", ">I")), strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), (("text", n) for n in (">B", ">H", ">I")), strict=True)),
    **dict(zip((0xDC, 0xDD), (("list", n) for n in (">H", ">I")), strict=True)),
    **dict(zip((0xDE, 0xDF), (("map", n) for n in (">H", ">I")), strict=True)),
}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@dataclass(frozen=True)
class FlaxValue:
    """A value of a type that msgpack itself does not know."""

    code: int
    content: memoryview


class Reader:
    """Values of msgpack from a cursor, within the limits above over the whole file."""

    def __init__(self) -> None:
        self.values = 0

    def value(self, cursor: Cursor, depth: int = 0) -> Any:
        """The next value: maps as dicts, lists, texts, numbers, bytes in place, extensions."""
        self.values += 1
        if self.values > MOST_VALUES or depth > DEEPEST:
            raise cursor.broken(f"more than {MOST_VALUES} values, or {DEEPEST} inside another")
        first = cursor.number(">B", "a value")
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBER_FORMS:
            return cursor.value(NUMBER_FORMS[first])
        if first in FIXED_EXTENSIONS:
            return self._extension(cursor, FIXED_EXTENSIONS[first])
        kind, size = self._length(cursor, first)
        if kind == "text":
            return cursor.text(size, LONGEST_KEY_TEXT, "a name")
        if kind == "bytes":
            return cursor.take(size, "an array")
        if kind == "extension":
            return self._extension(cursor, size)
        cursor.need(size * (2 if kind == "map" else 1), f"a {kind} of {size}")
        if kind == "list":
            return [self.value(cursor, depth + 1) for _ in range(size)]
        return self._map(cursor, size, depth)

    def _length(self, cursor: Cursor, first: int) -> tuple[str, int]:
        if first < 0x90:
            return "map", first - 0x80
        if first < 0xA0:
            return "list", first - 0x90
        if first < 0xC0:
            return "text", first - 0xA0
        if first not in LENGTHS:
            raise cursor.broken(f"the byte {first:#x} begins no value")
        kind, form = LENGTHS[first]
        return kind, cursor.number(form)

    def _extension(self, cursor: Cursor, size: int) -> FlaxValue:
        code = cursor.number(">b", "an extension")
        return FlaxValue(code, cursor.take(size, "an extension"))

    def _map(self, cursor: Cursor, size: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(cursor, depth + 1)
            if not isinstance(key, str):
                raise cursor.broken("a name that is no text")
            if key in found:
                raise cursor.broken(f"{key[:40]!r} stands twice")
            found[key] = self.value(cursor, depth + 1)
        return found


def read_tree(path: Path) -> dict[str, Any]:
    """The arrays of a flax or streaming file by their path, joined with "/"; None for no array.

    What is no array of weights (a step, an optimiser's count) is None, unless it is broken. Raises
    InputError when the file is neither or is damaged.
    """
    cursor, reader = Cursor(open_bytes(path), path), Reader()
    tree: dict[str, Any] = {}
    first = cursor.data[0]
    if 0x80 <= first < 0x90 or first in (0xDE, 0xDF):
        _flatten(reader.value(cursor), "", cursor, reader, tree)
        if cursor.left:
            raise cursor.broken(f"{cursor.left} bytes after the end")
        return tree
    while cursor.left:
        entry = reader.value(cursor)
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not isinstance(entry[0], list) or not isinstance(entry[1], memoryview):
            raise cursor.broken("no pair of a name and an array: is it LWM's or flax's?")
        if not all(isinstance(part, str) for part in entry[0]):
            raise cursor.broken("a name that is no text")
        inner = Cursor(entry[1], path)
        _flatten(reader.value(inner), "/".join(entry[0]), inner, reader, tree)
        if inner.left:
            raise cursor.broken(f"{inner.left} bytes after an array")
    return tree


def _flatten(value: Any, name: str, at: Cursor, reader: Reader, tree: dict[str, Any]) -> None:
    """Add the arrays below `name` to `tree`."""
    if isinstance(value, dict) and CHUNKED not in value:
        for key, inner in value.items():
            _flatten(inner, f"{name}/{key}" if name else key, at, reader, tree)
        return
    if name in tree:
        raise at.broken(f"the tensor {name[:80]} stands twice")
    tree[name] = _array(value, name, at, reader)


def _array(value: Any, name: str, at: Cursor, reader: Reader) -> Stored | None:
    """The array that a value is, or None when it is a number of another kind."""
    if isinstance(value, dict):
        shape, chunks = _in_order(value.get("shape"), at), _in_order(value.get("chunks"), at)
        parts = [_array(chunk, name, at, reader) for chunk in chunks]
        stored = [part for part in parts if part is not None]
        if not stored or len(stored) < len(parts) or len({part.dtype for part in stored}) > 1:
            raise at.broken(f"the parts of {name[:80]} do not fit together")
        return store(stored[0].dtype.name, shape, tuple(b for p in stored for b in p.parts), at)
    if not isinstance(value, FlaxValue) or value.code == COMPLEX:
        return None
    inner = Cursor(value.content, at.path)
    content = reader.value(inner)
    fits = isinstance(content, list) and len(content) == 3 and not inner.left
    if value.code not in (FLAX_ARRAY, SCALAR) or not fits:
        raise at.broken(f"the tensor {name[:80]} is no array of flax's")
    shape, dtype, numbers = content
    if not isinstance(dtype, str) or not isinstance(numbers, memoryview):
        raise at.broken(f"the tensor {name[:80]} is no array of flax's")
    if dtype.startswith(("int", "uint", "bool")):
        return None
    return store(dtype, shape, (numbers,), at)


def _in_order(value: Any, at: Cursor) -> list[Any]:
    """The list that flax writes as {"0": ..., "1": ...}."""
    if not isinstance(value, dict) or set(value) != {str(i) for i in range(len(value))}:
        raise at.broken("the parts of an array are not in order")
    return [value[str(i)] for i in range(len(value))]
