"""VGG features, and how far two pictures are apart in them.

A network that was trained to see compares pictures more as people do than pixels: two textures that
look alike are near each other, though no pixel of them is the same. The network is that of Simonyan
and Zisserman (arXiv 1409.1556) up to its last convolution; the distance is that of Zhang et al.
(LPIPS, arXiv 1801.03924, equation 1) with every channel counted alike. Nothing here is trained.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ringworld.errors import InputError
from ringworld.models.convolution import COLOURS, Conv, conv, convolve
from ringworld.params import pytree_dataclass

# Of blue, green and red, on the scale from 0 to 255: what was taken off the pictures in training.
MEANS = (104.007, 116.669, 122.679)
TINY = 1e-6  # keeps a vector of zeros from dividing by 0; real ones are of length 1 to 1000


@dataclass(frozen=True, kw_only=True)
class VGG:
    """The sizes: the channels of each level, and how many convolutions it has."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths):
            raise InputError("a VGG needs as many depths as widths, and one at least: add them")
        if min(*self.widths, *self.depths) < 1:
            raise InputError("every width and depth of a VGG must be at least 1: raise it")

    def check(self, size: int) -> None:
        """Raise InputError when pictures of `size` pixels vanish before the last level."""
        least = 2 ** (len(self.widths) - 1)
        if size < least:
            raise InputError(
                f"{len(self.widths)} levels of features need pictures of {least} pixels or more, "
                f"not {size}: enlarge the pictures or leave the features out"
            )


VGG16 = VGG()


@pytree_dataclass
class VGGWeights:
    """The convolutions of each level, 3 x 3, on pictures whose colours are blue, green, red."""

    levels: tuple[tuple[Conv, ...], ...]


def vgg_specs(config: VGG) -> VGGWeights:
    """The spec table of the convolutions."""
    levels, before = [], COLOURS
    for width, depth in zip(config.widths, config.depths, strict=True):
        inputs = (before, *[width] * (depth - 1))
        levels.append(tuple(conv(3, channels, width) for channels in inputs))
        before = width
    return VGGWeights(tuple(levels))


def features(
    weights: VGGWeights, pixels: Float[Array, "Z Y X C"]
) -> tuple[Float[Array, "Z _ _ _"], ...]:
    """What the last convolution of each level says of RGB pictures in [-1, 1], after its ReLU.

    A level starts with the largest of every 2 x 2 numbers of the level before.
    """
    x = (pixels[..., ::-1] + 1) * 127.5 - jnp.asarray(MEANS, pixels.dtype)
    found = []
    for level in weights.levels:
        if found:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for w in level:
            x = jax.nn.relu(convolve(x, w))
        found.append(x)
    return tuple(found)


def perceptual_distance(
    weights: VGGWeights, drawn: Float[Array, "Z Y X C"], pixels: Float[Array, "Z Y X C"]
) -> Float[Array, ""]:
    """How unlike pictures look: 0 for the same ones, at most 2.

    The squared distance of the features, each pixel's vector at length 1; the mean over pixels, and
    over levels.
    """
    levels = zip(features(weights, drawn), features(weights, pixels), strict=True)
    apart = [
        jnp.mean(jnp.sum(jnp.square(_direction(one) - _direction(other)), axis=-1))
        for one, other in levels
    ]
    return jnp.mean(jnp.stack(apart))


def _direction(x: Float[Array, "Z Y X C"]) -> Float[Array, "Z Y X C"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + TINY)
