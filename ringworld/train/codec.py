"""The training of a VQGAN codec: reconstruction, commitment, and a codebook of running means.

The decoder's error reaches the encoder straight through the codes. The codebook takes no gradient:
each code moves to the running mean of the latents put to it (van den Oord et al., arXiv 1711.00937,
appendix A.1). A code that nearly no latent chooses is *dead* and starts again at a latent of the
batch; since a fresh codebook is dead nearly everywhere, the first step fills it from the data.
Latents are rounded to codes gradually, so that the networks learn something first. The losses
beside that of the pixels are in `ringworld.train.adversarial`.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ringworld.errors import InputError
from ringworld.models import vgg
from ringworld.models.vqgan import VQGAN, VQGANWeights, latents, paint, quantise, vqgan_specs
from ringworld.params import Leaf, init, pytree_dataclass
from ringworld.train.adversarial import (
    PIXELS_ALONE,
    Discriminator,
    VQGANLosses,
    adaptive_weight,
    generator_loss,
    perceptual_loss,
    start_discriminator,
    update_discriminator,
)
from ringworld.train.build import Metrics, Step, TrainState


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """How long and how fast a codec learns, and how its losses and its codebook are set."""

    steps: int
    """updates in all"""
    warmup: int
    """steps over which the learning rate rises from 0"""
    learning_rate: float
    """the learning rate after the warm-up; it falls along a cosine to a hundredth"""
    seed: int = 0
    """draws the initial weights and the restarts of dead codes"""
    squared: float = 0.5
    """the share of the squared error in the reconstruction loss; the rest is the absolute error"""
    colour: float = 2.0
    """how much more an error of colour counts than one of brightness"""
    worst: float = 0.0
    """the weight of the largest error of each picture, as in Delta-IRIS"""
    decay: float = 0.98
    """what a code keeps of its running mean at each step"""
    dead: float = 0.1
    """a code is dead when its count falls below this share of an even one"""
    soften: int = 300
    """steps over which latents are rounded to their codes more and more"""
    clip: float = 1.0
    """the largest norm of all gradients together"""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.steps:
            raise InputError(
                "the warm-up must be shorter than the run: lower it or raise the steps"
            )
        if not (0 <= self.squared <= 1 and 0 < self.decay < 1 and 0 <= self.dead < 1):
            raise InputError("squared, decay and dead are shares: set each between 0 and 1")
        if self.worst < 0:
            raise InputError(f"worst is {self.worst}: make it 0 or more")
        if min(self.learning_rate, self.clip, self.soften, self.colour) <= 0:
            raise InputError(
                "learning_rate, clip, soften and colour must be larger than 0: raise them"
            )


@pytree_dataclass
class CodebookAverages:
    """Running means of each code: how many latents chose it [U], and their sum [U, E]."""

    counts: Leaf
    sums: Leaf


@pytree_dataclass
class CodecOptimizer:
    """What a codec's step carries on beside the weights: the optimizer of its `TrainState`."""

    moments: Any
    averages: CodebookAverages
    discriminator: Discriminator | None = None


def make_codec_optimizer(training: CodecTraining) -> optax.GradientTransformation:
    """Adam with clipped gradients; the rate rises in a line and falls along a cosine to a 100th."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=training.learning_rate,
        warmup_steps=training.warmup,
        decay_steps=training.steps,
        end_value=training.learning_rate / 100,
    )
    return optax.chain(optax.clip_by_global_norm(training.clip), optax.adam(rate, b2=0.99))


def start_codec(
    config: VQGAN, training: CodecTraining, losses: VQGANLosses = PIXELS_ALONE
) -> TrainState:
    """The state before the first step, the same for a seed."""
    weights: Any = init(vqgan_specs(config), training.seed)
    moments = make_codec_optimizer(training).init(weights)
    counts = jnp.zeros((config.codebook,), jnp.float32)
    sums = jnp.zeros((config.codebook, config.width), jnp.float32)
    averages = CodebookAverages(counts, sums)
    discriminator = start_discriminator(losses, training.seed)
    carried = CodecOptimizer(moments, averages, discriminator)
    return TrainState(jnp.zeros((), jnp.int32), weights, carried)


def continue_codec(state: TrainState, weights: VQGANWeights, latents: int) -> TrainState:
    """A state before its first step that goes on from the weights of a codec.

    `latents` is how many latents a batch has. Each code begins with an even share of them.
    """
    carried: CodecOptimizer = state.optimizer
    counts = jnp.full_like(carried.averages.counts, latents / weights.codebook.shape[0])
    averages = CodebookAverages(counts, counts[:, None] * weights.codebook)
    return replace(state, weights=weights, optimizer=replace(carried, averages=averages))


class Reconstruction(NamedTuple):
    """What a codec gives back of a batch: the pictures, not clipped, and the commitment loss."""

    pixels: Float[Array, "Z Y X C"]
    commitment: Float[Array, ""]


def reconstruct(
    weights: VQGANWeights,
    pixels: Float[Array, "Z Y X C"],
    step: Int[Array, ""],
    config: VQGAN,
    training: CodecTraining,
) -> tuple[Reconstruction, tuple[Float[Array, "Z y x E"], Int[Array, "Z y x"]]]:
    """The batch encoded and decoded again, with the latents and their codes.

    Over the first `soften` steps latents are rounded to their codes more and more. The commitment
    loss is the mean of |latent - code|^2.
    """
    vectors = latents(weights, pixels, config)
    rounded, codes = quantise(vectors, weights.codebook)
    share = jnp.minimum((step + 1).astype(jnp.float32) / training.soften, 1.0)
    pictures = paint(weights, vectors + share * (rounded - vectors), config)
    commitment = jnp.mean(jnp.square(vectors - jax.lax.stop_gradient(rounded)))
    return Reconstruction(pictures, commitment), (vectors, codes)


def codec_loss(
    made: Reconstruction,
    pixels: Float[Array, "Z Y X C"],
    config: VQGAN,
    training: CodecTraining,
    losses: VQGANLosses,
    features: vgg.VGGWeights | None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss but for its adversarial part, and the metrics.

    loss = s |error|^2 + (1 - s) |error| + commitment |latent - code|^2, means over all numbers,
    where the part of the error that is no change of brightness is first multiplied by `colour`;
    `worst` times the largest |error| of each picture; and the perceptual loss.
    """
    error = made.pixels - pixels
    grey = jnp.mean(error, axis=-1, keepdims=True)
    weighted = grey + training.colour * (error - grey)
    square, absolute = jnp.mean(jnp.square(weighted)), jnp.mean(jnp.abs(weighted))
    perceptual, metrics = perceptual_loss(features, made.pixels, pixels, losses)
    share = training.squared
    loss = share * square + (1 - share) * absolute + config.commitment * made.commitment
    if training.worst:
        loss += training.worst * jnp.mean(jnp.max(jnp.abs(weighted), axis=(1, 2, 3)))
    return loss + perceptual, metrics | {
        "loss": loss + perceptual,
        "square": square,
        "absolute": absolute,
        "commitment": made.commitment,
        "psnr": psnr(jnp.mean(jnp.square(error)) / 4),
    }


def codec_step(
    state: TrainState,
    pixels: Float[Array, "Z Y X C"],
    config: VQGAN,
    training: CodecTraining,
    losses: VQGANLosses = PIXELS_ALONE,
    features: vgg.VGGWeights | None = None,
) -> tuple[TrainState, Metrics]:
    """One step: the gradient moves the networks, the latents move the codebook.

    Metrics: the parts of the loss, `psnr` in dB, `grad_norm` before the clip, `perplexity` (how
    many equally used codes would be as varied as this batch's) and `running_perplexity` (as the
    running counts), `used` (the share of codes that are alive) and `restarted` (how many dead ones
    started again). With a discriminator: `generator_loss`, its weight `adversarial_weight`,
    `discriminator_loss` and `discriminator_accuracy`, the last two NaN before it starts.
    """
    carried: CodecOptimizer = state.optimizer
    made, backward, (vectors, codes) = jax.vjp(
        lambda weights: reconstruct(weights, pixels, state.step, config, training),
        state.weights,
        has_aux=True,
    )
    loss_of = jax.value_and_grad(codec_loss, has_aux=True)
    (loss, metrics), cotangent = loss_of(made, pixels, config, training, losses, features)
    discriminator = carried.discriminator
    if discriminator is not None:
        fooling = generator_loss(discriminator, made.pixels, state.step, losses)
        adversarial = Reconstruction(fooling.gradient, jnp.zeros_like(cotangent.commitment))
        ours, its = (_last_kernel(backward(part)) for part in (cotangent, adversarial))
        weight = adaptive_weight(ours, its, state.step, losses)
        cotangent = jax.tree.map(lambda others, its: others + weight * its, cotangent, adversarial)
        discriminator, learned = update_discriminator(
            discriminator, pixels, made.pixels, state.step, losses
        )
        metrics |= learned | {
            "loss": loss + weight * fooling.loss,
            "generator_loss": fooling.loss,
            "adversarial_weight": weight,
        }
    (gradient,) = backward(cotangent)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
        updates, moments = make_codec_optimizer(training).update(
            gradient, carried.moments, state.weights
        )
    moved: Any = optax.apply_updates(state.weights, updates)
    updated = update_averages(carried.averages, vectors, codes, training)
    averages, dead = restart_dead_codes(updated, vectors, state.step, training)
    book = averages.sums / jnp.maximum(averages.counts, jnp.finfo(jnp.float32).tiny)[:, None]
    metrics = metrics | {
        "grad_norm": optax.tree.norm(gradient),
        "perplexity": perplexity(count_codes(codes, config.codebook)),
        "running_perplexity": perplexity(updated.counts),
        "used": 1 - jnp.mean(dead.astype(jnp.float32)),
        "restarted": jnp.sum(dead).astype(jnp.float32),
    }
    weights = replace(moved, codebook=book)
    after = CodecOptimizer(moments, averages, discriminator)
    return TrainState(state.step + 1, weights, after), metrics


def _last_kernel(gradient: tuple[VQGANWeights]) -> Float[Array, "Y X C D"]:
    return gradient[0].decoder.conv_out.kernel


def make_codec_step(
    config: VQGAN,
    training: CodecTraining,
    losses: VQGANLosses = PIXELS_ALONE,
    features: vgg.VGGWeights | None = None,
) -> Step:
    """`codec_step` compiled, as `ringworld.train.loop.fit` takes it; the old state is used up."""
    step = jax.jit(
        lambda state, pixels, features: codec_step(
            state, pixels, config, training, losses, features
        ),
        donate_argnums=0,
    )
    return lambda state, pixels: step(state, pixels, features)


def update_averages(
    averages: CodebookAverages,
    vectors: Float[Array, "Z y x E"],
    codes: Int[Array, "Z y x"],
    training: CodecTraining,
) -> CodebookAverages:
    """The running means of the codes, moved towards those of a batch."""
    flat, chosen, keep = vectors.reshape(-1, vectors.shape[-1]), codes.reshape(-1), training.decay
    hits = count_codes(codes, averages.counts.shape[0])
    sums = jnp.zeros_like(averages.sums).at[chosen].add(flat)
    return CodebookAverages(
        counts=keep * averages.counts + (1 - keep) * hits,
        sums=keep * averages.sums + (1 - keep) * sums,
    )


def restart_dead_codes(
    averages: CodebookAverages,
    vectors: Float[Array, "Z y x E"],
    step: Int[Array, ""],
    training: CodecTraining,
) -> tuple[CodebookAverages, Bool[Array, "U"]]:
    """The running means with dead codes moved to latents of the batch, and which were dead.

    The latents are drawn by the seed and the step. A code starts again with an even count.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    size = averages.counts.shape[0]
    even = flat.shape[0] / size
    key = jax.random.fold_in(jax.random.key(training.seed), step)
    picks = flat[jax.random.choice(key, flat.shape[0], (size,), replace=flat.shape[0] < size)]
    dead = averages.counts < training.dead * even
    counts = jnp.where(dead, even, averages.counts)
    return CodebookAverages(counts, jnp.where(dead[:, None], even * picks, averages.sums)), dead


def count_codes(codes: Int[Array, "Z y x"], size: int) -> Float[Array, "U"]:
    """How often each of `size` codes stands in a batch."""
    return jnp.zeros((size,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def perplexity(counts: Float[Array, "U"]) -> Float[Array, ""]:
    """How many equally used codes are as varied as these: exp of their entropy, from 1 to U."""
    shares = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


def psnr(mean_square: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Peak signal to noise in dB of a mean squared error on the scale where white is 1."""
    return -10 * jnp.log10(jnp.maximum(mean_square, jnp.finfo(jnp.float32).tiny))
