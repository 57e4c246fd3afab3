"""The doors: what `load` opens, what its models compute on any mesh, and what it refuses."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hf import CONFIG, write_tiny

import ringworld
from ringworld import InputError, make_mesh
from ringworld.batch import Batch
from ringworld.mesh import empty_on_host, shard
from ringworld.params import paths
from ringworld.train.loss import loss
from ringworld.weights import open as open_module
from ringworld.weights.huggingface import FAMILIES, read_world
from ringworld.weights.model import Model
from ringworld.weights.save import convert
from ringworld.weights.shipped import NANO
from ringworld.weights.tensors import read_tensors

ROOT = Path(__file__).resolve().parents[2]
# What a family adds to Llama, all at once where one model can have it.
RELATIVES: dict[str, dict[str, Any]] = {
    "biases, window, tied": {
        "model_type": "qwen2",
        "sliding_window": 5,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "tie_word_embeddings": True,
    },
    "norms": {"model_type": "qwen3", "head_dim": 16},
}
# The same sums in another order, compared with the largest of the array.
TOLERANCE = 1e-5
WORDS = open_module.open_model(NANO).config.vocabulary
TOKENS = np.random.default_rng(0).integers(3, 280, (2, 16)).astype(np.int32)


def largest(x: Any) -> float:
    return float(np.abs(np.asarray(x)).max())


def learn(model: Model) -> tuple[jax.Array, Any]:
    """The loss of a row and its gradients, on the mesh that is set."""
    rows = {name: shard(jnp.asarray(x), "batch", "seq") for name, x in columns().items()}
    batch = Batch(**rows)
    step = jax.jit(jax.value_and_grad(lambda w: loss(w, batch, model.config, 0.0)[0]))
    return jax.device_get(step(model.sharded_weights()))


def columns() -> dict[str, np.ndarray]:
    """A packed batch: two segments a row."""
    position = np.tile(np.r_[np.arange(9), np.arange(7)], (2, 1)).astype(np.int32)
    return {
        "tokens": TOKENS,
        "targets": np.roll(TOKENS, -1, 1),
        "weights": np.ones(TOKENS.shape, np.float32),
        "vision": np.zeros(TOKENS.shape, bool),
        "target_vision": np.zeros(TOKENS.shape, bool),
        "positions": position,
        "segments": np.tile(np.repeat([1, 2], [9, 7]), (2, 1)).astype(np.int32),
    }


@pytest.mark.parametrize("relative", RELATIVES)
def test_every_relative_reads_and_learns_the_same_on_any_mesh(tmp_path: Path, relative: str):
    write_tiny(tmp_path / "model", np.float32, **RELATIVES[relative])
    alone = ringworld.load(tmp_path / "model")
    logits, (value, grads) = jax.device_get((alone.logits(TOKENS), learn(alone)))
    for name, grad in paths(grads).items():
        assert np.isfinite(grad).all() and largest(grad) > 0, f"nothing reaches {name}"
    with jax.set_mesh(make_mesh(fsdp=2, seq=2, tensor=2)):
        spread = ringworld.load(tmp_path / "model")
        for name, weight in paths(spread.weights).items():
            assert len(weight.sharding.device_set) == 8, name
        found = spread.logits(TOKENS).text
        assert largest(np.asarray(found) - logits.text) <= TOLERANCE * largest(logits.text)
        again, found_grads = jax.device_get(learn(spread))
    assert again == pytest.approx(value, rel=TOLERANCE)
    for name, grad in paths(found_grads).items():
        wanted = paths(grads)[name]
        assert largest(grad - wanted) <= TOLERANCE * largest(wanted), name


def test_a_window_hides_what_is_further_back(tmp_path: Path):
    write_tiny(tmp_path / "model", np.float32, model_type="mistral", sliding_window=4)
    model = ringworld.load(tmp_path / "model")
    changed = TOKENS.copy()
    changed[:, 0] += 1
    before, after = (np.asarray(model.logits(t).text) for t in (TOKENS, changed))
    # Two layers see twice three tokens back; the first is 7 before the eighth.
    np.testing.assert_array_equal(before[:, 7:], after[:, 7:])
    assert (before[:, 6] != after[:, 6]).any()


def test_logits_of_packed_segments_are_those_of_each_alone():
    model = ringworld.load(NANO)
    ids = np.r_[TOKENS[0, :6], TOKENS[1, :6], 0, 0][None] % 100
    seen = np.zeros(ids.shape, bool)
    seen[0, 2:5] = True
    positions = np.r_[np.arange(6), np.arange(6), 0, 0][None]
    segments = np.repeat([1, 2, 0], [6, 6, 2])[None]
    both = model.logits(ids, seen, positions, segments)
    for part in (slice(0, 6), slice(6, 12)):
        alone = model.logits(ids[:, part], modality=seen[:, part])
        for whole, single in zip(both, alone, strict=True):
            assert largest(whole[:, part] - single) <= TOLERANCE * largest(single)
    blind = model.logits(ids, positions=positions, segments=segments)
    assert largest(both.text[:, :6] - blind.text[:, :6]) > 0.1


WRONG_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": [1, 2, 3]}, r"the shape \(3,\): give rows of them"),
    ({"tokens": np.zeros((1, 0), int)}, r"the shape \(1, 0\): give rows of them"),
    ({"tokens": [[1.5, 2.0]]}, "an array of float64"),
    ({"tokens": [[1, -2, 3]]}, "the token -2 in row 0, column 1, is none of .* text ids"),
    ({"tokens": [[1, WORDS.text]]}, "column 1, is none of .* text ids"),
    (
        {"tokens": [[1, WORDS.vision_rows]], "modality": [[False, True]]},
        "none of this model's .* vision ids",
    ),
    (
        {"tokens": [[1, 2]], "modality": [[True]]},
        r"modality is .*: give whole numbers of .* \(1, 2",
    ),
    ({"tokens": [[1, 2]], "positions": [0, 1]}, "positions is an array of int64"),
    ({"tokens": [[1, 2]], "segments": [[1]]}, "segments is an array of int64"),
]


@pytest.mark.parametrize(("given", "said"), WRONG_ROWS, ids=lambda x: str(x)[:40])
def test_rows_that_the_model_cannot_read_are_refused_in_one_sentence(
    given: dict[str, Any], said: str
):
    model = ringworld.load(NANO)
    with pytest.raises(InputError, match=said) as refused:
        model.logits(**{name: np.array(values) for name, values in given.items()})
    assert "\n" not in str(refused.value)


def test_padding_may_be_any_number():
    model = ringworld.load(NANO)
    padded = model.logits(np.array([[1, 20, -100]]), segments=np.array([[1, 1, 0]])).text[:, :2]
    alone = model.logits(np.array([[1, 20]])).text
    assert largest(padded - alone) <= TOLERANCE * largest(alone)


def test_codes_of_another_codec_are_refused():
    codec = ringworld.load_codec(NANO / "codec")
    codes = np.zeros((1, 8, 8), np.int32)
    codes[0, 3, 3] = 512
    with pytest.raises(InputError, match="run from 0 to 512 and this codec has 0 to 511"):
        codec.decode(codes)


def test_load_codec_turns_pictures_into_squares_of_codes_and_back():
    codec, pixels = ringworld.load_codec(NANO / "codec"), np.zeros((2, 64, 64, 3), np.float32)
    pixels[0, :32] = 0.8
    codes = codec.encode(pixels)
    assert codes.shape == (2, 8, 8) and codes.dtype == np.int32
    drawn = codec.decode(codes)
    assert drawn.shape == pixels.shape and np.abs(drawn).max() <= 1
    # The shipped codec paints plain fields almost as they are.
    assert np.abs(drawn - pixels).mean() < 0.15


# Reads a model, and tells in bytes its weights, and how much more memory of its own the program has
# than before: the most when a weight was read and not yet placed, and at the end.
WATCH = """
import sys
from contextlib import nullcontext
import jax
import jax.numpy as jnp
import ringworld
import ringworld.weights.model  # so that its own size is not counted
from ringworld.weights import folder
from ringworld.params import paths

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

check, most = folder.check_numbers, []
def watch(name, piece):
    check(name, piece)
    most.append(held())

folder.check_numbers = watch
jnp.zeros(1).block_until_ready()
mesh = ringworld.make_mesh(fsdp=8) if sys.argv[2] == "mesh" else None
before = held()
with jax.set_mesh(mesh) if mesh else nullcontext():
    model = ringworld.load(sys.argv[1])
assert not mesh or all(len(w.sharding.device_set) == 8 for w in paths(model.weights).values())
print(sum(w.nbytes for w in paths(model.weights).values()), max(most) - before, held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("where", ["one device", "mesh"])
@pytest.mark.parametrize("ours", [False, True])
def test_loading_holds_the_weights_and_what_is_being_read_and_no_more(
    tmp_path: Path, ours: bool, where: str
):
    """Three of the weights have 50 MB in float32; a second one of them kept anywhere is seen."""
    wide = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 8192, "num_hidden_layers": 6}
    write_tiny(tmp_path / "theirs", **wide)
    if ours:
        convert(tmp_path / "theirs", tmp_path / "ours", None, lambda said: None)
    words = [sys.executable, "-c", WATCH, str(tmp_path / ("ours" if ours else "theirs")), where]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    size, most, end = map(int, done.stdout.split())
    assert size > 150e6
    # JAX takes the memory that a weight was read into, so none stands there twice.
    assert most < size + 10e6 and end < size + 10e6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cpu_takes_memory_from_the_host_without_a_copy(dtype: str) -> None:
    kind = jnp.dtype(dtype)
    for size in (1, 33, 1000):
        array = empty_on_host((3, size), kind)
        array[:] = np.arange(size)
        taken = jax.device_put(array)
        assert array.shape == (3, size) and array.dtype == kind
        assert taken.unsafe_buffer_pointer() == array.ctypes.data
        np.testing.assert_array_equal(taken, array)


# ---- what is refused


REFUSED_CONFIGS = [
    ({"model_type": "gemma2"}, f"gemma2, .*{', '.join(FAMILIES)}"),
    ({"hidden_size": -4}, "hidden_size .* is -4"),
    ({"hidden_size": "many"}, "hidden_size .* is many: make it a number"),
    ({"hidden_size": True}, "hidden_size .* is True"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ({"num_hidden_layers": 3}, r"lack the tensor model\.layers\.2\."),
    ({"num_hidden_layers": 1}, r"hold model\.layers\.1\."),
    ({"num_key_value_heads": 3}, "3 key heads do not divide 4 heads"),
    ({"intermediate_size": 40}, r"gate_proj\.weight has the shape \(48, 32\) .* \(40, 32\)"),
    ({"vocab_size": 300}, r"embed_tokens\.weight has the shape \(320, 32\) .* \(300, 32\)"),
    ({"rope_theta": float("nan")}, "rope_theta"),
    ({"rope_theta": 0.5}, "base is above 1"),
    ({"rope_scaling": {"type": "longrope"}}, "longrope.*default, llama3 or plain yarn"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"hidden_act": "gelu"}, "hidden_act to gelu"),
    ({"attention_bias": True}, "attention_bias to True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"vision": 3}, "vision"),
    ({"ringworld": {"text": 0}}, "how many rows"),
    (
        {
            "model_type": "qwen2",
            "sliding_window": 5,
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
        "gives 1 of 2 layers a sliding window and the others none",
    ),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types that a model of type llama"),
    ({"layer_types": ["full_attention"]}, "layer_types that a model of type llama"),
    (
        {"model_type": "mistral", "sliding_window": 5, "layer_types": ["full_attention"] * 2},
        "layer_types that a model of type mistral",
    ),
    (
        {"model_type": "qwen3", "head_dim": 8, "layer_types": ["sliding_attention"] * 2},
        "layer_types that a model of type qwen3",
    ),
    ({"is_causal": False}, "is_causal to False"),
    ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "a part of each head only, 0.5 of it"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention layers alone"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.2}},
        "the rule yarn with attention_factor",
    ),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "the rule linear, which"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED_CONFIGS, ids=lambda x: str(x)[:40])
def test_a_config_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str
):
    write_tiny(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InputError, match=said):
        ringworld.load(tmp_path / "model")


OUR_WRONG = [
    ({"kind": "car"}, "holds a car, not a world model"),
    ({"wings": 2}, "unknown key wings"),
    ({"tied": "yes"}, "config.json: tied must be true or false, not 'yes'"),
    ({"llama": [1]}, "config.json: llama is not a table"),
    (
        {"llama.mlp": 40},
        r"w_gate has the shape \(2, 32, 48\) and the config asks for \(2, 32, 40\)",
    ),
    ({"llama.mlp": "many"}, "config.json: llama: mlp must be a whole number, not 'many'"),
    ({"llama.mlp": True}, "config.json: llama: mlp must be a whole number, not True"),
    ({"llama.layers": -1}, "config.json: llama: layers is -1: make it 1 or more"),
    ({"llama.kv_heads": 0}, "config.json: llama: kv_heads is 0: make it 1 or more"),
    (
        {"llama.dtype": "int3"},
        "config.json: llama: dtype must be one of float32, bfloat16, not 'int3'",
    ),
    ({"llama.rope_theta": 0.5}, "config.json: llama: rope_theta is 0.5: RoPE needs a base above 1"),
    (
        {"llama.rope_theta": float("nan")},
        "config.json: llama: rope_theta must be a number, not nan",
    ),
    ({"vocabulary.text": "x"}, "config.json: vocabulary: text must be a whole number, not 'x'"),
]


@pytest.mark.parametrize(("change", "said"), OUR_WRONG, ids=lambda x: str(x)[:40])
def test_a_config_of_ours_that_does_not_fit_is_refused_on_its_way_in_and_out(
    tmp_path: Path, change: dict[str, Any], said: str
):
    write_tiny(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "ours", None, lambda told: None)
    file = tmp_path / "ours" / "config.json"
    config = json.loads(file.read_text())
    for name, value in change.items():
        *within, field = name.split(".")
        (config[within[0]] if within else config)[field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=said) as refused:
        ringworld.load(tmp_path / "ours")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=said):
        convert(tmp_path / "ours", tmp_path / "out", None, lambda told: None)
    assert not (tmp_path / "out").exists()


NO_WINDOW = [
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "mistral", "sliding_window": 128},
    {"sliding_window": 64},
    {"sliding_window": 64, "use_sliding_window": True},
    {"sliding_window": 64, "max_window_layers": 0},
    *(
        {"model_type": kind, "head_dim": 8, **more}
        for kind in ("qwen2", "qwen3")
        for more in (
            {"sliding_window": 64, "max_window_layers": 0},
            {"sliding_window": 64},
            {},
            {"sliding_window": 64, "use_sliding_window": True},  # from layer 28 on
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
            {
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 0,
                "layer_types": ["full_attention"] * 2,
            },
        )
    ),
]


@pytest.mark.parametrize("fields", NO_WINDOW, ids=str)
def test_a_window_that_transformers_does_not_use_is_none(fields: dict[str, Any]):
    assert read_world(CONFIG | fields).llama.window is None


def test_a_window_is_read_where_transformers_has_one():
    qwen = {"model_type": "qwen3", "head_dim": 8, "sliding_window": 64, "use_sliding_window": True}
    for fields in (
        {"model_type": "mistral", "sliding_window": 64, "use_sliding_window": False},
        qwen | {"max_window_layers": 0},
        qwen | {"layer_types": ["sliding_attention"] * 2},
    ):
        assert read_world(CONFIG | fields).llama.window == 64
    assert read_world(CONFIG | {"model_type": "mistral"}).llama.window is None  # 4096 of 128
    long = read_world(CONFIG | {"model_type": "mistral", "max_position_embeddings": 8192})
    assert long.llama.window == 4096


def test_an_absent_field_is_what_transformers_takes():
    bare = {name: value for name, value in CONFIG.items() if not name.endswith("_token_id")}
    words = read_world(bare).vocabulary
    assert (words.bos, words.eos) == (1, 2)
    null = read_world(bare | {"bos_token_id": None, "eos_token_id": None}).vocabulary
    assert (null.bos, null.eos) == (-1, -1)
    qwen = read_world(bare | {"model_type": "qwen3"})
    assert (qwen.llama.head_width, qwen.vocabulary.bos, qwen.tied) == (128, -1, False)
    assert read_world(bare | {"head_dim": None}).llama.head_width == 8
    yarn = {"type": "yarn", "original_max_position_embeddings": 32}
    assert read_world(bare | {"rope_scaling": yarn}).llama.rope_scaling.factor == 4


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(first: int, past: int, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, past]}


CORPUS = {
    "empty": b"",
    "four bytes": b"abcd",
    "wrong magic": b"GGUF\x03\x00\x00\x00" + b"x" * 64,
    "header bomb": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the file": struct.pack("<Q", 400) + b"{}",
    "cut short": header({"w": tensor(0, 4)}, b"abc"),
    "more than it says": header({"w": tensor(0, 4)}, b"abcdef"),
    "not JSON": header(b"{'w': 3}"),
    "not text": header(b"\xff\xfe\xfd"),
    "not an object": header([1, 2]),
    "nested": header(b"[" * 100_000),
    "no tensor": header({"w": 3}),
    "overlap": header({"v": tensor(0, 4), "w": tensor(2, 6)}, b"abcdef"),
    "gap": header({"v": tensor(0, 4), "w": tensor(8, 12)}, b"a" * 12),
    "out of bounds": header({"w": tensor(0, 4000, [1000])}, b"abcd"),
    "negative": header({"w": tensor(-4, 0)}, b""),
    "backwards": header({"w": tensor(4, 0)}, b"abcd"),
    "product overflows": header({"w": tensor(0, 4, [2**40, 2**40])}, b"abcd"),
    "shape of strings": header({"w": tensor(0, 4, ["1"])}, b"abcd"),
    "shape of truth": header({"w": tensor(0, 4, [True])}, b"abcd"),
    "offsets of one": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"abcd"),
    "a name of two lines": header({"a\nb": tensor(0, 4)}, b"abcd"),
    "a name of a page": header({"a" * 3000: tensor(0, 4)}, b"abcd"),
    "dtype of two lines": header({"w": tensor(0, 4, [1], "F\n32")}, b"abcd"),
    "dtype unknown": header({"w": tensor(0, 4, [1], "Q4_K")}, b"abcd"),
    "dtype a list": header({"w": tensor(0, 4, [1], ["F32"])}, b"abcd"),
    "number too long": header(b'{"w": ' + b"1" * 5000 + b"}"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_a_broken_safetensors_file_is_refused_in_one_sentence(tmp_path: Path, name: str):
    file = tmp_path / "model.safetensors"
    file.write_bytes(CORPUS[name])
    with pytest.raises(InputError) as caught:
        read_tensors(file)
    said = str(caught.value)
    assert said.isprintable() and len(said) < len(str(file)) + 300 and str(file) in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(CORPUS.values())), st.integers(0, 200), st.binary(max_size=6), st.data()
)
def test_any_damage_to_a_header_is_read_or_refused(
    tmp_path_factory, base: bytes, at: int, put: bytes, data: st.DataObject
):
    file = tmp_path_factory.mktemp("fuzz") / "w.safetensors"
    if data.draw(st.booleans()):
        base = header({"w": data.draw(JSON)}, b"abcd")
    file.write_bytes(base[:at] + put + base[at + len(put) :])
    try:
        read = read_tensors(file)
    except InputError:
        return
    assert all(isinstance(tensor, np.ndarray) for tensor in read.values())


FIELDS = [*CONFIG, "head_dim", "rope_scaling", "sliding_window", "vision", "tie_word_embeddings"]


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_config_is_read_or_refused(change: dict[str, Any]):
    try:
        read_world(CONFIG | change)
    except InputError as error:
        assert "\n" not in str(error) or "\n" in json.dumps(change, ensure_ascii=False)


def test_bin_weights_are_refused_because_they_are_programs(tmp_path: Path):
    write_tiny(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match="which are programs"):
        ringworld.load(tmp_path / "model")
    with pytest.raises(InputError, match="there is nothing at"):
        ringworld.load(tmp_path / "absent")


def test_the_name_of_a_fetched_model_stands_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        return tmp_path / "model.gguf"

    monkeypatch.setattr(open_module, "fetch", fetch)
    with pytest.raises(InputError, match="model.gguf"):
        open_module.open_model(Path("smollm2-135m"))
    assert fetched == ["smollm2-135m"]
