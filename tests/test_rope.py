"""Rotary positions turn as their formula says, and their base obeys its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld import rope as rope_module
from ringworld.errors import InputError
from ringworld.rope import GRID, critical_base, rope, rope_theta, stable_base

LENGTH, H = 6, 16
THETA = 1e4


@jax.jit
def turn(x: jax.Array, positions: jax.Array) -> jax.Array:
    return rope(x, positions, THETA)


def turn_in_float64(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Pair (i, i + H/2) as one complex number, times e^(i position theta^(-2i/H))."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:].astype(np.float64)
    angles = positions[..., None, None] * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


def rounding(position: int) -> float:
    """How far an angle of at most `position` turns is off: frequency and product, each rounded."""
    return 2 * position * 2.0**-23 + 1e-6


@pytest.mark.parametrize("last", [8, 1024, 65536])
def test_halves_turn_as_complex_numbers(last: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, LENGTH, 2, H)).astype(np.float32)
    positions = np.linspace(0, last, LENGTH).astype(np.int32)[None]
    error = np.abs(turn(x, positions) - turn_in_float64(x, positions, THETA)).max()
    assert error <= rounding(last) * np.abs(x).max() * 2**0.5


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 2000), distance=st.integers(0, 2000), shift=st.integers(0, 2000))
def test_a_score_depends_on_the_distance_only(start: int, distance: int, shift: int) -> None:
    q, k = np.random.default_rng(start).standard_normal((2, H)).astype(np.float32)
    x = jnp.asarray(np.stack([q, k, q, k])[None, :, None])
    near = [start + distance, start, start + distance + shift, start + shift]
    q1, k1, q2, k2 = np.asarray(turn(x, jnp.array([near], jnp.int32)), np.float64)[0, :, 0]
    bound = 4 * rounding(6000) * np.linalg.norm(q) * np.linalg.norm(k)
    assert abs(q1 @ k1 - q2 @ k2) <= bound


def test_position_zero_and_lengths_are_left_alone(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, LENGTH, 2, H)).astype(np.float32)
    still = turn(x, np.zeros((1, LENGTH), np.int32))
    np.testing.assert_array_equal(still, x)
    turned = np.asarray(turn(x, np.arange(LENGTH, dtype=np.int32)[None]))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), 1e-6)


def test_angles_are_float32_even_for_bfloat16_heads() -> None:
    x = jnp.ones((1, 2, 1, H), jnp.bfloat16)
    found = rope(x, jnp.array([[256, 257]], jnp.int32), THETA)
    assert found.dtype == jnp.bfloat16
    wanted = turn_in_float64(np.ones((1, 2, 1, H)), np.array([[256, 257]]), THETA)
    assert (
        np.abs(found.astype(jnp.float32) - wanted).max() <= 2**-7
    )  # half a unit of bfloat16 at 1.4
    assert not np.array_equal(found[:, 0], found[:, 1])


def test_the_critical_base_is_that_of_a_public_checkpoint_of_a_million_tokens() -> None:
    assert round(critical_base(1_048_576, 5e5, 8192)) == 3_580_165_449
    assert critical_base(8192, 5e5, 8192) == pytest.approx(5e5)


def is_stable(base: float, context: int, head_width: int) -> bool:
    """The criterion, summed for one distance after another."""
    half = head_width // 2
    return all(
        sum(np.cos(m * base ** (-i / half)) for i in range(half)) >= 0
        for m in range(1, context + 1)
    )


@pytest.mark.parametrize(("context", "head_width"), [(64, 16), (200, 16), (200, 32)])
def test_the_stable_base_is_the_first_after_the_last_that_fails(
    context: int, head_width: int
) -> None:
    # Above 10^7 none of these fails, which a few of the grid show as well as all.
    candidates = [base for base in GRID if base <= 1e7] + [1e9, 1e12, 1e14]
    fails = [i for i, base in enumerate(candidates) if not is_stable(base, context, head_width)]
    assert stable_base(context, head_width) == candidates[fails[-1] + 1 if fails else 0]


def test_a_longer_context_or_narrower_heads_never_need_a_smaller_base() -> None:
    contexts = [64, 256, 1024, 4096]
    of_context = [stable_base(context, 32) for context in contexts]
    assert of_context == sorted(of_context)
    assert stable_base(1024, 64) <= stable_base(1024, 32) <= stable_base(1024, 16)


def test_the_base_of_a_stage_obeys_both_laws_and_never_falls() -> None:
    base = rope_theta(4096, 32, 1e4, 1024)
    assert base == max(critical_base(4096, 1e4, 1024), stable_base(4096, 32))
    assert rope_theta(512, 32, 1e9, 1024) == 1e9


def test_heads_too_narrow_for_a_context_are_refused() -> None:
    with pytest.raises(InputError, match="no RoPE base up to 1e14 is stable at .* wider heads"):
        stable_base(100_000, 4)


def test_the_base_of_lwm_is_below_the_bound_at_a_million_tokens() -> None:
    assert not rope_module._is_stable(5e7, 2**20, 128)
