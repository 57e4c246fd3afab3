"""Losses of a VQGAN beside its pixels: a perceptual loss, and a discriminator's.

A codec that is trained on the errors of its pixels alone gives back what is right on average,
which is blurred. The perceptual loss compares the features of a network that was trained on
pictures (`ringworld.models.vgg`). The discriminator (`ringworld.models.patchgan`) learns to tell
real patches from generated ones, and the codec, as its generator, learns to fool it. Source: Esser
et al., "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ringworld.errors import InputError
from ringworld.models import patchgan, vgg
from ringworld.models.patchgan import PatchGAN, discriminate
from ringworld.params import Leaf, init, pytree_dataclass
from ringworld.train.build import Metrics

Scalar = Float[Array, ""]
Pixels = Float[Array, "Z Y X C"]

# Of Adam for the discriminator, as in the paper's code: with more momentum the two circle round
# each other.
DECAYS = (0.5, 0.9)
MOST_WEIGHT = 1e4  # the bound of the ratio in `adaptive_weight`, however flat the discriminator is
EPSILON = 1e-4  # added to the norm of the adversarial gradient before dividing by it


@dataclass(frozen=True, kw_only=True)
class VQGANLosses:
    """The weights of the perceptual and the adversarial loss; 0 leaves one out.

    Before `adversarial_start` the discriminator is not trained either, because the pictures are not
    good enough yet. The adaptive weight is multiplied by the ratio of the two gradients' norms at
    the decoder's last kernel (equation 7 of the paper), so that 1 counts as much as all other
    losses together.
    """

    perceptual: float = 0.0
    """the weight of the perceptual loss; it needs features"""
    adversarial: float = 0.0
    """the weight of the adversarial loss"""
    adversarial_start: int = 0
    """the step from which the discriminator is trained and counts"""
    adaptive: bool = True
    """scale the adversarial weight by the norms of the two gradients"""
    learning_rate: float = 2e-4
    """of the discriminator"""
    discriminator: PatchGAN = field(default_factory=PatchGAN)
    """the sizes of the discriminator"""

    def __post_init__(self) -> None:
        if min(self.perceptual, self.adversarial, self.adversarial_start) < 0:
            raise InputError(
                "perceptual, adversarial and adversarial_start must not be below 0: set 0 to leave "
                "a loss out"
            )
        if self.learning_rate <= 0:
            raise InputError("the discriminator's learning_rate must be larger than 0: raise it")


PIXELS_ALONE = VQGANLosses()


@pytree_dataclass
class Discriminator:
    """The weights of a discriminator, and the moments of its optimizer."""

    weights: Leaf
    moments: Leaf


class GeneratorLoss(NamedTuple):
    """The adversarial loss of generated pictures, and its gradient by their pixels."""

    loss: Scalar
    gradient: Pixels


def make_discriminator_optimizer(losses: VQGANLosses) -> optax.GradientTransformation:
    """Adam at a constant rate."""
    return optax.adam(losses.learning_rate, b1=DECAYS[0], b2=DECAYS[1])


def start_discriminator(losses: VQGANLosses, seed: int) -> Discriminator | None:
    """The discriminator before its first step, the same for a seed; None where it has no weight."""
    if losses.adversarial == 0:
        return None
    weights: Any = init(patchgan.patchgan_specs(losses.discriminator), seed)
    return Discriminator(weights, make_discriminator_optimizer(losses).init(weights))


def perceptual_loss(
    features: vgg.VGGWeights | None, generated: Pixels, real: Pixels, losses: VQGANLosses
) -> tuple[Scalar, Metrics]:
    """The weighted distance of the features, and the distance as the metric `perceptual`.

    0 and no metric without features, or where the loss has no weight.
    """
    if features is None or losses.perceptual == 0:
        return jnp.zeros((), jnp.float32), {}
    distance = vgg.perceptual_distance(features, generated, real)
    return losses.perceptual * distance, {"perceptual": distance}


def generator_loss(
    discriminator: Discriminator, generated: Pixels, step: Int[Array, ""], losses: VQGANLosses
) -> GeneratorLoss:
    """- the mean logit of the generated pictures, and its gradient; 0 before the start."""

    def loss(generated: Pixels) -> Scalar:
        return -jnp.mean(discriminate(discriminator.weights, generated, losses.discriminator))

    def nothing(generated: Pixels) -> tuple[Scalar, Pixels]:
        return jnp.zeros((), jnp.float32), jnp.zeros_like(generated)

    started = step >= losses.adversarial_start
    return GeneratorLoss(*jax.lax.cond(started, jax.value_and_grad(loss), nothing, generated))


def adaptive_weight(
    others: Float[Array, "*n"],
    adversarial: Float[Array, "*n"],
    step: Int[Array, ""],
    losses: VQGANLosses,
) -> Scalar:
    """The weight of the adversarial loss, from two gradients of the decoder's last kernel.

    losses.adversarial * |others| / (|adversarial| + EPSILON), the ratio at most MOST_WEIGHT
    (equation 7); without `adaptive` the ratio is 1. 0 before the start.
    """
    ratio = jnp.ones((), jnp.float32)
    if losses.adaptive:
        ratio = optax.tree.norm(others) / (optax.tree.norm(adversarial) + EPSILON)
        ratio = jax.lax.stop_gradient(jnp.minimum(ratio, MOST_WEIGHT))
    return jnp.where(step >= losses.adversarial_start, losses.adversarial * ratio, 0.0)


def discriminator_loss(
    weights: patchgan.PatchGANWeights, real: Pixels, generated: Pixels, config: PatchGAN
) -> tuple[Scalar, Metrics]:
    """The hinge loss: (mean max(0, 1 - logit of real) + mean max(0, 1 + logit of generated)) / 2.

    1 where all logits are 0, 0 where all have the right sign and are beyond 1. Metrics: the loss,
    and the share of patches whose logit has the right sign, `discriminator_accuracy`. Source: Lim
    and Ye (arXiv 1705.02894).
    """
    of_real, of_generated = (discriminate(weights, some, config) for some in (real, generated))
    loss = (jnp.mean(jax.nn.relu(1 - of_real)) + jnp.mean(jax.nn.relu(1 + of_generated))) / 2
    right = [jnp.mean((side > 0).astype(jnp.float32)) for side in (of_real, -of_generated)]
    return loss, {"discriminator_loss": loss, "discriminator_accuracy": (right[0] + right[1]) / 2}


def update_discriminator(
    discriminator: Discriminator,
    real: Pixels,
    generated: Pixels,
    step: Int[Array, ""],
    losses: VQGANLosses,
) -> tuple[Discriminator, Metrics]:
    """One step of the discriminator on real and generated pictures.

    Before the start it does not change, and its metrics are NaN.
    """

    def update(discriminator: Discriminator) -> tuple[Discriminator, Metrics]:
        gradient_of = jax.grad(discriminator_loss, has_aux=True)
        gradient, metrics = gradient_of(
            discriminator.weights, real, generated, losses.discriminator
        )
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
            updates, moments = make_discriminator_optimizer(losses).update(
                gradient, discriminator.moments
            )
        moved: Any = optax.apply_updates(discriminator.weights, updates)
        return Discriminator(moved, moments), metrics

    def keep(discriminator: Discriminator) -> tuple[Discriminator, Metrics]:
        names = ("discriminator_loss", "discriminator_accuracy")
        return discriminator, {name: jnp.full((), jnp.nan, jnp.float32) for name in names}

    return jax.lax.cond(step >= losses.adversarial_start, update, keep, discriminator)
