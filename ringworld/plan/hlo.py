"""Optimised HLO read as text: what a program sends between devices, how often, and behind what.

`compiled.as_text()` is a list of computations, each a list of operations in the order in which they
are scheduled. A collective is one operation, or on an accelerator two: `-start` begins the transfer
and `-done` waits for it, and what stands between them runs meanwhile. Loops are calls of their body
with a number of turns; XLA writes that number down, or it is read from the loop's condition.

Bytes are those of the numbers, without the padding of a device's own layout. On a CPU, XLA widens
bfloat16 arithmetic to float32, and what is sent with it: measure bytes of float32 programs there.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
PRODUCTS = ("convolution", "dot")  # matrix products: the work that is worth hiding behind
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu_v2")  # and so is a kernel's

_SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LEFT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"\bindex=(\d+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Shape:
    """One array: its HLO element type (`bf16`, `f32`, `s32`, `pred`) and its sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The bytes of its numbers."""
        bits = _BITS.match(self.dtype)
        return math.ceil(math.prod(self.sizes) * (int(bits[1]) if bits else 8) / 8)


@dataclass(frozen=True)
class Op:
    """One operation of a computation, in the words of the text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of its results
    operands: tuple[str, ...]
    inside: str  # between its parentheses: the value of a constant, the number of a parameter
    attributes: str

    @property
    def source(self) -> str:
        """The JAX operation that it was made from, "" where none is written."""
        found = _SOURCE.search(self.attributes)
        return found[1] if found else ""

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """The computations it calls, by the word that names them (`body`, `condition`, ...)."""
        return {
            word: tuple(name.strip(" %") for name in names.strip("{}").split(","))
            for word, names in _CALLED.findall(self.attributes)
        }


@dataclass(frozen=True)
class Computation:
    """A named list of operations in scheduled order; the last is what it returns."""

    name: str
    ops: tuple[Op, ...]

    @cached_property
    def named(self) -> dict[str, Op]:
        """Its operations by name."""
        return {op.name: op for op in self.ops}

    def operand(self, op: Op, index: int) -> Op:
        """The operation that makes an operand, seen through copies."""
        found = self.named[op.operands[index]]
        while found.opcode in ("copy", "bitcast"):
            found = self.named[found.operands[0]]
        return found


@dataclass(frozen=True)
class Program:
    """All computations of a compiled program, and the name of the one that is entered."""

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def callers(self) -> dict[str, list[tuple[Computation, Op, str]]]:
        """Who calls each computation, with which operation, under which word."""
        found: dict[str, list[tuple[Computation, Op, str]]] = {}
        for computation in self.computations.values():
            for op in computation.ops:
                for word, names in op.called.items():
                    for name in names:
                        found.setdefault(name, []).append((computation, op, word))
        return found


@dataclass(frozen=True)
class Collective:
    """One collective operation as one device meets it.

    kind       its opcode without `-start`
    op         the operation itself, or the one that starts it
    shapes     the arrays that the device puts in
    loops      the turns of the loops that it stands in, the outermost first; None for a loop whose
               turns the program computes
    during     what is scheduled between its start and its end; None when the device waits for it
    hidden     whether a matrix product or a kernel is among those
    """

    kind: str
    op: Op
    shapes: tuple[Shape, ...]
    loops: tuple[int | None, ...]
    during: tuple[Op, ...] | None
    hidden: bool

    @property
    def bytes(self) -> int:
        """What the device puts in at each run."""
        return sum(shape.bytes for shape in self.shapes)

    def runs(self, open_turns: int | None = None) -> int | None:
        """How often the program runs it, a branch counted as taken.

        A loop whose turns the program computes is taken to make `open_turns`; None without that.
        """
        turns = [open_turns if turn is None else turn for turn in self.loops]
        known = [turn for turn in turns if turn is not None]
        return math.prod(known) if len(known) == len(turns) else None


def read_program(text: str) -> Program:
    """The computations of `compiled.as_text()`. Raises ValueError where the text enters none."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    ops: list[Op] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, ops = head[2], []
            entry = name if head[1] else entry
        elif line == "}":
            computations[name] = Computation(name, tuple(ops))
        elif left := _LEFT.match(line):
            ops.append(_read_op(left[2], line[left.end() :]))
    if entry not in computations:
        raise ValueError("the text has no ENTRY computation: pass what compiled.as_text() returns")
    return Program(computations, entry)


def _read_op(name: str, text: str) -> Op:
    """`f32[4,16]{1,0} add(%a, %b), metadata={...}`, after the name and the sign of equality."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ValueError(f"no operation in the line of %{name}: {text[:80]}")
    close = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : close]
    shapes = tuple(_read_shapes(text[:end]))
    return Op(name, opcode[1], shapes, tuple(_NAME.findall(inside)), inside, text[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")


def _read_shapes(text: str) -> Iterator[Shape]:
    for dtype, sizes in _SHAPE.findall(text):
        yield Shape(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))


def collectives(program: Program) -> list[Collective]:
    """Every collective that a run of the program meets; one that is called twice stands twice."""
    return list(_walk(program, program.computations[program.entry], ()))


def _walk(
    program: Program, computation: Computation, loops: tuple[int | None, ...]
) -> Iterator[Collective]:
    for place, op in enumerate(computation.ops):
        if kind := _kind(program, op):
            during = _during(computation, place) if _starts(op) else None
            hidden = any(does_products(program, other) for other in during or ())
            shapes = _sent(computation, op)
            yield Collective(kind, op, shapes, loops, during, hidden)
            continue
        turns = loop_turns(program, computation, op) if op.opcode == "while" else 1
        for word, names in op.called.items():
            # The condition of a loop is asked once more than the loop turns.
            times = turns if turns is None else turns + (word == "condition")
            inner = (*loops, times) if op.opcode == "while" else loops
            for name in names:
                yield from _walk(program, program.computations[name], inner)


def _starts(op: Op) -> bool:
    return op.opcode.endswith("-start")


def _kind(program: Program, op: Op) -> str | None:
    """Which collective the operation is or starts; None for every other operation."""
    kind = op.opcode.removesuffix("-start")
    if kind == "async":
        wrapped = program.computations[op.called["calls"][0]].ops
        return next((kind for inner in wrapped if (kind := _kind(program, inner))), None)
    return kind if kind in COLLECTIVES else None


def _sent(computation: Computation, op: Op) -> tuple[Shape, ...]:
    return tuple(shape for name in op.operands for shape in computation.named[name].shapes)


def _during(computation: Computation, start: int) -> tuple[Op, ...]:
    """The operations scheduled between the start at this place and its `-done`."""
    name = computation.ops[start].name
    between: list[Op] = []
    for op in computation.ops[start + 1 :]:
        if op.opcode.endswith("-done") and name in op.operands:
            break
        between.append(op)
    return tuple(between)


def does_products(program: Program, op: Op) -> bool:
    """Whether the operation, or anything that it calls, is a matrix product or a kernel."""
    if op.opcode in PRODUCTS:
        return True
    if op.opcode == "custom-call":
        return any(f'custom_call_target="{kernel}"' in op.attributes for kernel in KERNELS)
    names = (name for names in op.called.values() for name in names)
    return any(
        does_products(program, inner) for name in names for inner in program.computations[name].ops
    )


def loop_turns(program: Program, computation: Computation, loop: Op) -> int | None:
    """How many turns a `while` of `computation` makes; None where the text does not tell.

    The count is written on the loop, or its condition compares a counter with a constant:
    `i < n`, where i starts at a constant and every turn adds a constant.
    """
    if written := _TURNS.search(loop.attributes):
        return int(written[1])
    condition = program.computations[loop.called["condition"][0]]
    body = program.computations[loop.called["body"][0]]
    test = condition.ops[-1]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    index = _element(condition.operand(test, 0))
    first = computation.operand(loop, 0)
    if index is None or first.opcode != "tuple" or body.ops[-1].opcode != "tuple":
        return None
    turn = body.operand(body.ops[-1], index)
    if turn.opcode != "add" or _element(body.operand(turn, 0)) != index:
        return None
    start = constant_value(program, computation, computation.operand(first, index))
    end = constant_value(program, condition, condition.operand(test, 1))
    step = constant_value(program, body, body.operand(turn, 1))
    if start is None or end is None or step is None or step < 1:
        return None
    return max(0, math.ceil((end - start) / step))


def _element(op: Op) -> int | None:
    """Which element of a tuple the operation takes; None when it takes none."""
    found = _INDEX.search(op.attributes)
    return int(found[1]) if found and op.opcode == "get-tuple-element" else None


def constant_value(program: Program, computation: Computation, op: Op) -> int | None:
    """The integer that an operation always gives; None where the text does not tell.

    An element that a loop hands on unchanged is what the loop was started with.
    """
    if op.opcode == "constant":
        return int(op.inside) if op.inside.lstrip("-").isdigit() else None
    index = _element(op)
    if index is None:
        return None
    of = computation.operand(op, 0)
    if of.opcode == "tuple":
        return constant_value(program, computation, computation.operand(of, index))
    calls = program.callers.get(computation.name, [])
    if of.opcode != "parameter" or len(calls) != 1 or calls[0][1].opcode != "while":
        return None
    outside, loop, _ = calls[0]
    body = program.computations[loop.called["body"][0]]
    kept, first = body.ops[-1], outside.operand(loop, 0)
    if kept.opcode != "tuple" or first.opcode != "tuple":
        return None
    if _element(body.operand(kept, index)) != index:
        return None
    return constant_value(program, outside, outside.operand(first, index))
