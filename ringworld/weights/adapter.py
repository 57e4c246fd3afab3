"""Low-rank adapters in PEFT's layout: saved, loaded, and merged into weights.

    adapter_config.json          rank, alpha and which matrices
    adapter_model.safetensors    base_model.model.NAME.lora_A.weight [r, in] and lora_B [out, r]

NAME is Hugging Face's name of the matrix. Format: huggingface/peft 0.19, `LoraConfig`.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.distributed import is_first
from ringworld.errors import BadFileError
from ringworld.files import read_json_object
from ringworld.mesh import fetch_whole, place
from ringworld.models.llama import Llama, blocks_specs
from ringworld.models.lora import MODULES, Adapter, Adapters, Lora
from ringworld.weights.file_names import CONFIG
from ringworld.weights.folder import new_folder
from ringworld.weights.int8 import split
from ringworld.weights.names import BY_OURS
from ringworld.weights.tensors import (
    LazyTensor,
    LazyWeight,
    check_numbers,
    read_tensors,
    write_tensors,
)

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
# What these fields must be where a config has them: nothing else is applied here.
PLAIN_FIELDS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
}


def save_adapter(path: Path, adapters: Adapters, lora: Lora, base: str) -> None:
    """Write the adapters to the new folder `path` as PEFT does; `base` names the model.

    Raises InputError when `path` exists.
    """
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(adapters),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    table: dict[str, np.ndarray | LazyWeight] = {}
    for module, adapter in adapters.items():
        a, b = (np.asarray(fetch_whole(x), np.float32) for x in (adapter.a, adapter.b))
        for l in range(len(a)):
            to_a, to_b = _names(module, l)
            table[to_a] = np.ascontiguousarray(a[l].reshape(-1, lora.rank).T)
            table[to_b] = np.ascontiguousarray(b[l].reshape(lora.rank, -1).T)
    with new_folder(path) as draft:
        if is_first():
            told = json.dumps(said, indent=2) + "\n"
            (draft / ADAPTER_CONFIG).write_text(told, encoding="utf-8")
        write_tensors(draft / ADAPTER_TENSORS, table)


def read_adapter(path: Path, c: Llama) -> tuple[Adapters, float]:
    """The adapters of a folder for a model of these sizes, in float32 on the host; their scale.

    Raises BadFileError when a file is missing or damaged, asks for what is not applied here, or is
    for another model.
    """
    if not (path / ADAPTER_CONFIG).is_file():
        raise BadFileError(f"there is no {path / ADAPTER_CONFIG}: give the folder of an adapter")
    said = read_json_object(path / ADAPTER_CONFIG)
    for name, allowed in PLAIN_FIELDS.items():
        if name in said and said[name] not in allowed:
            raise BadFileError(
                f"{path / ADAPTER_CONFIG} sets {name} to {str(said[name])[:40]}, which is not "
                f"applied here: use an adapter where it is {allowed[0]}"
            )
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise BadFileError(
            f"{path / ADAPTER_CONFIG} gives the rank {rank!r:.20} and the alpha {alpha!r:.20}: "
            "make them numbers above 0"
        )
    tensors = read_tensors(path / ADAPTER_TENSORS)
    found: Adapters = {}
    for module, ours in MODULES.items():
        names = [_names(module, l) for l in range(c.layers)]
        if not any(name in tensors for pair in names for name in pair):
            continue
        a, b = getattr(blocks_specs(c), ours).low_rank(rank)
        flat = (math.prod(a.shape[1:-1]), rank), (rank, math.prod(b.shape[2:]))
        factors = [
            np.stack([_take(tensors, pair[i], flat[i], path) for pair in names]) for i in (0, 1)
        ]
        found[module] = Adapter(factors[0].reshape(a.shape), factors[1].reshape(b.shape))
    if tensors:
        raise BadFileError(
            f"{path / ADAPTER_TENSORS} holds {min(tensors)[:80]}, for which this model has no "
            "matrix: use the model that the adapter was trained for"
        )
    return found, alpha / rank


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG).is_file()


def find_base(path: Path) -> Path | None:
    """The model that an adapter's config names: a name, or a path, from the adapter's folder too.

    None where it names none.
    """
    base = read_json_object(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return None
    beside = path / base
    return beside if beside.exists() else Path(base)


def place_adapters(adapters: Adapters, c: Llama) -> Adapters:
    """The adapters on the mesh that is set."""
    table = blocks_specs(c)

    def both(module: str, adapter: Adapter) -> Adapter:
        params = getattr(table, MODULES[module]).low_rank(adapter.a.shape[-1])
        return Adapter(
            *(place(x, *p.axes) for x, p in zip((adapter.a, adapter.b), params, strict=True))
        )

    return {module: both(module, adapter) for module, adapter in adapters.items()}


def merge_table(
    table: Mapping[str, np.ndarray | LazyWeight], adapters: Adapters, scale: float, c: Llama
) -> dict[str, np.ndarray | LazyWeight]:
    """The tensors of a model with the adapters added, W + scale A B, in float32.

    Each layer is added when it is read.
    """
    merged = dict(table)
    for module, adapter in adapters.items():
        name = f"blocks.{MODULES[module]}"
        param = getattr(blocks_specs(c), MODULES[module])
        a, b = (np.asarray(x, np.float32) for x in (adapter.a, adapter.b))
        pieces = split(param, table[name])
        reads = [
            LazyTensor(partial(_merge, read, scale * a[l], b[l]), np.dtype(np.float32))
            for l, read in enumerate(pieces.reads)
        ]
        merged[name] = LazyWeight(param.shape, tuple(reads), pieces.names)
    return merged


def _merge(read: LazyTensor, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One layer of a matrix, `[1, inputs..., outputs...]`, and what its adapter adds."""
    piece = read().astype(np.float32)
    added = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1)
    return piece + added.reshape(piece.shape)


def _names(module: str, layer: int) -> tuple[str, str]:
    """The names of the two factors of one layer's matrix."""
    matrix = BY_OURS[f"blocks.{MODULES[module]}"].hugging_face.format(layer)
    start = f"base_model.model.{matrix.removesuffix('weight')}"
    return f"{start}lora_A.weight", f"{start}lora_B.weight"


def _take(
    tensors: dict[str, np.ndarray], name: str, shape: tuple[int, int], path: Path
) -> np.ndarray:
    """A tensor of this shape, which is taken out of the table and transposed, in float32.

    Raises BadFileError when it is not there, has another shape, or holds what is no number.
    """
    if name not in tensors:
        raise BadFileError(
            f"{path / ADAPTER_TENSORS} lacks {name}: use an adapter that has every layer of a "
            "matrix, for a model of as many layers"
        )
    factor = tensors.pop(name).T
    if factor.shape != shape:
        raise BadFileError(
            f"the tensor {name} has the shape {factor.T.shape} and this model needs {shape[::-1]}: "
            "use the model that the adapter was trained for"
        )
    check_numbers(name, factor)
    return factor.astype(np.float32)
