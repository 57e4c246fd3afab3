"""What a drawn picture is judged by beside its pixels: features, and a discriminator.

A codec that is judged by its pixels alone draws what is right on average, which is blurred. Two
judges ask for more. *Features*: the picture must look alike to a network that was trained to see
(`ringworld.models.vgg`). The *critic*: a discriminator learns to tell drawn patches from real ones
(`ringworld.models.patchgan`), and the codec learns to fool it. Source: Esser et al., "Taming
Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ringworld.errors import InputError
from ringworld.models import patchgan, vgg
from ringworld.models.patchgan import PatchGAN, opinion
from ringworld.params import Leaf, init, pytree_dataclass

Metrics = dict[str, Float[Array, ""]]
Scalar = Float[Array, ""]
Pixels = Float[Array, "Z Y X C"]

# Of Adam for the critic, as the paper's code: a critic with momentum circles round the codec.
DECAYS = (0.5, 0.9)
# Of the share that evens the gradients out: no critic is heard louder than so, however flat it is.
LOUDEST = 1e4
FLAT = 1e-4  # added to the length of the critic's gradient before dividing by it


@dataclass(frozen=True, kw_only=True)
class Judges:
    """How much each judge counts; with both at 0, a codec is judged by its pixels alone.

    `perceptual` weighs the unlikeness of features, where there are any. `adversarial` weighs the
    critic, from the step `starts` on: before, there is nothing to draw well yet, and the critic
    rests. With `even` its weight is also multiplied by the ratio of the two gradients' lengths at
    the decoder's last kernel (equation 7 of the paper), so that 1 counts as much as all other
    losses together; without, the weight is as it stands. The critic learns at `learning_rate`.
    """

    perceptual: float = 0.0
    adversarial: float = 0.0
    starts: int = 0
    even: bool = True
    learning_rate: float = 2e-4
    critic: PatchGAN = field(default_factory=PatchGAN)

    def __post_init__(self) -> None:
        if min(self.perceptual, self.adversarial, self.starts) < 0:
            raise InputError(
                "perceptual, adversarial and starts must not be below 0: set 0 to leave a judge out"
            )
        if self.learning_rate <= 0:
            raise InputError("the critic's learning_rate must be larger than 0: raise it")


PIXELS_ALONE = Judges()


@pytree_dataclass
class Critic:
    """A discriminator, and the moments of its optimizer."""

    weights: Leaf
    moments: Leaf


class Hearing(NamedTuple):
    """What the critic says of a drawn batch.

    `wish` is how the pixels should change to please it less, the gradient of `loss`.
    """

    loss: Scalar
    wish: Pixels


def make_optimizer(judges: Judges) -> optax.GradientTransformation:
    """Adam at one rate."""
    return optax.adam(judges.learning_rate, b1=DECAYS[0], b2=DECAYS[1])


def start_critic(judges: Judges, seed: int) -> Critic | None:
    """The critic before its first step, the same for a seed; None where it has no weight."""
    if judges.adversarial == 0:
        return None
    weights: Any = init(patchgan.specs(judges.critic), seed)
    return Critic(weights, make_optimizer(judges).init(weights))


def perceive(
    features: vgg.Weights | None, drawn: Pixels, pixels: Pixels, judges: Judges
) -> tuple[Scalar, Metrics]:
    """The weighted unlikeness of the drawn pictures, and the metric `perceptual`."""
    if features is None or judges.perceptual == 0:
        return jnp.zeros((), jnp.float32), {}
    unlike = vgg.unlikeness(features, drawn, pixels)
    return judges.perceptual * unlike, {"perceptual": unlike}


def listen(critic: Critic, drawn: Pixels, step: Int[Array, ""], judges: Judges) -> Hearing:
    """What the codec hears of the critic: - mean opinion of what it drew; 0 before `starts`."""

    def fooled(drawn: Pixels) -> Scalar:
        return -jnp.mean(opinion(critic.weights, drawn, judges.critic))

    def silent(drawn: Pixels) -> tuple[Scalar, Pixels]:
        return jnp.zeros((), jnp.float32), jnp.zeros_like(drawn)

    return Hearing(*jax.lax.cond(step >= judges.starts, jax.value_and_grad(fooled), silent, drawn))


def evenness(
    ours: Float[Array, "*n"], critics: Float[Array, "*n"], step: Int[Array, ""], judges: Judges
) -> Scalar:
    """The weight of the critic at this step, from the two gradients of the decoder's last kernel.

    adversarial * |ours| / (|critics| + FLAT), the ratio at most LOUDEST (equation 7).
    """
    ratio = jnp.ones((), jnp.float32)
    if judges.even:
        ratio = optax.tree.norm(ours) / (optax.tree.norm(critics) + FLAT)
        ratio = jax.lax.stop_gradient(jnp.minimum(ratio, LOUDEST))
    return jnp.where(step >= judges.starts, judges.adversarial * ratio, 0.0)


def critic_loss(
    weights: patchgan.Weights, real: Pixels, drawn: Pixels, config: PatchGAN
) -> tuple[Scalar, Metrics]:
    """The hinge loss: (mean max(0, 1 - opinion of real) + mean max(0, 1 + opinion of drawn)) / 2.

    1 for a critic that has no opinion, 0 for one that is sure and right. Metrics: the loss and the
    share of patches that it tells rightly, `told`. Source: Lim and Ye (arXiv 1705.02894).
    """
    to_real, to_drawn = (opinion(weights, some, config) for some in (real, drawn))
    loss = (jnp.mean(jax.nn.relu(1 - to_real)) + jnp.mean(jax.nn.relu(1 + to_drawn))) / 2
    right = [jnp.mean((side > 0).astype(jnp.float32)) for side in (to_real, -to_drawn)]
    return loss, {"critic_loss": loss, "told": (right[0] + right[1]) / 2}


def teach(
    critic: Critic, real: Pixels, drawn: Pixels, step: Int[Array, ""], judges: Judges
) -> tuple[Critic, Metrics]:
    """One step of the critic on real and drawn pictures; none, and zeros, before `starts`."""

    def learn(critic: Critic) -> tuple[Critic, Metrics]:
        gradient_of = jax.grad(critic_loss, has_aux=True)
        gradient, metrics = gradient_of(critic.weights, real, drawn, judges.critic)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
            updates, moments = make_optimizer(judges).update(gradient, critic.moments)
        moved: Any = optax.apply_updates(critic.weights, updates)
        return Critic(moved, moments), metrics

    def rest(critic: Critic) -> tuple[Critic, Metrics]:
        return critic, {name: jnp.zeros((), jnp.float32) for name in ("critic_loss", "told")}

    return jax.lax.cond(step >= judges.starts, learn, rest, critic)
