"""A codec ready for use: frames to codes and back, in batches of a few sizes.

`Codec` takes and returns bytes and flat rows of codes, as films and training rows hold them;
`FloatCodec` is the same codec on floats in [-1, 1] and square grids of codes, as papers and other
libraries have them.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ringworld.errors import InputError
from ringworld.mesh import named_sharding, on_one_device
from ringworld.models.vqgan import VQGAN, VQGANWeights, decode, encode

# Frames that go through the codec at a time.
BATCH = 64
# The sizes of the last batch, each with a program of its own: one picture takes 1/40 of 64.
BATCH_SIZES = (1, 8, BATCH)


@dataclass(frozen=True)
class FloatCodec:
    """A VQGAN and its weights, on float pixels in [-1, 1] and square grids of codes."""

    config: VQGAN
    weights: VQGANWeights

    @on_one_device
    def encode(self, pixels: Float[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z y x"]:
        """The grid of codes of each picture: `side` x `side`, from 0 to codebook - 1."""
        pixels = pixels.astype(np.float32)
        if self.config.tiles:
            return self._encode_tiles(pixels)
        return self._encode_pictures(pixels, self.config)

    def _encode_tiles(self, pixels: Float[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z y x"]:
        """The codes of tiles that are encoded by themselves, each different tile once.

        Of moving shapes on plain grounds one tile in five differs from all others.
        """
        side, stride = self.config.side, self.config.stride
        apart = pixels.reshape(-1, side, stride, side, stride, 3).swapaxes(2, 3)
        tiles = np.ascontiguousarray(apart).reshape(-1, stride * stride * 3)
        keys = tiles.view(np.dtype((np.void, tiles.strides[0]))).ravel()
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        different = tiles[first].reshape(-1, stride, stride, 3)
        codes = self._encode_pictures(different, replace(self.config, size=stride))
        return codes.reshape(-1)[place].reshape(-1, side, side)

    def _encode_pictures(
        self, pixels: Float[np.ndarray, "Z Y X 3"], config: VQGAN
    ) -> Int[np.ndarray, "Z y x"]:
        batches, weights = _batches(pixels), self._placed()
        codes = [_encode(weights, jnp.asarray(batch), config) for batch in batches]
        return np.concatenate(codes)[: len(pixels)]

    @on_one_device
    def decode(self, codes: Int[np.ndarray, "Z y x"]) -> Float[np.ndarray, "Z Y X 3"]:
        """The pixels of grids of codes, in [-1, 1]. Raises InputError for a code out of range."""
        if codes.size and not 0 <= codes.min() <= codes.max() < self.config.codebook:
            raise InputError(
                f"the codes run from {codes.min()} to {codes.max()} and this codec has 0 to "
                f"{self.config.codebook - 1}: use the codec that made them"
            )
        batches, weights = _batches(codes.astype(np.int32)), self._placed()
        drawn = [_decode(weights, jnp.asarray(batch), self.config) for batch in batches]
        return np.concatenate(drawn)[: len(codes)]

    def _placed(self) -> VQGANWeights:
        """The weights on the mesh that is set, whichever they were loaded on."""
        return jax.device_put(self.weights, named_sharding(jax.sharding.get_mesh()))


@dataclass(frozen=True)
class Codec:
    """A VQGAN and its weights, on pixels as bytes and flat rows of codes."""

    config: VQGAN
    weights: VQGANWeights

    @property
    def as_float(self) -> FloatCodec:
        """The same codec on floats in [-1, 1] and square grids of codes."""
        return FloatCodec(self.config, self.weights)

    def encode(self, pixels: UInt8[np.ndarray, "Z Y X 3"]) -> Int[np.ndarray, "Z Q"]:
        """The codes of each frame, row by row: from 0 to codebook - 1."""
        return self.as_float.encode(pixels / np.float32(127.5) - 1).reshape(len(pixels), -1)

    def decode(self, codes: Int[np.ndarray, "Z Q"]) -> UInt8[np.ndarray, "Z Y X 3"]:
        """The frames of the codes. Raises InputError for a code out of range."""
        side = self.config.side
        pixels = self.as_float.decode(codes.reshape(-1, side, side))
        return np.rint((pixels + 1) * 127.5).astype(np.uint8)


# Compiled once for a codec's sizes, however often a film's batches come.
_encode = jax.jit(encode, static_argnames="config")
_decode = jax.jit(decode, static_argnames="config")


def _batches(x: np.ndarray) -> list[np.ndarray]:
    """Batches of `BATCH`, and a last one of the smallest size that holds the rest, zero-padded."""
    batches = [x[start : start + BATCH] for start in range(0, len(x), BATCH)]
    rest = len(batches[-1])
    size = next(size for size in BATCH_SIZES if size >= rest)
    batches[-1] = np.pad(batches[-1], ((0, size - rest),) + ((0, 0),) * (x.ndim - 1))
    return batches
