"""The loss of batches that lack a modality, and the operations that a batch needs."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import count_operations
from tiny_models import tiny_world

from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.loader import stack
from ringworld.data.packing.rows import MASKED, PackedRows, Packing
from ringworld.models.world import specs
from ringworld.params import init
from ringworld.train.loss import batch_flops, loss
from ringworld.vocab import Vocabulary

CONTEXT = 24
VOCABULARY = Vocabulary(text=32, bos=1, eos=2, codes=6, codes_per_frame=3, vision_rows=8)
TINY = tiny_world(VOCABULARY, CONTEXT)


def draw(weight_of_text: float, weight_of_frames: float) -> list[Example]:
    """A few texts that end with frames."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(8):
        ids = rng.integers(3, 32, int(rng.integers(3, 12))).tolist()
        codes = rng.integers(0, 6, (int(rng.integers(1, 3)), 3))
        frames = example.frames(codes, VOCABULARY, weight_of_frames)
        examples.append(example.join([example.text(ids, weight_of_text), frames]))
    return examples


def batch_of(examples: list[Example], packing: Packing = MASKED) -> Batch:
    """All rows of some examples."""
    rows = PackedRows(examples, CONTEXT, packing)
    return stack(rows[i] for i in range(len(rows)))


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
