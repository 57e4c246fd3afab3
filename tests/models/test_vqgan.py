"""The codec: its size, its shapes, its codes, and the folder that it is kept in."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.config import from_dict
from ringworld.errors import InputError
from ringworld.mesh import make_mesh, shard
from ringworld.models import vqgan
from ringworld.models.vqgan import (
    LWM_VQGAN,
    NANO_VQGAN,
    VQGAN,
    latents,
    nearest,
    quantise,
    vqgan_specs,
)
from ringworld.params import abstract, count, init, paths
from ringworld.weights.folder import fill, load_folder, save_folder

TINY = VQGAN(size=16, channels=8, multipliers=(1, 2, 2), blocks=1, groups=4, codebook=32, width=8)
encode = jax.jit(vqgan.encode, static_argnums=2)
decode = jax.jit(vqgan.decode, static_argnums=2)


@pytest.fixture(scope="module")
def weights():
    fresh = init(vqgan_specs(TINY), 0)
    book = jax.random.normal(jax.random.key(1), (TINY.codebook, TINY.width))
    return replace(fresh, codebook=book)


@pytest.fixture(scope="module")
def pixels():
    return jax.random.uniform(jax.random.key(2), (3, 16, 16, 3), minval=-1.0, maxval=1.0)


def test_lwm_size_has_the_parameters_of_lwm():
    assert count(vqgan_specs(LWM_VQGAN)) == 146_244_675
    assert (LWM_VQGAN.side, LWM_VQGAN.stride) == (16, 16)


def test_nano_fits_in_the_package():
    assert 0.9e6 < count(vqgan_specs(NANO_VQGAN)) < 1.1e6
    assert (NANO_VQGAN.size, NANO_VQGAN.side, NANO_VQGAN.codebook) == (64, 8, 512)


@pytest.mark.parametrize("config", [LWM_VQGAN, NANO_VQGAN], ids=["lwm", "nano"])
def test_frames_become_squares_of_codes_and_codes_frames(config):
    table = abstract(vqgan_specs(config))
    frames = jax.ShapeDtypeStruct((2, config.size, config.size, 3), jnp.float32)
    codes = jax.eval_shape(lambda w, x: encode(w, x, config), table, frames)
    assert (codes.shape, codes.dtype) == ((2, config.side, config.side), jnp.int32)
    back = jax.eval_shape(lambda w, k: decode(w, k, config), table, codes)
    assert (back.shape, back.dtype) == (frames.shape, jnp.float32)


def test_codes_and_pixels_are_in_range_and_repeat(weights, pixels):
    codes = encode(weights, pixels, TINY)
    assert codes.min() >= 0 and codes.max() < TINY.codebook and len(np.unique(codes)) > 1
    frames = decode(weights, codes, TINY)
    assert frames.min() >= -1 and frames.max() <= 1
    np.testing.assert_array_equal(frames, decode(weights, encode(weights, pixels, TINY), TINY))


def test_frames_do_not_see_each_other(weights, pixels):
    noise = jax.random.uniform(jax.random.key(4), pixels.shape, minval=-1.0, maxval=1.0)
    among_others = encode(weights, noise.at[1].set(pixels[1]), TINY)
    np.testing.assert_array_equal(encode(weights, pixels, TINY)[1], among_others[1])


def test_nearest_code_is_nearest(weights, pixels):
    vectors = np.asarray(latents(weights, pixels, TINY), np.float64)
    book = np.asarray(weights.codebook, np.float64)
    distances = ((vectors[..., None, :] - book) ** 2).sum(-1)
    np.testing.assert_array_equal(encode(weights, pixels, TINY), distances.argmin(-1))


def test_lower_of_two_equal_codes_is_taken():
    book = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest(jnp.asarray([[[[2.0, 1.0]]]]), book).item() == 0


def test_gradient_passes_straight_through_the_codes(weights, pixels):
    vectors = latents(weights, pixels, TINY)
    slope = jax.random.normal(jax.random.key(3), vectors.shape)

    def weighed(v, book):
        return jnp.sum(slope * quantise(v, book).vectors)

    by_vectors, by_book = jax.grad(weighed, argnums=(0, 1))(vectors, weights.codebook)
    np.testing.assert_array_equal(by_vectors, slope)
    np.testing.assert_array_equal(by_book, 0)
    found = quantise(vectors, weights.codebook)
    np.testing.assert_allclose(found.vectors, weights.codebook[found.codes], atol=1e-5)


def test_codes_outside_the_book_are_taken_as_its_last(weights):
    codes = jnp.full((1, 4, 4), TINY.codebook - 1, jnp.int32)
    np.testing.assert_array_equal(decode(weights, codes + 7, TINY), decode(weights, codes, TINY))


def test_mesh_does_not_change_codes_or_frames(weights, pixels):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    frames = jnp.concatenate([pixels, pixels])
    codes = encode(weights, frames, TINY)
    back = decode(weights, codes, TINY)
    with jax.set_mesh(make_mesh(data=2)):
        weights, frames = jax.device_get((weights, frames))
        divided = encode(weights, shard(jnp.asarray(frames), "batch"), TINY)
        again = decode(weights, divided, TINY)
    np.testing.assert_array_equal(divided, codes)
    np.testing.assert_allclose(again, back, atol=1e-5)


def test_a_code_of_a_codec_of_tiles_depends_on_its_tile_alone(weights, pixels):
    tiles = replace(TINY, tiles=True)
    side = TINY.stride
    changed = jax.random.uniform(jax.random.key(5), pixels.shape, minval=-1.0, maxval=1.0)
    changed = changed.at[:, side : 2 * side, :side].set(pixels[:, side : 2 * side, :side])
    before, after = (latents(weights, some, tiles) for some in (pixels, changed))
    same = np.zeros(before.shape[1:3], bool)
    same[1, 0] = True
    np.testing.assert_array_equal((before == after).all((0, 3)), same)
    alone = latents(weights, pixels[:, side : 2 * side, :side], replace(tiles, size=side))
    np.testing.assert_allclose(before[:, 1, 0], alone[:, 0, 0], atol=1e-5)  # sums in another order


def test_a_mesh_does_not_change_the_codes_of_tiles(weights, pixels):
    tiles, frames = replace(TINY, tiles=True), jnp.concatenate([pixels, pixels])
    codes = encode(weights, frames, tiles)
    with jax.set_mesh(make_mesh(data=2)):
        weights, frames = jax.device_get((weights, frames))
        divided = encode(weights, shard(jnp.asarray(frames), "batch"), tiles)
    np.testing.assert_array_equal(divided, codes)


def test_every_weight_has_the_name_of_one_of_lwms():
    """LWM names parts by class and order; each of ours is one of those, and none is left over."""
    names = {_name_in_lwm(name) for name in paths(vqgan_specs(TINY))}
    assert len(names) == len(paths(vqgan_specs(TINY)))
    assert {
        "encoder.DownsamplingBlock_1.ResnetBlock_0.Conv_2.kernel",
        "encoder.DownsamplingBlock_1.Downsample_0.Conv_0.kernel",
        "decoder.UpsamplingBlock_0.ResnetBlock_1.GroupNorm_1.scale",
        "decoder.UpsamplingBlock_1.Upsample_0.Conv_0.bias",
        "decoder.MidBlock_0.ResnetBlock_1.Conv_1.kernel",
        "quantize.embeddings",
        "post_quant_conv.kernel",
    } <= names
    assert "encoder.DownsamplingBlock_2.Downsample_0.Conv_0.kernel" not in names


def _name_in_lwm(name: str) -> str:
    half = "Down" if name.startswith("encoder") else "Up"
    for ours, theirs in (
        (r"^to_code", "quant_conv"),
        (r"^from_code", "post_quant_conv"),
        (r"^codebook", "quantize.embeddings"),
        (r"levels\.(\d)", rf"{half}samplingBlock_\1"),
        (r"mid\.(\d)", r"MidBlock_0.ResnetBlock_\1"),
        (r"blocks\.(\d)", r"ResnetBlock_\1"),
        (r"norm([12])", lambda found: f"GroupNorm_{int(found[1]) - 1}"),
        (r"conv([12])", lambda found: f"Conv_{int(found[1]) - 1}"),
        (r"shortcut", "Conv_2"),
        (r"resample", f"{half}sample_0.Conv_0"),
        (r"conv_in", "Conv_0"),
        (r"conv_out", "Conv_1"),
        (r"norm_out", "GroupNorm_0"),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 18}, "4 divides"),
        ({"groups": 3}, "groups do not divide"),
        ({"codebook": 0}, "at least 1"),
        ({"multipliers": ()}, "at least 1"),
    ],
)
def test_impossible_codecs_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(TINY, **change)


def test_frames_of_another_size_are_refused(weights):
    with pytest.raises(InputError, match="frames of shape"):
        encode(weights, jnp.zeros((1, 8, 8, 3)), TINY)


def test_a_folder_gives_back_what_was_put_in(weights, tmp_path: Path):
    save_folder(tmp_path / "codec", "vqgan", TINY, weights, jnp.bfloat16)
    kind, fields, tensors = load_folder(tmp_path / "codec")
    assert (kind, from_dict(VQGAN, fields, "codec")) == ("vqgan", TINY)
    loaded = fill(vqgan_specs(TINY), tensors, jnp.float32)
    for name, weight in paths(loaded).items():
        kept = np.asarray(paths(weights)[name]).astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(weight), kept, err_msg=name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["codec"]


def test_a_folder_is_never_overwritten(weights, tmp_path: Path):
    with pytest.raises(InputError, match="exists already"):
        save_folder(tmp_path, "vqgan", TINY, weights, jnp.bfloat16)


def test_a_failed_save_leaves_nothing(tmp_path: Path):
    with pytest.raises((TypeError, AttributeError)):
        save_folder(tmp_path / "codec", "vqgan", TINY, {"w": object()}, jnp.float32)
    assert not list(tmp_path.iterdir())


def test_a_wrong_shape_names_the_tensor_and_both_shapes(weights):
    tensors = {name: np.asarray(w) for name, w in paths(weights).items()}
    wrong = tensors | {"codebook": np.zeros((3, 4), np.float32)}
    with pytest.raises(InputError, match=r"codebook .*\(3, 4\).*\(32, 8\)"):
        fill(vqgan_specs(TINY), wrong, jnp.float32)
    with pytest.raises(InputError, match="lack the tensor codebook"):
        tensors.pop("codebook")
        fill(vqgan_specs(TINY), tensors, jnp.float32)


def test_damaged_folders_are_refused(weights, tmp_path: Path):
    folder = tmp_path / "codec"
    with pytest.raises(InputError, match="there is no"):
        load_folder(folder)
    save_folder(folder, "vqgan", TINY, weights, jnp.bfloat16)
    tensors = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        load_folder(folder)
    (folder / "config.json").write_text(json.dumps({"size": 3}))
    with pytest.raises(InputError, match="does not name its"):
        load_folder(folder)
    (folder / "config.json").write_text('{"kind": ')
    with pytest.raises(InputError, match="not whole JSON"):
        load_folder(folder)


def test_unknown_and_missing_fields_are_refused():
    with pytest.raises(InputError, match="codec has the unknown key colour"):
        from_dict(VQGAN, {"colour": 1}, "codec")
    with pytest.raises(InputError, match="codec lacks the key channels"):
        from_dict(VQGAN, {"size": 64}, "codec")
