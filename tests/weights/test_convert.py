"""Weights in and out: nothing is lost, nothing is half-written, and text stays text to the bit."""

import json
import resource
import shutil
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from foreign import PARITY, gguf_tensors, unpack, write_gguf
from safetensors.numpy import save_file
from sentencepiece_files import SMALL
from tiny_hf import write_tiny

from ringworld.errors import InputError
from ringworld.params import paths
from ringworld.text.sentencepiece import read_sentencepiece
from ringworld.weights.codecs import load_codec
from ringworld.weights.folder import load_folder
from ringworld.weights.model import load_model, save_model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO
from ringworld.weights.tensors import read_tensors

# What the original code and ours may differ by: other sums of the same float32 products.
PARITY_ERROR = 2e-4
CODEC = NANO / "codec"
FAMILIES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 16},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 16},
    "scaled": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
TOKENS = np.random.default_rng(0).integers(3, 280, (2, 24)).astype(np.int32)


def quiet(_: str) -> None:
    """Say nothing."""


def out_and_back(src: Path, folder: Path, shard_bytes: int = 5_000_000_000) -> Path:
    """The Hugging Face folder that `src` becomes on its way through ours."""
    convert(src, folder / "ours", None, quiet)
    convert(folder / "ours", folder / "theirs", None, quiet, shard_bytes)
    return folder / "theirs"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= read_tensors(file)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_in_and_out_again_is_equal_to_the_byte(tmp_path: Path, family: str, dtype: type):
    tensors = write_tiny(tmp_path / "src", dtype, **FAMILIES[family])
    again = tensors_of(out_and_back(tmp_path / "src", tmp_path, 10_000))
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype == dtype
        assert again[name].tobytes() == tensor.tobytes(), name
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    asked = json.loads((tmp_path / "src" / "config.json").read_text())
    assert {field: said.get(field) for field in asked} == asked | (
        {"sliding_window": None} if family == "qwen2" else {}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [(np.float16, np.float32), (ml_dtypes.bfloat16, np.float16), (np.float32, ml_dtypes.bfloat16)],
)
def test_layers_of_several_dtypes_become_one_that_holds_them_all(tmp_path: Path, one, other):
    tensors = write_tiny(tmp_path / "src", one)
    mixed = {n: w.astype(other) if "layers.1.mlp" in n else w for n, w in tensors.items()}
    save_file(mixed, tmp_path / "src" / "model.safetensors", metadata={"format": "pt"})
    again = tensors_of(out_and_back(tmp_path / "src", tmp_path))
    for name, w in mixed.items():
        assert again[name].dtype == (np.float32 if ".mlp." in name else one)
        np.testing.assert_array_equal(again[name].astype(np.float32), w.astype(np.float32))
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert said["torch_dtype"] == "float32"


def test_layers_quantised_in_several_ways_become_float32(tmp_path: Path):
    tensors = gguf_tensors(np.random.default_rng(0))
    for part in ("q", "k"):
        tensors[f"blk.1.attn_{part}.weight"] = tensors[f"blk.1.attn_{part}.weight"].astype("f2")
    file = write_gguf(tmp_path / "m.gguf", tensors)
    convert(file, tmp_path / "ours", None, quiet)
    found = load_folder(tmp_path / "ours")[2]
    assert {w.dtype for w in found.values()} == {np.dtype(np.float32)}
    wanted = paths(load_model(file).weights)
    assert all(np.array_equal(wanted[name], w) for name, w in found.items())


def test_a_token_without_a_row_is_refused_by_its_id_and_name(tmp_path: Path):
    shutil.copytree(NANO, tmp_path / "nano")
    file = tmp_path / "nano" / "tokenizer.json"
    said = json.loads(file.read_text())
    name = next(token for token, i in said["model"]["vocab"].items() if i == 2047)
    said["model"]["vocab"][name] = 5000  # as many tokens as before
    file.write_text(json.dumps(said))
    with pytest.raises(InputError, match=f"{name}' the id 5000 and the model has 2048 rows"):
        load_model(tmp_path / "nano")
    with pytest.raises(InputError, match="the id 5000"):
        convert(tmp_path / "nano", tmp_path / "out", None, quiet)


def test_a_whole_file_is_read_and_not_the_shards_of_an_old_index(tmp_path: Path):
    """As transformers does; here the index names shards that are there, or that are gone."""
    write_tiny(tmp_path / "src")
    whole = load_model(tmp_path / "src").weights
    old = {name: np.zeros_like(w) for name, w in tensors_of(tmp_path / "src").items()}
    save_file(old, tmp_path / "src" / "old.safetensors")
    for shard in ("old.safetensors", "absent.safetensors"):
        index = {"weight_map": dict.fromkeys(old, shard)}
        (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps(index))
        found = load_model(tmp_path / "src").weights
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, whole))


def test_what_lies_beside_the_weights_goes_along(tmp_path: Path):
    write_tiny(tmp_path / "src")
    theirs = out_and_back(tmp_path / "src", tmp_path)
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (theirs / file).read_bytes() == (tmp_path / "src" / file).read_bytes()


def test_every_end_of_an_answer_goes_along(tmp_path: Path):
    def name(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(14)

    file = write_gguf(tmp_path / "m.gguf", gguf_tensors(np.random.default_rng(0)), more=name)
    theirs = out_and_back(file, tmp_path)
    for folder in (tmp_path / "ours", theirs):
        said = json.loads((folder / "generation_config.json").read_text())
        assert said == {"bos_token_id": 0, "eos_token_id": [1, 14]}
        assert load_model(folder).ends == (1, 14)


def test_ends_are_those_of_both_configs(tmp_path: Path):
    write_tiny(tmp_path / "src", eos_token_id=[2, 5])
    assert load_model(tmp_path / "src").ends == (2, 5, 3)
    (tmp_path / "src" / "generation_config.json").unlink()
    convert(tmp_path / "src", tmp_path / "ours", None, quiet)
    assert load_model(tmp_path / "ours").ends == (2, 5)


def test_ends_that_the_model_does_not_have_are_one_sentence(tmp_path: Path):
    write_tiny(tmp_path / "src")
    for said, wanted in (("[2, 320]", "the token 320 of 320"), ('"x"', "make it token ids")):
        (tmp_path / "src" / "generation_config.json").write_text(f'{{"eos_token_id": {said}}}')
        with pytest.raises(InputError, match=wanted):
            load_model(tmp_path / "src")


def test_a_tokenizer_without_names_goes_out_with_those_of_the_models_ends(tmp_path: Path):
    write_tiny(tmp_path / "src")
    theirs = out_and_back(tmp_path / "src", tmp_path)
    said = json.loads((theirs / "tokenizer_config.json").read_text())
    assert said == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    assert load_model(theirs).tokenizer.eos_name == "</s>"
    named = tmp_path / "named"
    write_tiny(named)
    (named / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    convert(named, tmp_path / "named-ours", None, quiet)
    assert (
        tmp_path / "named-ours" / "tokenizer_config.json"
    ).read_text() == '{"eos_token": "<unk>"}'
    shutil.copyfile(NANO / "tokenizer.json", tmp_path / "src" / "tokenizer.json")
    with pytest.raises(InputError, match="the id 2047 and the model has 320 rows"):
        convert(tmp_path / "src", tmp_path / "others", None, quiet)
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        convert(tmp_path / "src", tmp_path / "broken", None, quiet)


def test_a_folder_with_a_sentencepiece_model_alone_has_its_tokenizer(tmp_path: Path):
    tiny = tmp_path / "tiny"
    write_tiny(tiny, vocab_size=320)
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer.model").write_bytes(SMALL)
    (tmp_path / "lwm").mkdir()
    lwm = unpack("lwm_text/streaming_params.gz", tmp_path / "lwm")
    (tmp_path / "lwm" / "tokenizer.model").write_bytes(SMALL)
    wanted = read_sentencepiece(SMALL)
    for source in (tiny, lwm, tmp_path / "lwm"):
        words = load_model(source).tokenizer
        assert words.encode("abc é cab") == wanted.encode("abc é cab")
        assert (words.bos, words.eos, words.opening) == (1, 2, [1])
    theirs = out_and_back(tiny, tmp_path)
    again = load_model(theirs).tokenizer
    assert (again.encode("abc é cab"), again.bos) == (wanted.encode("abc é cab"), 1)
    assert again.decode(again.encode("abc é cab")) == "abc é cab"
    (tiny / "tokenizer.model").write_bytes(SMALL[:-3])
    with pytest.raises(InputError, match="tokenizer.model is not a SentencePiece model"):
        load_model(tiny)


def test_a_sentencepiece_model_goes_along_with_what_was_added_to_it(tmp_path: Path):
    """From it llama.cpp's converter makes a piece for every row; a tokenizer.json has too few."""
    src, theirs = tmp_path / "src", tmp_path / "theirs"
    write_tiny(src, vocab_size=320)
    (src / "tokenizer.json").unlink()
    (src / "tokenizer.model").write_bytes(SMALL)
    assert not (out_and_back(src, tmp_path / "text") / "added_tokens.json").exists()
    convert(src, tmp_path / "world", CODEC, quiet)
    convert(tmp_path / "world", theirs, None, quiet)
    assert (theirs / "tokenizer.model").read_bytes() == SMALL
    words = load_model(theirs).tokenizer
    assert json.loads((theirs / "added_tokens.json").read_text()) == {
        mark: words.id(mark) for mark in ("<vision>", "</vision>")
    }
    (tmp_path / "world" / "about.txt").write_text("trained on shapes\n")
    trained = load_model(tmp_path / "world")
    save_model(tmp_path / "done", trained.config, trained.weights, tmp_path / "world", jnp.float32)
    assert (tmp_path / "done" / "tokenizer.model").read_bytes() == SMALL
    assert load_model(tmp_path / "done").about == "trained on shapes"


def test_shards_are_no_larger_than_asked_and_an_index_says_what_is_where(tmp_path: Path):
    tensors = write_tiny(tmp_path / "src")
    theirs = out_and_back(tmp_path / "src", tmp_path, 24_000)
    index = json.loads((theirs / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    shards = {file: read_tensors(theirs / file) for file in set(index["weight_map"].values())}
    assert len(shards) > 2
    assert all(sum(t.nbytes for t in held.values()) <= 24_000 for held in shards.values())
    assert all(name in shards[file] for name, file in index["weight_map"].items())
    (theirs / min(shards)).unlink()
    with pytest.raises(InputError, match=r"there is no .*-00001-of.*, one of \d parts that"):
        load_model(theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_text_logits_are_the_same_bits_when_vision_is_added(tmp_path: Path, tied: bool):
    write_tiny(tmp_path / "src", np.float32, tie_word_embeddings=tied)
    convert(tmp_path / "src", tmp_path / "world", CODEC, quiet)
    before, after = load_model(tmp_path / "src"), load_model(tmp_path / "world")
    looked, saw = before.logits(TOKENS), after.logits(TOKENS)
    np.testing.assert_array_equal(looked.text, saw.text)
    words = after.config.vocabulary
    assert (words.codes, words.codes_per_frame, words.vision_rows) == (512, 64, 768)
    assert looked.vision is None and saw.vision.shape == (2, 24, 768)
    assert after.tokenizer.id("<vision>") < words.text
    vectors = np.asarray(after.weights.vision_embed)
    np.testing.assert_allclose(vectors.std(), np.asarray(after.weights.text_embed).std(), rtol=0.05)
    assert after.codec.config == load_model(NANO).codec.config
    with pytest.raises(InputError, match="sees already"):
        convert(tmp_path / "world", tmp_path / "twice", CODEC, quiet)


def test_a_world_goes_out_as_one_language_model_and_comes_back_to_the_bit(tmp_path: Path):
    theirs = tmp_path / "theirs"
    convert(NANO, theirs, None, quiet)
    config, words = json.loads((theirs / "config.json").read_text()), load_model(NANO).config
    rows = words.vocabulary.text + words.vocabulary.vision_rows
    assert config["architectures"] == ["LlamaForCausalLM"] and config["vocab_size"] == rows
    shown = tensors_of(theirs)
    assert shown["model.embed_tokens.weight"].shape == shown["lm_head.weight"].shape
    assert shown["lm_head.weight"].shape == (rows, words.llama.model)
    convert(theirs, tmp_path / "again", None, quiet)
    first, second = load_folder(NANO)[2], load_folder(tmp_path / "again")[2]
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert tensor.tobytes() == second[name].tobytes(), name
    codecs = [load_folder(folder / "codec")[2] for folder in (NANO, tmp_path / "again")]
    assert {n: t.tobytes() for n, t in codecs[0].items()} == {
        n: t.tobytes() for n, t in codecs[1].items()
    }


def test_a_codec_goes_out_and_comes_back_to_the_byte(tmp_path: Path):
    told: list[str] = []
    convert(CODEC, tmp_path / "theirs", None, told.append)
    convert(tmp_path / "theirs", tmp_path / "ours", None, told.append)
    assert "diffusers loads it" in told[0] and "a codec of ours" in told[1]
    shipped, back = (
        json.loads((at / "config.json").read_text()) for at in (CODEC, tmp_path / "ours")
    )
    assert back == {"tiles": False} | shipped  # it was written before there were tiles
    first, second = load_folder(CODEC)[2], load_folder(tmp_path / "ours")[2]
    assert {n: (t.dtype, t.tobytes()) for n, t in first.items()} == {
        n: (t.dtype, t.tobytes()) for n, t in second.items()
    }


def test_lwms_codec_alone_becomes_ours(tmp_path: Path):
    (tmp_path / "lwm").mkdir()
    file = unpack("vqgan/vqgan.gz", tmp_path / "lwm")
    (tmp_path / "lwm" / "config.json").unlink()
    for i, source in enumerate((file, file.parent)):
        convert(source, tmp_path / f"ours{i}", None, quiet)
        found = load_codec(tmp_path / f"ours{i}")
        assert found.config == load_codec(file).config
        for ours, theirs in zip(
            jax.tree.leaves(found.weights), jax.tree.leaves(load_codec(file).weights), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path: Path):
    file = write_gguf(tmp_path / "sha256-0a1b", gguf_tensors(np.random.default_rng(0)))
    convert(file, tmp_path / "ours", None, quiet)
    assert load_model(tmp_path / "ours").config.llama.layers == 2


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 538090408\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("src/model.safetensors", "is a part of a model: give its folder"),
        ("pointer.gguf", "run git lfs pull"),
        ("pointer", "run git lfs pull"),
    ],
)
def test_what_only_stands_for_a_model_says_what_to_give(tmp_path: Path, name: str, said: str):
    write_tiny(tmp_path / "src")
    write_tiny(tmp_path / "pointer")
    (tmp_path / "pointer" / "model.safetensors").write_text(POINTER)
    (tmp_path / "pointer.gguf").write_text(POINTER)
    with pytest.raises(InputError, match=said):
        convert(tmp_path / name, tmp_path / "dst", None, quiet)
    assert not (tmp_path / "dst").exists()


def test_a_target_inside_a_file_is_one_sentence(tmp_path: Path):
    write_tiny(tmp_path / "src")
    with pytest.raises(InputError, match="is a file, in which nothing can be saved"):
        convert(tmp_path / "src", tmp_path / "src" / "config.json" / "dst", None, quiet)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_failed_conversion_leaves_nothing(tmp_path: Path, number: float):
    tensors = write_tiny(tmp_path / "src")
    data = bytearray((tmp_path / "src" / "model.safetensors").read_bytes())
    at = data.find(tensors["model.norm.weight"].tobytes())
    data[at : at + 2] = np.array(number, ml_dtypes.bfloat16).tobytes()
    (tmp_path / "src" / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN"):
        convert(tmp_path / "src", tmp_path / "dst", None, quiet)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN"):
        load_model(tmp_path / "src")
    assert [entry.name for entry in tmp_path.iterdir()] == ["src"]
    (tmp_path / "dst").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "src", tmp_path / "dst", None, quiet)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path):
    write_tiny(tmp_path / "src")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))  # a seventh of the weights
    try:
        with pytest.raises(InputError, match=r"dst could not be written .*: free some space"):
            convert(tmp_path / "src", tmp_path / "dst", None, quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [entry.name for entry in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("name", ["lwm_text", "lwm_vision"])
def test_lwm_becomes_ours_and_then_what_transformers_loads(tmp_path: Path, name: str):
    (tmp_path / "src").mkdir()
    file = unpack(f"{name}/streaming_params.gz", tmp_path / "src")
    theirs = out_and_back(file, tmp_path)
    expected = np.load(PARITY / name / "expected.npz")
    for path in (file, tmp_path / "ours", theirs):
        found = load_model(path).logits(
            expected["input_ids"],
            modality=expected["vision_mask"] if name == "lwm_vision" else None,
        )
        pairs = [(np.asarray(found.text)[:, ::2], expected["text_logits"])]
        if name == "lwm_vision":
            kept = np.asarray(found.vision)[..., expected["vision_columns"]]
            pairs.append((kept, expected["vision_logits"]))
        for ours, lwm in pairs:
            assert np.abs(ours - lwm).max() <= PARITY_ERROR
