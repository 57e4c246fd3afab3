"""Arrays out of a pickle, by our own reading of its opcodes: nothing is imported, nothing called.

A pickle is a program for a small stack machine, whose words can name any function and call it.
This machine knows the words that write down dicts, tuples, numbers, texts and bytes, and no
others. A name is looked up in one table, exactly, and what stands there is a token of ours; to
"call" one is to read its arguments as a dtype or an array. So what it can make is data, whatever
the file says, and no more of it than the limits below allow. Opcodes: PEP 3154 and PEP 574.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ringworld.errors import InputError
from ringworld.weights.cursor import Cursor, Stored, open_bytes, store

# LWM's codec has 278 arrays, some 25 opcodes each; the rest is room.
MOST_OPCODES = 100_000
MOST_PICKLED = 100_000
DEEPEST_PICKLE = 64
LONGEST_KEY = 1 << 8  # of a name, and of a path of them
LARGEST_FILE = 4 << 30

MARK = object()  # where a tuple or the items of a dict begin on the stack


@dataclass(frozen=True)
class PickledName:
    """A class or function that a pickle names; here only a word."""

    module: str
    name: str


class ArrayType:
    """A dtype under construction: its name as numpy's `dtype.name`."""

    def __init__(self, name: str) -> None:
        self.name = name


class Array:
    """An array under construction: empty until its state arrives."""

    def __init__(self) -> None:
        self.stored: Stored | None = None


RECONSTRUCT, FROM_BUFFER, PICKLED_SCALAR = "_reconstruct", "_frombuffer", "scalar"
MULTIARRAY, NUMERIC = ("numpy.core.multiarray", "numpy._core.multiarray"), ("numpy.core.numeric",)
# The names that a pickle of weights may hold, each with the token it becomes.
ALLOWED: dict[PickledName, str] = {
    PickledName("numpy", "ndarray"): "ndarray",
    PickledName("numpy", "dtype"): "dtype",
    PickledName("ml_dtypes", "bfloat16"): "bfloat16",
    PickledName("collections", "OrderedDict"): "dict",
    PickledName("flax.core.frozen_dict", "FrozenDict"): "dict",
    PickledName("jax._src.array", "_reconstruct_array"): "jax",
    PickledName("_codecs", "encode"): "encode",
    **{PickledName(module, RECONSTRUCT): RECONSTRUCT for module in MULTIARRAY},
    **{PickledName(module, PICKLED_SCALAR): PICKLED_SCALAR for module in MULTIARRAY},
    **{
        PickledName(module, FROM_BUFFER): FROM_BUFFER
        for module in (*NUMERIC, "numpy._core.numeric")
    },
}
# What numpy calls its types in a pickle.
ARRAY_TYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Token:
    """An allowed name on the stack."""

    means: str


class PickleMachine:
    """The stack, the memo and the program; `run` gives what the program leaves."""

    def __init__(self, cursor: Cursor) -> None:
        self.at = cursor
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = len(cursor.data)  # bytes that `_codecs.encode` may make

    def run(self) -> Any:
        """Follow the opcodes to the end. Raises InputError at the first that is not allowed."""
        for _ in range(MOST_OPCODES):
            code = self.at.number("<B", "an opcode")
            if code == ord("."):
                if len(self.stack) != 1 or self.at.left:
                    raise self.at.broken("it does not end where its program does")
                return self.pop()
            if code not in OPCODES:
                self.refuse(f"the opcode {code:#04x}")
            OPCODES[code](self)
        raise self.at.broken(f"more than {MOST_OPCODES} opcodes")

    def refuse(self, what: str) -> NoReturn:
        """Stop at what no file of weights needs."""
        raise InputError(
            f"{self.at.path} uses {what} of pickle, which weights do not need and an attack may: "
            "do not open it with anything else either, and fetch the file from its source"
        )

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value, which must be one."""
        if not self.stack or self.stack[-1] is MARK:
            raise self.at.broken("a value is missing")
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        """Take what was put since the last mark, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                found = self.stack[i + 1 :]
                del self.stack[i:]
                return found
        raise self.at.broken("a mark is missing")

    # What each opcode does.

    def check_protocol(self) -> None:
        """PROTO: 2 to 5 are read; the older ones are text."""
        if not 2 <= self.at.number("<B") <= 5:
            raise self.at.broken("its protocol is none of 2 to 5")

    def check_frame(self) -> None:
        """FRAME: only a hint of how much to read ahead."""
        self.at.need(self.at.number("<Q"), "a frame")

    def number(self, form: str) -> None:
        """BININT and the like."""
        self.push(self.at.value(form))

    def long(self) -> None:
        """LONG1: a number of up to 255 bytes; sizes need 8."""
        size = self.at.number("<B")
        if size > 8:
            raise self.at.broken(f"a number of {size} bytes")
        self.push(int.from_bytes(self.at.take(size, "a number"), "little", signed=True))

    def text(self, form: str) -> None:
        """BINUNICODE and the like; surrogates pass in pickle and not here."""
        size = self.at.number(form)
        self.push(self.at.text(size, len(self.at.data), "a text"))

    def bytes(self, form: str) -> None:
        """BINBYTES, BYTEARRAY8: left where they lie."""
        self.push(self.at.take(self.at.number(form), "bytes"))

    def tuple(self, size: int) -> None:
        """TUPLE1 to TUPLE3."""
        items = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def marked_tuple(self) -> None:
        """TUPLE."""
        self.push(tuple(self.to_mark()))

    def set_items(self, items: list[Any]) -> None:
        """SETITEM, SETITEMS: only texts are keys."""
        target = self.stack[-1] if self.stack else None
        keys = items[::2]
        if not isinstance(target, dict) or len(items) % 2 or not all(map(_is_key, keys)):
            raise self.at.broken("items for what is no dict of names")
        target.update(zip(keys, items[1::2], strict=True))

    def remember(self, form: str) -> None:
        """BINPUT, LONG_BINPUT, MEMOIZE."""
        place = self.at.number(form) if form else len(self.memo)
        self.memo[place] = self.pop()
        self.push(self.memo[place])

    def recall(self, form: str) -> None:
        """BINGET, LONG_BINGET."""
        place = self.at.number(form)
        if place not in self.memo:
            raise self.at.broken("it recalls what it did not remember")
        self.push(self.memo[place])

    def name_here(self) -> None:
        """GLOBAL: two lines of text."""
        parts = []
        for _ in range(2):
            rest = bytes(self.at.data[self.at.place : self.at.place + LONGEST_KEY])
            line = rest.split(b"\n", 1)
            if len(line) < 2 or not line[0].isascii():
                raise self.at.broken("a name without an end")
            self.at.take(len(line[0]) + 1, "a name")
            parts.append(line[0].decode())
        self.name(*parts)

    def name_on_stack(self) -> None:
        """STACK_GLOBAL."""
        name, module = self.pop(), self.pop()
        if not _is_key(name) or not _is_key(module):
            raise self.at.broken("a name that is no text")
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        """Look a name up, whole: no parts of it, no attribute of an attribute."""
        token = ALLOWED.get(PickledName(module, name))
        if token is None:
            self.refuse(f"the name {module[:60]!a}.{name[:60]!a}")
        self.push(Token(token))

    def reduce(self) -> None:
        """REDUCE: read the arguments of an allowed name as the data that they stand for."""
        arguments, token = self.pop(), self.pop()
        if not isinstance(token, Token) or not isinstance(arguments, tuple):
            self.refuse("a call of what is no name")
        if token.means not in MAKERS:
            self.refuse(f"a call of {token.means}")
        self.push(MAKERS[token.means](self, arguments))

    def build(self) -> None:
        """BUILD: the state of a dtype, or of an array."""
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if isinstance(target, ArrayType):
            plain = isinstance(state, tuple) and len(state) in (8, 9) and state[1] in ("<", "|")
            if not plain or any(part is not None for part in state[2:5]):
                raise self.at.broken("a type of parts, or of another byte order")
        elif isinstance(target, Array) and target.stored is None:
            target.stored = self.array_of(state)
        else:
            self.refuse("the state of what has none")

    def array_of(self, state: Any) -> Stored:
        """An array from (version, shape, dtype, whether columns come first, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5 or state[3] is not False:
            raise self.at.broken("an array that does not lie row by row")
        return self.stored(state[1], state[2], state[4])

    def stored(self, shape: Any, kind: Any, numbers: Any) -> Stored:
        """An array whose shape, type and bytes agree."""
        if not isinstance(kind, ArrayType) or not isinstance(numbers, memoryview):
            raise self.at.broken("an array without a type or bytes")
        return store(kind.name, shape, (numbers,), self.at)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_KEY


def _make_kind(machine: PickleMachine, arguments: tuple[Any, ...]) -> ArrayType:
    """numpy.dtype(name, align, copy)."""
    first = arguments[0] if arguments else None
    name = first.means if isinstance(first, Token) else first
    if not isinstance(name, str) or name not in ARRAY_TYPES:
        raise machine.at.broken("an array of a type that no weight has")
    return ArrayType(ARRAY_TYPES[name])


def _make_array(machine: PickleMachine, arguments: tuple[Any, ...]) -> Array:
    """numpy's _reconstruct(ndarray, (0,), b"b")."""
    if not arguments or arguments[0] != Token("ndarray"):
        machine.refuse("an array of another class")
    return Array()


def _make_from_buffer(machine: PickleMachine, arguments: tuple[Any, ...]) -> Array:
    """numpy's _frombuffer(bytes, dtype, shape, order)."""
    if len(arguments) != 4 or arguments[3] != "C":
        raise machine.at.broken("an array that does not lie row by row")
    made = Array()
    made.stored = machine.stored(arguments[2], arguments[1], arguments[0])
    return made


def _make_scalar(machine: PickleMachine, arguments: tuple[Any, ...]) -> Array:
    """numpy's scalar(dtype, bytes)."""
    if len(arguments) != 2:
        raise machine.at.broken("a number without a type or bytes")
    made = Array()
    made.stored = machine.stored((), *arguments)
    return made


def _make_jax(machine: PickleMachine, arguments: tuple[Any, ...]) -> Array:
    """jax's _reconstruct_array(numpy's _reconstruct, its arguments, the state, more)."""
    if len(arguments) != 4 or arguments[0] != Token(RECONSTRUCT) or type(arguments[1]) is not tuple:
        machine.refuse("an array that is none of numpy's")
    made = _make_array(machine, arguments[1])
    made.stored = machine.array_of(arguments[2])
    return made


def _make_dict(machine: PickleMachine, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """OrderedDict() and FrozenDict(dict)."""
    if not arguments:
        return {}
    if len(arguments) > 1 or not isinstance(arguments[0], dict):
        raise machine.at.broken("a dict of what is none")
    return arguments[0]  # not a copy: a thousand calls would make a thousand


def _make_bytes(machine: PickleMachine, arguments: tuple[Any, ...]) -> memoryview:
    """_codecs.encode(text, "latin1"): how protocol 2 writes bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        machine.refuse("another encoding than latin1")
    machine.budget -= len(arguments[0])
    if machine.budget < 0:
        raise machine.at.broken("it encodes more text than it holds")
    try:
        return memoryview(arguments[0].encode("latin1"))
    except UnicodeEncodeError:
        raise machine.at.broken("bytes that are none") from None


MAKERS: dict[str, Callable[[PickleMachine, tuple[Any, ...]], Any]] = {
    "dtype": _make_kind,
    RECONSTRUCT: _make_array,
    FROM_BUFFER: _make_from_buffer,
    PICKLED_SCALAR: _make_scalar,
    "jax": _make_jax,
    "dict": _make_dict,
    "encode": _make_bytes,
}

OPCODES: dict[int, Callable[[PickleMachine], None]] = {
    0x80: PickleMachine.check_protocol,
    0x95: PickleMachine.check_frame,
    ord("("): lambda m: m.push(MARK),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.number("<B"),
    ord("M"): lambda m: m.number("<H"),
    ord("J"): lambda m: m.number("<i"),
    ord("G"): lambda m: m.number(">d"),
    0x8A: PickleMachine.long,
    0x8C: lambda m: m.text("<B"),
    ord("X"): lambda m: m.text("<I"),
    0x8D: lambda m: m.text("<Q"),
    ord("C"): lambda m: m.bytes("<B"),
    ord("B"): lambda m: m.bytes("<I"),
    0x8E: lambda m: m.bytes("<Q"),
    0x96: lambda m: m.bytes("<Q"),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple(1),
    0x86: lambda m: m.tuple(2),
    0x87: lambda m: m.tuple(3),
    ord("t"): PickleMachine.marked_tuple,
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.to_mark()),
    0x94: lambda m: m.remember(""),
    ord("q"): lambda m: m.remember("<B"),
    ord("r"): lambda m: m.remember("<I"),
    ord("h"): lambda m: m.recall("<B"),
    ord("j"): lambda m: m.recall("<I"),
    ord("c"): PickleMachine.name_here,
    0x93: PickleMachine.name_on_stack,
    ord("R"): PickleMachine.reduce,
    ord("b"): PickleMachine.build,
}


def read_pickle(path: Path) -> dict[str, Stored]:
    """The arrays of a pickled tree of dicts, by their path joined with "/"; they stay in the file.

    Raises InputError when the file is damaged, is no such tree, or holds anything that a tree of
    weights does not need; nothing that it holds is ever run.
    """
    data = open_bytes(path)
    if len(data) > LARGEST_FILE:
        raise InputError(f"{path} has more than {LARGEST_FILE >> 30} GiB: give a codec's weights")
    cursor = Cursor(data, path)
    if cursor.number("<B") != 0x80:
        raise InputError(f"{path} is no pickle of protocol 2 or later: give LWM's `vqgan` file")
    cursor.place = 0
    todo: list[tuple[str, Any, int]] = [("", PickleMachine(cursor).run(), 0)]
    found: dict[str, Stored] = {}
    for _ in range(MOST_PICKLED):
        if not todo:
            return found
        name, value, depth = todo.pop()
        if isinstance(value, Array) and value.stored is not None:
            if name in found:
                raise cursor.broken(f"the tensor {name[:80]} stands twice")
            found[name] = value.stored
        elif isinstance(value, dict) and _is_key(name) and len(value) + len(todo) < MOST_PICKLED:
            if depth == DEEPEST_PICKLE:
                raise cursor.broken(f"more than {DEEPEST_PICKLE} dicts inside one another")
            todo += [(f"{name}/{key}" if name else key, v, depth + 1) for key, v in value.items()]
        else:
            raise cursor.broken(f"{name[:80]!a} is no array and no dict of them")
    raise cursor.broken(f"more than {MOST_PICKLED} values")
