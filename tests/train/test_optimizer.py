"""AdamW and Muon are what is written down, on any mesh, with decay on matrices alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import SPECS

from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models.llama import Llama
from ringworld.models.lora import Lora, adapter_specs
from ringworld.models.world import World, specs
from ringworld.params import dense, init, map_specs, paths, stacked
from ringworld.train.optimizer import AdamW, Muon, learning_rate, make_optimizer
from ringworld.vocab import Vocabulary

STEPS = 40
CONFIG = AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=4, schedule="cosine", clip_norm=1.0)


def grads_at(step: int) -> object:
    """Gradients that depend on the step alone, large enough to be clipped at first."""
    rng = np.random.default_rng(step)
    return map_specs(
        lambda p: jnp.asarray(rng.standard_normal(p.shape) / (step + 1), jnp.float32), SPECS
    )


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    rates = [float(learning_rate(CONFIG, STEPS, n)) for n in range(STEPS + 1)]
    np.testing.assert_allclose(rates[:5], [0, 0.0025, 0.005, 0.0075, 0.01], rtol=1e-6)
    middle = 4 + (STEPS - 4) // 2
    np.testing.assert_allclose(rates[middle], (1e-2 + 1e-3) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates[STEPS], 1e-3, rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_constant_rate_stays_at_the_peak_after_the_warm_up() -> None:
    config = AdamW(peak_lr=4e-5, warmup_steps=2)
    rates = [float(learning_rate(config, 9, jnp.asarray(n))) for n in range(9)]
    np.testing.assert_allclose(rates, [0, 2e-5, *[4e-5] * 7], rtol=1e-6)
    assert float(learning_rate(AdamW(warmup_steps=0), 9, 0)) == np.float32(4e-5)


def test_the_updates_are_those_of_adamw_written_out_in_float64() -> None:
    optimizer = make_optimizer(CONFIG, STEPS, SPECS)
    weights = init(SPECS, seed=1)
    state, update = optimizer.init(weights), jax.jit(optimizer.update)
    slow = [np.asarray(w, np.float64) for w in jax.tree.leaves(weights)]
    mu, nu = [np.zeros_like(w) for w in slow], [np.zeros_like(w) for w in slow]
    for n in range(8):
        updates, state = update(grads_at(n), state, weights)
        weights = jax.tree.map(jnp.add, weights, updates)
        grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads_at(n))]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        for i, g in enumerate(grads):
            g = g / max(norm, 1.0)
            mu[i] = 0.9 * mu[i] + 0.1 * g
            nu[i] = 0.95 * nu[i] + 0.05 * g**2
            step = mu[i] / (1 - 0.9 ** (n + 1))
            step = step / (np.sqrt(nu[i] / (1 - 0.95 ** (n + 1))) + 1e-8)
            step = step + (0.1 * slow[i] if slow[i].ndim >= 2 else 0.0)
            slow[i] = slow[i] - float(learning_rate(CONFIG, STEPS, n)) * step
    for fast, exact in zip(jax.tree.leaves(weights), slow, strict=True):
        np.testing.assert_allclose(fast, exact, rtol=1e-4, atol=1e-6)


def test_stacked_gains_and_biases_do_not_decay() -> None:
    specs = stacked(3, SPECS)
    optimizer = make_optimizer(AdamW(warmup_steps=0), 2, specs)
    weights = map_specs(lambda p: jnp.ones(p.shape), specs)
    nothing = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(nothing, optimizer.init(weights), weights)
    assert not updates.bias.any()
    np.testing.assert_allclose(updates.inner, -4e-5 * 0.1, rtol=1e-6)


def assert_a_mesh_changes_nothing(train: Callable[[], Any], rtol: float, atol: float) -> None:
    """Compare the weights that `train` gives on one device and on eight."""
    with jax.set_mesh(make_mesh()):
        alone = train()
    with jax.set_mesh(make_mesh(fsdp=4, tensor=2)):
        divided = train()
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=rtol, atol=atol)


def test_a_mesh_changes_no_update() -> None:
    def train() -> object:
        weights = init(SPECS, seed=1)
        optimizer = make_optimizer(CONFIG, STEPS, SPECS)
        state, step = optimizer.init(weights), jax.jit(optimizer.update)
        for n in range(4):
            placed = jax.tree.map(lambda g, w: jax.device_put(g, w.sharding), grads_at(n), weights)
            updates, state = step(placed, state, weights)
            weights = jax.tree.map(jnp.add, weights, updates)
        return weights

    assert_a_mesh_changes_nothing(train, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"peak_lr": 0.0}, "peak_lr is 0.0: make it greater than 0"),
        ({"end_lr": 1.0}, "end_lr is 1.0 and peak_lr 4e-05"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"b2": 1.0}, "b2 1.0: choose both"),
        ({"clip_norm": 0.0}, "clip_norm 0.0"),
    ],
)
def test_a_wrong_setting_is_said_in_one_sentence(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AdamW(**wrong)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="a warm-up of 100 steps does not fit into 50 steps"):
        make_optimizer(AdamW(), 50, SPECS)


# ---- Muon

BLOCK = Llama(
    layers=2, model=16, mlp=24, heads=4, kv_heads=2, head_width=4, context=8, rope_theta=100.0
)
WORLD = World(llama=BLOCK, vocabulary=Vocabulary(text=32, bos=1, eos=2))
MUON = Muon(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2, weight_decay=0.1)
MATRICES = {"wq": 1, "wk": 1, "wv": 1, "wo": 3, "w_gate": 1, "w_up": 1, "w_down": 2}


def test_of_a_model_matrices_and_tables_decay_and_nothing_else() -> None:
    table = specs(replace(WORLD, llama=replace(BLOCK, qkv_bias=True, qk_norm=True)))
    optimizer = make_optimizer(AdamW(warmup_steps=0), 2, table)
    weights = map_specs(lambda p: jnp.ones(p.shape), table)
    nothing = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(nothing, optimizer.init(weights), weights)
    still = {name for name, update in paths(updates).items() if not update.any()}
    assert {name.rpartition(".")[2] for name in still} == {
        *("bq", "bk", "bv"),
        *("attn_norm", "mlp_norm", "q_norm", "k_norm", "norm"),
    }


def test_both_matrices_of_an_adapter_decay() -> None:
    assert all(p.inputs for p in paths(adapter_specs(BLOCK, Lora(rank=2))).values())
    weight = dense((2, 16, 4, 4), ("layers", "embed", "heads", None), fan_in=16, inputs=(-3,))
    assert [p.inputs for p in weight.low_rank(2)] == [(-2,), (-3,)]


def muon_grads(step: int) -> Any:
    """Gradients of the small world that depend on the step alone."""
    rng = np.random.default_rng([step, 5])
    return map_specs(
        lambda p: jnp.asarray(rng.standard_normal(p.shape) * 1e-3, jnp.float32), specs(WORLD)
    )


def orthogonal(x: np.ndarray) -> np.ndarray:
    """Five steps of Newton and Schulz in float64, with the coefficients of Jordan."""
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_moves_each_matrix_of_a_layer_by_newton_and_schulz_written_out() -> None:
    optimizer = make_optimizer(MUON, STEPS, specs(WORLD))
    weights = init(specs(WORLD), seed=1)
    state, update = optimizer.init(weights), jax.jit(optimizer.update)
    mean = dict.fromkeys(MATRICES, 0.0)
    for n in range(4):
        updates, state = update(muon_grads(n), state, weights)
        for name, side in MATRICES.items():
            grad = np.asarray(getattr(muon_grads(n).blocks, name), np.float64)
            mean[name] = 0.95 * mean[name] + 0.05 * grad
            look = 0.95 * mean[name] / (1 - 0.95 ** (n + 2)) + 0.05 * grad / (1 - 0.95 ** (n + 1))
            decay = 0.1 * np.asarray(getattr(weights.blocks, name), np.float64)
            for layer in range(2):
                matrix = np.moveaxis(look[layer], side - 1, 0)
                flat = orthogonal(matrix.reshape(16, -1))
                step = 0.2 * np.sqrt(max(flat.shape)) * flat
                step = np.moveaxis(step.reshape(matrix.shape), 0, side - 1) + decay[layer]
                wanted = -float(learning_rate(MUON, STEPS, n)) * step
                found = getattr(updates.blocks, name)[layer]
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
        weights = jax.tree.map(jnp.add, weights, updates)


def test_muon_leaves_tables_heads_and_gains_to_adamw() -> None:
    found, wanted = (
        make_optimizer(config, STEPS, specs(WORLD))
        for config in (MUON, AdamW(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2, weight_decay=0.1))
    )
    weights = init(specs(WORLD), seed=1)
    ours, theirs = found.init(weights), wanted.init(weights)
    for n in range(3):
        mine, ours = jax.jit(found.update)(muon_grads(n), ours, weights)
        other, theirs = jax.jit(wanted.update)(muon_grads(n), theirs, weights)
    mine, other = paths(mine), paths(other)
    rest = [name for name in mine if name.removeprefix("blocks.") not in MATRICES]
    assert len(rest) == 5
    for name in rest:
        np.testing.assert_allclose(mine[name], other[name], rtol=1e-6)


def test_a_mesh_changes_no_update_of_muon() -> None:
    def train() -> Any:
        weights = jax.jit(lambda: init(specs(WORLD), seed=1))()
        optimizer = make_optimizer(MUON, STEPS, specs(WORLD))
        state, step = optimizer.init(weights), jax.jit(optimizer.update)
        for n in range(3):
            placed = jax.tree.map(
                lambda g, w: jax.device_put(g, w.sharding), muon_grads(n), weights
            )
            updates, state = step(placed, state, weights)
            assert [u.sharding for u in jax.tree.leaves(updates)] == [
                w.sharding for w in jax.tree.leaves(weights)
            ]
            weights = jax.tree.map(jnp.add, weights, updates)
        return weights

    # Five products of matrices in another order; the iteration magnifies small directions.
    assert_a_mesh_changes_nothing(train, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"update_rms": 0.0}, "update_rms is 0.0"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps 0"),
        ({"peak_lr": 0.0}, "peak_lr is 0.0"),
    ],
)
def test_a_wrong_setting_of_muon_is_said_in_one_sentence(
    wrong: dict[str, float], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Muon(**wrong)
