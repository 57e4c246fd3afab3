"""Codecs as diffusers' `VQModel` and back: the same architecture under other names.

aMUSEd's VQModel without attention is LWM's VQGAN and ours: convolutions are [out, in, rows,
columns] there and [rows, columns, in, out] here, and blocks have other names.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import InputError
from ringworld.models.folder import load_folder, make_config, write_folder
from ringworld.models.tensors import Pieces, write_tensors
from ringworld.models.vqgan import COLOURS, VQGAN

WEIGHTS = "diffusion_pytorch_model.safetensors"
# What becomes of the parts of a dotted name of ours in diffusers'.
RENAMED = (
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"^(encoder.*)\.resample\.", r"\1.downsamplers.0.conv."),
    (r"^(decoder.*)\.resample\.", r"\1.upsamplers.0.conv."),
    (r"\.blocks\.", ".resnets."),
    (r"\.mid\.", ".mid_block.resnets."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"^to_code\.", "quant_conv."),
    (r"^from_code\.", "post_quant_conv."),
    (r"^codebook$", "quantize.embedding.weight"),
    (r"\.(kernel|scale)$", ".weight"),
)


def name_there(ours: str) -> str:
    """What diffusers calls this weight of ours."""
    for pattern, other in RENAMED:
        ours = re.sub(pattern, other, ours)
    return ours


def open_codec(path: Path) -> tuple[VQGAN, Mapping[str, np.ndarray | Pieces]]:
    """The codec of a folder: its config, and its weights still to read.

    Raises InputError when it is missing, damaged or of another kind.
    """
    kind, values, tensors = load_folder(path)
    if kind != "vqgan":
        raise InputError(f"{path} holds a {kind}, not a vqgan: give the folder of a codec")
    return make_config(VQGAN, values), tensors


def write_codec(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray | Pieces]) -> None:
    """Write a codec of ours into the folder `draft`."""
    write_folder(draft, "vqgan", config, table)


def write_diffusers(draft: Path, config: VQGAN, table: Mapping[str, np.ndarray | Pieces]) -> None:
    """Write a codec into the folder `draft` as diffusers' VQModel loads it."""
    text = json.dumps(describe(config), indent=2)
    (draft / "config.json").write_text(text + "\n", encoding="utf-8")
    theirs = {}
    for name, weight in table.items():
        whole = np.concatenate(list(weight)) if isinstance(weight, Pieces) else weight
        theirs[name_there(name)] = whole.transpose(3, 2, 0, 1) if whole.ndim == 4 else whole
    write_tensors(draft / WEIGHTS, theirs)


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
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": c.width,
    }
