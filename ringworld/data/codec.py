"""A codec ready for use: frames of bytes to codes and back, in batches of one size."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from ringworld.errors import InputError
from ringworld.models.folder import fill, load_folder, make_config
from ringworld.models.vqgan import VQGAN, Weights, decode, encode, specs

# Frames that go through the codec at one time.
BATCH = 64


@dataclass(frozen=True)
class Codec:
    """A VQGAN and its weights, as two functions on bytes."""

    config: VQGAN
    weights: Weights

    def encode(self, pixels: UInt8[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z Q"]:
        """The codes of each frame."""
        batches = _batches(pixels / np.float32(127.5) - 1)
        codes = [_encode(self.weights, jnp.asarray(batch), self.config) for batch in batches]
        return np.concatenate(codes)[: len(pixels)].reshape(len(pixels), -1)

    def decode(self, codes: Int[np.ndarray, "Z Q"]) -> UInt8[np.ndarray, "Z Y X 3"]:
        """The frames of the codes."""
        side = self.config.side
        batches = _batches(codes.reshape(-1, side, side))
        drawn = [_decode(self.weights, jnp.asarray(batch), self.config) for batch in batches]
        pixels = np.concatenate(drawn)[: len(codes)]
        return np.rint((pixels + 1) * 127.5).astype(np.uint8)


# Compiled once for a codec's sizes, however often a film's batches come.
_encode = jax.jit(encode, static_argnames="config")
_decode = jax.jit(decode, static_argnames="config")


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
