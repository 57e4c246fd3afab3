"""The codec out: a folder that diffusers loads as its `VQModel`.

aMUSEd's VQModel without attention is LWM's VQGAN and ours: convolutions are [out, in, rows,
columns] there and [rows, columns, in, out] here, and blocks have other names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import InputError
from ringworld.models.convolution import COLOURS
from ringworld.models.vqgan import VQGAN
from ringworld.weights.codecs import (
    OURS,
    VQGAN_KIND,
    diffusers_name,
    their_names,
)
from ringworld.weights.file_names import CONFIG, DIFFUSERS_TENSORS
from ringworld.weights.folder import write_folder
from ringworld.weights.tensors import write_tensors


def write_codec(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray]) -> None:
    """Write a codec of ours into the folder `draft`."""
    write_folder(draft, VQGAN_KIND, config, table)


def write_diffusers(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray]) -> None:
    """Write a codec into the folder `draft` as diffusers' VQModel loads it."""
    text = json.dumps(make_vqmodel_config(config), indent=2)
    (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
    names = their_names(config, diffusers_name)
    theirs = {
        names[ours]: w.transpose(3, 2, 0, 1) if w.ndim == 4 else w for ours, w in table.items()
    }
    write_tensors(draft / DIFFUSERS_TENSORS, theirs)


def make_vqmodel_config(c: VQGAN) -> dict[str, Any]:
    """The config.json of diffusers' VQModel.

    Raises InputError when its first level has other channels than its first convolution, or it
    encodes tiles by themselves, which a VQModel cannot have.
    """
    if c.tiles:
        raise InputError(
            "the codec encodes tiles by themselves, which diffusers' VQModel cannot do: keep it "
            "in our format"
        )
    if c.multipliers[0] != 1:
        raise InputError(
            f"the codec's first level has {c.multipliers[0]} times the channels of its first "
            "convolution, which diffusers' VQModel cannot have: keep it in our format"
        )
    levels = len(c.multipliers)
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(c.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": COLOURS,
        "latent_channels": c.latent_width,
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
