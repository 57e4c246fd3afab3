"""GGUF comes in: every type that its own package dequantises, words and scaling, no broken file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import quants
from tokenizers import Tokenizer

from ringworld.errors import InputError
from ringworld.rope_scaling import Llama3
from ringworld.weights.gguf import PLAIN, TENSOR_TYPES, read_container
from ringworld.weights.gguf_model import read_gguf
from ringworld.weights.model import load_model
from ringworld.weights.open import read_checkpoint
from tests import foreign


def make(path: Path) -> Path:
    """A small valid file."""
    return foreign.write_gguf(path / "model.gguf", foreign.gguf_tensors(np.random.default_rng(0)))


def in_pairs(halves: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's rows in the order of pairs, as llama.cpp's converter puts those of Llama."""
    apart = halves.reshape(heads, 2, halves.shape[0] // heads // 2, *halves.shape[1:])
    return apart.swapaxes(1, 2).reshape(halves.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_come_in_as_they_are_and_rows_of_llama_in_halves(tmp_path, dtype):
    theirs = foreign.gguf_tensors(np.random.default_rng(0), dtype)
    halves = {}
    for l in range(foreign.LAYERS):
        for part, heads in (("q", foreign.HEADS), ("k", foreign.HEADS // 2)):
            name = f"blk.{l}.attn_{part}.weight"
            halves[f"model.layers.{l}.self_attn.{part}_proj.weight"] = theirs[name]
            theirs = theirs | {name: in_pairs(theirs[name], heads)}
    checkpoint = read_gguf(foreign.write_gguf(tmp_path / "model.gguf", theirs))
    for name, expected in halves.items():
        found = checkpoint.tensors[name]()
        assert found.dtype == dtype
        assert np.array_equal(found, expected)
    down = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]()
    assert np.array_equal(down, theirs["blk.1.ffn_down.weight"])
    assert len(checkpoint.tensors) == len(theirs)
    assert checkpoint.chat_template == "{{ messages }}"
    assert checkpoint.config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_rows_of_qwen_stay_where_they_are(tmp_path, architecture):
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    del tensors["output.weight"]
    path = foreign.write_gguf(tmp_path / "model.gguf", tensors, architecture=architecture)
    checkpoint = read_gguf(path)
    found = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]()
    assert np.array_equal(found, tensors["blk.0.attn_q.weight"])
    assert checkpoint.config["model_type"] == architecture
    assert checkpoint.config["tie_word_embeddings"]


def test_the_types_that_are_read_are_those_that_gguf_dequantises():
    found = {}
    for kind, (block, width) in gguf.GGML_QUANT_SIZES.items():
        try:
            quants.dequantize(np.zeros((1, width), np.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = (kind.name, block, width)
    assert {n: (kind.name, kind.block, kind.width) for n, kind in TENSOR_TYPES.items()} == found
    assert set(PLAIN) < {kind.name for kind in TENSOR_TYPES.values()}


@pytest.mark.parametrize(
    "number", [n for n, kind in TENSOR_TYPES.items() if kind.name not in PLAIN]
)
def test_quantised_numbers_are_those_of_gguf(tmp_path, number):
    kind, rng = TENSOR_TYPES[number], np.random.default_rng(number)
    packed = rng.integers(0, 64, (3, 2 * kind.width), np.uint8)  # small scales, so finite ones
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    theirs = gguf.GGMLQuantizationType(number)
    writer.add_tensor("x", packed, raw_dtype=theirs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_container(tmp_path / "model.gguf").tensors["x"]
    assert tensor.shape == (3, 2 * kind.block)
    assert np.array_equal(tensor.read(), quants.dequantize(packed, theirs))


def test_text_is_cut_and_merged_as_the_file_says(tmp_path):
    tokenizer = Tokenizer.from_str(read_gguf(make(tmp_path)).tokenizer.decode())
    assert tokenizer.encode("abcab</s>ba").tokens == ["abc", "ab", "</s>", "b", "a"]
    assert tokenizer.decode(tokenizer.encode("abcab").ids) == "abcab"


def test_the_ends_that_a_file_names_are_tokens_and_end_answers(tmp_path):
    def name(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(14)  # "ab", which the file says is a word like any other
        writer.add_uint32("tokenizer.ggml.eom_token_id", 15)

    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    model = load_model(foreign.write_gguf(tmp_path / "m.gguf", tensors, more=name))
    assert model.ends == (14, 15)
    assert (model.tokenizer.bos_name, model.tokenizer.eos_name) == ("<s>", "</s>")
    assert model.tokenizer.special == {"<s>": 0, "</s>": 1, "ab": 14, "abc": 15}


def test_the_names_of_the_ends_are_those_of_the_files_ids(tmp_path):
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    swapped = foreign.write_gguf(tmp_path / "m.gguf", tensors, ends=(1, 0))
    words = load_model(swapped).tokenizer
    assert (words.bos_name, words.eos_name) == ("</s>", "<s>")


def test_pieces_merge_the_best_score_first_after_the_first_token(tmp_path):
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    checkpoint = read_gguf(foreign.write_gguf(tmp_path / "m.gguf", tensors, words="llama"))
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.decode())
    assert tokenizer.encode("abc a").tokens == ["<s>", "\u2581", "abc", "\u2581", "a"]
    assert tokenizer.decode(tokenizer.encode("abc a").ids) == "abc a"


def test_the_scaling_of_llama_3_is_found_in_its_factors(tmp_path):
    scaling = Llama3(factor=8.0, low_turns=1.0, high_turns=4.0, trained_context=8192)
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    factors = (1 / scaling.multipliers(1e4, 4)).astype(np.float32)
    tensors["rope_freqs.weight"] = factors
    found = read_gguf(foreign.write_gguf(tmp_path / "model.gguf", tensors)).config["rope_scaling"]
    assert found == {
        "rope_type": "llama3",
        "factor": float(str(factors.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tensors["rope_freqs.weight"] = factors * np.array([1.0, 1.5], np.float32)
    with pytest.raises(InputError, match="not the factors of Llama 3"):
        read_gguf(foreign.write_gguf(tmp_path / "model.gguf", tensors))


def entry(name: str, kind: int, value: bytes) -> bytes:
    """One entry of the metadata."""
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def head(name: str, sizes: list[int], kind: int, place: int) -> bytes:
    """One tensor's line in the header."""
    told = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(sizes))
    return told + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, place)


def container(entries: list[bytes] = (), heads: list[bytes] = (), data: int = 64) -> bytes:
    """A whole file of these, its tensors full of zeros."""
    told = struct.pack("<4sIQQ", b"GGUF", 3, len(heads), len(entries))
    told += b"".join(entries) + b"".join(heads)
    return told + bytes(-len(told) % 32 + data)


A = head("a", [8], 0, 0)
COUNT = struct.pack("<Q", 1 << 40)
BROKEN = {
    "empty": (b"", "is empty"),
    "not gguf": (b"GGML" + bytes(60), "does not begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF of version 1"),
    "big end first": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF of version 50331648"),
    "truncated header": (container([entry("a", 4, b"\0\0\0\0")])[:30], "are left"),
    "truncated tensor": (container([], [A])[:-40], "after the file"),
    "count bomb": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors and 0 entries"),
    "entry bomb": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "entries"),
    "text bomb": (container([entry("a", 8, COUNT)]), "are the most"),
    "list bomb": (container([entry("a", 9, struct.pack("<I", 8) + COUNT)]), "1099511627776 texts"),
    "list too long": (
        container([entry("a", 9, struct.pack("<IQ", 8, 1 << 20))]),
        "an array of 1048576 texts needs 8388608 bytes",
    ),
    "numbers bomb": (container([entry("a", 9, struct.pack("<I", 4) + COUNT)]), "are left"),
    "list of lists": (container([entry("a", 9, struct.pack("<IQ", 9, 1))]), "an array of type 9"),
    "unknown type": (container([entry("a", 13, bytes(8))]), "an entry of type 13"),
    "entry twice": (container([entry("a", 0, b"\0")] * 2), "stands twice"),
    "text that is none": (container([entry("a", 8, struct.pack("<Q", 1) + b"\xff")]), "UTF-8"),
    "alignment": (container([entry("general.alignment", 4, bytes(4))]), "power of 2"),
    "tensor twice": (container([], [A, head("a", [8], 0, 32)]), "stands twice"),
    "tensors that overlap": (
        container([], [head("a", [16], 0, 0), head("b", [8], 0, 32)]),
        "the tensor b lies over a",
    ),
    "tensor out of bounds": (container([], [head("a", [8], 0, 1 << 20)]), "after the file"),
    "place that overflows": (container([], [head("a", [8], 0, (1 << 64) - 32)]), "after the file"),
    "sizes that overflow": (container([], [head("a", [1 << 33, 1 << 33], 0, 0)]), "after the file"),
    "no sizes": (container([], [head("a", [], 0, 0)]), "has 0 axes"),
    "five axes": (container([], [head("a", [1] * 5, 0, 0)]), "has 5 axes"),
    "an axis of none": (container([], [head("a", [0], 0, 0)]), "blocks of 1"),
    "half a block": (container([], [head("a", [33], 8, 0)]), "blocks of 32"),
    "place between": (container([], [head("a", [2], 0, 4)]), "multiple of 32"),
    "unknown kind": (container([], [head("a", [8], 4, 0)]), "type 4, which .* Q4_0, Q4_1"),
    "control in a name": (container([], [head("a\n", [8], 0, 0)]), "cannot be written"),
    "no architecture": (container([], [A]), "architecture None, and llama, qwen2, qwen3 are"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


def yarn(writer: gguf.GGUFWriter) -> None:
    """The entries of a model scaled by YaRN."""
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def with_tensor(name: str, array: np.ndarray) -> Callable[[Path], Path]:
    """A valid file but for one tensor."""

    def write(folder: Path) -> Path:
        tensors = foreign.gguf_tensors(np.random.default_rng(0)) | {name: array}
        return foreign.write_gguf(folder / "model.gguf", tensors)

    return write


def with_entries(more: Callable[[gguf.GGUFWriter], object]) -> Callable[[Path], Path]:
    """A valid file but for the entries that `more` changes."""

    def write(folder: Path) -> Path:
        tensors = foreign.gguf_tensors(np.random.default_rng(0))
        return foreign.write_gguf(folder / "model.gguf", tensors, more=lambda w: change(w, more))

    def change(writer: gguf.GGUFWriter, more: Callable[[gguf.GGUFWriter], object]) -> None:
        fresh = gguf.GGUFWriter(None, "llama")
        more(fresh)
        for key in fresh.kv_data[0].keys() - {"general.architecture"}:
            writer.kv_data[0].pop(key, None)
        more(writer)

    return write


WRONG = {
    "nan": (
        with_tensor("output_norm.weight", np.full(8, np.nan, np.float32)),
        "output_norm.weight .* not finite",
    ),
    "rows for heads": (with_tensor("blk.0.attn_q.weight", np.ones((6, 8), "f4")), "6 rows for 2"),
    "experts": (with_entries(lambda w: w.add_expert_count(8)), "mixture of experts"),
    "an unknown tensor": (with_tensor("blk.0.ssm.weight", np.ones(8, "f4")), "blk.0.ssm.weight"),
    "a layer too many": (with_tensor("blk.2.attn_q.weight", np.ones((8, 8), "f4")), "blk.2.attn_q"),
    "layers": (with_entries(lambda w: w.add_block_count(1 << 30)), "1073741824 layers"),
    "no heads": (with_entries(lambda w: w.add_head_count(0)), "attention.head_count as a whole"),
    "odd heads": (with_entries(lambda w: w.add_key_length(3)), "a part of heads of 3"),
    "theta": (with_entries(lambda w: w.add_rope_freq_base(-1.0)), "rope.freq_base as a positive"),
    "another scaling": (
        with_entries(lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)),
        "scales RoPE by 'longrope'",
    ),
    "linear scaling": (
        with_entries(lambda w: w.add_rope_scaling_factor(2.0)),
        "scales RoPE by 'linear' with 2, and",
    ),
    "an old linear scaling": (
        with_entries(lambda w: w.add_float32("llama.rope.scale_linear", 4.0)),
        "scales RoPE by 'linear' with 4, and",
    ),
    "attn_factor": (
        with_entries(lambda w: w.add_rope_scaling_attn_factors(1.5)),
        "rope.scaling.attn_factor 1.5, which this decoder does not do",
    ),
    "a part of YaRN": (
        with_entries(lambda w: (yarn(w), w.add_rope_scaling_yarn_ext_factor(0.0))),
        "mixes YaRN",
    ),
    "another scale": (
        with_entries(lambda w: w.add_float32("llama.attention.scale", 0.25)),
        r"scales scores by 0.25, not by 1 / sqrt\(4\)",
    ),
    "no mask": (
        with_entries(lambda w: w.add_causal_attention(False)),
        "attention.causal 0, which this decoder does not do",
    ),
    "capped logits": (
        with_entries(lambda w: w.add_final_logit_softcapping(30.0)),
        "final_logit_softcapping 30, which",
    ),
    "wide values": (with_entries(lambda w: w.add_value_length(8)), "another width than its keys"),
    "heads of layers": (
        with_entries(lambda w: w.add_head_count_kv([1, 2])),
        "different attention.head_count_kv",
    ),
    "another cut": (with_entries(lambda w: w.add_tokenizer_pre("new")), "cuts text as 'new'"),
    "another tokenizer": (with_entries(lambda w: w.add_tokenizer_model("bert")), "'bert'"),
    "merges of no tokens": (with_entries(lambda w: w.add_token_merges(["q r"])), "no two tokens"),
    "merges of three": (with_entries(lambda w: w.add_token_merges(["a b c"])), "no two tokens"),
    "a token twice": (with_entries(lambda w: w.add_token_list(["a"] * 16)), "stands twice"),
    "kinds": (with_entries(lambda w: w.add_token_types([1])), "each token its kind"),
    "a first token of none": (with_entries(lambda w: w.add_bos_token_id(16)), "16 of 16 tokens"),
    "a long token": (with_entries(lambda w: w.add_token_list(["a" * 2000])), "1024 letters"),
}


@pytest.mark.parametrize(("write", "said"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_model_of_ours_is_one_sentence(tmp_path, write, said):
    path = write(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        for read in read_gguf(path).tensors.values():
            read()
    assert "\n" not in str(caught.value)


def test_neutral_entries_and_yarns_own_change_nothing(tmp_path):
    """What llama.cpp takes for nothing, and one number said for each layer."""
    plain = read_gguf(make(tmp_path)).config
    neutral = with_entries(
        lambda w: (
            w.add_rope_scaling_attn_factors(1.0),
            w.add_rope_scaling_factor(1.0),
            w.add_float32("llama.attention.scale", 0.5),
            w.add_causal_attention(True),
            w.add_value_length(4),
            w.add_head_count_kv([1, 1]),
            w.add_sliding_window(4),
        )
    )
    assert read_gguf(neutral(tmp_path)).config == plain
    scaled = with_entries(lambda w: (yarn(w), w.add_rope_scaling_yarn_beta_fast(16.0)))
    assert read_gguf(scaled(tmp_path)).config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,  # the context, as llama.cpp takes it
        "beta_fast": 16.0,
    }


def test_any_part_of_a_split_model_and_their_folder_stand_for_all_of_it(tmp_path):
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    whole = read_gguf(foreign.write_gguf(tmp_path / "whole.gguf", tensors))
    (tmp_path / "parts").mkdir()
    first = foreign.write_gguf(tmp_path / "parts" / "m.gguf", tensors, part=8)
    parts = sorted(first.parent.iterdir())
    assert len(parts) == 3
    for path in (*parts, first.parent):
        found = read_checkpoint(path)
        assert found.config == whole.config and found.tokenizer == whole.tokenizer
        assert set(found.tensors) == set(whole.tensors)
        for name, read in whole.tensors.items():
            assert np.array_equal(found.tensors[name](), read())


def test_a_part_alone_says_which_parts_are_missing(tmp_path):
    tensors = foreign.gguf_tensors(np.random.default_rng(0))
    first = foreign.write_gguf(tmp_path / "m.gguf", tensors, part=8)
    parts = sorted(tmp_path.iterdir())
    renamed = parts[1].rename(tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"no .*m-00002-of-00003.gguf, part 2 of 3 of this model"):
        read_gguf(first)
    with pytest.raises(InputError, match=r"b.gguf is part 2 of 3 of a model: name it NAME-00002-"):
        read_gguf(renamed)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(InputError, match=r"m-00002-of-00003.gguf is not part 2 of 3 of a model"):
        read_gguf(first)


def test_the_tokenizer_is_whole_json(tmp_path):
    made = json.loads(read_gguf(make(tmp_path)).tokenizer)
    special = [token["content"] for token in made["added_tokens"] if token["special"]]
    assert special == ["<s>", "</s>"]
