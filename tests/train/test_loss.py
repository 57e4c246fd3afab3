"""The loss of batches that lack a modality, and the operations that a batch needs."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import count_operations
from tiny_world import TINY, batch_of, draw

from ringworld.batch import Batch
from ringworld.data.packing.rows import MASKED, Packing
from ringworld.models.lora import Lora, adapted_specs, frozen_names
from ringworld.models.world import WorldWeights, forward, read_heads, specs
from ringworld.params import init, paths
from ringworld.train.loss import batch_flops, loss


@pytest.mark.parametrize(
    ("text", "vision", "there", "absent"),
    [(0.0, 1.0, "vision_loss", "text_loss"), (1.0, 0.0, "text_loss", "vision_loss")],
)
def test_a_batch_without_targets_of_a_modality_has_the_whole_loss_of_the_other(
    text: float, vision: float, there: str, absent: str
) -> None:
    weights, batch = init(specs(TINY), 0), batch_of(draw(text, vision))
    learn = jax.jit(jax.value_and_grad(partial(loss, c=TINY, vision_share=0.3), has_aux=True))
    (value, parts), grads = learn(weights, batch)
    assert float(value) == pytest.approx(float(parts[there]), rel=1e-6) and value > 1
    assert np.isnan(parts[absent]) and parts[absent.replace("loss", "targets")] == 0
    assert float(parts[there.replace("loss", "targets")]) == np.count_nonzero(batch.weights)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_batch_with_both_modalities_has_their_balanced_loss() -> None:
    weights, batch = init(specs(TINY), 0), batch_of(draw(1.0, 1.0))
    value, parts = jax.jit(partial(loss, c=TINY, vision_share=0.3))(weights, batch)
    balanced = 0.7 * float(parts["text_loss"]) + 0.3 * float(parts["vision_loss"])
    assert float(value) == pytest.approx(balanced, rel=1e-6)
    _, parts = jax.jit(partial(loss, c=TINY, vision_share=0.0))(weights, batch)
    assert np.isfinite(parts["vision_loss"])


def test_a_batch_without_any_target_that_counts_has_no_loss() -> None:
    weights, batch = init(specs(TINY), 0), batch_of(draw(0.0, 1.0))
    value, _ = jax.jit(partial(loss, c=TINY, vision_share=0.0))(weights, batch)
    assert value == 0


@pytest.mark.parametrize("packing", [MASKED, Packing(segments="naive")], ids=["masked", "naive"])
@pytest.mark.parametrize("window", [None, 5])
def test_operations_are_those_that_the_masks_leave(packing: Packing, window: int | None) -> None:
    c = replace(TINY, llama=replace(TINY.llama, window=window))
    batch = batch_of(draw(1.0, 1.0), packing)
    learned = np.asarray(batch.weights) > 0
    vision = np.count_nonzero(learned & batch.target_vision)
    text = np.count_nonzero(learned) - vision
    found = batch_flops(jax.tree.map(jnp.asarray, batch), jnp.float32(text), jnp.float32(vision), c)
    assert found == pytest.approx(count_operations(batch, c), rel=1e-6)


def test_frozen_weights_need_fewer_operations() -> None:
    batch = jax.tree.map(jnp.asarray, batch_of(draw(1.0, 1.0)))
    learned = batch.weights > 0
    of_text, of_vision = learned & ~batch.target_vision, learned & batch.target_vision
    text, vision = (jnp.sum(x.astype(jnp.float32)) for x in (of_text, of_vision))
    found = batch_flops(
        batch, text, vision, TINY, None, ("blocks.wq", "blocks.w_down", "text_embed")
    )
    frozen = TINY.llama.layers * (16 * 4 * 4 + 24 * 16)
    assert float(found) == pytest.approx(count_operations(batch, TINY, frozen), rel=1e-6)
    below = [name for name in paths(specs(TINY)) if not name.startswith("heads.")]
    found = batch_flops(batch, text, vision, TINY, None, below)
    wanted = count_operations(batch, TINY, heads_alone=True)
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_adapters_need_the_operations_of_their_factors_and_no_gradient_of_the_base() -> None:
    batch = jax.tree.map(jnp.asarray, batch_of(draw(1.0, 1.0)))
    table = adapted_specs(TINY, Lora(rank=2, targets=("q_proj",)))
    found = batch_flops(batch, jnp.float32(0), jnp.float32(0), TINY, table, frozen_names(table))
    # Without targets for the heads: all matrices of the layers are frozen, and x (A B) is learned.
    matrices = 2 * (2 * 16 * 4 * 4 + 2 * 16 * 2 * 4 + 3 * 16 * 24)
    factors = 2 * (16 * 2 + 2 * 4 * 4)
    tokens = np.count_nonzero(batch.segments)
    whole = batch_flops(batch, jnp.float32(0), jnp.float32(0), TINY)
    wanted = float(whole) + (6 * factors - 2 * matrices) * tokens
    assert float(found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("window", [None, 1000])
def test_operations_of_a_million_tokens_are_counted_to_a_hundred_thousandth(
    window: int | None,
) -> None:
    c, tokens = replace(TINY, llama=replace(TINY.llama, window=window)), 1 << 20
    ids, text = np.zeros((1, tokens), np.int32), np.zeros((1, tokens), np.bool_)
    positions, ones = np.arange(tokens, dtype=np.int32)[None], np.ones((1, tokens), np.int32)
    batch = Batch(ids, text, ids, text, ones.astype(np.float32), positions, ones)
    found = jax.jit(partial(batch_flops, c=c))(batch, jnp.float32(tokens), jnp.float32(0))
    pairs = np.minimum(np.arange(1, tokens + 1), window or tokens).sum()
    D, F, N, K, H = 16, 24, 4, 2, 4
    matrices = 2 * (2 * D * N * H + 2 * D * K * H + 3 * D * F) + D * 32
    wanted = 6 * matrices * tokens + 14 * 2 * N * H * int(pairs)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def z_loss_written_out(weights: WorldWeights, batch: Batch, share: float, z: float) -> jax.Array:
    """The balanced loss with its z-loss, from the logits of all tokens."""
    x = forward(weights, batch.tokens, batch.vision, batch.where, TINY)
    value = jnp.zeros(())
    for logits, mine, part in (
        (read_heads(x, weights, TINY).text, ~batch.target_vision, 1 - share),
        (read_heads(x, weights, TINY).vision, batch.target_vision, share),
    ):
        log_z = jax.nn.logsumexp(logits, axis=-1)
        is_target = jnp.arange(logits.shape[-1]) == batch.targets[..., None]
        nll = log_z - jnp.sum(jnp.where(is_target, logits, 0.0), -1)
        weight = jnp.where(mine, batch.weights, 0.0)
        value += part * jnp.sum(weight * (nll + z * log_z**2)) / jnp.sum(weight)
    return value


def test_the_z_loss_is_the_squared_log_sum_exp_of_all_logits() -> None:
    weights = jax.tree.map(lambda w: 3 * w, init(specs(TINY), 0))  # large logits
    batch = jax.tree.map(jnp.asarray, batch_of(draw(1.0, 1.0)))
    for z in (0.0, 1e-2):
        fast = jax.jit(
            jax.value_and_grad(partial(loss, c=TINY, vision_share=0.3, z_loss=z), has_aux=True)
        )
        slow = jax.jit(jax.value_and_grad(partial(z_loss_written_out, share=0.3, z=z)))
        (value, metrics), grads = fast(weights, batch)
        wanted, wanted_grads = slow(weights, batch)
        # Sums of 2e2 float32 numbers in two orders.
        assert float(value) == pytest.approx(float(wanted), rel=2e-6)
        for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * float(jnp.abs(w).max()))
        plain = float(metrics["text_loss"]) * 0.7 + float(metrics["vision_loss"]) * 0.3
        assert float(value) == pytest.approx(plain + z * float(metrics["z_loss"]), rel=1e-6)
    assert z * float(metrics["z_loss"]) > 0.01 * float(value)
