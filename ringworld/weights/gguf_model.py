"""A model out of a GGUF file: its config from the metadata, its tensors by Hugging Face's names.

llama.cpp's converter puts the query and key rows of Llama and Mistral into the order of pairs, and
leaves those of Qwen as they are; here both are in halves. It writes Llama 3's scaling as a tensor
of factors, from which its numbers are found again. Source: ggml-org/llama.cpp,
convert_hf_to_gguf.py, as documented in ggml's docs/gguf.md.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import InputError
from ringworld.rope_scaling import Llama3
from ringworld.weights.cursor import to_halves
from ringworld.weights.gguf import Container, Tensor, read_container
from ringworld.weights.gguf_tokenizer import PREFIX, make_tokenizer
from ringworld.weights.imported import Checkpoint
from ringworld.weights.names import NAMES
from ringworld.weights.settings import number_of, size_of

# What the file calls an architecture, and Hugging Face its model_type and class.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),  # Mistral and SmolLM2 too
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
IN_PAIRS = "llama"  # whose query and key rows stand in pairs
PAIRED = ("attn_q.", "attn_k.")
# What ends a turn, and a message within one, where that is not what ends a text.
TURN_ENDS = ("eot_token_id", "eom_token_id")
FACTORS = "rope_freqs.weight"
MOST_LAYERS = 1 << 10
THETA = 1e4  # where the file does not say
# What every Llama 3 has been scaled with; the factor differs.
LOW_TURNS, HIGH_TURNS, TRAINED = 1.0, 4.0, 8192
# The factors are stored in float32.
ROUNDING = 1e-4


def read_gguf(path: Path) -> Checkpoint:
    """The model of a .gguf file: Llama, Mistral, SmolLM2, Qwen2 or Qwen3, its words and template.

    Raises InputError when the file is damaged, or its architecture is none of these.
    """
    file = read_container(path)
    config = _config(file)
    halved = config["model_type"] == IN_PAIRS
    tensors = {}
    known = {FACTORS}
    for name in NAMES:
        for l in range(config["num_hidden_layers"]) if name.layered else (0,):
            here = name.gguf.format(l)
            if here not in file.tensors:
                continue
            known.add(here)
            tensor, heads = file.tensors[here], 0
            if halved and any(part in here for part in PAIRED):
                heads = config[
                    "num_attention_heads" if PAIRED[0] in here else "num_key_value_heads"
                ]
                _check_rows(tensor, heads)
            tensors[name.hugging_face.format(l)] = partial(_read, tensor, heads)
    if unknown := sorted(set(file.tensors) - known):
        raise InputError(
            f"{path} holds {unknown[0]}, which no dense Llama, Mistral or Qwen has: use one"
        )
    template = file.entries.get("tokenizer.chat_template")
    return Checkpoint(
        config=config,
        tensors=tensors,
        tokenizer=make_tokenizer(path, file.entries),
        chat_template=template if isinstance(template, str) else None,
        ends=tuple(
            end
            for name in TURN_ENDS
            if (end := _id(file.entries, PREFIX + name, config["vocab_size"], path)) is not None
        ),
    )


def _read(tensor: Tensor, heads: int) -> np.ndarray:
    """A tensor, its rows in halves if it has heads to put so."""
    return to_halves(tensor.read(), heads) if heads else tensor.read()


def _check_rows(tensor: Tensor, heads: int) -> None:
    if tensor.shape[0] % (2 * heads):
        raise InputError(
            f"the tensor {tensor.name} in {tensor.path} has {tensor.shape[0]} rows for {heads} "
            "heads: convert the model again"
        )


def _config(file: Container) -> dict[str, Any]:
    """Hugging Face's config.json, from the metadata."""
    path, entries = file.path, file.entries
    architecture = entries.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(
            f"{path} has the architecture {architecture!r:.40}, and {', '.join(ARCHITECTURES)} are "
            "read: use a model of these"
        )
    start = f"{architecture}."
    fields = {k.removeprefix(start): v for k, v in entries.items() if k.startswith(start)}
    if fields.get("expert_count"):
        raise InputError(f"{path} is a mixture of experts, which is not read: use a dense model")
    width = size_of(fields, "embedding_length", path)
    heads = size_of(fields, "attention.head_count", path)
    layers = size_of(fields, "block_count", path)
    head = size_of({"attention.key_length": width // heads} | fields, "attention.key_length", path)
    if layers > MOST_LAYERS:
        raise InputError(
            f"{path} has {layers} layers, and {MOST_LAYERS} are the most: copy it again"
        )
    if fields.get("rope.dimension_count", head) != head or head % 2:
        raise InputError(f"{path} turns a part of heads of {head}, which is not read")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise InputError(f"{path} holds no token_embd.weight of rows and columns: copy it again")
    theta = number_of({"rope.freq_base": THETA} | fields, "rope.freq_base", path)
    kind, name = ARCHITECTURES[architecture]
    epsilon = "attention.layer_norm_rms_epsilon"
    return {
        "model_type": kind,
        "architectures": [name],
        "vocab_size": table.shape[0],
        "hidden_size": width,
        "intermediate_size": size_of(fields, "feed_forward_length", path),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": size_of(
            {"attention.head_count_kv": heads} | fields, "attention.head_count_kv", path
        ),
        "head_dim": head,
        "rope_theta": theta,
        "rope_scaling": _scaling(file, fields, theta, head),
        "rms_norm_eps": _shortest(number_of(fields, epsilon, path)),
        "max_position_embeddings": size_of(fields, "context_length", path),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": _id(entries, f"{PREFIX}bos_token_id", table.shape[0], path),
        "eos_token_id": _id(entries, f"{PREFIX}eos_token_id", table.shape[0], path),
    }


def _shortest(value: float) -> float:
    """The shortest decimal that float32 rounds to the same: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))


def _id(entries: dict[str, Any], name: str, vocabulary: int, path: Path) -> int | None:
    """A token's number, or None where the file gives none."""
    if name not in entries:
        return None
    found = size_of(entries, name, path, least=0)
    if found >= vocabulary:
        raise InputError(f"{path} has {name} {found} of {vocabulary} tokens: copy it again")
    return found


def _scaling(
    file: Container, fields: dict[str, Any], theta: float, head: int
) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling: Llama 3's from its factors, YaRN's from its entries, or None."""
    path, factors = file.path, file.tensors.get(FACTORS)
    kind = fields.get("rope.scaling.type", "none")
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": number_of(fields, "rope.scaling.factor", path),
            "original_max_position_embeddings": size_of(
                fields, "rope.scaling.original_context_length", path
            ),
        }
    if kind != "none":
        raise InputError(f"{path} scales RoPE by {kind!r:.40}, and yarn and llama3 are read")
    if factors is None:
        return None
    if factors.shape != (head // 2,):
        raise InputError(f"{FACTORS} in {path} has the shape {factors.shape}, not ({head // 2},)")
    found = factors.read().astype(np.float64)
    factor = float(found.max())
    if not 1 <= factor < 1 << 20 or theta <= 1:
        raise InputError(f"{FACTORS} in {path} slows no rotary of Llama 3: convert it again")
    scaling = Llama3(
        factor=factor, low_turns=LOW_TURNS, high_turns=HIGH_TURNS, trained_context=TRAINED
    )
    if not np.allclose(found * scaling.multipliers(theta, head), 1, atol=ROUNDING):
        raise InputError(f"{FACTORS} in {path} are not the factors of Llama 3's RoPE scaling")
    return {
        "rope_type": "llama3",
        "factor": _shortest(factor),
        "low_freq_factor": LOW_TURNS,
        "high_freq_factor": HIGH_TURNS,
        "original_max_position_embeddings": TRAINED,
    }
