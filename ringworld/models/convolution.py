"""Convolutions over pixels and group norms: what the codec and its judges are made of."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ringworld.params import Weight, constant, dense, pytree_dataclass

COLOURS = 3  # of a pixel: red, green and blue
EPS = 1e-6


@pytree_dataclass
class Conv:
    """A convolution over pixels: the kernel [rows, columns, in, out] and the bias."""

    kernel: Weight
    bias: Weight


@pytree_dataclass
class Norm:
    """The gain and bias of a group norm."""

    scale: Weight
    bias: Weight


def conv(side: int, inputs: int, outputs: int) -> Conv:
    """The specs of a convolution of `side` x `side` pixels."""
    shape = (side, side, inputs, outputs)
    kernel = dense(shape, (None,) * 4, fan_in=side * side * inputs)
    return Conv(kernel, constant((outputs,), (None,), 0.0))


def norm(channels: int) -> Norm:
    """The specs of a group norm."""
    return Norm(constant((channels,), (None,), 1.0), constant((channels,), (None,), 0.0))


def convolve(
    x: Float[Array, "Z Y X C"],
    w: Conv,
    stride: int = 1,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
) -> Float[Array, "Z y x D"]:
    """The convolution at every `stride`-th pixel, and its bias added."""
    kernel = w.kernel
    y = jax.lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + w.bias


def normalise(x: Float[Array, "Z Y X C"], w: Norm, groups: int) -> Float[Array, "Z Y X C"]:
    """Group norm in float32: mean 0 and variance 1 over the pixels and channels of each group.

    The variance is the mean of squares less the square of the mean, so one pass over the picture
    measures and one applies; a CPU spends a fifth of the time that centring first would take.
    """
    y = x.astype(jnp.float32)
    mean = _group_mean(y, groups)
    variance = jnp.maximum(_group_mean(jnp.square(y), groups) - jnp.square(mean), 0.0)
    gain = jax.lax.rsqrt(variance + EPS) * w.scale.astype(jnp.float32)
    return (y * gain + (w.bias.astype(jnp.float32) - mean * gain)).astype(x.dtype)


def _group_mean(x: Float[Array, "Z Y X C"], groups: int) -> Float[Array, "Z 1 1 C"]:
    """Each channel's mean over all pixels and over the channels of its group."""
    channels = jnp.mean(x, axis=(1, 2))
    frames, width = channels.shape
    means = jnp.mean(channels.reshape(frames, groups, width // groups), axis=-1)
    return jnp.repeat(means, width // groups, axis=-1)[:, None, None]
