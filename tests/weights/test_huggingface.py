"""Hugging Face's models through our decoder: what transformers says of the same weights.

Tiny random models of each family, every weight of them random: biases and gains that start at 0 and
1 would hide that they are not read. The tests marked `oracle` need torch and transformers.
"""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import PARITY, unpack
from PIL import Image

from ringworld.data.example import Example
from ringworld.inference.generate import write_text
from ringworld.settings import Sampling
from ringworld.weights.model import load_model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 95,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
# The family, and what it has of its own.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"rope_theta": 50000.0}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {"sliding_window": 16}),  # which is not used
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, window": (
        "Qwen3",
        {"head_dim": 16, "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0},
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True}),
}
# Float32 sums of some dozens of terms in another order; logits are of the order of 10.
TOLERANCE = 1e-4
STEPS = 12


@pytest.fixture(scope="module", params=list(FAMILIES))
def twin(request, tmp_path_factory) -> tuple[Any, Path]:
    """A torch model of the family and the folder that it saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, own = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(**(SIZES | own))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(float(weight.ndim == 1 and weight.mean() > 0.5), 0.2)
    folder = tmp_path_factory.mktemp("twin") / request.param
    model.save_pretrained(folder)
    return model, folder


def tokens_of(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 95, (2, length)).astype(np.int32)


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


@pytest.mark.oracle
def test_logits_and_greedy_text_are_those_of_transformers(twin):
    import torch

    model, folder = twin
    ours, tokens = load_model(folder), tokens_of(48)
    found = ours.logits(tokens)
    assert found.vision is None
    np.testing.assert_allclose(found.text, logits_of(model, tokens), atol=TOLERANCE, rtol=0)
    model.generation_config.eos_token_id = None
    theirs = model.generate(
        torch.from_numpy(tokens[:1].astype(np.int64)), max_new_tokens=STEPS, do_sample=False
    )[0, 48:].tolist()
    prompt = Example(tokens[0], np.zeros(48, bool), np.zeros(48, np.float32))
    written = write_text(
        ours.weights, [prompt], ours.config, steps=STEPS, sampling=Sampling(), seed=0
    )[0]
    assert written == theirs[: theirs.index(95) if 95 in theirs else None]


@pytest.mark.oracle
def test_what_is_written_out_loads_in_transformers_as_it_is(twin, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model, folder = twin
    convert(folder, tmp_path / "ours", None, print)
    convert(tmp_path / "ours", tmp_path / "theirs", None, print, shard_bytes=8000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert again.config.max_position_embeddings == 128
    assert again.config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]
    tokens = tokens_of(48)
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(model, tokens))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["lwm_text", "lwm_vision"])
def test_what_lwm_becomes_has_our_logits_in_transformers(tmp_path: Path, name: str):
    from transformers import AutoModelForCausalLM

    file = unpack(f"{name}/streaming_params.gz", tmp_path)
    convert(file, tmp_path / "ours", None, print)
    convert(tmp_path / "ours", tmp_path / "theirs", None, print)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    given, ours = np.load(PARITY / name / "expected.npz"), load_model(file)
    ids, text = given["input_ids"], ours.config.vocabulary.text
    seen = given["vision_mask"] if name == "lwm_vision" else np.zeros_like(ids, bool)
    found = ours.logits(ids, modality=seen)
    joined = [x for x in (found.text, found.vision) if x is not None]
    wanted = logits_of(theirs, np.where(seen, ids + text, ids))
    np.testing.assert_allclose(np.concatenate(joined, -1), wanted, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory) -> Path:
    """The shipped world model, as it goes out."""
    folder = tmp_path_factory.mktemp("world") / "theirs"
    convert(NANO, folder, None, print)
    return folder


@pytest.mark.oracle
def test_a_world_model_reads_and_draws_in_torch_as_it_does_here(world_folder: Path):
    pytest.importorskip("diffusers")
    script = Path(__file__).parents[2] / "examples" / "world_in_torch.py"
    theirs, ours = runpy.run_path(str(script))["World"](world_folder), load_model(NANO)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    prompt = np.array([theirs.make_prompt("What moves?", Image.fromarray(pixels))], np.int32)
    text = ours.config.vocabulary.text
    seen = prompt >= text
    assert seen.sum() == ours.config.vocabulary.frame_length
    found = ours.logits(np.where(seen, prompt - text, prompt), modality=seen)
    wanted = logits_of(theirs.model, prompt)
    joined = np.concatenate([found.text, found.vision], axis=-1)
    np.testing.assert_allclose(joined, wanted, atol=TOLERANCE, rtol=0)
    codes = ours.codec.encode(pixels[None])
    np.testing.assert_array_equal(prompt[0, seen[0]][:-1] - text, codes[0])
    drawn = np.asarray(theirs.decode_picture((codes[0] + text).tolist()), np.int32)
    # A number between two bytes may be rounded to either of them.
    assert np.abs(drawn - ours.codec.decode(codes)[0].astype(np.int32)).max() <= 1
    assert isinstance(theirs.answer("What moves?", Image.fromarray(pixels)), str)
    assert theirs.draw("an image of a red circle").size == (64, 64)
