"""How a codec learns, and the pictures that it learns from."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.models.vqgan import VQGAN
from ringworld.recipes.pixels import PixelMix, held_out, pixel_batches, to_bytes, to_unit
from ringworld.train.adversarial import PIXELS_ALONE
from ringworld.train.codec import (
    CodebookAverages,
    CodecTraining,
    Reconstruction,
    codec_loss,
    continue_codec,
    count_codes,
    make_codec_step,
    perplexity,
    psnr,
    restart_dead_codes,
    start_codec,
    update_averages,
)

TINY = VQGAN(size=16, channels=8, multipliers=(1, 2), blocks=1, groups=4, codebook=16, width=8)
TRAINING = CodecTraining(steps=60, warmup=5, learning_rate=3e-3, soften=10)
FILM = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), np.uint8)
MIX = PixelMix(size=16, batch=8)


@pytest.fixture(scope="module")
def step():
    return make_codec_step(TINY, TRAINING)


def run(step, state, steps):
    batches = pixel_batches(FILM[:, :, :, :1].repeat(3, -1) // 8 + 64, MIX)
    metrics = []
    for _ in range(steps):
        state, found = step(state, jnp.asarray(batches(int(state.step))))
        metrics.append({name: float(value) for name, value in found.items()})
    return state, metrics


def test_a_tiny_codec_learns(step):
    state, metrics = run(step, start_codec(TINY, TRAINING), 30)
    assert int(state.step) == 30
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[-1]["perplexity"] > 2
    assert all(np.isfinite(list(found.values())).all() for found in metrics)


def test_training_repeats_and_resumes_bitwise(step):
    whole, _ = run(step, start_codec(TINY, TRAINING), 6)
    half, _ = run(step, start_codec(TINY, TRAINING), 3)
    resumed, _ = run(step, jax.tree.map(jnp.array, half), 3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_first_step_fills_the_codebook_from_the_data(step):
    state, metrics = run(step, start_codec(TINY, TRAINING), 1)
    assert metrics[0]["restarted"] > TINY.codebook / 2
    assert len(np.unique(np.asarray(state.weights.codebook), axis=0)) > TINY.codebook / 2


def test_a_codec_goes_on_from_the_weights_of_another():
    trained, metrics = run(make_codec_step(TINY, TRAINING), start_codec(TINY, TRAINING), 30)
    gentle = CodecTraining(steps=60, warmup=1, learning_rate=1e-6, soften=1)
    begun = continue_codec(start_codec(TINY, gentle), trained.weights, MIX.batch * TINY.side**2)
    _, after = run(make_codec_step(TINY, gentle), jax.tree.map(jnp.array, begun), 1)
    assert after[0]["restarted"] == 0
    assert after[0]["loss"] < 1.5 * metrics[-1]["loss"] < metrics[0]["loss"]


def test_the_worst_error_of_each_picture_has_its_weight():
    plain, worst = (replace(TRAINING, worst=weight) for weight in (0.0, 0.25))
    rng = np.random.default_rng(3)
    pixels = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    error = np.zeros((2, 16, 16, 3), np.float32)
    error[0, 3, 4], error[1, 5, 6] = 0.5, -0.25  # grey errors, which the weight of colour leaves
    made = Reconstruction(pixels + error, jnp.zeros(()))
    one, other = (
        float(codec_loss(made, pixels, TINY, training, PIXELS_ALONE, None)[0])
        for training in (plain, worst)
    )
    assert other - one == pytest.approx(0.25 * (0.5 + 0.25) / 2, rel=1e-5)
    with pytest.raises(InputError, match="worst"):
        replace(TRAINING, worst=-1.0)


def test_codes_move_to_the_mean_of_their_latents():
    averages = CodebookAverages(jnp.zeros(TINY.codebook), jnp.zeros((TINY.codebook, TINY.width)))
    vectors = jax.random.normal(jax.random.key(0), (2, 4, 4, TINY.width))
    codes = jax.random.randint(jax.random.key(1), (2, 4, 4), 0, 3)
    step = jax.jit(lambda averages: update_averages(averages, vectors, codes, TRAINING))
    for _ in range(100):
        averages = step(averages)
    means = averages.sums[:3] / averages.counts[:3, None]
    wanted = np.stack([np.asarray(vectors)[np.asarray(codes) == code].mean(0) for code in range(3)])
    np.testing.assert_allclose(means, wanted, rtol=1e-4, atol=1e-5)
    assert not averages.counts[3:].any()


def test_only_dead_codes_are_revived_and_onto_latents_of_the_batch():
    vectors = jax.random.normal(jax.random.key(0), (2, 4, 4, TINY.width))
    counts = jnp.full((TINY.codebook,), 2.0).at[5].set(0.0)
    averages = CodebookAverages(counts, jnp.ones((TINY.codebook, TINY.width)))
    again = jax.jit(lambda step: restart_dead_codes(averages, vectors, step, TRAINING))
    found, dead = again(jnp.asarray(0, jnp.int32))
    assert np.flatnonzero(dead).tolist() == [5]
    np.testing.assert_array_equal(np.delete(np.asarray(found.sums), 5, 0), 1)
    revived = np.asarray(found.sums[5] / found.counts[5])
    assert np.abs(np.asarray(vectors).reshape(-1, TINY.width) - revived).max(-1).min() < 1e-6
    np.testing.assert_array_equal(again(jnp.asarray(0, jnp.int32))[0].sums, found.sums)
    later = [again(jnp.asarray(step, jnp.int32))[0].sums[5] for step in range(1, 6)]
    assert any((one != found.sums[5]).any() for one in later)


def test_perplexity_counts_equally_used_codes():
    assert perplexity(count_codes(jnp.zeros((1, 4, 4), jnp.int32), 16)) == pytest.approx(1)
    codes = jnp.arange(16).reshape(1, 4, 4) % 8
    assert perplexity(count_codes(codes, 16)) == pytest.approx(8, rel=1e-5)


def test_psnr_is_in_decibels():
    assert psnr(jnp.asarray(0.01)) == pytest.approx(20, rel=1e-5)


def test_batches_depend_on_seed_and_step_only():
    batches = pixel_batches(FILM, MIX)
    first = batches(3)
    batches(4)
    np.testing.assert_array_equal(batches(3), first)
    assert (batches(4) != first).any()
    assert (pixel_batches(FILM, replace(MIX, seed=1))(3) != first).any()
    assert first.shape == (8, 16, 16, 3) and first.dtype == np.float32
    assert first.min() >= -1 and first.max() <= 1


def test_windows_are_of_the_film():
    plain = to_bytes(pixel_batches(FILM, replace(MIX, shapes=0.0, batch=4))(0))
    windows = [
        FILM[z, y : y + 16, x : x + 16] for z in range(5) for y in range(5) for x in range(9)
    ]
    found = {window.tobytes() for window in windows}
    found |= {window[:, ::-1].tobytes() for window in windows}
    assert all(picture.tobytes() in found for picture in plain)


def test_bytes_survive_the_range_of_a_codec():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(to_bytes(to_unit(every)), every)


def test_minutes_are_held_out_by_the_clock():
    seconds = np.asarray([0.0, 119.9, 120.0, 179.9, 180.0, 300.0])
    assert held_out(seconds, (2, 5)).tolist() == [False, False, True, True, False, True]


@pytest.mark.parametrize("frames", [FILM[:0], FILM[:, :8]], ids=["none", "too small"])
def test_films_without_windows_are_refused(frames):
    with pytest.raises(InputError, match="has no windows"):
        pixel_batches(frames, MIX)


def test_impossible_runs_are_refused():
    with pytest.raises(InputError, match="warm-up"):
        CodecTraining(steps=5, warmup=5, learning_rate=1e-3)
    with pytest.raises(InputError, match="shares"):
        replace(TRAINING, decay=1.0)
    with pytest.raises(InputError, match="larger than 0"):
        replace(TRAINING, learning_rate=0.0)
    with pytest.raises(InputError, match="at least one"):
        replace(MIX, batch=0)
    with pytest.raises(InputError, match="between 0 and 1"):
        replace(MIX, shapes=1.5)
