"""Adapters: PEFT's layout in and out, merged or beside the weights, and what cannot be used."""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convert import TOKENS, quiet
from test_int8 import damage, equal
from tiny_hf import write_tiny

from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.models.lora import (
    Adapter,
    Adapters,
    Lora,
    adapter_specs,
    adapters_of,
    merge_adapters,
)
from ringworld.settings import MeshShape
from ringworld.weights.adapter import ADAPTER_CONFIG, ADAPTER_TENSORS, read_adapter, save_adapter
from ringworld.weights.model import Model, load_model
from ringworld.weights.open import hash_model, is_folder
from ringworld.weights.save import convert, unpack_model

# The same sums in another order, of logits as large as 1: what merging may change.
MERGED = 1e-5
LORA = Lora(rank=4, alpha=6.0)
FAMILIES = {"llama": {}, "qwen2": {"model_type": "qwen2"}, "qwen3": {"model_type": "qwen3"}}


def draw_adapters(folder: Path, lora: Lora = LORA) -> Adapters:
    """Adapters for the model of a folder that change its logits a little."""
    rng = np.random.default_rng(0)
    table = adapter_specs(load_model(folder).config.llama, lora)
    return {
        name: Adapter(
            *(jnp.asarray(rng.normal(0, 0.1, p.shape), jnp.float32) for p in (pair.a, pair.b))
        )
        for name, pair in table.items()
    }


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny model `base` with float32 weights and its adapter `adapter`."""
    write_tiny(tmp_path / "base", np.float32)
    save_adapter(tmp_path / "adapter", draw_adapters(tmp_path / "base"), LORA, "base")
    return tmp_path


def assert_close(found: Any, wanted: Any, tolerance: float = MERGED) -> None:
    scale = float(jnp.abs(wanted).max())
    assert float(jnp.abs(found - wanted).max()) <= tolerance * scale


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [("*_proj",), ("q_proj", "down_proj")])
def test_an_adapter_beside_the_weights_has_the_logits_of_one_merged_into_them(
    tmp_path: Path, family: str, targets: tuple[str, ...]
) -> None:
    write_tiny(tmp_path / "base", np.float32, **FAMILIES[family])
    lora = replace(LORA, targets=targets)
    save_adapter(tmp_path / "adapter", draw_adapters(tmp_path / "base", lora), lora, "base")
    convert(tmp_path / "base", tmp_path / "merged", None, quiet, adapter=tmp_path / "adapter")
    wanted = load_model(tmp_path / "merged").logits(TOKENS).text
    beside = load_model(tmp_path / "base", adapter=tmp_path / "adapter")
    assert_close(beside.logits(TOKENS).text, wanted)
    plain = load_model(tmp_path / "base").logits(TOKENS).text
    assert float(jnp.abs(plain - wanted).max()) > 1e-2, "the adapter changes what is compared"
    there = Model(beside.config, merge_adapters(beside.weights, beside.config), None, None)
    assert_close(there.logits(TOKENS).text, wanted)


@pytest.mark.parametrize("base", ["../base", "base", "ABSOLUTE"])
def test_the_folder_of_an_adapter_is_the_model_with_the_adapter_merged_in(
    tiny: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    said = json.loads((tiny / "adapter" / ADAPTER_CONFIG).read_text())
    said["base_model_name_or_path"] = str(tiny / "base") if base == "ABSOLUTE" else base
    (tiny / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(said))
    convert(tiny / "base", tiny / "merged", None, quiet, adapter=tiny / "adapter")
    wanted = load_model(tiny / "merged").logits(TOKENS)
    found = load_model(tiny / "adapter")
    assert equal(found.logits(TOKENS), wanted)
    (tiny / "adapter" / "about.txt").write_text("It was taught to answer.")
    assert load_model(tiny / "adapter").about == "It was taught to answer."
    assert not is_folder(tiny / "adapter"), "a stage unpacks it before it starts from it"
    assert equal(
        load_model(unpack_model(tiny / "adapter", tiny / "own", quiet)).logits(TOKENS), wanted
    )


def test_the_hash_of_an_adapter_is_of_its_model_too(tiny: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tiny)
    known = {hash_model(tiny / "adapter"), hash_model(tiny / "base")}
    with (tiny / "base" / "config.json").open("a") as file:
        file.write("\n")
    assert len(known | {hash_model(tiny / "adapter")}) == 3


@pytest.mark.parametrize("base", ["nowhere", "", "../adapter", None])
def test_an_adapter_without_its_model_is_no_model(tiny: Path, base: str | None) -> None:
    file = tiny / "adapter" / ADAPTER_CONFIG
    said = {**json.loads(file.read_text()), "base_model_name_or_path": base}
    file.write_text(json.dumps(said))
    with pytest.raises(InputError, match="is an adapter of .*: give the model, and this as"):
        load_model(tiny / "adapter")
    assert hash_model(tiny / "adapter") is not None, "with --adapter it needs no model of its own"


def test_an_adapter_on_int8_weights_has_the_logits_of_their_sum(tiny: Path) -> None:
    model = load_model(tiny / "base", "int8", tiny / "adapter")
    merged = Model(model.config, merge_adapters(model.weights, model.config), None, None)
    assert_close(model.logits(TOKENS).text, merged.logits(TOKENS).text)
    bare = load_model(tiny / "base", "int8").logits(TOKENS).text
    assert float(jnp.abs(model.logits(TOKENS).text - bare).max()) > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shape", [MeshShape(fsdp=2, seq=2, tensor=2), MeshShape(seq=8)])
def test_an_adapted_model_has_the_same_logits_on_every_mesh(
    tiny: Path, shape: MeshShape, dtype: str
) -> None:
    wanted = load_model(tiny / "base", dtype, tiny / "adapter").logits(TOKENS[:, :16]).text
    with jax.set_mesh(make_mesh(**asdict(shape))):
        found = load_model(tiny / "base", dtype, tiny / "adapter").logits(TOKENS[:, :16]).text
        assert_close(np.asarray(found), np.asarray(wanted))


def test_an_adapter_is_saved_and_read_to_the_bit(tiny: Path) -> None:
    wanted = draw_adapters(tiny / "base")
    found, scale = read_adapter(tiny / "adapter", load_model(tiny / "base").config.llama)
    assert equal(found, wanted)
    assert scale == 6.0 / 4
    held = adapters_of(load_model(tiny / "base", adapter=tiny / "adapter").weights)
    assert equal(held, wanted)


def test_the_files_have_the_names_and_shapes_of_peft(tiny: Path) -> None:
    from ringworld.weights.tensors import read_tensors

    tensors = read_tensors(tiny / "adapter" / ADAPTER_TENSORS)
    start = "base_model.model.model.layers.1"
    assert tensors[f"{start}.self_attn.q_proj.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{start}.self_attn.v_proj.lora_B.weight"].shape == (16, 4)
    assert tensors[f"{start}.mlp.down_proj.lora_A.weight"].shape == (4, 48)
    assert len(tensors) == 2 * 2 * 7, "two factors of seven matrices in two layers"
    said = json.loads((tiny / "adapter" / ADAPTER_CONFIG).read_text())
    assert (said["r"], said["lora_alpha"], said["peft_type"]) == (4, 6.0, "LORA")


CONFIGS = {
    "dora": ({"use_dora": True}, "sets use_dora to True"),
    "ranks of its own": ({"rank_pattern": {"q_proj": 8}}, "sets rank_pattern"),
    "another method": ({"peft_type": "IA3"}, "sets peft_type to IA3"),
    "no rank": ({"r": 0}, "gives the rank 0"),
    "biases": ({"bias": "all"}, "sets bias to all"),
    "another rank": ({"r": 8}, r"has the shape \(4, 32\) and this model needs \(8, 32\)"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_that_asks_for_more_is_refused(tiny: Path, kind: str) -> None:
    file = tiny / "adapter" / ADAPTER_CONFIG
    change, said = CONFIGS[kind]
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=said):
        load_model(tiny / "base", adapter=tiny / "adapter")


START = "base_model.model.model.layers.0.self_attn"
TENSORS = {
    "lacks": lambda t: t.pop(f"{START}.q_proj.lora_B.weight"),
    "for which this model has no matrix": lambda t: t.update(
        {"base_model.model.lm_head.lora_A.weight": np.zeros((4, 32), np.float32)}
    ),
    "NaN or infinity": lambda t: t[f"{START}.q_proj.lora_A.weight"].fill(np.nan),
}


@pytest.mark.parametrize("said", TENSORS)
def test_tensors_of_another_model_are_refused(tiny: Path, said: str) -> None:
    damage(tiny / "adapter" / ADAPTER_TENSORS, TENSORS[said])
    with pytest.raises(InputError, match=said):
        load_model(tiny / "base", adapter=tiny / "adapter")


def test_a_folder_that_is_no_adapter_is_refused_before_anything_is_written(tiny: Path) -> None:
    shutil.rmtree(tiny / "adapter")
    with pytest.raises(InputError, match="give the folder of an adapter"):
        convert(tiny / "base", tiny / "merged", None, quiet, adapter=tiny / "adapter")
    assert not (tiny / "merged").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": -1}, "adapters of rank -1"),
        ({"rank": 4, "alpha": 0.0}, "alpha 0.0"),
        ({"rank": 4, "targets": ("q_pro",)}, "did you mean q_proj"),
        ({"rank": 4, "targets": ()}, "name some"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Lora(**settings)


@pytest.mark.oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_adapter_and_has_our_logits(tmp_path: Path, family: str) -> None:
    if not importlib.util.find_spec("peft"):
        pytest.skip("needs peft")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_tiny(tmp_path / "base", np.float32, **FAMILIES[family])
    save_adapter(tmp_path / "adapter", draw_adapters(tmp_path / "base"), LORA, "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    ours = load_model(tmp_path / "base", adapter=tmp_path / "adapter")
    assert_close(np.asarray(ours.logits(TOKENS).text), wanted)
    # And back: what peft saves is what we read.
    theirs.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "base", adapter=tmp_path / "again")
    assert equal(adapters_of(again.weights), adapters_of(ours.weights))
