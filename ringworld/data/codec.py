"""A codec ready for use: frames to codes and back, in batches of one size.

`Codec` speaks bytes and flat codes, as film and training rows have them; `Pictures` is the same
codec on floats in [-1, 1] and squares of codes, as papers and other libraries have them.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ringworld.errors import InputError
from ringworld.models.folder import fill, load_folder, make_config
from ringworld.models.vqgan import VQGAN, Weights, decode, encode, specs

# Frames that go through the codec at one time.
BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """A VQGAN and its weights, as two functions on pixels in [-1, 1]."""

    config: VQGAN
    weights: Weights

    def encode(self, pixels: Float[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z y x"]:
        """The codes of each picture, a square of them."""
        run = jax.jit(lambda x: encode(self.weights, x, self.config))
        codes = [run(jnp.asarray(batch)) for batch in _batches(pixels.astype(np.float32))]
        return np.concatenate(codes)[: len(pixels)]

    def decode(self, codes: Int[np.ndarray, "Z y x"]) -> Float[np.ndarray, "Z Y X 3"]:
        """The pictures of squares of codes."""
        run = jax.jit(lambda x: decode(self.weights, x, self.config))
        drawn = [run(jnp.asarray(batch)) for batch in _batches(codes.astype(np.int32))]
        return np.concatenate(drawn)[: len(codes)]


@dataclass(frozen=True)
class Codec:
    """A VQGAN and its weights, as two functions on bytes."""

    config: VQGAN
    weights: Weights

    @property
    def pictures(self) -> Pictures:
        """The same codec on floats and squares."""
        return Pictures(self.config, self.weights)

    def encode(self, pixels: UInt8[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z Q"]:
        """The codes of each frame."""
        return self.pictures.encode(pixels / np.float32(127.5) - 1).reshape(len(pixels), -1)

    def decode(self, codes: Int[np.ndarray, "Z Q"]) -> UInt8[np.ndarray, "Z Y X 3"]:
        """The frames of the codes."""
        side = self.config.side
        pixels = self.pictures.decode(codes.reshape(-1, side, side))
        return np.rint((pixels + 1) * 127.5).astype(np.uint8)


def _batches(x: np.ndarray) -> list[np.ndarray]:
    """Equal batches, the last filled with zeros, so that one program serves all."""
    padded = np.pad(x, ((0, -len(x) % BATCH),) + ((0, 0),) * (x.ndim - 1))
    return np.split(padded, len(padded) // BATCH)


def load_codec(path: Path) -> Codec:
    """The codec of a folder. Raises InputError when it is missing, damaged or of another kind."""
    kind, values, tensors = load_folder(path)
    if kind != "vqgan":
        raise InputError(f"{path} holds a {kind}, not a vqgan: give the folder of a codec")
    config = make_config(VQGAN, values)
    return Codec(config, fill(specs(config), tensors, jnp.float32))
