"""`Checkpoint`, which every reader of foreign weights returns: config, lazy tensors, tokenizer.

All readers use Hugging Face's conventions: the names of its tensors, the fields of its config.json,
and the half-split rotary order. A model that these cannot describe is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringworld.errors import BadFileError, InputError
from ringworld.files import read_json_object
from ringworld.settings import Sampling
from ringworld.weights.file_names import ABOUT, CONFIG, GENERATION
from ringworld.weights.tensors import LazyTensor

# How many tokens transformers samples from when a generation_config.json does not say.
THEIR_TOP_K = 50


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A language or world model from elsewhere.

    `config` has the fields of a Hugging Face config.json: `model_type`, `hidden_size`,
    `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`, `head_dim`,
    `intermediate_size`, `rope_theta`, `rope_scaling`, `rms_norm_eps`, `vocab_size`,
    `tie_word_embeddings`, `max_position_embeddings`, `bos_token_id`, `eos_token_id`, and for a
    world model `vision`: {"codes": 8192, "codes_per_frame": 256, "rows": 8448}. `tensors` are by
    Hugging Face name, matrices [out, in], queries and keys in the half-split order; the vision
    table and head of a world model are `model.embed_vision.weight` and `vision_head.weight`, both
    [rows, hidden]. `tokenizer` is a whole tokenizer.json; `codec` a folder or file of codec weights
    that `load_codec` reads. `ends` are the tokens that end an answer, where there are more than
    `eos_token_id`: a turn may have another end than a text.
    """

    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    tokenizer: bytes | None = None
    chat_template: str | None = None
    codec: Path | None = None
    ends: tuple[int, ...] = ()


def read_ends(folder: Path) -> tuple[int, ...]:
    """The tokens that end an answer, as a folder's config.json and generation_config.json say.

    Raises InputError when one of them is broken.
    """
    found: list[int] = []
    for file in (folder / CONFIG, folder / GENERATION):
        said = read_json_object(file).get("eos_token_id") if file.is_file() else None
        ends = said if isinstance(said, list) else [] if said is None else [said]
        if not all(type(end) is int and end >= 0 for end in ends):
            raise InputError(
                f"the field eos_token_id of {file} is {str(said)[:40]}: make it token ids"
            )
        found += ends
    return tuple(dict.fromkeys(found))


def read_sampling(folder: Path) -> Sampling | None:
    """How a folder's generation_config.json wants tokens chosen, as transformers reads it.

    Without `do_sample` decoding is greedy, whatever else is said. None when there is no such file.
    Raises BadFileError when a value cannot be sampled with.
    """
    file = folder / GENERATION
    if not file.is_file():
        return None
    said = read_json_object(file)
    if said.get("do_sample") is not True:
        return Sampling()
    given = {name: said.get(name) for name in ("temperature", "top_k", "top_p")}
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadFileError(f"the field {name} of {file} is {str(value)[:40]}: make it a number")
    temperature, top_k, top_p = given.values()
    try:
        return Sampling(
            temperature=1.0 if temperature is None else float(temperature),
            top_k=THEIR_TOP_K if top_k is None else int(top_k),
            top_p=1.0 if top_p is None else float(top_p),
        )
    except InputError as error:
        raise BadFileError(f"{file}: {error}") from None


def read_about(folder: Path) -> str:
    """The line of a folder's `about.txt` that says what the model was trained for, or ""."""
    file = folder / ABOUT
    if not file.is_file():
        return ""
    try:
        return file.read_text(encoding="utf-8").strip().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        raise BadFileError(f"{file} is not UTF-8 text: correct or remove it") from None
