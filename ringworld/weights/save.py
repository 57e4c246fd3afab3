"""`convert`: a foreign model to a folder of ours, and a folder of ours to a Hugging Face folder.

transformers, vLLM and their relatives load such a folder as it is. Weights are copied one at a time
and unchanged: bfloat16 stays the same bytes.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from ringworld.distributed import first_goes_first
from ringworld.errors import InputError
from ringworld.models.world import World, specs
from ringworld.params import Param, paths
from ringworld.progress import Announce
from ringworld.settings import WeightType
from ringworld.text.load import (
    ADDED_TOKENS,
    SENTENCEPIECE,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    parse_tokenizer,
)
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.codecs import is_codec, open_codec
from ringworld.weights.diffusers import write_codec, write_diffusers
from ringworld.weights.file_names import (
    ABOUT,
    CHAT_TEMPLATE,
    CODEC,
    CONFIG,
    GENERATION,
    INDEX,
    TENSORS,
    VQGAN_FOLDER,
)
from ringworld.weights.folder import new_folder, write_folder
from ringworld.weights.huggingface import write_config
from ringworld.weights.int8 import quantize_table, split
from ringworld.weights.joint import add_vision, drop_vision, join_tables
from ringworld.weights.names import BY_OURS, Name
from ringworld.weights.open import Opened, is_ours, merge_adapter, open_model
from ringworld.weights.tensors import LazyTensor, LazyWeight, wider, write_tensors

# What others wrote about words and sampling, carried along unread.
CARRIED = (TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION, SENTENCEPIECE, ABOUT)
# As transformers cuts its own: a file that is too large for some disks helps nobody.
SHARD_BYTES = 5_000_000_000


def convert(
    src: Path,
    dst: Path,
    add_vision: Path | None,
    announce: Announce,
    shard_bytes: int = SHARD_BYTES,
    dtype: WeightType | None = None,
    adapter: Path | None = None,
) -> None:
    """Write the model or the codec of `src` to the new folder `dst`, all of it or nothing.

    A folder of ours becomes one for Hugging Face's readers, what comes from elsewhere one of ours.
    With a codec in `add_vision`, a language model becomes a world model. The adapter of the folder
    `adapter` is merged into the weights. Weights are stored as `dtype` where it is given. With any
    of the three (but for the float dtypes) the result is a folder of ours. Raises InputError when
    `src` cannot be read, `dst` exists, or a codec is to have a dtype or an adapter.
    """
    outwards = add_vision is None and adapter is None and dtype != "int8" and is_ours(src)
    if add_vision is None and is_codec(src):
        if dtype is not None or adapter is not None:
            raise InputError(
                f"{src} is a codec, which has no dtype and no adapter: leave the option out",
                setting="adapter" if dtype is None else "dtype",
            )
        _convert_codec(src, dst, outwards)
        whose = "diffusers loads it" if outwards else "a codec of ours"
    else:
        opened = open_model(src)
        opened = opened if add_vision is None else _seeing(opened, add_vision)
        opened = opened if adapter is None else merge_adapter(opened, adapter)
        opened = opened if dtype is None else _cast(opened, dtype)
        with new_folder(dst) as draft:
            if outwards:
                write_theirs(draft, opened, shard_bytes)
            else:
                write_ours(draft, opened)
        whose = "transformers and its relatives load it" if outwards else "a model of ours"
    size = sum(file.stat().st_size for file in dst.rglob("*") if file.is_file())
    announce(f"wrote {dst}: {whose}, {size / 1e6:.1f} MB")


def replace_codec(opened: Opened, codec: Path) -> Opened:
    """A world model with another codec.

    Its vision table and head begin anew, as those of a language model to which vision is added.
    Raises InputError when `codec` cannot be read.
    """
    config, table = drop_vision(opened.config, opened.table)
    return _seeing(replace(opened, config=config, table=table), codec)


def save_changed(src: Path, dst: Path, change: Callable[[Opened], Opened]) -> None:
    """Write the model of `src`, changed, as the new folder `dst`.

    Raises InputError when `src` cannot be read or `dst` exists, and as `change` does.
    """
    changed = change(open_model(src))
    with new_folder(dst) as draft:
        write_ours(draft, changed)


def unpack_model(src: Path, folder: Path, announce: Announce) -> Path:
    """The model of a file, or of a name that `fetch` knows, as `folder`, a folder of ours.

    It is made unless it is there, by the first of several processes. Its tokenizer is then a file
    beside it, as training needs it.
    """
    with first_goes_first():
        if not folder.exists():
            convert(src, folder, None, announce)
    return folder


def _convert_codec(src: Path, dst: Path, outwards: bool) -> None:
    """Write a codec of ours for diffusers, one from elsewhere as ours."""
    config, table = open_codec(src)
    with new_folder(dst) as draft:
        (write_diffusers if outwards else write_codec)(draft, config, table)


def _seeing(opened: Opened, codec: Path) -> Opened:
    """The opened language model, able to see with the codec at this path."""
    config, table, tokenizer = add_vision(
        opened.config, opened.table, opened.tokenizer, open_codec(codec)[0]
    )
    return replace(opened, config=config, table=table, tokenizer=tokenizer, codec=codec)


def _cast(opened: Opened, dtype: WeightType) -> Opened:
    """The opened model with its weights stored as `dtype`."""
    if dtype == "int8":
        return replace(opened, table=quantize_table(specs(opened.config), opened.table))
    stored = np.dtype(dtype)

    def cast(param: Param, weight: np.ndarray | LazyWeight) -> LazyWeight:
        pieces = split(param, weight).reads
        reads = [piece.then(lambda w: w.astype(stored)) for piece in pieces]
        return LazyWeight(param.shape, tuple(replace(read, dtype=stored) for read in reads))

    params = paths(specs(opened.config))
    return replace(opened, table={name: cast(params[name], w) for name, w in opened.table.items()})


def write_ours(draft: Path, opened: Opened) -> None:
    """Write a folder of ours into the folder `draft`."""
    write_folder(draft, "world", opened.config, opened.table)
    _write_words(draft, opened)
    if set(opened.ends) - {opened.config.vocabulary.eos}:
        _write_ends(draft, opened)
    if opened.codec is not None:
        (draft / CODEC).mkdir()
        write_codec(draft / CODEC, *open_codec(opened.codec))


def write_theirs(draft: Path, opened: Opened, shard_bytes: int) -> None:
    """Write a folder for transformers into the folder `draft`, and the codec for diffusers."""
    if opened.config.vocabulary.grid:
        raise InputError(
            "this model is told the row and the column of each code, which no other program does: "
            "use it with this one"
        )
    theirs = _theirs(opened.table)
    if opened.config.vocabulary.codes:
        theirs = join_tables(theirs)
    dtype = wider({weight.dtype for weight in theirs.values()}).name
    _write_json(draft / CONFIG, write_config(opened.config, dtype))
    _write_shards(draft, theirs, shard_bytes)
    _write_words(draft, opened)
    _write_ends(draft, opened)
    if opened.codec is not None:
        (draft / VQGAN_FOLDER).mkdir()
        write_diffusers(draft / VQGAN_FOLDER, *open_codec(opened.codec))


def _theirs(table: Mapping[str, np.ndarray | LazyWeight]) -> dict[str, LazyWeight]:
    """Our weights by Hugging Face name, layer by layer."""
    found: dict[tuple[float, str], LazyWeight] = {}
    for ours, weight in table.items():
        name = BY_OURS[ours]
        shape = weight.shape[1:] if name.layered else weight.shape
        for l in range(weight.shape[0] if name.layered else 1):
            there = name.hugging_face.format(l)
            read = LazyTensor(partial(_layer, weight, name, l), weight.dtype)
            order = l if name.layered else -1 if ours.endswith("embed") else math.inf
            found[order, there] = LazyWeight(name.shape_there(shape), (read,))
    return {there: found[order, there] for order, there in sorted(found)}


def _layer(weight: np.ndarray | LazyWeight, name: Name, l: int) -> np.ndarray:
    if isinstance(weight, LazyWeight) and name.layered and len(weight.reads) == weight.shape[0]:
        return name.theirs(weight.reads[l]()[0])
    whole = weight if isinstance(weight, np.ndarray) else np.concatenate(list(weight))
    return name.theirs(whole[l] if name.layered else whole)


def _write_shards(draft: Path, theirs: Mapping[str, LazyWeight], shard_bytes: int) -> None:
    """Write the weights, in one file or in several of at most `shard_bytes` and an index."""
    shards: list[dict[str, LazyWeight]] = [{}]
    total = room = 0
    for name, weight in theirs.items():
        size = math.prod(weight.shape) * weight.dtype.itemsize
        if shards[-1] and size > room:
            shards.append({})
        room = shard_bytes - size if not shards[-1] else room - size
        shards[-1][name] = weight
        total += size
    if len(shards) == 1:
        write_tensors(draft / TENSORS, shards[0])
        return
    places = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_tensors(draft / file, shard)
        places |= dict.fromkeys(shard, file)
    _write_json(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_words(draft: Path, opened: Opened) -> None:
    """Write the tokenizer and the chat template, and carry along what lies beside them."""
    if opened.tokenizer is not None:
        (draft / TOKENIZER).write_bytes(opened.tokenizer)
    if opened.chat_template is not None:
        (draft / CHAT_TEMPLATE).write_text(opened.chat_template, encoding="utf-8")
    for file in CARRIED:
        if (opened.home / file).is_file():
            shutil.copyfile(opened.home / file, draft / file)
    if opened.tokenizer is not None:
        words = Tokenizer(parse_tokenizer(opened.tokenizer, "the model's tokenizer.json"))
        words.check_rows(opened.config.vocabulary.text)
        if not (draft / TOKENIZER_CONFIG).exists():
            _write_json(draft / TOKENIZER_CONFIG, _name_ends(words.backend, opened.config))
        added = _name_added(words.backend)
        if added and (draft / SENTENCEPIECE).exists():
            _write_json(draft / ADDED_TOKENS, added)


def _write_ends(draft: Path, opened: Opened) -> None:
    """Say which tokens begin a text and end an answer, unless what was carried along does."""
    if (draft / GENERATION).exists():
        return
    words = opened.config.vocabulary
    ends = list(dict.fromkeys(i for i in (words.eos, *opened.ends) if i >= 0))
    said = {"bos_token_id": words.bos} if words.bos >= 0 else {}
    said |= {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}
    _write_json(draft / GENERATION, said)


def _name_ends(backend: Backend, c: World) -> dict[str, str]:
    """A tokenizer_config.json for a tokenizer that came without: the tokens around a text.

    Without it transformers knows of none.
    """
    ends = (c.vocabulary.bos, c.vocabulary.eos)
    found = [None if token < 0 else backend.id_to_token(token) for token in ends]
    named = zip(("bos_token", "eos_token"), found, strict=True)
    said = {key: token for key, token in named if token is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | said


def _name_added(backend: Backend) -> dict[str, int]:
    """The tokens that were added to a tokenizer's own, by name, as llama.cpp's converter asks."""
    own = backend.get_vocab(with_added_tokens=False)
    added = [(i, name) for name, i in backend.get_vocab().items() if name not in own]
    return {name: i for i, name in sorted(added)}


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
