"""During training: the loss by position and needles, of a text that is held out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals.perplexity import cut_passages, measure_losses
from ringworld.mesh import make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World, specs
from ringworld.params import init
from ringworld.recipes import held_out
from ringworld.recipes.held_out import measure_held_out
from ringworld.recipes.shards import TokenShards, shards
from ringworld.settings import MeshShape
from ringworld.text.load import load_tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO

TINY = World(
    llama=Llama(
        layers=1, model=16, mlp=16, heads=2, kv_heads=2, head_width=8, context=256, rope_theta=1e4
    ),
    vocabulary=Vocabulary(text=2048, bos=1, eos=2),
)
TEXT = "It was the best of times, it was the worst of times. " * 90
STAGE = replace(shards().stages[0], context=256, eval_every=2, eval_passages=3, eval_needles=3)


def ids(tokenizer: Any) -> list[np.ndarray]:
    """The held-out text."""
    return [np.asarray(tokenizer.encode(TEXT), np.int32)]


def measured(**shape: int) -> dict[str, float]:
    """What is measured of fresh weights on a mesh."""
    with jax.set_mesh(make_mesh(**shape)):
        weights = jax.jit(lambda: init(specs(TINY), 0))()
        stage = replace(STAGE, mesh=MeshShape(**shape))
        return dict(measure_held_out(stage, NANO, TINY, ids)(weights))


def test_every_mesh_measures_the_same_loss_by_position_and_no_needle_of_fresh_weights() -> None:
    alone = measured()
    assert list(alone) == ["eval_loss", "eval_loss_0_128", "eval_loss_128_256", "eval_needles"]
    assert alone["eval_needles"] == 0
    tokenizer = load_tokenizer(NANO)
    rows = cut_passages(ids(tokenizer)[0], tokenizer.opening, 256, 3)
    losses = measure_losses(init(specs(TINY), 0), rows, TINY)
    assert alone["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-3)
    assert measured(data=2, seq=2, tensor=2) == pytest.approx(alone, rel=1e-5)


def test_a_needle_that_is_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[list[int]] = []

    def write(weights: Any, prompts: Any, c: Any, **how: Any) -> list[list[int]]:
        words = load_tokenizer(NANO)
        said = [words.decode(prompt.tokens.tolist()) for prompt in prompts]
        return [words.encode(line.split("number is: ")[1][:7]) for line in said[:2]] + [numbers]

    monkeypatch.setattr(held_out, "write_text", write)
    assert measured()["eval_needles"] == pytest.approx(2 / 3)


def test_shards_are_evaluated_on_a_text_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name its file in held_out, or set eval_every to 0"):
        TokenShards(folder=tmp_path).check(STAGE, None)
    with pytest.raises(InputError, match="is no UTF-8 text that can be read"):
        TokenShards(folder=tmp_path, held_out=tmp_path / "none").check(STAGE, None)
    (tmp_path / "text").write_text("short")
    data = TokenShards(folder=tmp_path, held_out=tmp_path / "text")
    with pytest.raises(InputError, match="a passage needs"):
        data.measure(STAGE, NANO, TINY, tmp_path, print)
