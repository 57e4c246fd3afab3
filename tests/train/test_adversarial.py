"""The losses beside that of the pixels: perceptual, by a VGG, and adversarial."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ringworld.errors import InputError
from ringworld.fetch import ASSETS
from ringworld.models import patchgan, vgg
from ringworld.models.patchgan import PatchGAN, discriminate
from ringworld.models.vgg import MEANS, TINY, VGG, VGG16, features, perceptual_distance
from ringworld.models.vqgan import VQGAN
from ringworld.params import count, init, paths
from ringworld.train.adversarial import (
    MOST_WEIGHT,
    VQGANLosses,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    start_discriminator,
    update_discriminator,
)
from ringworld.train.codec import (
    CodecTraining,
    codec_loss,
    make_codec_step,
    reconstruct,
    start_codec,
)
from ringworld.weights.folder import save_folder
from ringworld.weights.vgg import ARRAY_PLACES, load_features

EYE = VGG(widths=(4, 6), depths=(1, 2))
PATCH = PatchGAN(channels=4, halvings=1, groups=2)
LOSSES = VQGANLosses(perceptual=0.5, adversarial=0.8, learning_rate=1e-2, discriminator=PATCH)
TINY_CODEC = VQGAN(size=8, channels=4, multipliers=(1, 2), blocks=1, groups=2, codebook=8, width=4)
TRAINING = CodecTraining(steps=60, warmup=5, learning_rate=3e-3, soften=10)
FIRST = jnp.asarray(0, jnp.int32)


def pictures(seed: int, count: int = 2, size: int = 8) -> jax.Array:
    """Noise in [-1, 1]."""
    return jax.random.uniform(jax.random.key(seed), (count, size, size, 3), minval=-1.0)


def slow_features(weights: vgg.VGGWeights, picture: np.ndarray) -> list[np.ndarray]:
    """The features of one picture, pixel by pixel in float64."""
    x = (picture[..., ::-1].astype(np.float64) + 1) * 127.5 - np.asarray(MEANS)
    found = []
    for level in weights.levels:
        if found:
            y, x_, c = (x.shape[0] // 2, x.shape[1] // 2, x.shape[2])
            x = x[: 2 * y, : 2 * x_].reshape(y, 2, x_, 2, c).max(axis=(1, 3))
        for w in level:
            kernel, bias = np.asarray(w.kernel, np.float64), np.asarray(w.bias, np.float64)
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            x = np.stack(
                [
                    np.stack(
                        [
                            np.einsum("yxc,yxcd->d", padded[i : i + 3, j : j + 3], kernel) + bias
                            for j in range(x.shape[1])
                        ]
                    )
                    for i in range(x.shape[0])
                ]
            )
            x = np.maximum(x, 0)
        found.append(x)
    return found


def test_features_and_the_perceptual_distance_are_those_of_their_slow_definition():
    weights = init(vgg.vgg_specs(EYE), 0)
    one, other = np.asarray(pictures(1)), np.asarray(pictures(2))
    slow = [[slow_features(weights, picture) for picture in some] for some in (one, other)]
    for level, found in enumerate(features(weights, jnp.asarray(one))):
        wanted = np.stack([picture[level] for picture in slow[0]])
        # Numbers of some hundreds out of sums of at most 54 float32 products.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)

    apart = []
    for level in range(2):
        ways = []
        for some in slow:
            x = np.stack([picture[level] for picture in some])
            ways.append(x / np.sqrt((x**2).sum(-1, keepdims=True) + TINY))
        apart.append(((ways[0] - ways[1]) ** 2).sum(-1).mean())
    found = perceptual_distance(weights, jnp.asarray(one), jnp.asarray(other))
    assert found == pytest.approx(np.mean(apart), rel=1e-5)  # float32 against float64
    assert perceptual_distance(weights, jnp.asarray(one), jnp.asarray(one)) == 0


def test_vgg16_has_thirteen_convolutions_and_its_known_number_of_weights():
    table = paths(vgg.vgg_specs(VGG16))
    assert len(table) == 2 * 13 and count(vgg.vgg_specs(VGG16)) == 14_714_688
    assert [table[f"levels.{i}.0.kernel"].shape[3] for i in range(5)] == list(VGG16.widths)


def test_places_of_the_pinned_file_hold_all_weights_and_do_not_overlap():
    sizes = [4 * count(param) for param in paths(vgg.vgg_specs(VGG16)).values()]
    spans = sorted((place, place + size) for place, size in zip(ARRAY_PLACES, sizes, strict=True))
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] <= ASSETS["vgg16"].size


def test_features_of_a_folder_come_back_and_other_files_are_refused(tmp_path: Path):
    weights = init(vgg.vgg_specs(EYE), 3)
    save_folder(tmp_path / "eye", "vgg", EYE, weights, jnp.float32)
    config, found = load_features(tmp_path / "eye")
    assert config == EYE
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(one, other)

    (tmp_path / "vgg16.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(InputError, match="fetch vgg16"):
        load_features(tmp_path / "vgg16.h5")
    values = json.loads((tmp_path / "eye" / "config.json").read_text())
    (tmp_path / "eye" / "config.json").write_text(json.dumps(values | {"kind": "vqgan"}))
    with pytest.raises(InputError, match="holds a vqgan"):
        load_features(tmp_path / "eye")
    with pytest.raises(InputError, match="no "):
        load_features(tmp_path / "nowhere")


def test_patches_are_scored_one_by_one_and_pictures_alone():
    config = PatchGAN(channels=4, halvings=2, groups=2)
    weights = init(patchgan.patchgan_specs(config), 0)
    some = pictures(0, count=3, size=16)
    found = discriminate(weights, some, config)
    assert found.shape == (3, config.side(16), config.side(16)) == (3, 2, 2)
    # Of numbers near 1, by programs that may sum in another order.
    np.testing.assert_allclose(discriminate(weights, some[:1], config)[0], found[0], atol=1e-5)
    # That of pix2pix for pictures of three colours, and biases before the three norms.
    assert count(patchgan.patchgan_specs(PatchGAN())) == 2_765_633 + 128 + 256 + 512


def test_the_hinge_loss_is_that_of_its_definition():
    weights = init(patchgan.patchgan_specs(PATCH), 1)
    real, generated = pictures(1), pictures(2)
    loss, metrics = discriminator_loss(weights, real, generated, PATCH)
    said = [
        np.asarray(discriminate(weights, some, PATCH), np.float64) for some in (real, generated)
    ]
    wanted = (np.maximum(0, 1 - said[0]).mean() + np.maximum(0, 1 + said[1]).mean()) / 2
    assert loss == pytest.approx(wanted, rel=1e-5)  # means of float32 numbers near 1
    assert metrics["discriminator_accuracy"] == pytest.approx(
        ((said[0] > 0).mean() + (said[1] < 0).mean()) / 2
    )


def test_a_discriminator_learns_to_tell_real_from_generated():
    discriminator = start_discriminator(LOSSES, 0)
    assert discriminator is not None
    update = jax.jit(
        lambda discriminator, real, generated: update_discriminator(
            discriminator, real, generated, FIRST, LOSSES
        )
    )
    for n in range(40):
        discriminator, metrics = update(discriminator, pictures(n, 8), 0.5 * pictures(1000 + n, 8))
        if n == 0:
            first = float(metrics["discriminator_loss"])
    assert metrics["discriminator_accuracy"] > 0.9 and metrics["discriminator_loss"] < 0.5 * first


def test_before_the_start_the_discriminator_is_not_trained_and_has_no_weight():
    losses = replace(LOSSES, adversarial_start=1)
    discriminator = start_discriminator(losses, 0)
    assert discriminator is not None
    kept, metrics = update_discriminator(discriminator, pictures(0), pictures(1), FIRST, losses)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(discriminator), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(metrics["discriminator_loss"])
    assert np.isnan(metrics["discriminator_accuracy"])
    fooling = generator_loss(discriminator, pictures(1), FIRST, losses)
    assert fooling.loss == 0 and not fooling.gradient.any()
    assert adaptive_weight(jnp.ones(3), jnp.ones(3), FIRST, losses) == 0

    updated, _ = update_discriminator(discriminator, pictures(0), pictures(1), FIRST + 1, losses)
    assert (updated.weights.convs[0].kernel != discriminator.weights.convs[0].kernel).any()
    assert generator_loss(discriminator, pictures(1), FIRST + 1, losses).gradient.any()


def test_with_an_adaptive_weight_the_adversarial_gradient_is_as_long_as_its_weight_says():
    ours, its = jnp.full(4, 3.0), jnp.full(4, -0.5)
    weight = adaptive_weight(ours, its, FIRST, LOSSES)
    # A hundredth off: EPSILON is added to a length of 1.
    assert optax.tree.norm(weight * its) == pytest.approx(0.8 * 6, rel=1e-2)
    assert adaptive_weight(ours, 0 * its, FIRST, LOSSES) == pytest.approx(0.8 * MOST_WEIGHT)
    assert adaptive_weight(ours, its, FIRST, replace(LOSSES, adaptive=False)) == pytest.approx(0.8)


def test_the_step_follows_the_gradient_of_the_whole_loss():
    losses, eye = replace(LOSSES, adaptive=False), init(vgg.vgg_specs(EYE), 3)
    state, pixels = start_codec(TINY_CODEC, TRAINING, losses), pictures(4)
    discriminator = state.optimizer.discriminator.weights

    def whole(weights):
        made, _ = reconstruct(weights, pixels, state.step, TINY_CODEC, TRAINING)
        loss, _ = codec_loss(made, pixels, TINY_CODEC, TRAINING, losses, eye)
        return loss - 0.8 * jnp.mean(discriminate(discriminator, made.pixels, PATCH))

    loss, gradient = jax.value_and_grad(whole)(state.weights)
    _, metrics = make_codec_step(TINY_CODEC, TRAINING, losses, eye)(state, pixels)
    # Two programs in float32: the parts are added up in another order.
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    assert metrics["perceptual"] > 0 and metrics["adversarial_weight"] == pytest.approx(0.8)


def test_a_codec_with_all_losses_learns_with_finite_numbers_and_each_loss_counts():
    losses, eye = replace(LOSSES, adversarial_start=10), init(vgg.vgg_specs(EYE), 3)
    step = make_codec_step(TINY_CODEC, TRAINING, losses, eye)
    state, record = start_codec(TINY_CODEC, TRAINING, losses), []
    for n in range(25):
        state, metrics = step(state, 0.3 * pictures(n % 3, 4) + 0.2)
        record.append({name: float(value) for name, value in metrics.items()})
    told = {"discriminator_loss", "discriminator_accuracy"}
    for n, row in enumerate(record):
        assert {name for name, value in row.items() if not np.isfinite(value)} == (
            told if n < 10 else set()
        )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert record[9]["square"] < record[0]["square"]
    assert all(row["adversarial_weight"] == 0 for row in record[:10])
    assert all(row["adversarial_weight"] > 0 for row in record[10:])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VGG(widths=(4,), depths=(1, 1)), "as many depths"),
        (lambda: VGG(widths=(4,), depths=(0,)), "at least 1"),
        (lambda: VGG16.check(8), "16 pixels or more"),
        (lambda: PatchGAN(channels=0), "at least 1"),
        (lambda: PatchGAN(channels=6, groups=4), "do not divide"),
        (lambda: PatchGAN(halvings=3).side(16), "no patch"),
        (lambda: VQGANLosses(perceptual=-1.0), "below 0"),
        (lambda: VQGANLosses(learning_rate=0.0), "larger than 0"),
    ],
)
def test_impossible_losses_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
