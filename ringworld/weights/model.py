"""A model as people hold it: one folder with the weights, the tokenizer and the codec."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Int

from ringworld.attention.mask import Where
from ringworld.distributed import is_first
from ringworld.errors import InputError
from ringworld.media.codec import Codec
from ringworld.mesh import on_a_mesh, on_one_device, shard
from ringworld.models.lora import adapt
from ringworld.models.world import Logits, World, WorldWeights, forward, read_heads, specs
from ringworld.params import shardings, specs_of
from ringworld.settings import Sampling
from ringworld.text.load import (
    ADDED_TOKENS,
    SENTENCEPIECE,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    parse_tokenizer,
    read_names,
)
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary, grid_ids
from ringworld.weights.adapter import place_adapters, read_adapter
from ringworld.weights.codecs import load_codec
from ringworld.weights.file_names import ABOUT, CHAT_TEMPLATE, CODEC, GENERATION
from ringworld.weights.folder import fill, new_folder, table_of, write_folder
from ringworld.weights.imported import read_about, read_sampling
from ringworld.weights.open import Opened, find_model, open_model

# What a trained model takes from the model that it started from, where that has it.
BESIDE = (
    TOKENIZER,
    SENTENCEPIECE,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    GENERATION,
    ABOUT,
)


@dataclass(frozen=True)
class Model:
    """A model, and what turns text and frames into its tokens.

    `tokenizer_or_none` is None in a folder of weights alone, `codec_or_none` in a model of text;
    `tokenizer` and `codec` are never None. `ends` are the ids that end an answer besides the
    vocabulary's own; `sampling` is how its authors want tokens chosen, None where they do not say;
    `about` is a line that says what it was trained for, or "".
    """

    config: World
    weights: WorldWeights
    tokenizer_or_none: Tokenizer | None
    codec_or_none: Codec | None
    chat_template: str | None = None
    ends: tuple[int, ...] = ()
    sampling: Sampling | None = None
    about: str = ""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError when the model came without one."""
        if self.tokenizer_or_none is None:
            raise InputError("this model has no tokenizer.json: copy it into the model's folder")
        return self.tokenizer_or_none

    @property
    def codec(self) -> Codec:
        """The codec. Raises InputError when the model has none."""
        if self.codec_or_none is None:
            raise InputError("this model reads text only: use one with a codec folder")
        return self.codec_or_none

    @on_a_mesh
    def logits(
        self,
        tokens: ArrayLike,
        modality: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        segments: ArrayLike | None = None,
    ) -> Logits:
        """What both heads read after every token: `.text` [B, T, V], `.vision` [B, T, U] or None.

        All arguments are rows [B, T] of whole numbers. `modality` is true where a token is a vision
        id. Positions count from 0 and all tokens of a row are one segment, unless they are given; a
        segment of 0 is padding. Raises InputError when an argument is no such array, or a token is
        none of the model's.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 2 or not ids.size:
            raise InputError(f"the tokens have the shape {ids.shape}: give rows of them, [B, T]")
        given = {
            "tokens": ids,
            "modality": np.zeros(ids.shape, np.int32) if modality is None else modality,
            "positions": np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            if positions is None
            else positions,
            "segments": np.ones(ids.shape, np.int32) if segments is None else segments,
        }
        columns = [_whole(name, values, ids.shape) for name, values in given.items()]
        _check_ids(columns[0], columns[1] > 0, columns[3] > 0, self.config.vocabulary)
        columns[0] = grid_ids(columns[0], columns[1] > 0, self.config.vocabulary)
        rows = (shard(jnp.asarray(x), "batch", "seq") for x in columns)
        row, vision, position, segment = rows
        return _logits(
            self.sharded_weights(), row, vision > 0, Where(position, segment), self.config
        )

    def sharded_weights(self) -> WorldWeights:
        """The weights, sharded over the mesh that is set."""
        mesh = jax.sharding.get_mesh()
        table = specs_of(specs(self.config), self.weights)
        return jax.device_put(self.weights, shardings(table, mesh))


def _whole(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Int[np.ndarray, "B T"]:
    """An argument of `logits`. Raises InputError when it is not whole numbers of this shape."""
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "iub":
        raise InputError(
            f"{name} is an array of {array.dtype} of the shape {array.shape}: give whole numbers "
            f"of the shape {shape}"
        )
    return array.astype(np.int32)


def _check_ids(
    ids: Int[np.ndarray, "B T"],
    seen: Bool[np.ndarray, "B T"],
    real: Bool[np.ndarray, "B T"],
    words: Vocabulary,
) -> None:
    """Raise InputError when a token that is no padding has no row in its table."""
    rows = np.where(seen, words.vision_rows, words.text)
    if (wrong := real & ((ids < 0) | (ids >= rows))).any():
        b, t = np.argwhere(wrong)[0]
        raise InputError(
            f"the token {ids[b, t]} in row {b}, column {t}, is none of this model's "
            f"{rows[b, t]:,} {'vision' if seen[b, t] else 'text'} ids: use its tokenizer or codec"
        )


@partial(jax.jit, static_argnames="c")
def _logits(
    weights: WorldWeights,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    c: World,
) -> Logits:
    return read_heads(forward(weights, tokens, vision, where, c), weights, c)


def load_model(
    path: Path | str, dtype: DTypeLike = jnp.float32, adapter: Path | None = None
) -> Model:
    """The model of a folder of ours, of Hugging Face's or of an adapter, on the mesh that is set.

    Weights are read one at a time, cast to `dtype` and placed, so that there is never more than one
    of them beside those that are placed. With int8, matrices become `params.Int8`. The
    adapter of the folder `adapter` stays beside the matrices, in float32. Raises InputError when a
    file is missing or damaged, or the tokenizer or the adapter is another model's.
    """
    path = find_model(Path(path))
    opened = open_model(path)
    words = read_words(opened, path.is_dir())
    if words is not None:
        words.check_rows(opened.config.vocabulary.text)
    added = None if adapter is None else read_adapter(adapter, opened.config.llama)
    weights = fill(specs(opened.config), opened.table, dtype)
    if added is not None:
        adapters, scale = added
        weights = adapt(weights, place_adapters(adapters, opened.config.llama), scale)
    codec = None if opened.codec is None else on_one_device(load_codec)(opened.codec)
    model = Model(opened.config, weights, words, codec, opened.chat_template, opened.ends)
    if not path.is_dir():  # beside a single file may lie anything
        return model
    about = read_about(path) or read_about(opened.home)
    return replace(model, sampling=read_sampling(opened.home), about=about)


def read_words(opened: Opened, is_folder: bool) -> Tokenizer | None:
    """The tokenizer; its ends are named by the files beside it, or else by the model's own ids."""
    if opened.tokenizer is None:
        return None
    backend = parse_tokenizer(opened.tokenizer, "the model's tokenizer.json")
    ids = {"bos_token": opened.config.vocabulary.bos, "eos_token": opened.config.vocabulary.eos}
    own = {key: backend.id_to_token(i) for key, i in ids.items() if i >= 0}
    names = {key: name for key, name in own.items() if name is not None}
    return Tokenizer(backend, names | (read_names(opened.home) if is_folder else {}))


def save_model(
    path: Path, config: World, weights: WorldWeights, parts: Path, dtype: DTypeLike
) -> None:
    """Write a model folder; tokenizer, chat template, codec and
    the line on what it was trained for are those of the folder `parts`.

    All of it or nothing. One block of a weight at a time is brought to the host, by the process
    whose device holds it; all processes call this. Raises InputError when `path` exists.
    """
    with new_folder(path) as draft:
        write_folder(draft, "world", config, table_of(weights, dtype))
        if not is_first():
            return
        for name in BESIDE:
            if (parts / name).exists():
                shutil.copy2(parts / name, draft / name)
        if (parts / CODEC).exists():
            shutil.copytree(parts / CODEC, draft / CODEC)
