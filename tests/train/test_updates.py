"""An update: rows in parts, frozen weights, what is skipped, and gradients computed twice."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import CONTEXT, TINY, draw

from ringworld.batch import Batch
from ringworld.data.packing.loader import stack
from ringworld.data.packing.rows import MASKED, PackedRows
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models.world import specs
from ringworld.params import init, paths
from ringworld.settings import MeshShape
from ringworld.train.build import (
    SummedLoss,
    TrainState,
    Updates,
    build,
    checksum,
    gradient_in_parts,
    start,
)
from ringworld.train.freeze import check_frozen, divide, rejoin
from ringworld.train.guard import Guard, judge, start_guard
from ringworld.train.loss import balance, loss_sums
from ringworld.train.optimizer import AdamW, make_optimizer

ROWS, STEPS = 8, 50
LOSS = SummedLoss(
    partial(loss_sums, c=TINY), partial(balance, c=TINY, vision_share=0.3, z_loss=1e-3)
)
CONFIG = AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2)
ONE, MANY = MeshShape(), MeshShape(data=2, fsdp=1, seq=2, tensor=2)


def rows_of_both_kinds() -> Batch:
    """Eight rows; the first four have targets of text alone, the others of frames alone."""
    kinds = [PackedRows(draw(*weights), CONTEXT, MASKED) for weights in ((1.0, 0.0), (0.0, 1.0))]
    return stack(rows[i % len(rows)] for rows in kinds for i in range(ROWS // 2))


def learn(shape: MeshShape, updates: Updates, steps: int, batch: Any = None, **how: Any) -> Any:
    """The state after some steps on the same batch, and the metrics of the last."""
    mesh = make_mesh(**vars(shape))
    with jax.set_mesh(mesh):
        trained, _ = divide(specs(TINY), updates.frozen)
        optimizer = make_optimizer(how.get("config", CONFIG), STEPS, trained)
        built = build(specs(TINY), mesh, optimizer, how.get("loss", LOSS), updates=updates)
        weights = jax.jit(lambda: init(specs(TINY), 0))()
        state, metrics = start(weights, optimizer, updates), {}
        for _ in range(steps):
            state, metrics = built.step(state, rows_of_both_kinds() if batch is None else batch)
    return jax.device_get((state, metrics))


def assert_same_bits(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# ---- rows in parts


@pytest.mark.parametrize("shape", [ONE, MANY], ids=["1", "8"])
@pytest.mark.parametrize("parts", [2, 4])
def test_rows_in_parts_have_the_loss_and_the_gradients_of_the_whole_batch(
    shape: MeshShape, parts: int
) -> None:
    with jax.set_mesh(make_mesh(**vars(shape))):
        batch = jax.tree.map(jnp.asarray, rows_of_both_kinds())
        weights = init(specs(TINY), 0)
        (value, metrics), grads = jax.jit(jax.value_and_grad(LOSS, has_aux=True))(weights, batch)
        (again, others), summed = jax.jit(gradient_in_parts(LOSS, parts))(weights, batch)
        assert [x.sharding for x in jax.tree.leaves(summed)] == [
            x.sharding for x in jax.tree.leaves(grads)
        ]
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    told = {name: float(number) for name, number in metrics.items()}
    assert {name: float(x) for name, x in others.items()} == pytest.approx(told, rel=1e-6)
    # By the length of each gradient: how far single numbers are off depends on the CPU's vectors,
    # and on some the worst of them is 1.03e-6 of the largest.
    for g, w in zip(jax.tree.leaves(summed), jax.tree.leaves(grads), strict=True):
        assert np.linalg.norm(np.asarray(g) - np.asarray(w)) <= 1e-6 * np.linalg.norm(w)


def test_a_modality_that_no_row_has_is_nan_in_parts_too() -> None:
    rows = PackedRows(draw(1.0, 0.0), CONTEXT, MASKED)
    batch = stack(rows[i % len(rows)] for i in range(4))
    state, metrics = learn(ONE, Updates(accumulate=2), 1, batch)
    assert np.isnan(metrics["vision_loss"]) and np.isfinite(metrics["text_loss"])
    assert all(np.isfinite(w).all() for w in jax.tree.leaves(state.weights))


def test_rows_that_do_not_divide_into_parts_are_refused() -> None:
    with pytest.raises(InputError, match="the 8 rows that a device holds do not divide into 3"):
        learn(ONE, Updates(accumulate=3), 1)
    with pytest.raises(InputError, match="accumulate is 0: make it 1 or more"):
        Updates(accumulate=0)
    with pytest.raises(InputError, match="the loss is not a sum over rows: set accumulate to 1"):
        learn(ONE, Updates(accumulate=2), 1, loss=lambda weights, batch: LOSS(weights, batch))


# ---- bfloat16


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")


def half_loss() -> SummedLoss:
    """The loss of the tiny world in bfloat16, with its float32 weights."""
    half = replace(TINY, llama=replace(TINY.llama, dtype="bfloat16"))
    return SummedLoss(partial(loss_sums, c=half), LOSS.combine)


def test_in_bfloat16_norms_softmax_and_sums_are_float32_and_so_is_every_gradient() -> None:
    weights, batch = init(specs(TINY), 0), jax.tree.map(jnp.asarray, rows_of_both_kinds())
    run = jax.value_and_grad(half_loss(), has_aux=True)
    found = [
        (eqn.primitive.name, eqn.outvars[0].aval.dtype)
        for eqn in equations(jax.make_jaxpr(run)(weights, batch).jaxpr)
        if eqn.outvars and hasattr(eqn.outvars[0].aval, "dtype")
    ]
    assert ("dot_general", jnp.bfloat16) in found
    exact = ("exp", "log", "rsqrt", "reduce_sum", "reduce_max", "cumsum", "sin", "cos")
    assert {"exp", "log", "rsqrt", "reduce_sum"} <= {name for name, _ in found}
    assert not [pair for pair in found if pair[0] in exact and pair[1] == jnp.bfloat16]
    (value, _), grads = jax.jit(run)(weights, batch)
    (wanted, _), exact_grads = jax.jit(jax.value_and_grad(LOSS, has_aux=True))(weights, batch)
    # bfloat16 has 8 bits: 2^-9 a rounding, over some tens of roundings.
    assert float(value) == pytest.approx(float(wanted), rel=0.01)
    for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grads), strict=True):
        assert g.dtype == jnp.float32
        assert float(jnp.linalg.norm(g - w)) < 0.05 * float(jnp.linalg.norm(w))


def test_float32_weights_gather_updates_that_bfloat16_weights_would_lose() -> None:
    small = AdamW(peak_lr=1e-6, end_lr=1e-6, warmup_steps=0, weight_decay=0.0)
    before = init(specs(TINY), 0).blocks.wq
    after = learn(ONE, Updates(), 20, config=small, loss=half_loss())[0].weights.blocks.wq
    assert after.dtype == np.float32
    moved = np.abs(after - np.asarray(before))
    assert 5e-6 < moved.mean() < 25e-6  # twenty updates of about 1e-6, against weights of about 0.2
    rounded = [np.asarray(w, jnp.bfloat16) for w in (before, after)]
    assert (rounded[0] == rounded[1]).mean() > 0.9


# ---- frozen weights


@pytest.mark.parametrize("shape", [ONE, MANY], ids=["1", "8"])
def test_a_frozen_weight_keeps_its_bits_and_has_no_optimizer_state(shape: MeshShape) -> None:
    updates = Updates(frozen=("vision_*", "blocks.w[kv]", "*norm"))
    state, metrics = learn(shape, updates, 3)
    before, after = paths(init(specs(TINY), 0)), paths(state.weights)
    frozen = {"vision_embed", "blocks.wk", "blocks.wv", "heads.norm"}
    frozen |= {"blocks.attn_norm", "blocks.mlp_norm"}
    kept = {name for name in before if np.array_equal(before[name], after[name])}
    assert kept == frozen
    moments = {name.split(".mu.")[1] for name in paths(state.optimizer) if ".mu." in name}
    assert moments == set(before) - frozen
    assert metrics["grad_norm"] > 0


def test_the_norm_and_the_clipping_are_of_the_trained_weights_alone() -> None:
    with jax.set_mesh(make_mesh()):
        batch = jax.tree.map(jnp.asarray, rows_of_both_kinds())
        grads = jax.grad(LOSS, has_aux=True)(init(specs(TINY), 0), batch)[0]
    frozen = ("blocks.*", "*_embed")
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(divide(grads, frozen)[0])))
    _, metrics = learn(ONE, Updates(frozen=frozen), 1)
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)


def test_a_divided_model_joins_to_what_it_was() -> None:
    weights = init(specs(TINY), 0)
    for patterns in ((), ("*",), ("vision_*", "blocks.w*")):
        assert_same_bits(rejoin(*divide(weights, patterns)), weights)


def test_patterns_that_name_nothing_or_everything_are_refused() -> None:
    with pytest.raises(InputError, match="the pattern sight_. of frozen weights names none"):
        check_frozen(specs(TINY), ("vision_*", "sight_*"))
    with pytest.raises(InputError, match="every weight is frozen"):
        check_frozen(specs(TINY), ("*",))
    check_frozen(specs(TINY), ("blocks.*",))


# ---- what is skipped


def judged(values: list[tuple[float, float]], guard: Guard) -> list[bool]:
    """Whether the update of each loss and norm is made."""
    state, kept = start_guard(guard), []
    run = jax.jit(partial(judge, guard))
    for loss, norm in values:
        keep, state = run(state, jnp.float32(loss), jnp.float32(norm))
        kept.append(bool(keep))
    assert int(state.skips) == kept.count(False)
    return kept


def judged_by_hand(values: list[tuple[float, float]], interval: int, factor: float) -> list[bool]:
    """The rule of MaxText in NumPy, and numbers that are not finite are skipped and forgotten."""
    past: list[tuple[float, float]] = []
    kept = []
    for value in values:
        finite = bool(np.isfinite(value).all())
        calm = True
        if len(past) + 1 >= max(2, interval // 2):
            known = np.array(past[-interval:])
            deviation = known.std(axis=0, ddof=1) if len(known) > 1 else 0.0
            calm = bool((np.array(value) - known.mean(axis=0) <= factor * deviation).all())
        kept.append(finite and calm)
        if finite:
            past.append(value)
    return kept


def test_updates_are_skipped_by_the_rule_written_out() -> None:
    rng = np.random.default_rng(0)
    values = [(3 + 0.1 * a, 1 + 0.2 * b) for a, b in rng.standard_normal((400, 2))]
    for i in rng.choice(400, 60, replace=False):
        loss, norm = values[i]
        change = rng.integers(5)
        values[i] = [
            (np.nan, norm),
            (loss, np.inf),
            (loss + 5, norm),
            (loss, norm + 9),
            (loss - 5, norm),
        ][change]
    for interval, factor in ((128, 6.0), (16, 3.0)):
        kept = judged(values, Guard(interval=interval, factor=factor))
        assert kept == judged_by_hand(values, interval, factor)
        assert 10 < kept.count(False) < 60


def test_nothing_finite_is_a_spike_in_the_first_half_of_an_interval() -> None:
    values = [(1 + 0.01 * (i % 3), 1.0 + 0.01 * (i % 2)) for i in range(62)]
    assert all(judged([*values, (100.0, 100.0)], Guard()))
    assert not judged([*values, (1.0, 1.0), (100.0, 1.0)], Guard())[-1]


def test_a_new_level_of_the_loss_is_accepted_in_time() -> None:
    values = [(1 + 0.01 * (i % 3), 1.0 + 0.01 * (i % 2)) for i in range(128)]
    kept = judged([*values, *[(v + 3, n) for v, n in values]], Guard())
    assert not kept[128] and all(kept[-64:])


def poisoned(where: str) -> SummedLoss:
    """The loss, whose value or one gradient is not finite in a batch whose first token is 31."""

    @jax.custom_vjp
    def spoil(x: jax.Array, flag: jax.Array) -> jax.Array:
        return x

    spoil.defvjp(
        lambda x, flag: (x, flag),
        lambda flag, g: (jnp.where(flag, jnp.inf, g), jnp.zeros(flag.shape, jax.dtypes.float0)),
    )

    def sums(weights: Any, batch: Batch) -> Any:
        flag = batch.tokens[0, 0] == 31
        if where == "gradient":
            gain = spoil(weights.heads.norm, flag)
            weights = replace(weights, heads=replace(weights.heads, norm=gain))
        found = LOSS.sums(weights, batch)
        return jnp.where(flag, jnp.nan, found) if where == "loss" else found

    return SummedLoss(sums, LOSS.combine)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(where: str) -> None:
    good = jax.tree.map(jnp.asarray, rows_of_both_kinds())
    bad = replace(good, tokens=good.tokens.at[0, 0].set(31))
    optimizer = make_optimizer(CONFIG, STEPS, specs(TINY))
    built = build(specs(TINY), jax.sharding.get_mesh(), optimizer, poisoned(where))
    state = start(init(specs(TINY), 0), optimizer)
    state, _ = built.step(state, good)
    before = jax.device_get(state)
    state, metrics = built.step(state, bad)
    assert float(metrics["skipped"]) == 1 and int(metrics["skips"]) == 1
    assert not np.isfinite(float(metrics["loss"])) or not np.isfinite(float(metrics["grad_norm"]))
    assert_same_bits((state.weights, state.optimizer), (before.weights, before.optimizer))
    assert int(state.step) == 2 and int(state.guard.seen) == 1
    state, metrics = built.step(state, good)
    assert float(metrics["skipped"]) == 0 and int(metrics["skips"]) == 1
    assert int(state.step) == 3 and int(state.guard.seen) == 2


# ---- gradients computed twice


def test_a_replayed_step_is_the_step() -> None:
    optimizer = make_optimizer(CONFIG, STEPS, specs(TINY))
    built = build(specs(TINY), jax.sharding.get_mesh(), optimizer, LOSS)
    once, twice = (start(init(specs(TINY), 0), optimizer) for _ in range(2))
    for _ in range(3):
        once, metrics = built.step(once, rows_of_both_kinds())
        twice, again = built.replay(twice, rows_of_both_kinds())
    assert_same_bits(twice, once)
    assert_same_bits(again, metrics)


def test_gradients_that_differ_between_two_computations_stop_the_run() -> None:
    flips = iter([0, 0, 0, 1])

    def flip(x: np.ndarray) -> np.ndarray:
        """x, and in the fourth call x with its lowest bit changed."""
        return (x.view(np.uint32) ^ np.uint32(next(flips))).view(np.float32)

    @jax.custom_vjp
    def unsound(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        one = jax.pure_callback(flip, jax.ShapeDtypeStruct((1,), jnp.float32), g[:1])
        return (g.at[:1].set(one),)

    unsound.defvjp(lambda x: (x, None), backward)

    def sums(weights: Any, batch: Batch) -> Any:
        gain = unsound(weights.heads.norm)
        return LOSS.sums(replace(weights, heads=replace(weights.heads, norm=gain)), batch)

    optimizer = make_optimizer(CONFIG, STEPS, specs(TINY))
    loss = SummedLoss(sums, LOSS.combine)
    built = build(specs(TINY), jax.sharding.get_mesh(), optimizer, loss)
    state: TrainState = start(init(specs(TINY), 0), optimizer)
    state, _ = built.replay(state, rows_of_both_kinds())
    with pytest.raises(InputError, match="the gradients of step 1 differ when they are computed"):
        built.replay(state, rows_of_both_kinds())


def test_any_one_flipped_bit_changes_the_checksum() -> None:
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((5, 7), np.float32), "b": np.ones(3, jnp.bfloat16)}
    wanted, run = int(checksum(tree)), jax.jit(checksum)
    for _ in range(100):
        name = "ab"[int(rng.integers(2))]
        data = bytearray(tree[name].tobytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        changed = np.frombuffer(bytes(data), tree[name].dtype).reshape(tree[name].shape)
        assert int(run({**tree, name: changed})) != wanted
