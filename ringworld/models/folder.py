"""A model's folder on disk: `config.json` says what it is, `model.safetensors` holds its weights.

    config.json         {"kind": "vqgan" or "world", then the fields of the config}
    model.safetensors   one tensor a weight, named as `ringworld.params.paths` names it

Any spec table goes in and out the same way. Nothing in a folder is ever executed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ringworld.errors import InputError
from ringworld.mesh import shard
from ringworld.params import Param, paths

T = TypeVar("T")
C = TypeVar("C")

CONFIG = "config.json"
TENSORS = "model.safetensors"


def save_folder(path: Path, kind: str, config: Any, weights: Any, dtype: DTypeLike) -> None:
    """Write a model to the new folder `path`, all of it or nothing.

    `config` is a dataclass, `weights` any pytree of arrays; they are stored as `dtype`. The folder
    is written under a temporary name beside `path` and renamed when whole. Raises InputError when
    `path` exists.
    """
    if path.exists():
        raise InputError(f"{path} exists already: remove it, or save under another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        text = json.dumps({"kind": kind, **asdict(config)}, indent=2)
        (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file({n: np.asarray(w, dtype) for n, w in paths(weights).items()}, draft / TENSORS)
        for file in draft.iterdir():
            _flush(file)
        draft.chmod(0o755)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def load_folder(path: Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """The kind of a model folder, its config's fields, and its tensors by dotted name.

    Raises InputError when a file is missing, cut short or not what its name says.
    """
    config = _read_config(path / CONFIG)
    return config.pop("kind"), config, _read_tensors(path / TENSORS)


def make_config(cls: type[C], values: Mapping[str, Any]) -> C:
    """The config dataclass with these field values, as JSON holds them: lists become tuples.

    Raises InputError when a field is unknown or missing.
    """
    fields = signature(cls).parameters
    needed = {name for name, field in fields.items() if field.default is field.empty}
    if unknown := sorted(set(values) - set(fields)):
        raise InputError(f"{CONFIG} has the unknown field {unknown[0]}: remove it")
    if missing := sorted(needed - set(values)):
        raise InputError(f"{CONFIG} lacks the field {missing[0]}: add it")
    return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def fill(specs: T, tensors: Mapping[str, np.ndarray], dtype: DTypeLike) -> T:
    """The spec table with each Param replaced by the tensor of its name, cast to `dtype`.

    Raises InputError when a tensor is missing, is not in the table, or has another shape.
    """
    table = paths(specs)
    if missing := [name for name in table if name not in tensors]:
        raise InputError(f"the weights lack the tensor {missing[0]}: use a folder of this model")
    if unknown := [name for name in tensors if name not in table]:
        raise InputError(
            f"the weights hold {unknown[0]}, which this model lacks: use the config they came with"
        )
    leaves = [_place(name, param, tensors[name], dtype) for name, param in table.items()]
    tree = jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, Param))
    return jax.tree.unflatten(tree, leaves)


def _place(name: str, param: Param, tensor: np.ndarray, dtype: DTypeLike) -> jax.Array:
    if tensor.shape != param.shape:
        raise InputError(
            f"the tensor {name} has the shape {tensor.shape} and the config asks for "
            f"{param.shape}: use the config that the weights came with"
        )
    return shard(jnp.asarray(tensor, dtype), *param.axes)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"there is no {file}: give the folder of a saved model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not whole JSON ({error}): save the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        raise InputError(f'{file} does not name its "kind": give the folder of a saved model')
    return config


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(f"there is no {file}: give the folder of a saved model")
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
            return {name: tensors.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InputError(f"{file} is damaged or cut short ({error}): copy it again") from error


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
