"""Hugging Face's config.json and folders, read into ours.

Llama 2 and 3, Mistral, Qwen2 and 2.5, Qwen3, SmolLM2 and LWM are one decoder here: what makes them
differ is a handful of fields of `Llama`. A setting that this decoder does not
support is an error, never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ringworld.errors import InputError
from ringworld.files import read_json_object
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.rope_scaling import YARN_FAST_TURNS, YARN_SLOW_TURNS, Llama3, Scaling, YaRN
from ringworld.text.load import TOKENIZER_CONFIG, read_tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.file_names import CHAT_TEMPLATE, CONFIG, INDEX, TENSORS, VQGAN_FOLDER
from ringworld.weights.folder import read_config
from ringworld.weights.imported import Checkpoint, read_ends
from ringworld.weights.tensors import LazyTensor, lazy, read_tensors

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Family:
    """What transformers' model of one `model_type` has, and assumes where a config is silent.

    `qkv_bias` and `qk_norm` are those of `Llama`; `window` says which layers may have a sliding
    window; `defaults` are the values of absent fields (a null stands for itself).
    """

    name: str
    window: Literal["none", "all layers", "by layer"]
    defaults: Mapping[str, Any]
    qkv_bias: bool = False
    qk_norm: bool = False


LLAMA_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
QWEN = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
FAMILIES = {
    "llama": Family("Llama", "none", LLAMA_ENDS | {"max_position_embeddings": 2048}),
    "mistral": Family("Mistral", "all layers", LLAMA_ENDS | MISTRAL),
    "qwen2": Family("Qwen2", "by layer", QWEN, qkv_bias=True),
    "qwen3": Family("Qwen3", "by layer", QWEN | {"head_dim": 128}, qk_norm=True),
}
# A size that no model reaches: a config with more is broken, and is not worth a try.
MOST = 2**31
# What these fields must be where a config has them: this decoder does nothing else. A family's
# model does not read those that are named for others.
FIXED_FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "is_causal": (True, None),
}
FIXED_FIELDS_OF = {
    "llama": {"attention_bias": (False, None), "mlp_bias": (False, None)},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": (False, None)},
}
SLIDING = "sliding_attention"
# Defaults of the readers that wrote configs without these fields.
ROPE_THETA, NORM_EPS = 10_000.0, 1e-6


def read_world(config: Mapping[str, Any]) -> World:
    """The model that a Hugging Face config.json describes.

    Raises InputError when a field is missing or has no sense, or when the architecture is unknown.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{CONFIG} describes a model of type {str(kind)[:40]}, which is not known here: use "
            f"one of {', '.join(FAMILIES)}"
        )
    for field, allowed in (FIXED_FIELDS | FIXED_FIELDS_OF[kind]).items():
        if field in config and config[field] not in allowed:
            raise InputError(
                f"{CONFIG} sets {field} to {str(config[field])[:40]}, which this decoder does not "
                f"do: use a model where it is {allowed[0]}"
            )
    family = FAMILIES[kind]
    config = {**family.defaults, **config}
    heads, model = _number(config, "num_attention_heads", int), _number(config, "hidden_size", int)
    context = _number(config, "max_position_embeddings", int)
    theta, scaling = _rope(config, context)
    layers = _number(config, "num_hidden_layers", int)
    llama = Llama(
        layers=layers,
        model=model,
        mlp=_number(config, "intermediate_size", int),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", int, heads),
        head_width=_number(config, "head_dim", int, model // heads),
        context=context,
        rope_theta=theta,
        norm_eps=_number(config, "rms_norm_eps", float, NORM_EPS),
        rope_scaling=scaling,
        window=_window(config, family, layers, context),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
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


def _window(config: Mapping[str, Any], family: Family, layers: int, context: int) -> int | None:
    """The sliding window of all layers, or None where it hides nothing.

    Raises InputError when layers differ, or `layer_types` asks for what the family does not have.
    """
    window = None if family.window == "none" else config.get("sliding_window")
    if family.window == "by layer" and not config.get("use_sliding_window"):
        window = None
    sliding = 0 if window is None else layers
    if window is not None and family.window == "by layer":
        sliding = max(layers - _number(config, "max_window_layers", int, 0), 0)
    if (kinds := config.get("layer_types")) is not None:
        listed = kinds if isinstance(kinds, list) else []
        slid = sum(kind == SLIDING for kind in listed)
        known = all(kind in (SLIDING, "full_attention") for kind in listed)
        fits = slid == sliding if family.window != "by layer" else window is not None or not slid
        if not known or len(listed) != layers or not fits:
            raise InputError(
                f"{CONFIG} lists layer_types that a model of type {config['model_type']} with its "
                "other fields does not have: use the config that the weights came with"
            )
        sliding = slid
    if window is None or not sliding:
        return None
    window = _number(config, "sliding_window", int)
    if window >= context:
        return None
    if sliding < layers:
        raise InputError(
            f"{CONFIG} gives {sliding} of {layers} layers a sliding window and the others none, "
            "which this decoder does not do: use a model whose layers are alike"
        )
    return window


def _rope(config: Mapping[str, Any], context: int) -> tuple[float, Scaling | None]:
    """RoPE's base and scaling, from where configs have had them: transformers reads `rope_scaling`
    before `rope_parameters`, and the fields of either before those of the config."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise InputError(f"the field rope_scaling of {CONFIG} is not an object: leave it out")
    if nested := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise InputError(
            f"{CONFIG} has RoPE parameters for {nested[0][:40]} layers alone, which this decoder "
            "does not do: use a model whose layers are alike"
        )
    if rope.get("partial_rotary_factor") not in FIXED_FIELDS["partial_rotary_factor"]:
        raise InputError(
            f"{CONFIG} rotates a part of each head only, {str(rope['partial_rotary_factor'])[:40]} "
            "of it, which this decoder does not do: use another model"
        )
    theta = _number({"rope_theta": ROPE_THETA} | dict(config) | rope, "rope_theta", float)
    if theta <= 1:
        raise InputError(f"the field rope_theta of {CONFIG} is {theta}: RoPE's base is above 1")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    outside = "original_max_position_embeddings"
    trained = _number(config if outside in config else rope, outside, int, context)
    if kind == "llama3":
        return theta, Llama3(
            factor=_number(rope, "factor", float),
            low_turns=_number(rope, "low_freq_factor", float),
            high_turns=_number(rope, "high_freq_factor", float),
            trained_context=trained,
        )
    given = {"attention_factor", "mscale", "mscale_all_dim"}
    more = given & {name for name, value in rope.items() if value is not None}
    more |= set() if rope.get("truncate", True) else {"truncate"}
    if kind == "yarn" and not more:
        return theta, YaRN(
            factor=_number(rope, "factor", float, context / trained),
            trained_context=trained,
            fast_turns=_number(rope, "beta_fast", float, YARN_FAST_TURNS),
            slow_turns=_number(rope, "beta_slow", float, YARN_SLOW_TURNS),
        )
    with_more = f" with {min(more)}" if kind == "yarn" else ""
    raise InputError(
        f"{CONFIG} scales RoPE by the rule {str(kind)[:40]}{with_more}, which is not known here: "
        "use a model with default, llama3 or plain yarn"
    )


def write_config(c: World, dtype: str) -> dict[str, Any]:
    """The config.json that transformers and its relatives read, of the family that has what c has.

    The two vocabularies of a world model are one. Raises InputError when no family has it all.
    """
    llama, words = c.llama, c.vocabulary
    vision = {"codes": words.codes, "codes_per_frame": words.codes_per_frame}
    vision |= {"text": words.text, "rows": words.vision_rows}
    family = _family(llama)
    windows = {"sliding_window": llama.window, "use_sliding_window": llama.window is not None}
    return {
        "architectures": [f"{FAMILIES[family].name}ForCausalLM"],
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
        **({"max_window_layers": 0} if FAMILIES[family].window == "by layer" else {}),
        **({"ringworld": vision} if words.codes else {}),
    }


def _family(llama: Llama) -> str:
    match llama.qkv_bias, llama.qk_norm:
        case False, False:
            return "mistral" if llama.window else "llama"
        case True, False:
            return "qwen2"
        case False, True:
            return "qwen3"
    raise InputError(
        "no family of Hugging Face has biases and norms of queries: convert a model that has one "
        "of them"
    )


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

    Where there are both, the whole file is read, as transformers does.

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


def _read_shards(path: Path) -> dict[str, LazyTensor]:
    if (path / TENSORS).is_file() or not (path / INDEX).is_file():
        if not (path / TENSORS).is_file() and list(path.glob("*.bin")):
            raise InputError(
                f"{path} holds .bin weights, which are programs: use the safetensors of the model"
            )
        return {n: lazy(w) for n, w in read_tensors(path / TENSORS).items()}
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
    return {name: lazy(shards[file][name]) for name, file in places.items()}


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
