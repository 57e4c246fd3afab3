"""Codecs of others come in: LWM's codes and pictures, diffusers' folder, no broken one."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import ringworld
from ringworld.errors import InputError
from ringworld.models.vqgan import LWM_VQGAN, VQGAN, VQGANWeights, decode, encode, vqgan_specs
from ringworld.params import init, paths
from ringworld.weights.codecs import (
    diffusers_name,
    is_codec,
    load_codec,
    lwm_name,
    their_names,
)
from ringworld.weights.folder import save_folder
from ringworld.weights.save import convert
from tests import foreign

# The project's promise for pixels in [-1, 1]; 6e-6 is what is seen.
PIXELS = 1e-4
TINY = VQGAN(size=32, channels=4, multipliers=(1, 2), blocks=1, groups=4, codebook=8, width=4)
LWM_TINY = replace(TINY, channels=32, groups=32)
FIELDS = {
    "_class_name": "VQModel",
    "act_fn": "silu",
    "block_out_channels": [4, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_vq_embeddings": 8,
    "vq_embed_dim": None,
    "mid_block_add_attention": False,
}


def write_diffusers(folder: Path, config: VQGAN, weights: VQGANWeights, **fields: Any) -> Path:
    """A folder as diffusers' `VQModel.save_pretrained` writes it."""
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    names = their_names(config, diffusers_name)
    tensors = {names[ours]: np.asarray(array) for ours, array in paths(weights).items()}
    turned = {
        name: np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
        for name, array in tensors.items()
    }
    save_file(turned, folder / "diffusion_pytorch_model.safetensors")
    return folder


def same(a: VQGANWeights, b: VQGANWeights) -> bool:
    """Whether all weights are equal."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_lwms_codec_gives_its_codes_and_its_pictures(tmp_path):
    codec = load_codec(foreign.unpack("vqgan/vqgan.gz", tmp_path))
    expected = np.load(foreign.PARITY / "vqgan/expected.npz")
    codes = encode(codec.weights, jnp.asarray(expected["pixels"]), codec.config)
    assert np.array_equal(codes, expected["codes"])
    pixels = decode(codec.weights, jnp.asarray(expected["codes"]), codec.config)
    np.testing.assert_allclose(pixels, expected["reconstruction"], atol=PIXELS, rtol=0)


def test_a_folder_of_diffusers_is_the_codec_that_was_written(tmp_path):
    weights = init(vqgan_specs(TINY), 0)
    codec = load_codec(write_diffusers(tmp_path, TINY, weights))
    assert codec.config == TINY
    assert same(codec.weights, weights)
    assert load_codec(tmp_path, size=64).config == replace(TINY, size=64)


@pytest.mark.oracle
def test_the_codes_and_pictures_of_diffusers_vqmodel_are_its_own(tmp_path):
    """Every weight is random, biases and gains too, which a fresh model has at 0 and 1."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=2,
        latent_channels=8,
        num_vq_embeddings=64,
        norm_num_groups=16,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(float(weight.ndim == 1 and weight.mean() > 0.5), 0.1)
        theirs.quantize.embedding.weight.normal_()
    theirs.save_pretrained(tmp_path / "vqmodel")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).latents
        wanted = theirs.quantize(latents)[2][2].reshape(2, 16, 16)
        drawn = theirs.decode(wanted, force_not_quantize=True, shape=(2, 16, 16, 8)).sample
    codec = ringworld.load_codec(tmp_path / "vqmodel")
    codec = replace(codec, config=replace(codec.config, size=32))
    codes = codec.encode(pixels)
    np.testing.assert_array_equal(codes, wanted.numpy())
    assert len(np.unique(codes)) > 10
    wanted_pixels = drawn.numpy().transpose(0, 2, 3, 1).clip(-1, 1)
    np.testing.assert_allclose(codec.decode(codes), wanted_pixels, atol=PIXELS, rtol=0)


def test_names_are_those_that_lwm_and_diffusers_publish():
    """From the listings of LWM's `vqgan` and of aMUSEd-512's vqvae."""
    lwm, diffusers = their_names(LWM_VQGAN, lwm_name), their_names(LWM_VQGAN, diffusers_name)
    for ours, in_lwm, in_diffusers in [
        ("codebook", "quantize/embeddings", "quantize.embedding.weight"),
        ("to_code.kernel", "quant_conv/kernel", "quant_conv.weight"),
        ("from_code.bias", "post_quant_conv/bias", "post_quant_conv.bias"),
        ("encoder.conv_in.kernel", "encoder/Conv_0/kernel", "encoder.conv_in.weight"),
        (
            "encoder.levels.3.blocks.0.shortcut.bias",
            "encoder/DownsamplingBlock_3/ResnetBlock_0/Conv_2/bias",
            "encoder.down_blocks.3.resnets.0.conv_shortcut.bias",
        ),
        (
            "encoder.levels.0.resample.kernel",
            "encoder/DownsamplingBlock_0/Downsample_0/Conv_0/kernel",
            "encoder.down_blocks.0.downsamplers.0.conv.weight",
        ),
        (
            "decoder.levels.1.blocks.2.norm2.scale",
            "decoder/UpsamplingBlock_1/ResnetBlock_2/GroupNorm_1/scale",
            "decoder.up_blocks.1.resnets.2.norm2.weight",
        ),
        (
            "decoder.levels.1.resample.bias",
            "decoder/UpsamplingBlock_1/Upsample_0/Conv_0/bias",
            "decoder.up_blocks.1.upsamplers.0.conv.bias",
        ),
        (
            "decoder.mid.1.conv2.kernel",
            "decoder/MidBlock_0/ResnetBlock_1/Conv_1/kernel",
            "decoder.mid_block.resnets.1.conv2.weight",
        ),
        ("decoder.norm_out.bias", "decoder/GroupNorm_0/bias", "decoder.conv_norm_out.bias"),
        ("decoder.conv_out.kernel", "decoder/Conv_1/kernel", "decoder.conv_out.weight"),
    ]:
        assert (lwm[ours], diffusers[ours]) == (in_lwm, in_diffusers)
    assert len(set(lwm.values())) == len(set(diffusers.values())) == len(lwm)


def test_our_own_folder_opens_at_the_same_door(tmp_path):
    weights = init(vqgan_specs(TINY), 0)
    save_folder(tmp_path / "codec", "vqgan", TINY, weights, np.float32)
    assert same(load_codec(tmp_path / "codec").weights, weights)


def test_a_folder_that_holds_a_vqgan_is_lwms(tmp_path):
    foreign.unpack("vqgan/vqgan.gz", tmp_path)
    assert is_codec(tmp_path) and load_codec(tmp_path).config.size == 32
    (tmp_path / "config.json").unlink()
    assert is_codec(tmp_path) and load_codec(tmp_path).config.size == 256  # as LWM's presets
    (tmp_path / "streaming_params").touch()
    assert not is_codec(tmp_path)


def test_a_code_may_have_another_width_than_the_encoder(tmp_path):
    """LWM's `z_channels` beside `quantized_embed_dim`, diffusers' latents beside `vq_embed_dim`."""
    config = replace(TINY, channels=32, groups=32, latent_channels=6)
    weights = init(vqgan_specs(config), 0)
    path = tmp_path / "vqgan"
    path.write_bytes(pickle.dumps(lwm_tree(config)))
    found = load_codec(path, size=32)
    assert found.config == config and same(found.weights, weights)
    assert found.weights.to_code.kernel.shape == (1, 1, 6, 4)
    assert found.weights.from_code.kernel.shape == (1, 1, 4, 6)
    convert(path, tmp_path / "ours", None, lambda said: None)
    convert(tmp_path / "ours", tmp_path / "theirs", None, lambda said: None)
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (fields["latent_channels"], fields["vq_embed_dim"]) == (6, 4)
    for folder in ("ours", "theirs"):
        again = load_codec(tmp_path / folder, size=32)
        assert again.config.latent_channels == 6 and same(again.weights, weights)


def test_the_first_level_may_be_wider_than_the_first_convolution(tmp_path):
    config = replace(TINY, channels=32, groups=32, multipliers=(2, 3))
    (tmp_path / "vqgan").write_bytes(pickle.dumps(lwm_tree(config)))
    (tmp_path / "config.json").write_text('{"resolution": 32, "channel_mult": [2, 3]}')
    found = load_codec(tmp_path)
    assert found.config == config and same(found.weights, init(vqgan_specs(config), 0))
    convert(tmp_path, tmp_path / "ours", None, lambda said: None)
    with pytest.raises(InputError, match="VQModel cannot have: keep it"):
        convert(tmp_path / "ours", tmp_path / "theirs", None, lambda said: None)


def test_a_codec_of_tiles_stays_in_our_format(tmp_path):
    tiles = replace(TINY, tiles=True)
    save_folder(tmp_path / "ours", "vqgan", tiles, init(vqgan_specs(tiles), 0), jnp.float32)
    assert load_codec(tmp_path / "ours").config == tiles
    with pytest.raises(InputError, match="tiles by themselves, .* keep it in our format"):
        convert(tmp_path / "ours", tmp_path / "theirs", None, lambda said: None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resolution": "many"}, "resolution as a whole number"),
        ({"resolution": 33}, "levels need a size that 2 divides, not 33"),
        ({"z_channels": 5}, "says z_channels 5 and .* has 4"),
        ({"channel_mult": [1, 4]}, r"says channel_mult \[1, 4\] and .* has \[1, 2\]"),
        ({"num_embeddings": 9}, "says num_embeddings 9 and .* has 8"),
    ],
)
def test_a_config_beside_lwms_codec_that_does_not_fit_is_one_sentence(tmp_path, fields, said):
    (tmp_path / "vqgan").write_bytes(pickle.dumps(lwm_tree()))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=said):
        load_codec(tmp_path / "vqgan")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"_class_name": "AutoencoderKL"}, "holds no codec"),
        ({"act_fn": "relu"}, "act_fn 'relu' and only 'silu'"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention True"),
        ({"norm_type": "spatial"}, "norm_type 'spatial'"),
        ({"vq_embed_dim": 3}, "has the shape .* and the config asks for"),
        ({"latent_channels": -1}, "latent_channels as a whole number"),
        ({"layers_per_block": 10**9}, "levels of 1000000000 blocks"),
        ({"block_out_channels": [4] * 99}, "which no codec has"),
        ({"block_out_channels": [4, 6]}, "a multiple of the first convolution's 4"),
        ({"block_out_channels": [4, "8"]}, "as a whole number"),
        ({"block_out_channels": {}}, "block_out_channels as a list"),
        ({"block_out_channels": []}, "0 levels"),
        ({"norm_num_groups": 3}, "3 groups do not divide"),
        ({"num_vq_embeddings": 9}, "codebook"),
        ({"layers_per_block": 2}, "lack the tensor"),
        ({"block_out_channels": [4, 8, 8]}, "which"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(tmp_path, fields, said):
    write_diffusers(tmp_path, TINY, init(vqgan_specs(TINY), 0), **fields)
    with pytest.raises(InputError, match=said) as caught:
        load_codec(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_none_is_one_sentence(tmp_path):
    folder = write_diffusers(tmp_path, TINY, init(vqgan_specs(TINY), 0))
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (2 << 20)):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(InputError, match=r"config\.json") as caught:
            load_codec(folder)
        assert "\n" not in str(caught.value)


def test_damage_to_the_weights_is_one_sentence(tmp_path):
    folder = write_diffusers(tmp_path, TINY, init(vqgan_specs(TINY), 0))
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:5], b"\xff" * 64, whole + b"x"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="safetensors"):
            load_codec(folder)
    file.unlink()
    with pytest.raises(InputError, match="save the VQModel as safetensors"):
        load_codec(folder)


def lwm_tree(config: VQGAN = LWM_TINY) -> dict[str, Any]:
    """A small codec of LWM's, as nested dicts."""
    tree: dict[str, Any] = {}
    names = their_names(config, lwm_name)
    for ours, array in paths(init(vqgan_specs(config), 0)).items():
        *folders, last = names[ours].split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = np.asarray(array)
    return tree


def test_a_pickle_that_is_no_codec_is_one_sentence(tmp_path):
    path = tmp_path / "vqgan"
    path.write_bytes(pickle.dumps(lwm_tree()))
    assert load_codec(path).config.channels == 32
    wrong = [lwm_tree() for _ in range(6)]
    del wrong[0]["quantize"]
    wrong[1]["encoder"]["attention"] = np.ones(3)
    wrong[2]["decoder"]["Conv_1"]["bias"] = np.full(3, np.nan, np.float32)
    wrong[3]["decoder"]["Conv_1"]["bias"] = np.ones(4, np.float32)
    del wrong[4]["decoder"]["Conv_1"]["bias"]
    wrong[5]["encoder"]["MidBlock_0"]["AttnBlock_0"] = {"bias": np.ones(3, np.float32)}
    told = ["no quantize/embeddings", "encoder/attention", "not finite", "shape", "lack the tensor"]
    told += ["has attention .*AttnBlock_0/bias.*, and only codecs without it are read"]
    for tree, said in zip(wrong, told, strict=True):
        path.write_bytes(pickle.dumps(tree))
        with pytest.raises(InputError, match=said):
            load_codec(path)
