"""VGG features from a file: a folder of ours, or the one file of others' that is known by heart.

    FOLDER/config.json         {"kind": "vgg", "widths": [64, ...], "depths": [2, ...]}
    FOLDER/model.safetensors   levels.L.I.kernel [3, 3, in, out] and levels.L.I.bias, from 0

`ringworld fetch vgg16` brings an HDF5 file that is pinned to the byte. So where its arrays lie is
pinned too, and it is read without the library of its format.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ringworld.config import from_dict
from ringworld.errors import InputError
from ringworld.fetch import ASSETS
from ringworld.models.vgg import VGG, VGG16, VGGWeights, vgg_specs
from ringworld.params import paths
from ringworld.weights.folder import CONFIG, fill, load_folder

KIND = "vgg"
# The bytes at which the 13 convolutions begin in the pinned file: kernel and bias of each, float32.
ARRAY_PLACES = (
    *(10992, 19952, 24048, 20208),
    *(177520, 20464, 475136, 20976),
    *(1072360, 2254056, 2258152, 2255080, 4619496, 6978792),
    *(6987520, 11708160, 11712256, 21149440, 21153536, 30590720),
    *(30599448, 40038680, 40042776, 49479960, 49484056, 58921240),
)


class Features(NamedTuple):
    """A VGG and its weights."""

    config: VGG
    weights: VGGWeights


def load_features(path: Path) -> Features:
    """The features of a folder, or of the file that `ringworld fetch vgg16` brings.

    Raises InputError when it is neither, or damaged.
    """
    if path.is_file():
        return Features(VGG16, fill(vgg_specs(VGG16), read_pinned(path), jnp.float32))
    kind, values, tensors = load_folder(path)
    if kind != KIND:
        raise InputError(f"{path} holds a {kind}, not a {KIND}: give a folder of VGG features")
    config = from_dict(VGG, values, str(path / CONFIG))
    return Features(config, fill(vgg_specs(config), tensors, jnp.float32))


def read_pinned(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the pinned file by the names of ours. Raises InputError for any other file."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != ASSETS["vgg16"].sha256:
        raise InputError(
            f"{path} is not the file that `ringworld fetch vgg16` brings: give that one, or a "
            "folder of VGG features"
        )
    table: dict[str, Any] = paths(vgg_specs(VGG16))
    return {
        name: np.frombuffer(content, "<f4", math.prod(param.shape), place).reshape(param.shape)
        for (name, param), place in zip(table.items(), ARRAY_PLACES, strict=True)
    }
