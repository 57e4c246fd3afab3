"""The codec out: a folder that diffusers loads as its `VQModel`; and any codec in, by its door.

aMUSEd's VQModel without attention is LWM's VQGAN and ours: convolutions are [out, in, rows,
columns] there and [rows, columns, in, out] here, and blocks have other names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.convert.codecs import (
    DIFFUSERS_WEIGHTS,
    VQGAN_KIND,
    diffusers_name,
    load_any_codec,
    open_any_codec,
    their_names,
)
from ringworld.data.films.codec import Codec, Pictures
from ringworld.models.folder import CONFIG, read_config, write_folder
from ringworld.models.tensors import write_tensors
from ringworld.models.vqgan import COLOURS, VQGAN

# The field of the config that diffusers does not know: the side of a frame in pixels. (Its own
# `sample_size` is 32 in every VQModel, whatever the model was made for.)
OURS = "ringworld"


def load_pictures(path: Path | str) -> Pictures:
    """The codec of our folder, of diffusers' VQModel or of LWM's `vqgan`, on pixels in [-1, 1].

    Raises InputError when there is none, or a file is damaged.
    """
    return load_any(Path(path)).pictures


def load_any(path: Path) -> Codec:
    """The same on bytes, as film and training rows have them."""
    return load_any_codec(path, _size_of(path))


def open_codec(path: Path) -> tuple[VQGAN, Mapping[str, np.ndarray]]:
    """The codec of a folder or file: its config, and its weights by our names as they are stored.

    Raises InputError as `load_pictures`.
    """
    return open_any_codec(path, _size_of(path))


def _size_of(path: Path) -> int | None:
    """The side of a frame that a VQModel of ours notes in its config.json."""
    said = read_config(path).get(OURS) if (path / CONFIG).is_file() else None
    size = said.get("size") if isinstance(said, dict) else None
    return size if type(size) is int else None


def write_codec(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray]) -> None:
    """Write a codec of ours into the folder `draft`."""
    write_folder(draft, VQGAN_KIND, config, table)


def write_diffusers(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray]) -> None:
    """Write a codec into the folder `draft` as diffusers' VQModel loads it."""
    text = json.dumps(describe(config), indent=2)
    (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
    names = their_names(config, diffusers_name)
    theirs = {
        names[ours]: w.transpose(3, 2, 0, 1) if w.ndim == 4 else w for ours, w in table.items()
    }
    write_tensors(draft / DIFFUSERS_WEIGHTS, theirs)


def describe(c: VQGAN) -> dict[str, Any]:
    """The config.json of diffusers' VQModel."""
    levels = len(c.multipliers)
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(c.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": COLOURS,
        "latent_channels": c.width,
        "layers_per_block": c.blocks,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "norm_num_groups": c.groups,
        "norm_type": "group",
        "num_vq_embeddings": c.codebook,
        "out_channels": COLOURS,
        "sample_size": c.size,
        OURS: {"size": c.size},
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": c.width,
    }
