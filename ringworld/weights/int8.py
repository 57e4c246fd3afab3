"""Matrices as int8, from floats and back, and a model's tensors in that form.

    scale = max |w| / 127 over the inputs of an output,        value = round(w / scale)

A scale has 16 significant bits, so value x scale is a float32 without rounding, and quantising it
again gives the same values and scales. Tensors of int8 can therefore be read as float32 by every
reader, and nothing is lost when they are stored as int8 again. In a file the matrix NAME is two
tensors, `NAME.values` and `NAME.scales`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ringworld.errors import BadFileError
from ringworld.params import Int8, Param, paths
from ringworld.weights.tensors import LazyTensor, LazyWeight, check_numbers, let_go

LARGEST = 127
VALUES, SCALES = ".values", ".scales"
DROPPED_BITS = 8  # of a float32's 24


def quantize_matrix(w: Float[np.ndarray, "..."], inputs: tuple[int, ...]) -> Int8:
    """The matrix as int8; `inputs` are its input axes, counted from the last one as -1."""
    wide = w.astype(np.float32)
    largest = np.maximum(wide.max(inputs), -wide.min(inputs))
    scales = _round_bits(largest / np.float32(LARGEST))
    scales[scales < np.finfo(np.float32).tiny] = 1.0  # an output of zeros
    wide /= np.expand_dims(scales, inputs)
    return Int8(np.rint(wide).clip(-LARGEST, LARGEST).astype(np.int8), scales)


def dequantize_matrix(
    values: Int[np.ndarray, "..."],
    scales: Float32[np.ndarray, "..."],
    inputs: tuple[int, ...],
) -> Float32[np.ndarray, "..."]:
    """The matrix in float32, exactly."""
    with np.errstate(invalid="ignore"):  # a damaged scale: whoever reads the numbers checks them
        return values.astype(np.float32) * np.expand_dims(scales, inputs)


def quantize_weight(
    name: str, param: Param, weight: np.ndarray | LazyWeight
) -> tuple[LazyWeight, LazyWeight]:
    """The values and the scales of a matrix, both made of one piece after another when it is read.

    Whoever reads the values first has each piece read once: its scales are kept until they are
    read. Reading raises InputError for a piece that holds what is not a number.
    """
    pieces = split(param, weight)
    known: dict[int, np.ndarray] = {}

    def read_values(i: int) -> np.ndarray:
        piece = pieces.reads[i]()
        check_numbers(pieces.names[i] if pieces.names else name, piece)
        found = quantize_matrix(piece, param.inputs)
        let_go(piece)
        known[i] = found.scales
        return found.values

    def read_scales(i: int) -> np.ndarray:
        if i not in known:
            read_values(i)
        return known.pop(i)

    numbers = range(len(pieces.reads))
    values = _typed([partial(read_values, i) for i in numbers], np.int8)
    scales = _typed([partial(read_scales, i) for i in numbers], np.float32)
    outputs = param.without_inputs().shape
    return LazyWeight(param.shape, values), LazyWeight(outputs, scales)


def quantize_table(
    specs: Any, table: Mapping[str, np.ndarray | LazyWeight]
) -> dict[str, LazyWeight | np.ndarray]:
    """The tensors of a model with every matrix as int8, made when it is written."""
    found: dict[str, LazyWeight | np.ndarray] = {}
    for name, param in paths(specs).items():
        if not param.inputs:
            found[name] = table[name]
            continue
        found[name + VALUES], found[name + SCALES] = quantize_weight(name, param, table[name])
    return found


def split(param: Param, weight: np.ndarray | LazyWeight) -> LazyWeight:
    """The weight in pieces that have whole inputs: one for each layer, or one."""
    if isinstance(weight, LazyWeight):
        if -len(param.shape) not in param.inputs:
            return weight
        whole = LazyTensor(lambda: np.concatenate(list(weight)), weight.dtype)
        return LazyWeight(weight.shape, (whole,))
    cuts = [slice(i, i + 1) for i in range(len(weight))] if param.axes[0] == "layers" else [...]
    reads = [partial(weight.__getitem__, cut) for cut in cuts]
    return LazyWeight(weight.shape, _typed(reads, weight.dtype))


def dequantize_table(
    specs: Any, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray | LazyWeight]:
    """The tensors of a model, those in int8 as float32 that is made when it is read.

    Raises BadFileError when the two tensors of a matrix do not fit its shape.
    """
    table: dict[str, np.ndarray | LazyWeight] = dict(tensors)
    for name, param in paths(specs).items():
        if not param.inputs or name + VALUES not in table:
            continue
        values, scales = tensors[name + VALUES], tensors.get(name + SCALES)
        outputs = param.without_inputs().shape
        fits = values.shape == param.shape and values.dtype == np.int8
        if scales is None or not fits or (scales.shape, scales.dtype) != (outputs, np.float32):
            raise BadFileError(
                f"the int8 weight {name} is not the values {param.shape} and float32 scales "
                f"{outputs} that the config asks for: convert the model again"
            )
        both = zip(split(param, values), split(param.without_inputs(), scales), strict=True)
        reads = [partial(_read, *pair, param.inputs) for pair in both]
        table[name] = LazyWeight(param.shape, _typed(reads, np.float32))
        del table[name + VALUES], table[name + SCALES]
    return table


def _read(values: np.ndarray, scales: np.ndarray, inputs: tuple[int, ...]) -> np.ndarray:
    found = dequantize_matrix(values, scales, inputs)
    let_go(values)
    return found


def _typed(reads: list[Any], dtype: Any) -> tuple[LazyTensor, ...]:
    return tuple(LazyTensor(read, np.dtype(dtype)) for read in reads)


def _round_bits(x: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Positive numbers rounded to the nearest that needs `DROPPED_BITS` bits less."""
    half = np.uint32(1 << (DROPPED_BITS - 1))
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + half) & ~np.uint32((1 << DROPPED_BITS) - 1)).view(np.float32)
