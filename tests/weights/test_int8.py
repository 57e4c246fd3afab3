"""Weights as int8: half of bfloat16, nearly the same numbers, and the same bits on every way."""

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convert import TOKENS, quiet
from tiny_hf import write_tiny

from ringworld.data.example import text
from ringworld.errors import InputError
from ringworld.evals.perplexity import cut_passages, measure_losses
from ringworld.inference.generate import draw_frames, write_text
from ringworld.mesh import make_mesh
from ringworld.models.lora import merge_adapters
from ringworld.params import Param, paths
from ringworld.settings import MeshShape, Sampling
from ringworld.weights.int8 import dequantize_matrix, quantize_matrix, quantize_weight
from ringworld.weights.model import Model, load_model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO
from ringworld.weights.tensors import LazyTensor, LazyWeight, read_tensors

ROOT = Path(__file__).parents[2]
FAMILIES = {"llama": {}, "tied": {"tie_word_embeddings": True}, "qwen2": {"model_type": "qwen2"}}
by_family = pytest.mark.parametrize("family", FAMILIES)


def equal(a: Any, b: Any) -> bool:
    """Whether two models' weights are the same bits."""
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    return jax.tree.all(same)


def plain(model: Model) -> Model:
    """The same model with its int8 matrices as float32 arrays."""
    return Model(model.config, merge_adapters(model.weights, model.config), None, None)


def test_a_weight_is_at_most_half_a_step_from_its_int8(rng: np.random.Generator) -> None:
    w = rng.standard_normal((3, 40, 5, 7)).astype(np.float32)
    w[0, :, 1, 2] = 0.0
    found = quantize_matrix(w, (-3,))
    back = dequantize_matrix(found.values, found.scales, (-3,))
    assert found.scales.shape == (3, 5, 7)
    assert found.values.dtype == np.int8
    assert np.abs(found.values).max(1).min() in (0, 127), "the largest weight is 127 steps"
    # A scale is rounded to 16 bits, which moves 127 steps by a thousandth of one.
    assert (np.abs(back - w) <= 0.502 * found.scales[:, None]).all()
    assert (back[0, :, 1, 2] == 0).all()


def test_quantising_what_was_int8_gives_the_same_bits(rng: np.random.Generator) -> None:
    w = rng.standard_normal((257, 1000)).astype(np.float32) * np.exp(rng.normal(0, 9, 1000))
    first = quantize_matrix(w.astype(np.float32), (-2,))
    again = quantize_matrix(dequantize_matrix(first.values, first.scales, (-2,)), (-2,))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.scales, again.scales)


def test_a_matrix_is_quantised_a_layer_at_a_time_and_each_layer_once(
    rng: np.random.Generator,
) -> None:
    w, read = rng.standard_normal((3, 8, 5)).astype(np.float32), list[int]()

    def layer(i: int) -> np.ndarray:
        read.append(i)
        return w[i : i + 1]

    reads = tuple(LazyTensor(partial(layer, i), w.dtype) for i in range(3))
    param = Param(w.shape, ("layers", "embed", "mlp"), inputs=(-2,))
    values, scales = quantize_weight("w", param, LazyWeight(w.shape, reads, ("a", "b", "c")))
    assert read == []
    found = list(zip(values, scales, strict=True))
    assert read == [0, 1, 2]
    whole = quantize_matrix(w, (-2,))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), whole.values)
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), whole.scales)
    w[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="the tensor b holds NaN"):
        list(values)


@by_family
def test_int8_has_the_logits_of_its_own_numbers_in_float32(tmp_path: Path, family: str) -> None:
    """The scale after the product, or before it: the same sums, rounded in another order."""
    write_tiny(tmp_path / "src", **FAMILIES[family])
    ours = load_model(tmp_path / "src", "int8")
    found, wanted = ours.logits(TOKENS).text, plain(ours).logits(TOKENS).text
    exact = load_model(tmp_path / "src").logits(TOKENS).text
    scale = float(jnp.abs(wanted).max())
    assert float(jnp.abs(found - wanted).max()) < 1e-5 * scale
    assert 1e-4 * scale < float(jnp.abs(found - exact).max()) < 0.1 * scale


def test_a_world_model_reads_codes_in_int8() -> None:
    vision = np.zeros_like(TOKENS)
    vision[:, 5:20] = 1
    ours = load_model(NANO, "int8")
    found, wanted = ours.logits(TOKENS, vision), plain(ours).logits(TOKENS, vision)
    for a, b in ((found.text, wanted.text), (found.vision, wanted.vision)):
        assert float(jnp.abs(a - b).max()) < 1e-5 * float(jnp.abs(b).max())


def test_a_world_model_writes_and_draws_in_int8() -> None:
    """The heads of nano are smaller and larger than what is cast at one time."""
    ours = load_model(NANO, "int8")
    prompts = [text([1, 20, 30, 40], 0.0)]
    greedy: dict[str, Any] = {"sampling": Sampling(), "seed": 0}
    for model in (ours, plain(ours)):
        written = write_text(model.weights, prompts, model.config, steps=6, **greedy)
        drawn = draw_frames(
            model.weights, prompts, (), model.config, frames=1, guidance=1.0, **greedy
        )
        assert written == write_text(ours.weights, prompts, ours.config, steps=6, **greedy)
        assert drawn.shape == (1, 1, 64)


@pytest.mark.parametrize("shape", [MeshShape(fsdp=2, seq=2, tensor=2), MeshShape(seq=8)])
def test_int8_gives_the_same_logits_on_every_mesh(tmp_path: Path, shape: MeshShape) -> None:
    write_tiny(tmp_path / "src")
    wanted = load_model(tmp_path / "src", "int8").logits(TOKENS[:, :16]).text
    with jax.set_mesh(make_mesh(**asdict(shape))):
        found = load_model(tmp_path / "src", "int8").logits(TOKENS[:, :16]).text
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


@by_family
def test_an_int8_folder_loads_with_the_bits_of_its_source(tmp_path: Path, family: str) -> None:
    write_tiny(tmp_path / "src", **FAMILIES[family])
    convert(tmp_path / "src", tmp_path / "int8", None, quiet, dtype="int8")
    convert(tmp_path / "int8", tmp_path / "again", None, quiet, dtype="int8")
    wanted = load_model(tmp_path / "src", "int8").weights
    assert equal(load_model(tmp_path / "int8", "int8").weights, wanted)
    one, two = (tmp_path / name / "model.safetensors" for name in ("int8", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_an_int8_folder_serves_every_reader_of_floats(tmp_path: Path) -> None:
    write_tiny(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "int8", None, quiet, dtype="int8")
    convert(tmp_path / "int8", tmp_path / "theirs", None, quiet)
    ours = plain(load_model(tmp_path / "int8", "int8")).weights
    assert equal(load_model(tmp_path / "int8").weights, ours)
    assert equal(load_model(tmp_path / "theirs").weights, ours)


def test_bfloat16_halves_a_file_and_int8_quarters_it(tmp_path: Path) -> None:
    convert(NANO, tmp_path / "theirs", None, quiet)
    sizes = {}
    for dtype in ("float32", "bfloat16", "int8"):
        convert(tmp_path / "theirs", tmp_path / dtype, None, quiet, dtype=dtype)
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert sizes["bfloat16"] / sizes["float32"] < 0.51
    # A scale for each output: of 64 inputs and more, up to 4 bytes in 64.
    assert sizes["int8"] / sizes["bfloat16"] < 0.55


def test_all_matrices_and_nothing_else_are_int8() -> None:
    weights = load_model(NANO, "int8").weights
    kinds = {name.rpartition(".")[2]: leaf.dtype for name, leaf in paths(weights).items()}
    assert kinds.pop("values") == jnp.int8
    assert set(kinds) == {"scales", "attn_norm", "mlp_norm", "norm"}
    assert set(kinds.values()) == {jnp.dtype("float32")}


def damage(file: Path, change: Any) -> None:
    """Write the tensors of a file again, changed."""
    tensors = {name: np.array(w) for name, w in read_tensors(file).items()}
    change(tensors)
    file.unlink()
    save_file(tensors, file)


DAMAGES = {
    "no scales": lambda t: t.pop("blocks.wq.scales"),
    "scales of another shape": lambda t: t.update({"blocks.wq.scales": t["blocks.wq.scales"][1:]}),
    "values that are floats": lambda t: t.update(
        {"blocks.wq.values": t["blocks.wq.values"].astype(np.float32)}
    ),
    "values of another shape": lambda t: t.update({"blocks.wq.values": t["blocks.wk.values"]}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_int8_tensors_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    write_tiny(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "int8", None, quiet, dtype="int8")
    damage(tmp_path / "int8" / "model.safetensors", DAMAGES[kind])
    with pytest.raises(InputError, match="the int8 weight blocks.wq is not the values"):
        load_model(tmp_path / "int8", "int8")


def test_an_infinite_scale_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "int8", None, quiet, dtype="int8")
    file = tmp_path / "int8" / "model.safetensors"
    damage(file, lambda t: t["blocks.wq.scales"].fill(np.inf))
    with pytest.raises(InputError, match="NaN or infinity"):
        load_model(tmp_path / "int8", "int8")


def test_a_codec_has_no_int8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which has no dtype"):
        convert(NANO / "codec", tmp_path / "out", None, quiet, dtype="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_int8_keeps_the_perplexity_of_smollm2_within_half_a_percent() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    means = {}
    for dtype in ("float32", "int8"):
        model = load_model(Path("smollm2-135m"), dtype)
        ids = np.asarray(model.tokenizer.encode(text), np.int32)
        rows = cut_passages(ids, [], 1024, 4)
        means[dtype] = float(measure_losses(model.weights, rows, model.config).mean())
    ratio = math.exp(means["int8"] - means["float32"])
    print(json.dumps(means), f"int8 has {ratio - 1:+.2e}")
    assert abs(ratio - 1) < 5e-3
