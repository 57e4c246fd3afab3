"""Perplexity by position: the definition's losses, on any ring, and the curve of a known text."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention.mask import Where
from ringworld.errors import InputError
from ringworld.evals.config import Perplexity
from ringworld.evals.perplexity import (
    cut_passages,
    draw_curves,
    make_buckets,
    make_curve,
    measure_losses,
    measure_perplexity,
    run_perplexity,
)
from ringworld.inference import programs
from ringworld.mesh import make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import init, shardings
from ringworld.text.load import load_tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO

LLAMA = Llama(
    layers=2, model=32, mlp=64, heads=4, kv_heads=2, head_width=8, context=64, rope_theta=1e4
)
TINY = World(llama=LLAMA, vocabulary=Vocabulary(text=2048, bos=1, eos=2))
WORDS = load_tokenizer(NANO / "tokenizer.json")
CONFIG = Perplexity(model=NANO, text=Path("none"), context=96, passages=2)
TEXT = "It was the best of times, it was the worst of times. " * 40


@pytest.fixture(scope="module")
def weights() -> WorldWeights:
    return init(specs(TINY), 0)


def slow_losses(weights: WorldWeights, row: np.ndarray, c: World) -> np.ndarray:
    """From all logits at once, in float64."""
    length = len(row)
    where = Where(jnp.arange(length, dtype=jnp.int32)[None], jnp.ones((1, length), jnp.int32))
    tokens = jnp.asarray(row[None], jnp.int32)
    x = forward(weights, tokens, jnp.zeros_like(tokens, bool), where, c)
    logits = np.asarray(x[0] @ weights.heads.text, np.float64)
    top = logits.max(-1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return -logp[np.arange(length - 1), row[1:]]


@pytest.mark.parametrize("shape", [None, {"seq": 4}, {"seq": 2, "tensor": 2}])
@pytest.mark.parametrize("rule", ["plain", "yarn"])
def test_losses_are_the_definitions_on_every_mesh(
    weights: WorldWeights,
    shape: dict[str, int] | None,
    rule: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "LOGITS", 16)
    c = extend_context(TINY, 100, rule)
    rows = rng.integers(0, 2048, (2, 100)).astype(np.int32)
    with nullcontext() if shape is None else jax.set_mesh(make_mesh(**shape)):
        placed = weights
        if shape is not None:
            placed = jax.device_put(weights, shardings(specs(TINY), jax.sharding.get_mesh()))
        found = measure_losses(placed, rows, c)
    wanted = np.stack([slow_losses(weights, row, c) for row in rows])
    # Two layers and a sum of 2048 in float32, in another order, against losses of about 8 nats.
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_passages_are_whole_spread_and_do_not_overlap() -> None:
    ids = np.arange(10, 1010, dtype=np.int32)
    rows = cut_passages(ids, [1], 101, 4)
    assert rows.shape == (4, 101) and (rows[:, 0] == 1).all()
    assert rows[0, 1] == 10 and rows[-1, -1] == 1009
    assert (np.diff(rows[:, 1]) >= 100).all()
    assert len(cut_passages(ids, [], 400, 99)) == 2
    with pytest.raises(InputError, match="has 1,000 tokens and a passage needs 1,001"):
        cut_passages(ids, [1], 1002, 4)


def test_buckets_grow_and_cover_the_context_once() -> None:
    ends = [past for _, past in make_buckets(5000)]
    assert ends[3:] == [1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5000]
    assert make_buckets(1000) == ((0, 128), (128, 256), (256, 512), (512, 1000))
    assert make_buckets(100) == ((0, 100),)
    for context in (1, 128, 129, 4096):
        buckets = make_buckets(context)
        assert [p for a, b in buckets for p in range(a, b)] == list(range(context))


def test_a_curve_is_the_mean_of_each_bucket_without_the_opening() -> None:
    losses = np.zeros((2, 299))
    losses[:, 127:255] = 2.0  # the tokens at positions 128 to 255
    losses[:, 0] = 1e6  # the first token of text, if it stands behind one of the opening
    curve = make_curve(losses, 2, "plain", 300)
    assert curve.losses == (0.0, 2.0, 0.0)
    assert curve.tokens == 2 * 298
    assert curve.perplexity == pytest.approx(math.exp(2.0 * 128 / 298))
    assert make_curve(losses, 1, "plain", 300).losses[0] == pytest.approx(1e6 / 127)


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary(weights: WorldWeights) -> None:
    flat = replace(weights, heads=replace(weights.heads, text=0 * weights.heads.text))
    told: list[str] = []
    curves = run_perplexity(flat, TINY, WORDS, TEXT, CONFIG, told.append)
    # A logarithm of 2048 in float32.
    assert curves[0].perplexity == pytest.approx(2048, rel=1e-5)
    assert "2048.0" in told[0]


def test_int8_keys_and_values_change_the_losses_by_little(weights: WorldWeights) -> None:
    rough = replace(CONFIG, int8=True)
    exact, found = (
        run_perplexity(weights, TINY, WORDS, TEXT, config, print)[0].loss
        for config in (CONFIG, rough)
    )
    # An untrained model hardly reads what it attends to: 1e-3 of its 7.6 nats is much.
    assert 0 < abs(found - exact) < 1e-3


def test_a_model_folder_gives_numbers_and_a_picture(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    config = replace(
        CONFIG, text=book, context=256, rules=("plain", "ntk"), folder=tmp_path / "out"
    )
    curves = measure_perplexity(config, lambda said: None)
    kept = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert [curve["rule"] for curve in kept["curves"]] == ["plain", "ntk"]
    assert kept["curves"][0]["perplexity"] == curves[0].perplexity < 2048
    assert (tmp_path / "out" / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert draw_curves(curves, 1024, "again").startswith(b"\x89PNG")


def test_a_text_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("bytes", "none"):
        with pytest.raises(InputError, match="is no UTF-8 text"):
            measure_perplexity(replace(CONFIG, text=tmp_path / name), lambda said: None)
