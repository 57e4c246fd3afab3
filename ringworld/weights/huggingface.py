"""Hugging Face's config.json and folders, read into ours.

Llama 2 and 3, Mistral, Qwen2 and 2.5, Qwen3, SmolLM2 and LWM are one decoder here: what makes them
differ is a handful of fields of `Llama`. What a config asks for and this decoder does not do is an
error, never a guess.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ringworld.errors import InputError
from ringworld.files import read_json_object
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.rope_scaling import Llama3, Scaling, YaRN
from ringworld.text.load import TOKENIZER_CONFIG, read_tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.file_names import CHAT_TEMPLATE, CONFIG, INDEX, TENSORS, VQGAN_FOLDER
from ringworld.weights.folder import read_config
from ringworld.weights.imported import Checkpoint, read_ends
from ringworld.weights.tensors import Read, read_tensors

N = TypeVar("N", int, float)

# model_type: whether queries, keys and values have biases, and whether queries and keys have norms.
FAMILIES = {
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
}
# A size that no model reaches: a config with more is broken, and is not worth a try.
MOST = 2**31
# What these fields must be where a config has them: this decoder does nothing else.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "attention_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
# Defaults of the readers that wrote configs without these fields.
THETA, EPS = 10_000.0, 1e-6


def read_world(config: Mapping[str, Any]) -> World:
    """The model that a Hugging Face config.json describes.

    Raises InputError when a field is missing or has no sense, or when the architecture is unknown.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"{CONFIG} describes a model of type {str(family)[:40]}, which is not known here: use "
            f"one of {', '.join(FAMILIES)}"
        )
    for field, allowed in FIXED.items():
        if field in config and config[field] not in allowed:
            raise InputError(
                f"{CONFIG} sets {field} to {str(config[field])[:40]}, which this decoder does not "
                f"do: use a model where it is {allowed[0]}"
            )
    biases, norms = FAMILIES[family]
    heads, model = _number(config, "num_attention_heads", int), _number(config, "hidden_size", int)
    context = _number(config, "max_position_embeddings", int)
    theta, scaling = _rope(config, context)
    llama = Llama(
        layers=_number(config, "num_hidden_layers", int),
        model=model,
        mlp=_number(config, "intermediate_size", int),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", int, heads),
        head_width=_number(config, "head_dim", int, model // heads),
        context=context,
        rope_theta=theta,
        norm_eps=_number(config, "rms_norm_eps", float, EPS),
        rope_scaling=scaling,
        window=_window(config, context),
        qkv_bias=biases,
        qk_norm=norms,
    )
    vision = config.get("vision") or {}
    if not isinstance(vision, dict):
        raise InputError(f"the field vision of {CONFIG} is not an object: leave it out")
    vocabulary = Vocabulary(
        text=_number(config, "vocab_size", int),
        bos=_token(config, "bos_token_id"),
        eos=_token(config, "eos_token_id"),
        codes=_number(vision, "codes", int, 0),
        codes_per_frame=_number(vision, "codes_per_frame", int, 0),
        vision_rows=_number(vision, "rows", int, 0),
    )
    return World(llama=llama, vocabulary=vocabulary, tied=config.get("tie_word_embeddings") is True)


def _number(config: Mapping[str, Any], field: str, kind: type[N], default: N | None = None) -> N:
    """A number of the config, 0 only where that is the default."""
    value = config.get(field)
    value = default if value is None else value
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float) and math.isfinite(value))):
        raise InputError(f"the field {field} of {CONFIG} is {str(value)[:40]}: make it a number")
    if not 0 < value < MOST * MOST and value != default or kind is int and value >= MOST:
        raise InputError(f"the field {field} of {CONFIG} is {value:.6g}: no model has that")
    return kind(value)


def _token(config: Mapping[str, Any], field: str) -> int:
    """The id of a special token, the first where there are several, -1 where there is none."""
    value = config.get(field)
    first = value[0] if isinstance(value, list) and value else value
    if first is None:
        return -1
    if type(first) is not int or not 0 <= first < MOST:
        raise InputError(f"the field {field} of {CONFIG} is {str(value)[:40]}: make it a token id")
    return first


def _window(config: Mapping[str, Any], context: int) -> int | None:
    """The window, where the config asks for one in all layers and it hides something."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None
    window = _number(config, "sliding_window", int)
    if window >= context:
        return None
    if config["model_type"] != "mistral" and config.get("max_window_layers") != 0:
        raise InputError(
            f"{CONFIG} gives some layers a window and others none, which this decoder does not do: "
            "use a model with use_sliding_window set to false"
        )
    return window


def _rope(config: Mapping[str, Any], context: int) -> tuple[float, Scaling | None]:
    """RoPE's base and scaling: from `rope_parameters`, or where older configs have them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"the field rope_scaling of {CONFIG} is not an object: leave it out")
    theta = _number({"rope_theta": THETA} | dict(config) | rope, "rope_theta", float)
    if theta <= 1:
        raise InputError(f"the field rope_theta of {CONFIG} is {theta}: RoPE's base is above 1")
    kind = rope.get("rope_type", rope.get("type", "default"))
    trained = _number(rope, "original_max_position_embeddings", int, context)
    if kind == "default":
        return theta, None
    if kind == "llama3":
        return theta, Llama3(
            factor=_number(rope, "factor", float),
            low_turns=_number(rope, "low_freq_factor", float),
            high_turns=_number(rope, "high_freq_factor", float),
            trained_context=trained,
        )
    more = {"attention_factor", "mscale", "mscale_all_dim"} & {n for n, v in rope.items() if v}
    if kind == "yarn" and not more and rope.get("truncate", True):
        return theta, YaRN(
            factor=_number(rope, "factor", float),
            trained_context=trained,
            fast_turns=_number(rope, "beta_fast", float, 32.0),
            slow_turns=_number(rope, "beta_slow", float, 1.0),
        )
    raise InputError(
        f"{CONFIG} scales RoPE by the rule {str(kind)[:40]}{' with ' + min(more) if more else ''}, "
        "which is not known here: use default, llama3 or plain yarn"
    )


def write_config(c: World, dtype: str) -> dict[str, Any]:
    """The config.json that transformers and its relatives read, of the family that has what c has.

    The two vocabularies of a world model are one. Raises InputError when no family has it all.
    """
    llama, words = c.llama, c.vocabulary
    sights = {"codes": words.codes, "codes_per_frame": words.codes_per_frame}
    sights |= {"text": words.text, "rows": words.vision_rows}
    family = _family(llama)
    named = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    windows = {"sliding_window": llama.window, "use_sliding_window": llama.window is not None}
    return {
        "architectures": [f"{named}ForCausalLM"],
        "model_type": family,
        "hidden_size": llama.model,
        "intermediate_size": llama.mlp,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.kv_heads,
        "head_dim": llama.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": llama.context,
        "rope_theta": llama.rope_theta,
        "rope_scaling": _write_scaling(llama),
        "rms_norm_eps": llama.norm_eps,
        "vocab_size": words.text + words.vision_rows,
        "tie_word_embeddings": c.tied and not words.codes,
        "bos_token_id": None if words.bos < 0 else words.bos,
        "eos_token_id": None if words.eos < 0 else words.eos,
        "torch_dtype": dtype,
        "use_cache": True,
        **({"attention_bias": False} if family in ("llama", "qwen3") else {}),
        **({"mlp_bias": False} if family == "llama" else {}),
        **(windows if family != "llama" else {}),
        **({"max_window_layers": 0} if family == "qwen2" else {}),
        **({"ringworld": sights} if words.codes else {}),
    }


def _family(llama: Llama) -> str:
    has = (llama.qkv_bias, llama.qk_norm)
    fitting = [family for family, needs in FAMILIES.items() if needs == has]
    if not fitting or (llama.window and fitting == ["qwen3"]):
        raise InputError(
            "no family of Hugging Face has biases and norms of queries, or norms and a window: "
            "convert a model that has one of them"
        )
    return fitting[-1] if llama.window else fitting[0]


def _write_scaling(llama: Llama) -> dict[str, Any] | None:
    match llama.rope_scaling:
        case Llama3() as ramp:
            return {
                "rope_type": "llama3",
                "factor": ramp.factor,
                "low_freq_factor": ramp.low_turns,
                "high_freq_factor": ramp.high_turns,
                "original_max_position_embeddings": ramp.trained_context,
            }
        case YaRN() as ramp:
            return {
                "rope_type": "yarn",
                "factor": ramp.factor,
                "original_max_position_embeddings": ramp.trained_context,
                "beta_fast": ramp.fast_turns,
                "beta_slow": ramp.slow_turns,
            }
        case None:
            return None


def read_hf(path: Path) -> Checkpoint:
    """The model of a Hugging Face folder: config.json and safetensors, in one file or in shards.

    Raises InputError when a file is missing or broken.
    """
    return Checkpoint(
        config=read_config(path),
        tensors=_read_shards(path),
        tokenizer=read_tokenizer(path),
        chat_template=_read_template(path),
        codec=path / VQGAN_FOLDER if (path / VQGAN_FOLDER).is_dir() else None,
        ends=read_ends(path),
    )


def _read_shards(path: Path) -> dict[str, Read]:
    if not (path / INDEX).is_file():
        if not (path / TENSORS).is_file() and list(path.glob("*.bin")):
            raise InputError(
                f"{path} holds .bin weights, which are programs: use the safetensors of the model"
            )
        return {n: partial(np.asarray, w) for n, w in read_tensors(path / TENSORS).items()}
    places = read_json_object(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise InputError(f"{path / INDEX} does not say which file holds what: copy it again")
    files = sorted(set(places.values()))
    if absent := [file for file in files if not (path / file).is_file()]:
        raise InputError(
            f"there is no {path / absent[0]}, one of {len(files)} parts that {INDEX} names: copy "
            "all files of the model again"
        )
    shards = {file: read_tensors(path / file) for file in files}
    if lost := [name for name, file in places.items() if name not in shards[file]]:
        raise InputError(f"{path / places[lost[0]]} lacks the tensor {lost[0]}: copy it again")
    return {name: partial(np.asarray, shards[file][name]) for name, file in places.items()}


def _read_template(path: Path) -> str | None:
    """The chat template: a file of its own, or a field of the tokenizer's config."""
    own = path / CHAT_TEMPLATE
    if own.is_file() and (written := own.read_bytes()):
        return written.decode("utf-8", "replace")
    if not (path / TOKENIZER_CONFIG).is_file():
        return None
    said = read_json_object(path / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(said, list):  # several, by name
        named = [entry for entry in said if isinstance(entry, dict)]
        said = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return said if isinstance(said, str) else None
