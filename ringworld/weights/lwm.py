"""LWM's weights in: a streaming or flax msgpack file beside a config.json.

The names and the order of the rotary are those of LWM's code; here they become Hugging Face's, and
the order of pairs is undone, once. Layers may be stacked ("scanned") or numbered, the tree may
begin at the model, at its `params`, or at a whole training state, whose optimiser is passed over.
Source: the code of Large World Model (arXiv 2402.08268).
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import InputError
from ringworld.files import read_json_object
from ringworld.text.load import read_tokenizer
from ringworld.weights.cursor import Stored, check_finite, rows_to_halves
from ringworld.weights.file_names import CONFIG, LWM_CODEC
from ringworld.weights.imported import Checkpoint
from ringworld.weights.msgpack import read_tree
from ringworld.weights.names import SCAN, WEIGHT_NAMES
from ringworld.weights.settings import number_of, size_of
from ringworld.weights.tensors import LazyTensor

SCANNED = "transformer/h/scan_decoder/"
MODEL_PREFIXES = ("transformer/", "lm_head/", "vision_head/")
TURNED = ("self_attn.q_proj", "self_attn.k_proj")
TEXT_TABLE, VISION_TABLE = "transformer/wte/embedding", "transformer/vte/embedding"
VISION_HEAD = "vision_head/kernel"

# LWM's tables of vision have 256 rows more than codes; a frame is 16 x 16 codes.
SPARE_ROWS = 256
CODES_PER_FRAME = 256
# What LLaMA's tokenizer calls the first and the last token, and the eps of LWM's presets.
LLAMA_BOS, LLAMA_EOS = 1, 2
LWM_EPS = 1e-6

EXAMPLE = (
    '{"num_attention_heads": 32, "theta": 5e7, "max_sequence_length": 1048576} is LWM-Chat-1M\'s'
)


def read_lwm(path: Path) -> Checkpoint:
    """The model of LWM's `streaming_params`, `streaming_train_state`, `params` or flax file.

    The config.json beside it gives `num_attention_heads`, `theta`, `max_sequence_length` and, if it
    is not 1e-6, `rms_norm_eps`, in LWM's names; the other sizes are those of the tensors. Raises
    InputError when either file is damaged, or they do not fit together.
    """
    tree, given = _model_of(path, read_tree(path)), path.parent / CONFIG
    if not given.is_file():
        raise InputError(f"there is no {given}, and LWM's file has no sizes: write it ({EXAMPLE})")
    layers = _count_layers(path, tree)
    config = _config(path, given, tree, layers)
    tensors: dict[str, LazyTensor] = {}
    heads = config["num_attention_heads"]
    for name in WEIGHT_NAMES:
        for l in range(layers) if name.layered else (0,):
            kernel = name.lwm and _find(tree, name.lwm.format(l), name.lwm, l, layers)
            if kernel:
                there = name.hugging_face.format(l)
                read = partial(_read_array, path, there, *kernel, heads)
                tensors[there] = LazyTensor(read, kernel[0].dtype)
    if config["tie_word_embeddings"] and "transformer/vte/embedding" in tree:
        raise InputError(f"{path} sees, but ties its text head: use an untied model")
    if VISION_TABLE in tree and VISION_HEAD not in tree:
        tensors["vision_head.weight"] = tensors["model.embed_vision.weight"]
    codec = path.parent / LWM_CODEC
    return Checkpoint(
        config=config,
        tensors=tensors,
        tokenizer=read_tokenizer(path.parent),
        codec=codec if codec.is_file() else None,
    )


def _model_of(path: Path, tree: dict[str, Stored | None]) -> dict[str, Stored]:
    """The tensors of the model itself, their names from `transformer` on."""
    found: dict[str, Stored] = {}
    for name, stored in tree.items():
        short = name
        while short.startswith("params/"):
            short = short.removeprefix("params/")
        if not short.startswith(MODEL_PREFIXES):
            if short != name:
                raise InputError(f"{path} holds {name[:80]}, which no LWM has: is it LWM's?")
            continue
        if stored is None or short in found:
            raise InputError(f"{path} does not hold one array for {name[:80]}: copy it again")
        found[short] = stored
    if TEXT_TABLE not in found:
        raise InputError(f"{path} holds no {TEXT_TABLE}: give LWM's streaming or flax file")
    return found


def _find(
    tree: dict[str, Stored], one: str, each: str, layer: int, layers: int
) -> tuple[Stored, int | None] | None:
    """Where a weight lies: alone, or as the row of a stack; None if the file lacks it."""
    if one in tree:
        return tree[one], None
    stack = tree.get(each.replace(SCAN, SCANNED))
    return (stack, layer) if stack and each.startswith(SCAN) else None


def _count_layers(path: Path, tree: dict[str, Stored]) -> int:
    """How many layers there are. Raises InputError when the stacks do not agree."""
    stacks = {name: stored.shape[:1] for name, stored in tree.items() if name.startswith(SCANNED)}
    inside = (name.removeprefix(SCAN[:-3]).split("/")[0] for name in tree)
    alone = {int(part) for part in inside if part.isascii() and part.isdigit() and len(part) < 5}
    counts = {shape[0] if shape else 0 for shape in stacks.values()} or {len(alone)}
    if len(counts) > 1 or bool(stacks and alone) or not 0 < max(counts) < 1 << 12:
        raise InputError(f"{path} holds no whole number of layers: stack them on the first axis")
    if alone != set(range(len(alone))):
        raise InputError(f"{path} lacks a layer between its first and its last: copy it again")
    return max(counts)


def _config(path: Path, given: Path, tree: dict[str, Stored], layers: int) -> dict[str, Any]:
    """Hugging Face's config.json for the sizes of the tensors and LWM's own config."""
    fields = read_json_object(given)
    table, gate = tree[TEXT_TABLE].shape, _first(tree, "feed_forward/w1/kernel")
    if len(table) != 2 or gate is None or len(gate.shape) < 2:
        raise InputError(f"{path} lacks a feed-forward or a table of words: copy it again")
    vocab, width = table
    heads = size_of(fields, "num_attention_heads", given)
    sizes = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": gate.shape[-1],
        "num_hidden_layers": layers,
    }
    for name, size in sizes.items():
        if fields.get(name, size) != size:
            raise InputError(f"{given} says {name} {fields[name]!r:.40} and {path} has {size}")
    if width % heads or width // heads % 2:
        raise InputError(f"{given} divides {width} features among {heads} heads: correct it")
    config: dict[str, Any] = sizes | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "rope_theta": number_of(fields, "theta", given),
        "rope_scaling": None,
        "rms_norm_eps": number_of({"rms_norm_eps": LWM_EPS} | fields, "rms_norm_eps", given),
        "max_position_embeddings": size_of(fields, "max_sequence_length", given),
        "tie_word_embeddings": "lm_head/kernel" not in tree,
        "bos_token_id": LLAMA_BOS,
        "eos_token_id": LLAMA_EOS,
    }
    if VISION_TABLE in tree:
        rows = tree[VISION_TABLE].shape[0] if tree[VISION_TABLE].shape else 0
        if rows <= SPARE_ROWS:
            raise InputError(f"{path} has {rows} rows of vision, and LWM spares {SPARE_ROWS}")
        codes = rows - SPARE_ROWS
        config["vision"] = {"codes": codes, "codes_per_frame": CODES_PER_FRAME, "rows": rows}
    return config


def _first(tree: dict[str, Stored], ending: str) -> Stored | None:
    """Any tensor whose name ends so."""
    return next((stored for name, stored in tree.items() if name.endswith(ending)), None)


def _read_array(path: Path, name: str, stored: Stored, row: int | None, heads: int) -> np.ndarray:
    """A tensor as Hugging Face has it: matrices [out, in], pairs in halves; tables as they are."""
    if row is not None and row >= stored.shape[0]:
        raise InputError(f"{path} lacks layer {row} of {name}: copy it again")
    array = check_finite(path, name, stored.read() if row is None else stored.row(row))
    if array.ndim != 2 or "embed" in name:
        return array
    turned = any(part in name for part in TURNED)
    if turned and array.shape[1] % (2 * heads):
        raise InputError(f"{name} in {path} has {array.shape[1]} features for {heads} heads")
    return rows_to_halves(array.T, heads) if turned else array.T
