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
from ringworld.weights.cursor import rows_to_halves
from ringworld.weights.gguf import Container, Tensor
from ringworld.weights.gguf_parts import read_model
from ringworld.weights.gguf_tokenizer import PREFIX, make_tokenizer
from ringworld.weights.imported import Checkpoint
from ringworld.weights.names import WEIGHT_NAMES
from ringworld.weights.settings import number_of, size_of
from ringworld.weights.tensors import LazyTensor

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
GGUF_THETA = 1e4  # where the file does not say
# What every Llama 3 has been scaled with; the factor differs.
LOW_TURNS, HIGH_TURNS, TRAINED = 1.0, 4.0, 8192
# What is one number a model, though a file may give it a layer.
BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
# What these must be where a file has them: this decoder does nothing else. (The window in
# `attention.sliding_window` is not used by llama.cpp in models of these architectures, nor here.)
FIXED_ENTRIES: dict[str, tuple[float, ...]] = {
    "attention.causal": (1.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
YARN_FULL = (1, -1)  # how much of YaRN's ramp is used: all, or as the program decides, which is all
# The factors are stored in float32.
ROUNDING = 1e-4


def read_gguf(path: Path) -> Checkpoint:
    """The model of a .gguf file, or of the parts of one: weights, tokenizer and chat template.

    Llama, Mistral, SmolLM2, Qwen2 and Qwen3 are read. Raises InputError when the file is damaged,
    its architecture is none of these, or it asks for what this decoder does not do.
    """
    file = read_model(path)
    config = _config(file)
    halved = config["model_type"] == IN_PAIRS
    tensors = {}
    known = {FACTORS}
    for name in WEIGHT_NAMES:
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
            tensors[name.hugging_face.format(l)] = LazyTensor(
                partial(_read_numbers, tensor, heads), tensor.dtype
            )
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


def _read_numbers(tensor: Tensor, heads: int) -> np.ndarray:
    """A tensor, its rows in halves if it has heads to put so."""
    return rows_to_halves(tensor.read(), heads) if heads else tensor.read()


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
    _check_fixed(path, fields)
    width = size_of(fields, "embedding_length", path)
    heads = size_of(fields, "attention.head_count", path)
    layers = size_of(fields, "block_count", path)
    head = size_of({"attention.key_length": width // heads} | fields, "attention.key_length", path)
    if layers > MOST_LAYERS:
        raise InputError(
            f"{path} has {layers} layers, and {MOST_LAYERS} are the most: copy it again"
        )
    scale = _plain(fields, "attention.scale", 0.0, path) or head**-0.5
    if abs(scale / head**-0.5 - 1) > ROUNDING:
        raise InputError(f"{path} scales scores by {scale:.6g}, not by 1 / sqrt({head})")
    if _plain(fields, "attention.value_length", float(head), path) != head:
        raise InputError(f"{path} has values of another width than its keys, which is not read")
    if _plain(fields, "rope.dimension_count", float(head), path) != head or head % 2:
        raise InputError(f"{path} turns a part of heads of {head}, which is not read")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise InputError(f"{path} holds no token_embd.weight of rows and columns: copy it again")
    theta = number_of({"rope.freq_base": GGUF_THETA} | fields, "rope.freq_base", path)
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


def _check_fixed(path: Path, fields: dict[str, Any]) -> None:
    """Make one number of equal numbers for all layers; refuse what this decoder does not do."""
    if _plain(fields, "expert_count", 0.0, path):
        raise InputError(f"{path} is a mixture of experts, which is not read: use a dense model")
    for name in BY_LAYER:
        found = fields.get(name)
        if isinstance(found, np.ndarray) and found.size:
            if (found != found[0]).any():
                raise InputError(f"{path} gives its layers different {name}, which is not read")
            fields[name] = int(found[0])
    for name, allowed in FIXED_ENTRIES.items():
        found = _plain(fields, name, allowed[0], path)
        if found not in allowed:
            raise InputError(
                f"{path} has {name} {found:.6g}, which this decoder does not do: use a model where "
                f"it is {allowed[0]:.6g}"
            )


def _plain(fields: dict[str, Any], name: str, default: float, path: Path) -> float:
    """A number, or true or false as 1 or 0. Raises InputError when it is something else."""
    found = fields.get(name, default)
    if not isinstance(found, int | float):
        raise InputError(f"{path} should give {name} as a number: correct it")
    return float(found)


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
    kind = fields.get("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    if kind == "linear":
        named = "rope.scaling.factor" if "rope.scaling.factor" in fields else "rope.scale_linear"
        if (factor := _plain(fields, named, 1.0, path)) not in (0, 1):
            raise InputError(
                f"{path} scales RoPE by 'linear' with {factor:.6g}, and yarn and llama3 are read"
            )
    elif kind == "yarn":
        return _yarn(file, fields)
    elif kind != "none":
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


def _yarn(file: Container, fields: dict[str, Any]) -> dict[str, Any]:
    """YaRN's scaling from its entries."""
    path, trained = file.path, "rope.scaling.original_context_length"
    if FACTORS in file.tensors:
        raise InputError(f"{path} scales RoPE by yarn and by {FACTORS}, and one of them is read")
    if _plain(fields, "rope.scaling.yarn_ext_factor", 1.0, path) not in YARN_FULL:
        raise InputError(f"{path} mixes YaRN with another scaling of RoPE, which is not read")
    found = {
        "rope_type": "yarn",
        "factor": number_of(fields, "rope.scaling.factor", path),
        "original_max_position_embeddings": size_of(
            {trained: fields.get("context_length")} | fields, trained, path
        ),
    }
    for theirs, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if (key := f"rope.scaling.{theirs}") in fields:
            found[name] = _shortest(number_of(fields, key, path))
    return found
