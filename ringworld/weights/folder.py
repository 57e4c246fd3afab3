"""A model's folder on disk: `config.json` says what it is, `model.safetensors` holds its weights.

    config.json         {"kind": "vqgan" or "world", then the fields of the config}
    model.safetensors   one tensor a weight, named as `ringworld.params.paths` names it

Any spec table goes in and out the same way. Nothing in a folder is ever executed.
"""

import gc
import json
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import ref

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ringworld.errors import InputError
from ringworld.files import read_json_object, sync, writing_to
from ringworld.mesh import RULES, Rules, place
from ringworld.params import Int8, Param, arrays_of, paths
from ringworld.weights.file_names import CONFIG, TENSORS
from ringworld.weights.int8 import quantize_matrix, split
from ringworld.weights.tensors import (
    LazyTensor,
    LazyWeight,
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

    Raises InputError when `path` exists or lies in a file, or the disk is full or fails.
    """
    if path.exists():
        raise InputError(f"{path} exists already: remove it, or save under another name")
    if above := [place for place in path.parents if place.exists() and not place.is_dir()]:
        raise InputError(f"{above[0]} is a file, in which nothing can be saved: use another folder")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    with writing_to(path):
        try:
            yield draft
            for file in draft.rglob("*"):
                sync(file)
            draft.chmod(0o755)
            draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def save_folder(path: Path, kind: str, config: Any, weights: Any, dtype: DTypeLike) -> None:
    """Write a model to the new folder `path`, all of it or nothing.

    `config` is a dataclass, `weights` any pytree of arrays; they are stored as `dtype`. Raises
    InputError when `path` exists.
    """
    with new_folder(path) as draft:
        write_folder(draft, kind, config, table_of(weights, dtype))


def table_of(weights: Any, dtype: DTypeLike) -> dict[str, LazyWeight]:
    """The weights of a pytree by name, each brought to the host and cast when it is written.

    Whole numbers, which are the values of an `Int8`, stay as they are.
    """

    def lazily(weight: jax.Array) -> LazyWeight:
        floats = jnp.issubdtype(weight.dtype, jnp.floating)
        stored = np.dtype(dtype) if floats else weight.dtype
        return LazyWeight(weight.shape, (LazyTensor(partial(np.asarray, weight, stored), stored),))

    return {name: lazily(weight) for name, weight in paths(weights).items()}


def write_folder(
    draft: Path, kind: str, config: Any, table: Mapping[str, np.ndarray | LazyWeight]
) -> None:
    """Write the two files of a model into the folder `draft`, weights as they are stored.

    Fields of the config that are None are left out.
    """
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

    With int8, matrices become `Int8` and all else float32. Weights are read one at a time, and
    divided over the mesh that is set by `rules`. Raises InputError when a tensor is missing, is not
    in the table, has another shape or holds what is not a number.
    """
    check_table(specs, tensors)
    leaves = []
    for name, param in paths(specs).items():
        whole = _read_weight(name, param, tensors[name], np.dtype(dtype))
        placed = jax.tree.map(
            lambda x, p: place(x, *p.axes, rules=rules), whole, arrays_of(param, whole)
        )
        leaves.append(jax.block_until_ready(placed))
        copied = [ref(array) for array in jax.tree.leaves(whole)]
        del whole
        _wait_until_freed(copied)
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


def _wait_until_freed(copied: list[ref[np.ndarray]]) -> None:
    """Wait, 20 ms at most, for what JAX has copied from, so that no two large weights stand here.

    A thread of JAX's lets go of it some time after the copy, and Python frees it when it collects.
    """
    for _ in range(20):
        gc.collect(0)
        if all(array() is None for array in copied):
            return
        time.sleep(0.001)


def _read_weight(
    name: str, param: Param, tensor: np.ndarray | LazyWeight, dtype: np.dtype
) -> np.ndarray | Int8:
    if dtype != np.int8:
        return _join(param, each_piece(name, tensor), dtype)
    if not param.inputs:
        return _join(param, each_piece(name, tensor), np.dtype(np.float32))
    parts = []
    for known, piece in each_piece(name, split(param, tensor)):
        check_numbers(known, piece)
        parts.append(quantize_matrix(piece, param.inputs))
        let_go(piece)
    values = np.concatenate([part.values for part in parts])
    return Int8(values, np.concatenate([part.scales for part in parts]))


def _join(param: Param, pieces: Iterator[tuple[str, np.ndarray]], dtype: np.dtype) -> np.ndarray:
    entry = next(pieces)  # before there is room for the whole: the config may ask for anything
    whole, filled = np.empty(param.shape, dtype), 0
    while entry is not None:
        known, piece = entry
        part = whole[filled : filled + len(piece)]
        part[...] = piece
        check_numbers(known, part)
        let_go(piece)
        filled, entry = filled + len(piece), next(pieces, None)
    return whole
