"""Any folder or file of weights, opened as a model of ours: its config, and weights still to read.

Nothing is read before it is asked for: a weight is its layers, each a view of a file until it is
cast and placed, or written.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ringworld.config import from_dict
from ringworld.errors import InputError
from ringworld.fetch import MODELS, fetch
from ringworld.files import hash_file
from ringworld.models.world import World, specs
from ringworld.params import Param, paths
from ringworld.text.load import read_tokenizer
from ringworld.weights.adapter import find_base, is_adapter, merge_table, read_adapter
from ringworld.weights.file_names import CHAT_TEMPLATE, CODEC, CONFIG, LWM_FILES
from ringworld.weights.folder import (
    check_table,
    load_folder,
    read_config,
)
from ringworld.weights.gguf import is_gguf
from ringworld.weights.gguf_model import read_gguf
from ringworld.weights.gguf_parts import are_one_model
from ringworld.weights.huggingface import read_hf, read_world
from ringworld.weights.imported import Checkpoint, read_ends
from ringworld.weights.int8 import dequantize_table
from ringworld.weights.joint import split_tables
from ringworld.weights.lwm import read_lwm
from ringworld.weights.names import BY_OURS, Name
from ringworld.weights.shipped import SHIPPED_MODELS
from ringworld.weights.tensors import LazyTensor, LazyWeight

# What some files hold besides the weights, and nobody needs.
PASSED_OVER = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model whose weights are still on the disk: `table` has them by our names.

    `home` is the folder that it came from, where what nobody reads here may lie beside it. `ends`
    are the tokens that end an answer besides the vocabulary's own.
    """

    config: World
    table: Mapping[str, np.ndarray | LazyWeight]
    tokenizer: bytes | None
    chat_template: str | None
    codec: Path | None
    home: Path
    ends: tuple[int, ...] = ()


def open_model(path: Path) -> Opened:
    """The model of a folder of ours or of Hugging Face's, of a .gguf file or of LWM's file.

    The folder of an adapter is the model that its config names, with the adapter merged into it.
    The name of a shipped model stands for its folder, and that of a model that `fetch` knows for
    its file, which is brought if need be. Raises InputError when it is none of these, or when a
    file is missing or broken.
    """
    path = find_model(path)
    if is_adapter(path):
        return merge_adapter(open_model(_find_base(path)), path)
    if is_ours(path):
        return _open_ours(path)
    checkpoint = split_tables(read_checkpoint(path))
    config = read_world(checkpoint.config)
    return Opened(
        config=config,
        table=_table(checkpoint, config),
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        codec=checkpoint.codec,
        home=path if path.is_dir() else path.parent,
        ends=_check_ends(checkpoint.ends, config),
    )


def merge_adapter(opened: Opened, adapter: Path) -> Opened:
    """The opened model with the adapter of a folder added to its weights."""
    llama = opened.config.llama
    return replace(opened, table=merge_table(opened.table, *read_adapter(adapter, llama), llama))


def _find_base(adapter: Path) -> Path:
    """The model of an adapter. Raises InputError when it names none that is there."""
    named = find_base(adapter)
    base = None if named is None else find_model(named)
    if base is None or not base.exists() or is_adapter(base):
        of = "no model" if named is None else f"{named}, which is no model here"
        raise InputError(
            f"{adapter} is an adapter of {of}: give the model, and this as its adapter"
        )
    return base


def find_model(path: Path) -> Path:
    """What a name stands for where there is no such path: a shipped model, or one to fetch."""
    if path.exists():
        return path
    if str(path) in SHIPPED_MODELS:
        return SHIPPED_MODELS[str(path)]
    return fetch(str(path)) if str(path) in MODELS else path


def is_folder(path: Path) -> bool:
    """Whether a model is a folder of weights, with its tokenizer beside them.

    It is none when it is one file of GGUF or LWM, alone in a folder or not, an adapter, or a name
    for `fetch`.
    """
    return is_ours(path) or (not is_adapter(path) and any(path.glob("*.safetensors*")))


def hash_model(path: Path) -> str | None:
    """The sha256 of a model: of its config, weights, tokenizer and codec; None without a model.

    That of an adapter is also of the model that it is for. It is known without opening it: a name
    that `fetch` knows is known by the file that it brings.
    """
    path = find_model(path)
    if path.is_file():
        return hash_file(path)
    names = ("config.json", "*.safetensors", "*.gguf", "tokenizer.json", "codec/*")
    files = sorted(file for name in names for file in path.glob(name) if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {hash_file(file)}\n" for file in files]
    base = find_base(path) if is_adapter(path) else None
    if base is not None and not is_adapter(base):
        lines.append(f"base {hash_model(base)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def read_checkpoint(path: Path) -> Checkpoint:
    """What stands at `path`, by the reader of its format.

    A folder is Hugging Face's unless LWM's file or a lone .gguf is what it holds.
    """
    if not path.exists():
        raise InputError(
            f"there is nothing at {path}: give a folder or a file of weights, or the name of a "
            f"model ({', '.join((*SHIPPED_MODELS, *MODELS))})"
        )
    if path.suffix == ".safetensors" and path.is_file():
        raise InputError(f"{path} is a part of a model: give its folder, {path.absolute().parent}")
    if path.is_file():
        return read_gguf(path) if path.suffix == ".gguf" or is_gguf(path) else read_lwm(path)
    if not list(path.glob("*.safetensors*")):
        held = [path / name for name in LWM_FILES if (path / name).is_file()]
        held = held or sorted(path.glob("*.gguf"))
        if len(held) == 1 or are_one_model(held):
            return read_checkpoint(held[0])
        if held:
            raise InputError(f"{path} holds {len(held)} models: give the file of one")
    return read_hf(path)


def is_ours(path: Path) -> bool:
    """Whether `path` is a folder that this package wrote."""
    return (path / CONFIG).is_file() and "kind" in read_config(path)


def _open_ours(path: Path) -> Opened:
    kind, values, tensors = load_folder(path)
    if kind != "world":
        raise InputError(f"{path} holds a {kind}, not a world model: give the folder of a model")
    config = from_dict(World, values, str(path / CONFIG))
    table = dequantize_table(specs(config), tensors)
    check_table(specs(config), table)
    template = path / CHAT_TEMPLATE
    return Opened(
        config=config,
        table=table,
        tokenizer=read_tokenizer(path),
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        codec=path / CODEC if (path / CODEC).exists() else None,
        home=path,
        ends=_check_ends(read_ends(path), config),
    )


def _check_ends(ends: tuple[int, ...], config: World) -> tuple[int, ...]:
    """The ends of answers. Raises InputError when the model has no such token."""
    if max(ends, default=0) >= config.vocabulary.text:
        raise InputError(
            f"answers would end with the token {max(ends)} of {config.vocabulary.text}: use the "
            "generation_config.json that the weights came with"
        )
    return ends


def _table(checkpoint: Checkpoint, config: World) -> dict[str, LazyWeight]:
    """The weights by our names, each a read a layer. Raises InputError when names do not fit."""
    table, known = {}, set()
    for ours, param in paths(specs(config)).items():
        name, reads, names = BY_OURS[ours], [], []
        for l in range(param.shape[0] if name.layered else 1):
            there = name.hugging_face.format(l)
            if there not in checkpoint.tensors:
                raise InputError(
                    f"the weights lack the tensor {there}, which the config asks for: "
                    "copy all files of the model again"
                )
            known.add(there)
            names.append(there)
            reads.append(_convert_tensor(checkpoint.tensors[there], there, name, param))
        table[ours] = LazyWeight(param.shape, tuple(reads), tuple(names))
    if config.tied:
        known.add(BY_OURS["heads.text"].hugging_face)
    for there in checkpoint.tensors:
        if there not in known and not there.endswith(PASSED_OVER):
            raise InputError(
                f"the weights hold {there[:80]}, which a model of type "
                f"{checkpoint.config['model_type']} does not have: use the config they came with"
            )
    return table


def _convert_tensor(tensor: LazyTensor, there: str, name: Name, param: Param) -> LazyTensor:
    """One tensor as one piece of our weight. Raises InputError when it holds no floats."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise InputError(f"the tensor {there} holds {tensor.dtype}: use weights of floats")
    return tensor.then(partial(_piece, there=there, name=name, param=param))


def _piece(tensor: np.ndarray, there: str, name: Name, param: Param) -> np.ndarray:
    """A tensor laid out as ours. Raises InputError when it has another shape."""
    shape = param.shape[1:] if name.layered else param.shape
    if tensor.shape != (wanted := name.shape_there(shape)):
        raise InputError(
            f"the tensor {there} has the shape {tensor.shape} and the config asks for {wanted}: "
            "use the config that the weights came with"
        )
    piece = name.ours_from(tensor, shape)
    return piece[None] if name.layered else piece
