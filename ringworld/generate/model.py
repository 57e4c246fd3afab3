"""A model as people hold it: one folder with the weights, the tokenizer and the codec."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ringworld.data.codec import Codec, load_codec
from ringworld.data.tokenizer import Tokenizer, load_tokenizer
from ringworld.errors import InputError
from ringworld.mesh import has_mesh
from ringworld.models.folder import fill, load_folder, make_config, save_folder
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, specs
from ringworld.params import shardings
from ringworld.vocab import Vocabulary

TOKENIZER = "tokenizer.json"
CODEC = "codec"


@dataclass(frozen=True)
class Model:
    """A world model, and what turns text and frames into its tokens; no codec without vision."""

    config: World
    weights: WorldWeights
    tokenizer: Tokenizer
    codec: Codec | None

    @property
    def seeing(self) -> Codec:
        """The codec. Raises InputError when the model has none."""
        if self.codec is None:
            raise InputError("this model reads text only: use one with a codec folder")
        return self.codec

    def placed(self) -> WorldWeights:
        """The weights on the mesh that is set."""
        if not has_mesh():
            return self.weights
        mesh = jax.sharding.get_mesh()
        return jax.device_put(self.weights, shardings(specs(self.config), mesh))


def load_model(path: Path) -> Model:
    """The model of a folder, float32 on the host.

    Raises InputError when a file is missing or damaged, or the tokenizer is another model's.
    """
    kind, values, tensors = load_folder(path)
    if kind != "world":
        raise InputError(f"{path} holds a {kind}, not a world model: give the folder of a model")
    config = _make_world(values)
    tokenizer = load_tokenizer(path / TOKENIZER)
    if tokenizer.size > config.vocabulary.text:
        raise InputError(
            f"the tokenizer in {path} has {tokenizer.size} tokens and the model "
            f"{config.vocabulary.text}: use the tokenizer it was trained with"
        )
    weights = fill(specs(config), tensors, jnp.float32)
    codec = load_codec(path / CODEC) if (path / CODEC).exists() else None
    return Model(config, weights, tokenizer, codec)


def _make_world(values: dict[str, Any]) -> World:
    llama, vocabulary = values.pop("llama", {}), values.pop("vocabulary", {})
    return make_config(
        World,
        {
            **values,
            "llama": make_config(Llama, llama),
            "vocabulary": make_config(Vocabulary, vocabulary),
        },
    )


def save_model(
    path: Path, config: World, weights: WorldWeights, parts: Path, dtype: DTypeLike
) -> None:
    """Write a model folder, its tokenizer and codec copied from the model folder `parts`.

    Raises InputError when `path` exists.
    """
    save_folder(path, "world", config, weights, dtype)
    shutil.copy2(parts / TOKENIZER, path / TOKENIZER)
    if (parts / CODEC).exists():
        shutil.copytree(parts / CODEC, path / CODEC)
