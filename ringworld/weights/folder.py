"""A model's folder on disk: `config.json` says what it is, `model.safetensors` holds its weights.

    config.json         {"kind": "vqgan" or "world", then the fields of the config}
    model.safetensors   one tensor a weight, named as `ringworld.params.paths` names it

Any spec table goes in and out the same way. Nothing in a folder is ever executed.
"""

import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ringworld.distributed import barrier, first_says, is_first
from ringworld.errors import InputError
from ringworld.files import read_json_object, sync, writing_to
from ringworld.mesh import RULES, Index, Rules, empty_on_host, place_parts
from ringworld.params import Int8, Param, paths
from ringworld.weights.file_names import CONFIG, TENSORS
from ringworld.weights.int8 import quantize_weight
from ringworld.weights.tensors import (
    DividedWeight,
    LazyTensor,
    LazyWeight,
    Written,
    check_numbers,
    each_piece,
    let_go,
    read_tensors,
    write_tensors,
)

T = TypeVar("T")


@contextmanager
def new_folder(path: Path) -> Generator[Path, None, None]:
    """A draft beside `path` that becomes the new folder `path` when the block ends well.

    Where several processes compute together, all of them get the same draft, and process 0 makes
    and renames it. Raises InputError when `path` exists or lies in a file, or the disk is full or
    fails.
    """
    made = path
    if is_first():
        _check_new(path)
        with writing_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    draft = path.with_name(first_says(made.name))
    with writing_to(path):
        try:
            yield draft
            barrier()
            if is_first():
                for file in draft.rglob("*"):
                    sync(file)
                draft.chmod(0o755)
                draft.rename(path)
        except BaseException:
            if is_first():
                shutil.rmtree(draft, ignore_errors=True)
            raise
    barrier()


def _check_new(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already: remove it, or save under another name")
    if above := [place for place in path.parents if place.exists() and not place.is_dir()]:
        raise InputError(f"{above[0]} is a file, in which nothing can be saved: use another folder")


def save_folder(path: Path, kind: str, config: Any, weights: Any, dtype: DTypeLike) -> None:
    """Write a model to the new folder `path`, all of it or nothing.

    `config` is a dataclass, `weights` any pytree of arrays; they are stored as `dtype`. Raises
    InputError when `path` exists.
    """
    with new_folder(path) as draft:
        write_folder(draft, kind, config, table_of(weights, dtype))


def table_of(weights: Any, dtype: DTypeLike) -> dict[str, DividedWeight]:
    """The weights of a pytree by name: the blocks that this process writes, cast when they are.

    A block that several devices hold is written once. Whole numbers, which are the values of an
    `Int8`, stay as they are.
    """

    def divide(weight: jax.Array) -> DividedWeight:
        floats = jnp.issubdtype(weight.dtype, jnp.floating)
        stored = np.dtype(dtype) if floats else weight.dtype
        written = is_first() or not weight.is_fully_addressable
        shards = [shard for shard in weight.addressable_shards if shard.replica_id == 0 and written]
        blocks = [
            (begin_of(shard.index), LazyTensor(partial(np.asarray, shard.data, stored), stored))
            for shard in shards
        ]
        return DividedWeight(weight.shape, stored, tuple(blocks))

    def begin_of(index: tuple[slice, ...]) -> tuple[int, ...]:
        return tuple(part.start or 0 for part in index)

    return {name: divide(weight) for name, weight in paths(weights).items()}


def write_folder(draft: Path, kind: str, config: Any, table: Mapping[str, Written]) -> None:
    """Write the two files of a model into the folder `draft`, weights as they are stored.

    Fields of the config that are None are left out.
    """
    if is_first():
        said = {name: value for name, value in asdict(config).items() if value is not None}
        text = json.dumps({"kind": kind, **said}, indent=2)
        (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
    write_tensors(draft / TENSORS, table)


def load_folder(path: Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """The kind of a model folder, its config's fields, and its tensors by dotted name.

    The tensors are views of the file. Raises InputError when a file is missing, cut short or not
    what its name says.
    """
    config = read_config(path)
    kind = config.pop("kind", None)
    if not isinstance(kind, str):
        raise InputError(
            f'{path / CONFIG} does not name its "kind": give the folder of a saved model'
        )
    return kind, config, read_tensors(path / TENSORS)


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a folder's config.json. Raises InputError when it is missing or broken."""
    file = path / CONFIG
    if not file.is_file():
        raise InputError(f"there is no {file}: give the folder of a saved model")
    return read_json_object(file)


def fill(
    specs: T,
    tensors: Mapping[str, np.ndarray | LazyWeight],
    dtype: DTypeLike,
    rules: Rules = RULES,
) -> T:
    """The spec table with each Param replaced by the tensor of its name, cast to `dtype`.

    With int8, matrices become `Int8` and all else float32. Of one weight after another every
    process keeps the parts that its devices hold on the mesh that is set by `rules`, and reads no
    more than these rows; of an `Int8` all, a layer at a time, as its scales are of whole columns.
    Raises InputError when a tensor is missing, is not in the table, has another shape or holds what
    is not a number.
    """
    check_table(specs, tensors)
    leaves: list[Any] = []
    for name, param in paths(specs).items():
        if np.dtype(dtype) == np.int8 and param.inputs:
            values, scales = quantize_weight(name, param, tensors[name])
            both = param.int8()
            stored = _place(name, both.values, values, np.int8, rules)
            leaves.append(Int8(stored, _place(name, both.scales, scales, np.float32, rules)))
            continue
        kind = np.dtype(np.float32) if np.dtype(dtype) == np.int8 else dtype
        leaves.append(_place(name, param, tensors[name], kind, rules))
    tree = jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, Param))
    return jax.tree.unflatten(tree, leaves)


def check_table(specs: Any, tensors: Mapping[str, np.ndarray | LazyWeight]) -> None:
    """Raise InputError when the tensors are not those of the spec table, by name and shape."""
    table = paths(specs)
    if missing := [name for name in table if name not in tensors]:
        raise InputError(f"the weights lack the tensor {missing[0]}: use a folder of this model")
    if unknown := [name for name in tensors if name not in table]:
        raise InputError(
            f"the weights hold {unknown[0]}, which this model lacks: use the config they came with"
        )
    for name, param in table.items():
        if tensors[name].shape != param.shape:
            raise InputError(
                f"the tensor {name} has the shape {tensors[name].shape} and the config asks for "
                f"{param.shape}: use the config that the weights came with"
            )


def _place(
    name: str, param: Param, tensor: np.ndarray | LazyWeight, dtype: DTypeLike, rules: Rules
) -> jax.Array:
    read = partial(_read_parts, name, param, tensor, dtype)
    return place_parts(param.shape, read, *param.axes, rules=rules)


def _read_parts(
    name: str,
    param: Param,
    tensor: np.ndarray | LazyWeight,
    dtype: DTypeLike,
    indices: list[Index],
) -> list[np.ndarray]:
    """The parts of a weight that devices hold; only pieces with rows of theirs are read, once."""
    cuts = [
        [part.indices(size)[:2] for part, size in zip(index, param.shape, strict=True)]
        for index in indices
    ]
    rows = [cut[0] if cut else (0, 1) for cut in cuts]
    least, most = min(first for first, _ in rows), max(past for _, past in rows)
    pieces = each_piece(name, tensor, least, most)
    entry = next(pieces)  # before there is room for the whole: the config may ask for anything
    parts = [empty_on_host([stop - start for start, stop in cut], dtype) for cut in cuts]
    while entry is not None:
        known, row, piece = entry
        for index, (first, past), whole in zip(indices, rows, parts, strict=True):
            here, there = (), ()
            if index:
                start = max(first, row)
                stop = max(start, min(past, row + len(piece)))
                here, there = slice(start - first, stop - first), slice(start - row, stop - row)
                there = (there, *index[1:])
            whole[here] = piece[there]
            check_numbers(known, whole[here])
        let_go(piece)
        entry = next(pieces, None)
    return parts
