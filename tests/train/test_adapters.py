"""A stage of adapters: they learn, nothing else moves, and what is left can be gone on from."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model_stage import CONTEXT, FIRST, TINY, assert_same_bits, losses
from tiny_stage import toys

from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models.lora import Lora, adapter_specs, adapters_of
from ringworld.models.world import specs
from ringworld.params import Adapted, count, paths
from ringworld.settings import MeshShape, WeightType
from ringworld.train.adapters import ADAPTER, load_weights
from ringworld.train.build import Updates
from ringworld.train.fresh_model import fresh_weights
from ringworld.train.loop import Loop
from ringworld.train.model_stage import ModelData, ModelStage, build_stage, train_stage
from ringworld.train.optimizer import AdamW
from ringworld.weights.folder import save_folder
from ringworld.weights.model import load_model

STEPS = 12
LORA = Lora(rank=4, alpha=8.0)
STAGE = replace(
    FIRST,
    name="lora",
    lora=LORA,
    loop=Loop(steps=STEPS, save_every=6, log_every=1),
    optimizer=AdamW(peak_lr=1e-1, end_lr=1e-2, warmup_steps=2, schedule="cosine"),
)


class Toys(ModelData):
    """The toy examples as the data of a recipe."""

    def open(self, stage: Any, source: Path, cache: Path, announce: Any) -> Any:
        """All of them."""
        return toys()


def train(stage: ModelStage, folder: Path) -> tuple[Any, Any]:
    """The weights of a stage before its first step and after its last."""
    weights = fresh_weights(TINY, 0, stage.rules)
    table = {name: np.asarray(weight) for name, weight in paths(weights).items()}

    def load() -> Any:
        return load_weights(TINY, table, stage.lora, stage.seed, stage.rules)

    with jax.set_mesh(make_mesh(**asdict(stage.mesh))):
        before = jax.device_get(load())
    return before, jax.device_get(train_stage(stage, TINY, load, toys(), folder, print))


def without_adapters(weights: Any) -> Any:
    """The weights that the adapters stand beside."""

    def is_adapted(w: Any) -> bool:
        return isinstance(w, Adapted)

    return jax.tree.map(lambda w: w.base if is_adapted(w) else w, weights, is_leaf=is_adapted)


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_adapters_learn_and_every_other_weight_keeps_its_bits(
    tmp_path: Path, base: WeightType
) -> None:
    before, after = train(replace(STAGE, lora=replace(LORA, base=base)), tmp_path)
    assert_same_bits(without_adapters(after), without_adapters(before))
    found = losses(tmp_path)
    assert np.mean(found[-3:]) < 0.9 * found[0]
    moved = [np.abs(pair.b).max() > 0 for pair in adapters_of(after).values()]
    assert len(moved) == 7
    assert all(moved)


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays of a tree that need not exist."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_the_optimizer_holds_two_moments_of_the_adapters_and_nothing_else(base: WeightType) -> None:
    sizes = replace(TINY.llama, layers=3, mlp=96)
    config, one = replace(TINY, llama=sizes), MeshShape()
    mesh = make_mesh()
    stage = replace(STAGE, mesh=one, lora=replace(LORA, base=base))
    with jax.set_mesh(mesh):
        state = build_stage(stage, config, mesh)[0].state
        whole = build_stage(replace(stage, lora=Lora()), config, mesh)[0].state
    D, F, NH, KH = (
        sizes.model,
        sizes.mlp,
        sizes.heads * sizes.head_width,
        sizes.kv_heads * sizes.head_width,
    )
    ends = 2 * (D + NH) + 2 * (D + KH) + 3 * (D + F)
    counters = 64  # of steps
    assert 0 <= bytes_of(state.optimizer) - 2 * 4 * 3 * LORA.rank * ends <= counters
    assert 0 <= bytes_of(whole.optimizer) - 2 * 4 * count(specs(config)) <= counters
    if base == "int8":
        assert bytes_of(state.weights) < 0.5 * bytes_of(whole.weights)


def test_a_stage_leaves_its_adapter_and_a_model_that_has_it_merged_in(tmp_path: Path) -> None:
    source = tmp_path / "base"
    save_folder(source, "world", TINY, fresh_weights(TINY, 0, STAGE.rules), jnp.float32)
    made = STAGE.run(Toys(), source, tmp_path, print)
    tokens = np.random.default_rng(0).integers(3, 32, (2, CONTEXT)).astype(np.int32)
    wanted = load_model(made).logits(tokens)
    found = load_model(source, adapter=tmp_path / "lora" / ADAPTER).logits(tokens)
    bare = load_model(source).logits(tokens)
    scale = float(jnp.abs(wanted.text).max())
    assert float(jnp.abs(found.text - wanted.text).max()) < 1e-5 * scale
    assert float(jnp.abs(bare.text - wanted.text).max()) > 1e-2 * scale
    # The next stage goes on from it as from any model.
    after = replace(STAGE, name="next", lora=Lora(), loop=Loop(steps=3))
    assert after.run(Toys(), made, tmp_path, print).exists()


def test_frozen_names_beside_adapters_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "base"
    save_folder(source, "world", TINY, fresh_weights(TINY, 0, STAGE.rules), jnp.float32)
    stage = replace(STAGE, updates=Updates(frozen=("vision_*",)))
    with pytest.raises(InputError, match="need not be named as frozen"):
        stage.check(Toys(), source, tmp_path)


def test_int8_weights_without_adapters_are_not_trained() -> None:
    with pytest.raises(InputError, match="weights of int8 are not trained"):
        Lora(base="int8")


def test_a_rank_that_is_not_low_is_refused() -> None:
    most = TINY.llama.kv_heads * TINY.llama.head_width
    assert most < TINY.llama.model
    adapter_specs(TINY.llama, replace(LORA, rank=most))
    with pytest.raises(InputError, match=f"k_proj, whose rank is at most {most}: use a smaller"):
        adapter_specs(TINY.llama, replace(LORA, rank=most + 1))
