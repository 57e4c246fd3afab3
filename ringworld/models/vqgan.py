"""The VQGAN: pictures to codes and back.

    pixels -> encoder -> latents -> nearest row of the codebook -> decoder -> pixels
              halves the picture     its number is the code        doubles it
              at every level         (one of U)                    at every level

A frame becomes a small square of integers, which a language model reads and writes as it does text.
The architecture is that of LWM's VQGAN, without attention (Large World Model, arXiv 2402.08268;
after aMUSEd, arXiv 2401.01808), so that its weights load by renaming alone. Frames are independent.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.errors import InputError
from ringworld.mesh import spec
from ringworld.models.convolution import COLOURS, Conv, Norm, conv, convolve, norm, normalise
from ringworld.params import Param, Weight, pytree_dataclass


@dataclass(frozen=True, kw_only=True)
class VQGAN:
    """The sizes of a codec.

    `size` is the side of a frame in pixels, `channels * multipliers[i]` the channels of level i,
    `blocks` the encoder's residual blocks a level (the decoder has one more), `groups` the groups
    of every group norm, `codebook` the number of codes U, `width` the length E of a code's vector,
    `latent_channels` the channels between an encoder or decoder and the 1 x 1 convolution that maps
    them to E or from it (None: E too), `commitment` the weight of the loss that pulls latents to
    their codes. With `tiles` the encoder sees `stride` x `stride` pixels at a time, so that a code
    depends on nothing outside of its tile; LWM's sees the frame, and its group norms all of it.
    """

    size: int
    """the side of a frame in pixels"""
    channels: int
    """of the first level"""
    multipliers: tuple[int, ...]
    """the channels of each level, as multiples of the first"""
    blocks: int
    """residual blocks a level"""
    groups: int
    """of every group norm"""
    codebook: int
    """the number of codes"""
    width: int
    """the length of a code's vector"""
    latent_channels: int | None = None
    """between the encoder or decoder and the code vectors; without it their length"""
    commitment: float = 0.25
    """the weight of the loss that pulls latents to their codes"""
    tiles: bool = False
    """encode each tile of stride x stride pixels by itself; the decoder sees all codes"""

    def __post_init__(self) -> None:
        numbers = (self.size, self.channels, *self.multipliers, self.blocks, self.groups)
        if min(*numbers, self.codebook, self.width, self.latent_width) < 1 or not self.multipliers:
            raise InputError("every size of a VQGAN must be at least 1: raise the one that is not")
        if self.size % self.stride:
            raise InputError(
                f"{len(self.multipliers)} levels need a size that {self.stride} divides, "
                f"not {self.size}: change the size or the number of multipliers"
            )
        normed = (self.channels, *self.widths)
        if any(width % self.groups for width in normed):
            raise InputError(
                f"{self.groups} groups do not divide the channels {normed}: change the groups"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level, from the largest picture to the smallest."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def latent_width(self) -> int:
        """The channels that the encoder gives and the decoder takes."""
        return self.width if self.latent_channels is None else self.latent_channels

    @property
    def stride(self) -> int:
        """How many pixels of a row one code stands for."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def side(self) -> int:
        """The codes in a row, and the rows of codes."""
        return self.size // self.stride


LWM_VQGAN = VQGAN(
    size=256,
    channels=128,
    multipliers=(1, 2, 2, 4, 6),
    blocks=2,
    groups=32,
    codebook=8192,
    width=64,
)
NANO_VQGAN = VQGAN(
    size=64,
    channels=8,
    multipliers=(1, 2, 4, 10),
    blocks=1,
    groups=4,
    codebook=512,
    width=32,
)


@pytree_dataclass
class Residual:
    """A residual block; `shortcut` is there when the channels change."""

    norm1: Norm
    conv1: Conv
    norm2: Norm
    conv2: Conv
    shortcut: Conv | None


@pytree_dataclass
class Level:
    """The blocks at one picture size, and the convolution that leads to the next."""

    blocks: tuple[Residual, ...]
    resample: Conv | None


@pytree_dataclass
class Tower:
    """An encoder or a decoder, which differ in order only: a decoder begins with `mid`."""

    conv_in: Conv
    levels: tuple[Level, ...]
    mid: tuple[Residual, ...]
    norm_out: Norm
    conv_out: Conv


@pytree_dataclass
class VQGANWeights:
    """The weights of a codec; `codebook` is [U, E]."""

    encoder: Tower
    to_code: Conv
    codebook: Weight
    from_code: Conv
    decoder: Tower


class Quantised(NamedTuple):
    """Latents put to their nearest codes: the codes' vectors and the codes."""

    vectors: Float[Array, "Z y x E"]
    codes: Int[Array, "Z y x"]


def vqgan_specs(config: VQGAN) -> VQGANWeights:
    """The spec table of a codec."""
    widths, width, latent = config.widths, config.width, config.latent_width
    narrow, wide = widths[0], widths[-1]
    encoder = Tower(
        conv_in=conv(3, COLOURS, config.channels),
        levels=_levels((config.channels, *widths), config.blocks),
        mid=(_residual(wide, wide), _residual(wide, wide)),
        norm_out=norm(wide),
        conv_out=conv(3, wide, latent),
    )
    decoder = Tower(
        conv_in=conv(3, latent, wide),
        levels=_levels((wide, *reversed(widths)), config.blocks + 1),
        mid=(_residual(wide, wide), _residual(wide, wide)),
        norm_out=norm(narrow),
        conv_out=conv(3, narrow, COLOURS),
    )
    return VQGANWeights(
        encoder=encoder,
        to_code=conv(1, latent, width),
        codebook=Param((config.codebook, width), (None, None), scale=1 / config.codebook),
        from_code=conv(1, width, latent),
        decoder=decoder,
    )


def latents(
    weights: VQGANWeights, pixels: Float[Array, "Z Y X C"], config: VQGAN
) -> Float[Array, "Z y x E"]:
    """The encoder's vectors for frames in [-1, 1], before they are put to codes."""
    _check(pixels.shape[1:], (config.size, config.size, COLOURS), "frames")
    tower = weights.encoder
    x = convolve(_cut(pixels, config.stride) if config.tiles else pixels, tower.conv_in)
    for level in tower.levels:
        for block in level.blocks:
            x = _residue(x, block, config)
        if level.resample is not None:
            x = _halve(x, level.resample)
    for block in tower.mid:
        x = _residue(x, block, config)
    x = jax.nn.silu(normalise(x, tower.norm_out, config.groups))
    found = convolve(convolve(x, tower.conv_out), weights.to_code)
    return _join(found, config.side) if config.tiles else found


def nearest(vectors: Float[Array, "Z y x E"], codebook: Float[Array, "U E"]) -> Int[Array, "Z y x"]:
    """The code nearest to each vector in squared distance, the lower of two that are equally near.

    The square of the vector itself is left out: it is the same for every code.
    """
    vectors, codebook = vectors.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.einsum("zyxe,ue->zyxu", vectors, codebook, precision="highest")
    return jnp.argmin(jnp.sum(codebook**2, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)


def quantise(vectors: Float[Array, "Z y x E"], codebook: Float[Array, "U E"]) -> Quantised:
    """Each vector put to its nearest code.

    The gradient passes straight through to `vectors`, as if nothing had been rounded, and none
    reaches the codebook (van den Oord et al., arXiv 1711.00937).
    """
    codes = nearest(vectors, codebook)
    found = _lookup(codebook, codes).astype(vectors.dtype)
    return Quantised(vectors + jax.lax.stop_gradient(found - vectors), codes)


def paint(
    weights: VQGANWeights, vectors: Float[Array, "Z y x E"], config: VQGAN
) -> Float[Array, "Z Y X C"]:
    """The decoder's frames for code vectors, not clipped: what the loss is measured on."""
    tower = weights.decoder
    x = convolve(convolve(vectors, weights.from_code), tower.conv_in)
    for block in tower.mid:
        x = _residue(x, block, config)
    for level in tower.levels:
        for block in level.blocks:
            x = _residue(x, block, config)
        if level.resample is not None:
            x = _double(x, level.resample)
    return convolve(jax.nn.silu(normalise(x, tower.norm_out, config.groups)), tower.conv_out)


def encode(
    weights: VQGANWeights, pixels: Float[Array, "Z Y X C"], config: VQGAN
) -> Int[Array, "Z y x"]:
    """The codes of frames in [-1, 1]."""
    return nearest(latents(weights, pixels, config), weights.codebook)


def decode(
    weights: VQGANWeights, codes: Int[Array, "Z y x"], config: VQGAN
) -> Float[Array, "Z Y X C"]:
    """The frames in [-1, 1] of codes; a code outside [0, U) is taken as the nearest that exists."""
    _check(codes.shape[1:], (config.side, config.side), "codes")
    vectors = _lookup(weights.codebook, jnp.clip(codes, 0, config.codebook - 1))
    return jnp.clip(paint(weights, vectors, config), -1.0, 1.0)


def _residual(inputs: int, outputs: int) -> Residual:
    return Residual(
        norm1=norm(inputs),
        conv1=conv(3, inputs, outputs),
        norm2=norm(outputs),
        conv2=conv(3, outputs, outputs),
        shortcut=None if inputs == outputs else conv(1, inputs, outputs),
    )


def _levels(widths: tuple[int, ...], blocks: int) -> tuple[Level, ...]:
    """The levels between `widths`: each but the last ends with a change of picture size."""
    last = len(widths) - 2
    return tuple(
        Level(
            blocks=tuple(_residual(inputs if b == 0 else outputs, outputs) for b in range(blocks)),
            resample=None if i == last else conv(3, outputs, outputs),
        )
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False))
    )


def _residue(x: Float[Array, "Z Y X C"], w: Residual, config: VQGAN) -> Float[Array, "Z Y X D"]:
    y = convolve(jax.nn.silu(normalise(x, w.norm1, config.groups)), w.conv1)
    y = convolve(jax.nn.silu(normalise(y, w.norm2, config.groups)), w.conv2)
    return y + (x if w.shortcut is None else convolve(x, w.shortcut))


def _halve(x: Float[Array, "Z Y X C"], w: Conv) -> Float[Array, "Z y x C"]:
    """Every other pixel of a convolution that is padded below and on the right only, as LWM's."""
    return convolve(x, w, stride=2, padding=((0, 1), (0, 1)))


def _double(x: Float[Array, "Z y x C"], w: Conv) -> Float[Array, "Z Y X C"]:
    return convolve(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), w)


def _cut(x: Float[Array, "Z Y X C"], side: int) -> Float[Array, "z side side C"]:
    """The tiles of `side` x `side` pixels of all frames, row by row."""
    frames, rows, columns, channels = x.shape
    apart = _reshape(x, (frames, rows // side, side, columns // side, side, channels))
    return _reshape(apart.swapaxes(2, 3), (-1, side, side, channels))


def _join(x: Float[Array, "z 1 1 E"], side: int) -> Float[Array, "Z side side E"]:
    """What was found of the tiles of frames, which have `side` of them a row and a column."""
    return _reshape(x, (-1, side, side, x.shape[-1]))


def _reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` in another shape, its frames divided over the devices as before."""
    divided = PartitionSpec(*jax.typeof(x).sharding.spec[:1])
    return jnp.reshape(x, shape, out_sharding=divided)


def _lookup(codebook: Float[Array, "U E"], codes: Int[Array, "Z y x"]) -> Float[Array, "Z y x E"]:
    return codebook.at[codes].get(out_sharding=spec("batch"))


def _check(found: tuple[int, ...], wanted: tuple[int, ...], what: str) -> None:
    if found != wanted:
        raise InputError(
            f"this codec takes {what} of shape {wanted}, not {found}: resize them, "
            "or use a codec of that size"
        )
