"""A codec ready for use: frames to codes and back, in batches of one size.

`Codec` speaks bytes and flat codes, as film and training rows have them; `Pictures` is the same
codec on floats in [-1, 1] and squares of codes, as papers and other libraries have them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ringworld.errors import InputError
from ringworld.models.vqgan import VQGAN, Weights, decode, encode

# Frames that go through the codec at one time.
BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """A VQGAN and its weights, as two functions on pixels in [-1, 1]."""

    config: VQGAN
    weights: Weights

    def encode(self, pixels: Float[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z y x"]:
        """The codes of each picture, a square of them."""
        batches = _batches(pixels.astype(np.float32))
        codes = [_encode(self.weights, jnp.asarray(batch), self.config) for batch in batches]
        return np.concatenate(codes)[: len(pixels)]

    def decode(self, codes: Int[np.ndarray, "Z y x"]) -> Float[np.ndarray, "Z Y X 3"]:
        """The pictures of squares of codes. Raises InputError when the codebook lacks a code."""
        if codes.size and not 0 <= codes.min() <= codes.max() < self.config.codebook:
            raise InputError(
                f"the codes run from {codes.min()} to {codes.max()} and this codec has 0 to "
                f"{self.config.codebook - 1}: use the codec that made them"
            )
        batches = _batches(codes.astype(np.int32))
        drawn = [_decode(self.weights, jnp.asarray(batch), self.config) for batch in batches]
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


# Compiled once for a codec's sizes, however often a film's batches come.
_encode = jax.jit(encode, static_argnames="config")
_decode = jax.jit(decode, static_argnames="config")


def _batches(x: np.ndarray) -> list[np.ndarray]:
    """Equal batches, the last filled with zeros, so that one program serves all."""
    padded = np.pad(x, ((0, -len(x) % BATCH),) + ((0, 0),) * (x.ndim - 1))
    return np.split(padded, len(padded) // BATCH)
