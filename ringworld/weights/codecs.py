"""Codecs from elsewhere: LWM's pickled `vqgan`, and the `VQModel` folders of diffusers (aMUSEd).

All three are one architecture, so that weights move by renaming, and diffusers' kernels by turning
[out, in, rows, columns] around; `their_names` says how. Sources: LWM's code (arXiv 2402.08268);
diffusers' `VQModel`, whose weights aMUSEd (arXiv 2401.01808) publishes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ringworld.config import from_dict
from ringworld.errors import InputError
from ringworld.files import read_json_object
from ringworld.media.codec import Codec, FloatCodec
from ringworld.models.vqgan import VQGAN, vqgan_specs
from ringworld.params import paths
from ringworld.weights.cursor import check_finite
from ringworld.weights.file_names import CONFIG, DIFFUSERS_TENSORS, LWM_CODEC, LWM_FILES
from ringworld.weights.folder import check_table, fill, load_folder
from ringworld.weights.settings import size_of
from ringworld.weights.tensors import read_tensors
from ringworld.weights.unpickle import read_pickle

PICKLE = b"\x80"  # what a pickle begins with, and neither msgpack's maps nor GGUF
VQGAN_KIND = "vqgan"  # what the config.json of our folders calls a codec
DIFFUSERS = "VQModel"
# The field of the config that diffusers does not know: the side of a frame in pixels. (Its own
# `sample_size` is 32 in every VQModel, whatever the model was made for.)
OURS = "ringworld"
# VQModels are made for pictures of 16 x 16 codes, and say so nowhere.
CODES_A_SIDE = 16
LWM_SIZE = 256  # the resolution of LWM's presets
LWM_GROUPS = 32
MODEL_ENDINGS = (".safetensors", ".gguf")  # beside LWM's codec they are a model's
# Beyond these it is no codec: a spec table of more would take long to write down.
MOST_LEVELS, MOST_BLOCKS = 16, 64
MOST_CHANNELS = 1 << 16
# What LWM's Flax modules number in the order of their use, and a level is called.
LWM_PARTS = {
    "conv1": "Conv_0",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
    "norm1": "GroupNorm_0",
    "norm2": "GroupNorm_1",
    "conv_in": "Conv_0",
    "norm_out": "GroupNorm_0",
    "conv_out": "Conv_1",
}
# What a VQModel must say for its arithmetic to be ours.
DIFFUSERS_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "norm_type": "group",
    "mid_block_add_attention": False,
}


def load_float_codec(path: Path | str) -> FloatCodec:
    """The codec of our folder, of diffusers' VQModel or of LWM's `vqgan`, on pixels in [-1, 1].

    Raises InputError as `load_codec`.
    """
    return load_codec(Path(path)).as_float


def load_codec(path: Path, size: int | None = None) -> Codec:
    """The codec of our folder, of a diffusers `VQModel` folder, or of LWM's `vqgan`, on bytes.

    `size` is the side of its frames in pixels. Without it, it is the one that our folder or a
    VQModel that we wrote notes, the `resolution` of the config.json beside LWM's file or else 256,
    and for other VQModels that of frames with 16 codes a side. Raises InputError when the file is
    damaged, or is another model's.
    """
    config, table = open_codec(path, size)
    return Codec(config, fill(vqgan_specs(config), table, jnp.float32))


def open_codec(path: Path, size: int | None = None) -> tuple[VQGAN, Mapping[str, np.ndarray]]:
    """The same before it is made ready: the config, and the weights by our names as stored."""
    if not path.is_dir():
        return _open_lwm(path, size)
    if not (path / CONFIG).is_file() and (path / LWM_CODEC).is_file():
        return _open_lwm(path / LWM_CODEC, size)
    fields = read_json_object(path / CONFIG)
    if "kind" in fields:
        return _open_ours(path)
    if fields.get("_class_name") == DIFFUSERS:
        return _open_diffusers(path, fields, size)
    if (path / LWM_CODEC).is_file():
        return _open_lwm(path / LWM_CODEC, size)
    raise InputError(f"{path} holds no codec: give ours, a VQModel's folder, or LWM's `vqgan`")


def _noted_size(fields: dict[str, Any]) -> int | None:
    """The side of a frame that a VQModel of ours notes in its config.json."""
    said = fields.get(OURS)
    size = said.get("size") if isinstance(said, dict) else None
    return size if type(size) is int else None


def is_codec(path: Path) -> bool:
    """Whether a codec, and no model, stands at `path`."""
    if path.is_file():
        with path.open("rb") as file:
            return file.read(1) == PICKLE
    if (path / CONFIG).is_file():
        fields = read_json_object(path / CONFIG)
        if fields.get("kind") == VQGAN_KIND or fields.get("_class_name") == DIFFUSERS:
            return True
    return path.is_dir() and _is_lwm(path)


def _is_lwm(folder: Path) -> bool:
    """Whether a folder holds LWM's codec and no model beside it."""
    model = any((folder / name).is_file() for name in LWM_FILES)
    others = [file for ending in MODEL_ENDINGS for file in folder.glob(f"*{ending}")]
    return (folder / LWM_CODEC).is_file() and not model and not others


def _open_ours(path: Path) -> tuple[VQGAN, Mapping[str, np.ndarray]]:
    kind, values, tensors = load_folder(path)
    if kind != VQGAN_KIND:
        raise InputError(f"{path} holds a {kind}, not a vqgan: give the folder of a codec")
    config = from_dict(VQGAN, values, str(path / CONFIG))
    check_table(vqgan_specs(config), tensors)
    return config, tensors


def _open_lwm(path: Path, size: int | None) -> tuple[VQGAN, Mapping[str, np.ndarray]]:
    """LWM's `vqgan` file, its sizes from its tensors."""
    stored = read_pickle(path)
    shapes = {name: array.shape for name, array in stored.items()}
    config = _lwm_config(path, shapes, size)
    found = {
        ours: check_finite(path, name, stored[name].read())
        for ours, name in their_names(config, lwm_name).items()
        if name in stored
    }
    if len(found) < len(stored):
        unknown = sorted(set(stored) - set(their_names(config, lwm_name).values()))
        raise InputError(f"{path} holds {unknown[0]!r:.80}, which no codec of LWM's has")
    check_table(vqgan_specs(config), found)
    return config, found


def _open_diffusers(
    path: Path, fields: dict[str, Any], size: int | None
) -> tuple[VQGAN, Mapping[str, np.ndarray]]:
    """A folder with diffusers' config.json, whose fields are given, and safetensors."""
    config = _diffusers_config(path / CONFIG, fields, size or _noted_size(fields))
    file = path / DIFFUSERS_TENSORS
    names = their_names(config, diffusers_name)
    if not file.is_file():
        raise InputError(f"there is no {file}: save the VQModel as safetensors")
    tensors = read_tensors(file)
    if unknown := sorted(set(tensors) - set(names.values())):
        raise InputError(f"{file} holds {unknown[0]!r:.80}, which its config does not have")
    found = {
        ours: _from_torch(check_finite(file, name, tensors[name]))
        for ours, name in names.items()
        if name in tensors
    }
    check_table(vqgan_specs(config), found)
    return config, found


def their_names(config: VQGAN, name: Callable[[str], str]) -> dict[str, str]:
    """Each weight's dotted name and what others call it."""
    return {ours: name(ours) for ours in paths(vqgan_specs(config))}


def lwm_name(ours: str) -> str:
    """`encoder.levels.0.blocks.1.conv1.kernel` as LWM writes it."""
    if ours == "codebook":
        return "quantize/embeddings"
    tower, *parts = ours.split(".")
    if tower in ("to_code", "from_code"):
        return "/".join([{"to_code": "quant_conv", "from_code": "post_quant_conv"}[tower], *parts])
    way = "Downsampling" if tower == "encoder" else "Upsampling"
    change = "Downsample" if tower == "encoder" else "Upsample"
    found = "/".join(LWM_PARTS.get(part, part) for part in parts)
    found = re.sub(r"^levels/(\d+)", rf"{way}Block_\1", found)
    found = re.sub(r"blocks/(\d+)", r"ResnetBlock_\1", found)
    found = re.sub(r"^mid/(\d+)", r"MidBlock_0/ResnetBlock_\1", found)
    return f"{tower}/{found.replace('resample', f'{change}_0/Conv_0')}"


def diffusers_name(ours: str) -> str:
    """`encoder.levels.0.blocks.1.conv1.kernel` as diffusers writes it."""
    if ours == "codebook":
        return "quantize.embedding.weight"
    way, change = ("down", "downsamplers") if ours.startswith("encoder") else ("up", "upsamplers")
    found = re.sub(r"levels\.(\d+)\.blocks", rf"{way}_blocks.\1.resnets", ours)
    found = re.sub(r"levels\.(\d+)\.resample", rf"{way}_blocks.\1.{change}.0.conv", found)
    found = found.replace(".mid.", ".mid_block.resnets.").replace(".shortcut.", ".conv_shortcut.")
    found = found.replace(".norm_out.", ".conv_norm_out.")
    found = re.sub(r"^to_code", "quant_conv", re.sub(r"^from_code", "post_quant_conv", found))
    return re.sub(r"(kernel|scale)$", "weight", found)


def _from_torch(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, rows, columns] as [rows, columns, in, out]; the rest as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _lwm_config(path: Path, shapes: Mapping[str, tuple[int, ...]], size: int | None) -> VQGAN:
    """The sizes of LWM's codec: widths from the shapes of its tensors, the frame from its config.

    Raises InputError when the shapes are no codec's, or the config.json says others.
    """

    def side(name: str, axes: int, axis: int) -> int:
        shape = shapes.get(name, ())
        if len(shape) != axes or not 0 < shape[axis] <= MOST_CHANNELS:
            raise InputError(f"{path} holds no {name} of {axes} axes: give LWM's `vqgan` file")
        return shape[axis]

    if attention := [name for name in shapes if "Attn" in name]:
        raise InputError(
            f"{path} has attention ({attention[0]:.80}), and only codecs without it are read"
        )
    pattern = re.compile(r"encoder/DownsamplingBlock_(\d{1,2})/ResnetBlock_(\d{1,2})/Conv_0/kernel")
    found = [pattern.fullmatch(name) for name in shapes]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    levels = 1 + max((level for level, _ in places), default=0)
    first = "encoder/DownsamplingBlock_{}/ResnetBlock_0/Conv_0/kernel"
    sizes = Sizes(
        channels=side("encoder/Conv_0/kernel", 4, 3),
        widths=[side(first.format(level), 4, 3) for level in range(levels)],
        blocks=1 + max((block for _, block in places), default=0),
        groups=LWM_GROUPS,
        codebook=side("quantize/embeddings", 2, 0),
        width=side("quantize/embeddings", 2, 1),
        latents=side("encoder/Conv_1/kernel", 4, 3),
    )
    given = path.with_name(CONFIG)
    fields = read_json_object(given) if given.is_file() else {}
    config = sizes.as_config(
        path, size or size_of({"resolution": LWM_SIZE} | fields, "resolution", given)
    )
    read = {
        "hidden_channels": config.channels,
        "channel_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "z_channels": config.latent_width,
        "num_embeddings": config.codebook,
        "quantized_embed_dim": config.width,
    }
    for name, value in read.items():
        if fields.get(name, value) != value:
            raise InputError(f"{given} says {name} {fields[name]!r:.40} and {path} has {value}")
    return config


def _diffusers_config(file: Path, fields: dict[str, Any], size: int | None) -> VQGAN:
    """The sizes that a VQModel's config.json gives."""
    for name, value in DIFFUSERS_FIXED.items():
        if fields.get(name, value) != value:
            raise InputError(f"{file} has {name} {fields[name]!r:.40} and only {value!r} is read")
    widths = fields.get("block_out_channels")
    if not isinstance(widths, list):
        raise InputError(f"{file} should give block_out_channels as a list of channels: correct it")
    levels = {str(i): width for i, width in enumerate(widths[: MOST_LEVELS + 1])}
    known = [size_of(levels, i, file) for i in levels]
    same = fields.get("vq_embed_dim") is None
    sizes = Sizes(
        channels=known[0] if known else 0,
        widths=known,
        blocks=size_of(fields, "layers_per_block", file),
        groups=size_of({"norm_num_groups": 32} | fields, "norm_num_groups", file),
        codebook=size_of(fields, "num_vq_embeddings", file),
        width=size_of(fields, "latent_channels" if same else "vq_embed_dim", file),
        latents=size_of(fields, "latent_channels", file),
    )
    return sizes.as_config(file, size or CODES_A_SIDE << max(len(known) - 1, 0))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a codec as a file gives them, not yet compared with one another."""

    channels: int
    widths: list[int]
    blocks: int
    groups: int
    codebook: int
    width: int
    latents: int

    def as_config(self, path: Path, size: int) -> VQGAN:
        """The config for frames of `size` pixels. Raises InputError when no codec has the sizes."""
        widths = self.widths
        if not 0 < len(widths) <= MOST_LEVELS or self.blocks > MOST_BLOCKS:
            raise InputError(
                f"{path} has {len(widths)} levels of {self.blocks} blocks, which no codec has"
            )
        if any(each % self.channels for each in widths) or max(widths) > MOST_CHANNELS:
            raise InputError(
                f"{path} has levels of {widths} channels: each must be a multiple of the first "
                f"convolution's {self.channels}"
            )
        return VQGAN(
            size=size,
            channels=self.channels,
            multipliers=tuple(each // self.channels for each in widths),
            blocks=self.blocks,
            groups=self.groups,
            codebook=self.codebook,
            width=self.width,
            latent_channels=None if self.latents == self.width else self.latents,
        )
