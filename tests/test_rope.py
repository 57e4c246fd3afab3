"""Rotary positions turn as their formula says, however far, and their base obeys its law."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld import rope as rope_module
from ringworld.errors import InputError
from ringworld.mesh import make_mesh, shard, spec
from ringworld.rope import (
    GRID,
    Rope,
    check_rope,
    critical_base,
    find_dip,
    find_phases,
    rope_theta,
    stable_base,
    to_halves,
    to_neighbours,
    turn_halves,
    turn_neighbours,
)
from ringworld.rope_scaling import Llama3, YaRN, frequencies

LENGTH, H = 6, 16
ROPE = Rope(theta=1e4, head_width=H)
LLAMA3 = Llama3(factor=8.0, low_turns=1.0, high_turns=4.0, trained_context=8192)
YARN = YaRN(factor=16.0, trained_context=4096)
LAST = 2**24
# An angle below pi is rounded three times: as a number of 2^-32 turns (9e-8), by the constant that
# makes it radians (9e-8) and by that product (1.2e-7).
ANGLE = 3e-7
# Cosine and sine: the angle, and a unit of float32 for each function.
TURN = ANGLE + 2**-23


@jax.jit
def turn(x: jax.Array, positions: jax.Array) -> jax.Array:
    return turn_halves(x, ROPE.at(positions))


def halves(x: np.ndarray) -> np.ndarray:
    """The pairs (i, i + H/2) as complex numbers."""
    half = x.shape[-1] // 2
    return x[..., :half].astype(np.float64) + 1j * x[..., half:].astype(np.float64)


def neighbours(x: np.ndarray) -> np.ndarray:
    """The pairs (2i, 2i + 1) as complex numbers."""
    return x[..., ::2].astype(np.float64) + 1j * x[..., 1::2].astype(np.float64)


def turns_in_float64(positions: np.ndarray, rope: Rope) -> np.ndarray:
    """e^(i position frequency), `[B, T, 1, H/2]`: the angle is off by 2e-9 rad at 2^24."""
    return np.exp(1j * positions[..., None, None] * rope.frequencies())


# ---- phases


def whole(limbs: Any) -> np.ndarray:
    """Two limbs as one integer of 64 bits."""
    high, low = (np.asarray(limb).astype(np.uint64) for limb in limbs)
    return (high << np.uint64(32)) | low


@jax.jit
def phases(positions: jax.Array) -> Any:
    return find_phases(ROPE, positions)


def phases_of(*positions: int) -> np.ndarray:
    return whole(phases(np.array([positions], np.int32)))[0]


def turn_between() -> tuple[Fraction, Fraction]:
    """2 pi from below and from above, to 60 digits, by Machin's formula in whole numbers."""
    one = 10**70

    def arctan_of_inverse(x: int) -> int:
        total, power, n = 0, one // x, 1
        while power:
            total += power // n if n % 4 == 1 else -(power // n)
            power, n = power // (x * x), n + 2
        return total

    tau = 2 * (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239))
    return Fraction(tau - 10**10, one), Fraction(tau + 10**10, one)


ROPES = [
    Rope(theta=1e2, head_width=64),
    Rope(theta=1e4, head_width=128),
    Rope(theta=5e7, head_width=128),
    Rope(theta=3580165449.3, head_width=128),
    Rope(theta=4e10, head_width=256),
    Rope(theta=1e14, head_width=64),
    Rope(theta=5e5, head_width=128, scaling=LLAMA3),
    Rope(theta=1e4, head_width=128, scaling=YARN),
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_a_step_is_the_floor_of_its_formula(rope: Rope) -> None:
    """step <= 2^64 theta^(-i/half) multiplier / 2 pi < step + 1, each to the power of half."""
    half, (below, above) = rope.head_width // 2, turn_between()
    steps = whole(find_phases(rope, jnp.ones((1, 1), jnp.int32)))[0, 0].tolist()
    for i, (step, multiplier) in enumerate(zip(steps, rope.multipliers().tolist(), strict=True)):
        wanted = (2**64 * Fraction(multiplier)) ** half / Fraction(rope.theta) ** i
        assert (step * above) ** half <= wanted < ((step + 1) * below) ** half


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 2**31 - 1))
def test_a_phase_is_its_position_times_its_step_modulo_a_turn(position: int) -> None:
    steps = phases_of(1)[0].tolist()
    assert phases_of(position)[0].tolist() == [position * step % 2**64 for step in steps]


@settings(max_examples=100, deadline=None)
@given(a=st.integers(0, 2**31 - 1), b=st.integers(0, 2**31 - 1))
def test_phases_depend_on_the_distance_to_the_bit(a: int, b: int) -> None:
    first, second = sorted((a, b))
    at_first, at_second, at_distance = phases_of(first, second, second - first)
    np.testing.assert_array_equal(at_second - at_first, at_distance)


# ---- turning


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_angles_are_right_to_16m_positions(rope: Rope, rng: np.random.Generator) -> None:
    positions = rng.integers(0, LAST + 1, (1, 1000)).astype(np.int32)
    positions[0, :3] = 1, LAST - 1, LAST
    turns = jax.jit(rope.at)(positions)
    found = np.asarray(turns.cos, np.float64) + 1j * np.asarray(turns.sin, np.float64)
    error = np.abs(found - rope.gain * turns_in_float64(positions, rope)[:, :, 0])
    assert error.max() <= TURN * rope.gain


@pytest.mark.parametrize("last", [8, 65536, LAST])
@pytest.mark.parametrize(
    ("turn_pairs", "pairs"), [(turn_halves, halves), (turn_neighbours, neighbours)]
)
def test_pairs_turn_as_complex_numbers(
    last: int, turn_pairs: Any, pairs: Any, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((1, LENGTH, 2, H)).astype(np.float32)
    positions = np.linspace(0, last, LENGTH).astype(np.int32)[None]
    found = jax.jit(lambda x, positions: turn_pairs(x, ROPE.at(positions)))(x, positions)
    error = np.abs(pairs(np.asarray(found)) - pairs(x) * turns_in_float64(positions, ROPE))
    # Two products and their sum are rounded too.
    assert error.max() <= (TURN + 2**-22) * np.abs(pairs(x)).max()


@settings(max_examples=50, deadline=None)
@given(
    start=st.integers(0, LAST // 4),
    distance=st.integers(0, LAST // 4),
    shift=st.integers(0, LAST // 2),
)
def test_a_score_depends_on_the_distance_only(start: int, distance: int, shift: int) -> None:
    q, k = np.random.default_rng(start).standard_normal((2, H)).astype(np.float32)
    x = jnp.asarray(np.stack([q, k, q, k])[None, :, None])
    near = [start + distance, start, start + distance + shift, start + shift]
    q1, k1, q2, k2 = np.asarray(turn(x, jnp.array([near], jnp.int32)), np.float64)[0, :, 0]
    bound = 4 * (TURN + 2**-22) * np.linalg.norm(q) * np.linalg.norm(k)
    assert abs(q1 @ k1 - q2 @ k2) <= bound


def test_position_zero_and_lengths_are_left_alone(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, LENGTH, 2, H)).astype(np.float32)
    still = turn(x, np.zeros((1, LENGTH), np.int32))
    np.testing.assert_array_equal(still, x)
    turned = np.asarray(turn(x, np.arange(LENGTH, dtype=np.int32)[None]))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), 1e-6)


def test_angles_are_float32_even_for_bfloat16_heads() -> None:
    x = jnp.ones((1, 2, 1, H), jnp.bfloat16)
    positions = jnp.array([[256, 257]], jnp.int32)
    found = turn_halves(x, ROPE.at(positions))
    assert found.dtype == jnp.bfloat16
    wanted = halves(np.ones((1, 2, 1, H))) * turns_in_float64(np.asarray(positions), ROPE)
    error = np.abs(halves(np.asarray(found.astype(jnp.float32))) - wanted)
    assert error.max() <= 2**-7 * 2**0.5  # half a unit of bfloat16 at 1.4, in both parts
    assert not np.array_equal(found[:, 0], found[:, 1])


def test_the_gradient_is_turned_back(rng: np.random.Generator) -> None:
    x, pull = rng.standard_normal((2, 1, LENGTH, 2, H)).astype(np.float32)
    positions = np.linspace(0, LAST, LENGTH).astype(np.int32)[None]
    found = jax.jit(jax.grad(lambda x: jnp.vdot(turn(x, positions), pull)))(x)
    wanted = halves(pull) * turns_in_float64(positions, ROPE).conj()
    bound = (TURN + 2**-22) * np.abs(halves(pull)).max()
    assert np.abs(halves(np.asarray(found)) - wanted).max() <= bound


def test_nothing_is_tabulated_for_16m_positions() -> None:
    positions = jax.ShapeDtypeStruct((1, LAST), jnp.int32)
    closed = jax.make_jaxpr(ROPE.at)(positions)
    sizes = [np.size(x) for x in closed.consts]
    assert sum(sizes) <= H, "more than two limbs a pair is held on the host"


@pytest.mark.parametrize("shape", [{"seq": 8}, {"data": 2, "seq": 2, "tensor": 2}, {"fsdp": 4}])
@pytest.mark.parametrize("turn_pairs", [turn_halves, turn_neighbours])
def test_every_mesh_turns_as_one_device(
    shape: dict[str, int], turn_pairs: Any, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((4, 16, 2, H)).astype(np.float32)
    positions = rng.integers(0, LAST, (4, 16)).astype(np.int32)

    @jax.jit
    def run(x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            turned = turn_pairs(x, ROPE.at(positions))
            return (turned**3).sum(), turned

        pulled, turned = jax.grad(total, has_aux=True)(x)
        return turned, pulled

    wanted = jax.device_get(run(x, positions))
    with jax.set_mesh(make_mesh(**shape)):
        heads, rows = ("batch", "seq", "heads", None), ("batch", "seq")
        placed = shard(jnp.asarray(x), *heads), shard(jnp.asarray(positions), *rows)
        found = run(*placed)
        assert all(jax.typeof(y).sharding == jax.typeof(placed[0]).sharding for y in found)
        within = jax.shard_map(run, in_specs=(spec(*heads), spec(*rows)), out_specs=spec(*heads))
        for there in (found, jax.jit(within)(*placed)):
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(there), wanted)


def test_heads_in_either_order_score_the_same(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, LENGTH, 32)).astype(np.float32)
    wq, wk = rng.standard_normal((2, 32, 2, H)).astype(np.float32)
    turns = ROPE.at(jnp.asarray(np.linspace(0, LAST, LENGTH).astype(np.int32)[None]))

    def scores(turn_pairs: Any, wq: np.ndarray, wk: np.ndarray) -> np.ndarray:
        q, k = (turn_pairs(jnp.einsum("btd,dnh->btnh", x, w), turns) for w in (wq, wk))
        return np.asarray(jnp.einsum("btnh,bsnh->bnts", q, k))

    wanted = scores(turn_neighbours, wq, wk)
    found = scores(turn_halves, to_halves(wq), to_halves(wk))
    # The same 32 and 16 products, summed in another order.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=48 * 2**-24 * np.abs(wanted).max())
    assert np.abs(scores(turn_halves, wq, wk) - wanted).max() > 1


def test_the_orders_of_weights_are_each_others_inverse() -> None:
    places = np.arange(3 * 8, dtype=np.float32).reshape(3, 8)
    assert to_halves(places)[0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_array_equal(to_neighbours(to_halves(places)), places)


# ---- scalings


def llama3_by_wavelength(frequency: float, scaling: Llama3) -> float:
    """The three cases of the published code, for one pair."""
    wavelength = 2 * math.pi / frequency
    if wavelength < scaling.trained_context / scaling.high_turns:
        return frequency
    if wavelength > scaling.trained_context / scaling.low_turns:
        return frequency / scaling.factor
    turns = scaling.trained_context / wavelength
    smooth = (turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def yarn_by_pair(i: int, theta: float, head_width: int, scaling: YaRN) -> float:
    """The mix of the published code, for one pair: the ramp's ends are where i gives the turns."""

    def pair_with(turns: float) -> float:
        base_of = scaling.trained_context / (turns * 2 * math.pi)
        return head_width * math.log(base_of) / (2 * math.log(theta))

    low, high = math.floor(pair_with(32)), math.ceil(pair_with(1))
    ramp = min(max((i - low) / (high - low), 0), 1)
    frequency = theta ** (-2 * i / head_width)
    return ramp * frequency / scaling.factor + (1 - ramp) * frequency


@pytest.mark.parametrize(("theta", "head_width"), [(5e5, 128), (5e5, 64), (1e4, 128)])
def test_scaled_frequencies_are_those_of_the_published_formulas(
    theta: float, head_width: int
) -> None:
    plain = frequencies(theta, head_width).tolist()
    llama3 = Rope(theta=theta, head_width=head_width, scaling=LLAMA3).frequencies()
    yarn = Rope(theta=theta, head_width=head_width, scaling=YARN).frequencies()
    pairs = range(head_width // 2)
    # Some roundings of float64.
    np.testing.assert_allclose(llama3, [llama3_by_wavelength(f, LLAMA3) for f in plain], 1e-13)
    np.testing.assert_allclose(
        yarn, [yarn_by_pair(i, theta, head_width, YARN) for i in pairs], 1e-13
    )
    for scaling, found in ((LLAMA3, llama3), (YARN, yarn)):
        assert found[0] == plain[0]
        assert found[-1] == pytest.approx(plain[-1] / scaling.factor, rel=1e-15)


# From ROPE_INIT_FUNCTIONS of transformers 5.23.0: the rotary, its gain, and pairs of frequencies.
TRANSFORMERS = [
    pytest.param(
        Rope(theta=5e5, head_width=128, scaling=LLAMA3),
        1.0,
        {20: 0.016560440883, 30: 0.00137189368252, 36: 7.78465546318e-05, 63: 3.06892587787e-07},
        id="Llama-3.1",
    ),
    pytest.param(
        Rope(theta=1e4, head_width=128, scaling=YARN),
        1.2772588722239782,
        {20: 0.0562341287732, 30: 0.0085268439725, 36: 0.00237913639285, 63: 7.21738706488e-06},
        id="Yarn-Llama-2-64k",
    ),
    pytest.param(
        Rope(theta=1e6, head_width=128, scaling=YaRN(factor=4.0, trained_context=32768)),
        1.138629436111989,
        {20: 0.0133352149278, 30: 0.00106436095666, 36: 0.000179841154022, 63: 3.10234440803e-07},
        id="Qwen2.5-128K",
    ),
]


@pytest.mark.parametrize(("rope", "gain", "known"), TRANSFORMERS)
def test_scalings_are_those_of_transformers(
    rope: Rope, gain: float, known: dict[int, float]
) -> None:
    assert rope.gain == pytest.approx(gain, rel=1e-15)
    found = rope.frequencies()
    # They are float32 there, with theta^(2i/H) and some products of it rounded.
    assert {i: found[i] for i in known} == pytest.approx(known, rel=1e-6)


def test_yarn_lengthens_queries_and_keys_by_its_gain(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, LENGTH, 2, H)).astype(np.float32)
    rope = Rope(theta=1e4, head_width=H, scaling=YARN)
    turned = turn_halves(jnp.asarray(x), rope.at(jnp.arange(LENGTH, dtype=jnp.int32)[None]))
    lengths = np.linalg.norm(x, axis=-1) * (0.1 * math.log(16) + 1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), lengths, 1e-6)


def test_a_ramp_between_one_pair_and_itself_is_a_step() -> None:
    scaling = YaRN(factor=4.0, trained_context=10, fast_turns=2.0, slow_turns=1.6)
    assert scaling.multipliers(1e4, 16).tolist() == [1.0] + [0.25] * 7


def test_rotaries_that_cannot_turn_are_refused() -> None:
    with pytest.raises(InputError, match="cannot turn heads of 5 .* make the width even"):
        Rope(theta=1e4, head_width=5)
    with pytest.raises(InputError, match="base 1.0: .* base greater than 1"):
        Rope(theta=1.0, head_width=4)
    with pytest.raises(InputError, match="slowed by 0.5 .* factor to 1 or more"):
        YaRN(factor=0.5, trained_context=4096)
    with pytest.raises(InputError, match="ramp from 4.0 to 1.0 turns"):
        Llama3(factor=8.0, low_turns=4.0, high_turns=1.0, trained_context=8192)


# ---- the law of the base


def test_the_critical_base_is_that_of_a_public_checkpoint_of_a_million_tokens() -> None:
    assert round(critical_base(1_048_576, 5e5, 8192)) == 3_580_165_449
    assert critical_base(8192, 5e5, 8192) == pytest.approx(5e5)


def dip_of_plain_scan(frequencies: np.ndarray, context: int, piece: int = 1 << 14) -> int | None:
    """The criterion, summed at every distance."""
    for start in range(1, context + 1, piece):
        distances = np.arange(start, min(start + piece, context + 1))
        negative = np.cos(distances[:, None] * frequencies).sum(-1) < 0
        if negative.any():
            return int(distances[negative.argmax()])
    return None


@pytest.mark.parametrize("head_width", [4, 16, 64, 128])
def test_the_search_finds_the_dip_of_the_plain_scan_at_every_base(head_width: int) -> None:
    for base in GRID[::4]:
        rates = frequencies(base, head_width)
        dip = dip_of_plain_scan(rates, 4000)
        assert find_dip(rates, 4000) == dip, base
        if dip is not None:  # the first distance too many, and the last one that is allowed
            assert find_dip(rates, dip) == dip
            assert find_dip(rates, dip - 1) is None


@settings(max_examples=100, deadline=None)
@given(rates=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), context=st.integers(1, 3000))
def test_the_search_is_right_for_frequencies_of_any_law(rates: list[float], context: int) -> None:
    assert find_dip(np.array(rates), context) == dip_of_plain_scan(np.array(rates), context)


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


# Of a plain scan of every distance at every base, of the same grid.
STABLE = {
    (1024, 64): 25118.86431509582,
    (4096, 64): 398107.1705534969,
    (16384, 64): 2511886.4315095823,
    (32768, 128): 1995262.3149688789,
    (131072, 128): 35481338.923357606,
    (262144, 128): 50118723.36272725,
    (524288, 128): 251188643.1509582,
    (1048576, 64): 19952623149.688828,
    (1048576, 128): 562341325.1903491,
    (1048576, 256): 89125093.8133746,
}


@pytest.mark.parametrize(("context", "head_width"), STABLE)
def test_stable_bases_are_those_of_the_plain_scan(context: int, head_width: int) -> None:
    # NumPy's powers differ in their last bit between kinds of CPU.
    assert stable_base(context, head_width) == pytest.approx(STABLE[context, head_width], rel=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("context", [1 << 20, 1 << 22])
def test_a_plain_scan_of_millions_accepts_the_stable_base_and_not_the_one_below(
    context: int,
) -> None:
    i = GRID.tolist().index(stable_base(context, 128))
    assert dip_of_plain_scan(frequencies(GRID[i], 128), context) is None
    below = frequencies(GRID[i - 1], 128)
    assert find_dip(below, context) == dip_of_plain_scan(below, context) is not None


def test_of_four_million_distances_the_search_looks_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    search, looked_at = rope_module._search, []

    def count(starts: np.ndarray, *rest: Any) -> int | None:
        looked_at.append(len(starts))
        return search(starts, *rest)

    monkeypatch.setattr(rope_module, "_search", count)
    assert find_dip(frequencies(stable_base(1 << 22, 128), 128), 1 << 22) is None
    assert 1 < sum(looked_at) < (1 << 22) / 25


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


# Context and base of the stages of LWM's text and vision models, and the first distance, by the
# plain scan, at which heads of 128 score a similar key below a random one.
LWM_STAGES = [
    (2**15, 1e6, 27_115),
    (2**17, 1e7, None),
    (2**18, 1e7, 144_660),
    (2**19, 2.5e7, 137_077),
    (2**20, 5e7, 416_715),
    (2**10, 5e7, None),
    (2**13, 5e7, None),
    (2**15, 5e7, None),
    (2**17, 5e7, None),
]


@pytest.mark.parametrize(("context", "base", "dip"), LWM_STAGES)
def test_the_bases_of_lwm_are_told_where_they_are_too_small(
    context: int, base: float, dip: int | None
) -> None:
    said = check_rope(Rope(theta=base, head_width=128), context)
    if dip is None:
        assert said is None
    else:
        assert said is not None and f"at a distance of {dip} tokens" in said
        assert f"within the context of {context}: read at most {dip - 1} tokens" in said


def test_a_scaled_rotary_is_judged_by_its_scaled_frequencies() -> None:
    assert check_rope(Rope(theta=1e4, head_width=128), 4096) is not None
    slowed = Rope(theta=1e4, head_width=128, scaling=YaRN(factor=64.0, trained_context=1024))
    assert check_rope(slowed, 4096) is None


def test_a_base_of_the_law_never_dips_within_its_context() -> None:
    # The critical base from 398,107 at 4,096 tokens lies between two of the grid's, and dips.
    between = critical_base(16384, 398107.1705534969, 4096)
    assert find_dip(frequencies(between, 64), 16384) == 14599
    theta = rope_theta(16384, 64, 398107.1705534969, 4096)
    assert theta == pytest.approx(between * 10**0.05)
    assert find_dip(frequencies(theta, 64), 16384) is None
