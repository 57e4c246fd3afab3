"""The PatchGAN: a discriminator that judges every patch of a picture by itself.

    pixels -> halve, widen -> ... -> one number a patch: above 0 it looks real, below 0 generated

Architecture: Isola et al., "Image-to-Image Translation" (arXiv 1611.07004), as Esser et al. train a
VQGAN with it (arXiv 2012.09841), but with group norms in place of batch norms: the judgement of a
picture does not depend on those beside it, and there are no running means to keep.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from ringworld.errors import InputError
from ringworld.models.convolution import COLOURS, Conv, Norm, conv, convolve, norm, normalise
from ringworld.params import pytree_dataclass

SIDE = 4  # of every convolution
WIDEST = 8  # times the first channels
SLOPE = 0.2  # of the leaky ReLU below 0
PAD = ((1, 1), (1, 1))


@dataclass(frozen=True, kw_only=True)
class PatchGAN:
    """The sizes of a discriminator.

    `channels` of the first layer, doubled by each further one up to eightfold; `halvings` of the
    picture, after which two more convolutions take a pixel each off its sides; `groups` of every
    group norm.
    """

    channels: int = 64
    """of the first layer, doubled by each further one up to eightfold"""
    halvings: int = 3
    """how often the picture is halved"""
    groups: int = 8
    """of every group norm"""

    def __post_init__(self) -> None:
        if min(self.channels, self.halvings, self.groups) < 1:
            raise InputError("every size of a PatchGAN must be at least 1: raise the one below it")
        if self.channels % self.groups:
            raise InputError(
                f"{self.groups} groups do not divide {self.channels} channels: change the groups"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each layer but the last, which has 1."""
        return tuple(self.channels * min(2**i, WIDEST) for i in range(self.halvings + 1))

    def side(self, size: int) -> int:
        """The patches in a row of a picture of `size` pixels.

        Raises InputError when there is not one.
        """
        side = (size >> self.halvings) - 2
        if side < 1:
            raise InputError(
                f"pictures of {size} pixels have no patch after {self.halvings} halvings: "
                "lower the halvings or enlarge the pictures"
            )
        return side


@pytree_dataclass
class PatchGANWeights:
    """The weights of a discriminator; the first and the last convolution have no norm."""

    convs: tuple[Conv, ...]
    norms: tuple[Norm, ...]


def patchgan_specs(config: PatchGAN) -> PatchGANWeights:
    """The spec table of a discriminator."""
    widths = (COLOURS, *config.widths, 1)
    return PatchGANWeights(
        convs=tuple(conv(SIDE, *pair) for pair in zip(widths, widths[1:], strict=False)),
        norms=tuple(norm(width) for width in config.widths[1:]),
    )


def discriminate(
    weights: PatchGANWeights, pixels: Float[Array, "Z Y X C"], config: PatchGAN
) -> Float[Array, "Z y x"]:
    """The logit of each patch of pictures in [-1, 1]: above 0 it looks real, below 0 generated."""
    first, *inner, last = weights.convs
    x = jax.nn.leaky_relu(convolve(pixels, first, stride=2, padding=PAD), SLOPE)
    for i, (w, gain) in enumerate(zip(inner, weights.norms, strict=True), 1):
        x = convolve(x, w, stride=2 if i < config.halvings else 1, padding=PAD)
        x = jax.nn.leaky_relu(normalise(x, gain, config.groups), SLOPE)
    return convolve(x, last, padding=PAD)[..., 0]
