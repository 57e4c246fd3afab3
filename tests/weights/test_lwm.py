"""LWM's files come in: the logits of the original code, every form of the format, no broken one."""

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest

from ringworld.attention.mask import Where
from ringworld.errors import InputError
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import paths
from ringworld.rope import Rope, turn_halves, turn_neighbours
from ringworld.vocab import Vocabulary
from ringworld.weights.folder import fill
from ringworld.weights.imported import Checkpoint
from ringworld.weights.lwm import read_lwm
from ringworld.weights.model import load_model
from ringworld.weights.names import BY_OURS
from tests import foreign, lwm_by_hand

# What the project promises for logits in float32; seen is 5e-6 of tokens alone, 2e-5 of rows.
PARITY = 2e-4
# Two orders of the same products of a score, in float32.
ROUNDING = 1e-5


def make_world(c: Checkpoint) -> tuple[World, WorldWeights]:
    """Our model of a checkpoint in Hugging Face's language."""
    config, vision = c.config, c.config.get("vision", {})
    world = World(
        llama=Llama(
            layers=config["num_hidden_layers"],
            model=config["hidden_size"],
            mlp=config["intermediate_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_width=config["head_dim"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
        ),
        vocabulary=Vocabulary(
            text=config["vocab_size"],
            bos=config["bos_token_id"],
            eos=config["eos_token_id"],
            codes=vision.get("codes", 0),
            codes_per_frame=vision.get("codes_per_frame", 0),
            vision_rows=vision.get("rows", 0),
        ),
    )
    found = {}
    for ours, spec in paths(specs(world)).items():
        name = BY_OURS[ours]
        if name.layered:
            layers = range(world.llama.layers)
            rows = [c.tensors[name.hugging_face.format(l)]() for l in layers]
            found[ours] = np.stack([name.ours_from(row, spec.shape[1:]) for row in rows])
        else:
            found[ours] = name.ours_from(c.tensors[name.hugging_face](), spec.shape)
    return world, fill(specs(world), found, jnp.float32)


def logits(c: Checkpoint, ids: np.ndarray, vision: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """What both heads say of each token when it sees itself only, as in the data of LWM's code."""
    world, weights = make_world(c)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    where = Where(positions, segments=positions + 1)
    run = jax.jit(partial(forward, c=world))
    x = run(weights, jnp.asarray(ids), jnp.asarray(vision), where)
    heads = weights.heads
    return x @ heads.text, x @ (heads.text if heads.vision is None else heads.vision)


def write(folder: Path, content: bytes, config: dict[str, object] | None = None) -> Path:
    """A file of LWM's beside its config."""
    (folder / "config.json").write_text(json.dumps(foreign.LWM_CONFIG | (config or {})))
    path = folder / "streaming_params"
    path.write_bytes(content)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file of LWM's."""
    return {name: read() for name, read in read_lwm(path).tensors.items()}


def test_a_token_alone_has_the_logits_of_lwm(tmp_path):
    path = foreign.unpack("lwm_text/streaming_params.gz", tmp_path)
    expected = np.load(foreign.PARITY / "lwm_text/expected.npz")
    ids = expected["input_ids"]
    text, _ = logits(read_lwm(path), ids, np.zeros_like(ids, bool))
    np.testing.assert_allclose(text[:, ::2], expected["text_logits"], atol=PARITY, rtol=0)


def test_a_token_or_code_alone_has_both_logits_of_lwm(tmp_path):
    path = foreign.unpack("lwm_vision/streaming_params.gz", tmp_path)
    expected = np.load(foreign.PARITY / "lwm_vision/expected.npz")
    checkpoint = read_lwm(path)
    assert checkpoint.config["vision"] == {"codes": 8192, "codes_per_frame": 256, "rows": 8448}
    text, vision = logits(checkpoint, expected["input_ids"], expected["vision_mask"])
    seen = vision[..., expected["vision_columns"]]
    np.testing.assert_allclose(text[:, ::2], expected["text_logits"], atol=PARITY, rtol=0)
    np.testing.assert_allclose(seen, expected["vision_logits"], atol=PARITY, rtol=0)


def logits_by_hand(path: Path, name: str, *, causal: bool) -> dict[str, np.ndarray]:
    """What LWM's arithmetic, written out, says of the given rows."""
    given = np.load(foreign.PARITY / name / "expected.npz")
    sizes = json.loads((path.parent / "config.json").read_text())
    ids, time = given["input_ids"], np.arange(given["input_ids"].shape[1])
    return lwm_by_hand.read_logits(
        foreign.read_streaming(path.read_bytes()),
        ids,
        given["vision_mask"] if "vision_mask" in given else np.zeros_like(ids, bool),
        time[:, None] >= time if causal else time[:, None] == time,
        heads=sizes["num_attention_heads"],
        theta=sizes["theta"],
        eps=sizes["rms_norm_eps"],
    )


@pytest.mark.parametrize("name", ["lwm_text", "lwm_vision"])
def test_lwms_arithmetic_written_out_has_its_logits_of_tokens_alone(tmp_path, name):
    path = foreign.unpack(f"{name}/streaming_params.gz", tmp_path)
    found = logits_by_hand(path, name, causal=False)
    wanted = np.load(foreign.PARITY / name / "expected.npz")
    np.testing.assert_allclose(found["text"][:, ::2], wanted["text_logits"], atol=PARITY, rtol=0)
    if name == "lwm_vision":
        kept = found["vision"][..., wanted["vision_columns"]]
        np.testing.assert_allclose(kept, wanted["vision_logits"], atol=PARITY, rtol=0)


@pytest.mark.parametrize("name", ["lwm_text", "lwm_vision"])
def test_a_causal_row_has_the_logits_of_lwms_arithmetic_written_out(tmp_path, name):
    path = foreign.unpack(f"{name}/streaming_params.gz", tmp_path)
    given = np.load(foreign.PARITY / name / "expected.npz")
    seen = given["vision_mask"] if name == "lwm_vision" else None
    found = load_model(path).logits(given["input_ids"], modality=seen)
    wanted = logits_by_hand(path, name, causal=True)
    alone = logits_by_hand(path, name, causal=False)
    assert set(wanted) == ({"text", "vision"} if name == "lwm_vision" else {"text"})
    for head, logits in wanted.items():
        np.testing.assert_allclose(getattr(found, head), logits, atol=PARITY, rtol=0)
        assert np.abs(logits - alone[head]).max() > 1  # attention is much of them


def test_a_name_of_two_lines_is_refused_on_one(tmp_path):
    tree = foreign.lwm_tree(np.random.default_rng(0), vision=False, scanned=False, dtype="f4")
    tree["transformer", "wte", "embedding", "a\nb\u2028\x1b"] = np.zeros(3, np.int32)
    with pytest.raises(InputError, match=r"one array for .*/a\?b\?\?:") as refused:
        read_lwm(write(tmp_path, foreign.streaming(tree)))
    assert str(refused.value).isprintable()


def test_scores_are_those_of_the_neighbouring_pairs_that_lwm_turns(tmp_path):
    """q . k from LWM's own kernels and order of pairs, against the converted ones in halves."""
    rng = np.random.default_rng(0)
    tree = foreign.lwm_tree(rng, vision=False, scanned=False, dtype=np.float32)
    checkpoint = read_lwm(write(tmp_path, foreign.streaming(tree)))
    rope = Rope(theta=1e4, head_width=foreign.WIDTH // foreign.HEADS)
    turns = rope.at(jnp.arange(6, dtype=jnp.int32)[None] * 7)
    x = rng.normal(size=(1, 6, foreign.WIDTH)).astype(np.float32)

    def score(kernels: list[np.ndarray], turn: Callable[..., jax.Array]) -> jax.Array:
        shape = (1, 6, foreign.HEADS, rope.head_width)
        q, k = (turn(jnp.asarray((x @ kernel).reshape(shape)), turns) for kernel in kernels)
        return jnp.einsum("btnh,bsnh->bnts", q, k)

    there = [tree["transformer", "h", "1", "attention", w, "kernel"] for w in ("wq", "wk")]
    names = (f"model.layers.1.self_attn.{w}_proj.weight" for w in "qk")
    here = [checkpoint.tensors[name]().T for name in names]
    expected = score(there, turn_neighbours)
    np.testing.assert_allclose(score(here, turn_halves), expected, atol=ROUNDING)
    assert np.abs(score(there, turn_halves) - expected).max() > 0.1  # the order matters


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("vision", [False, True], ids=["text", "vision"])
def test_every_form_of_the_file_holds_the_same_tensors(tmp_path, dtype, vision):
    def tree(scanned: bool) -> foreign.Tree:
        rng = np.random.default_rng(0)
        return foreign.lwm_tree(rng, vision=vision, scanned=scanned, dtype=dtype)

    scanned, apart = tree(True), tree(False)
    forms = [
        foreign.streaming(scanned),
        foreign.streaming(apart),
        foreign.streaming(scanned, chunk=5),  # parts end inside rows and inside layers
        foreign.streaming(apart, chunk=7),
        foreign.streaming({("params", *name): array for name, array in scanned.items()}),
        foreign.streaming(foreign.training_state(scanned)),
        foreign.flax(scanned),
        foreign.flax(foreign.training_state(apart)),
    ]
    first, *others = (read_all(write(tmp_path, form)) for form in forms)
    q = apart["transformer", "h", "1", "attention", "wq", "kernel"]
    pairs = q.reshape(foreign.WIDTH, foreign.HEADS, -1, 2)
    halves = np.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1).reshape(q.shape)
    assert np.array_equal(first["model.layers.1.self_attn.q_proj.weight"], halves.T)
    down = apart["transformer", "h", "0", "feed_forward", "w2", "kernel"]
    assert np.array_equal(first["model.layers.0.mlp.down_proj.weight"], down.T)
    assert first["lm_head.weight"].dtype == dtype
    assert ("vision_head.weight" in first) == vision
    for other in others:
        assert set(other) == set(first)
        assert all(np.array_equal(other[name], first[name]) for name in first)


def test_tied_heads_are_said_to_be(tmp_path):
    tree = foreign.lwm_tree(np.random.default_rng(0), vision=False, scanned=True, dtype=np.float32)
    del tree["lm_head", "kernel"]
    checkpoint = read_lwm(write(tmp_path, foreign.streaming(tree)))
    assert checkpoint.config["tie_word_embeddings"]
    assert "lm_head.weight" not in checkpoint.tensors


def one(value: object, name: tuple[str, ...] = ("transformer", "wte", "embedding")) -> bytes:
    """A streaming file with one entry, whatever its value is."""
    return msgpack.packb((name, msgpack.packb(value)))


def array(shape: object, dtype: object, numbers: object) -> bytes:
    """A streaming file with one array of these parts."""
    return one(msgpack.ExtType(1, msgpack.packb((shape, dtype, numbers))))


GOOD = foreign.lwm_tree(np.random.default_rng(0), vision=True, scanned=True, dtype=np.float32)
WHOLE = foreign.streaming(GOOD)
NAN = GOOD | {("lm_head", "kernel"): np.full((8, 16), np.nan, np.float32)}
UNEVEN = GOOD | {("transformer", "h", "scan_decoder", "ffn_norm", "kernel"): np.ones((3, 8))}
BROKEN = {
    "empty": (b"", "is empty"),
    "truncated": (WHOLE[:-1], "are left"),
    "cut between tensors": (one(foreign.flax_array(np.ones((2, 2)))), "whole number of layers"),
    "no msgpack": (b"\xc1" + WHOLE, "begins no value"),
    "text": (b"hello", "no pair"),
    "header bomb": (b"\xdd\xff\xff\xff\xff", "4294967295"),
    "map bomb": (b"\xdf\xff\xff\xff\xff", "8589934590 bytes"),
    "bytes bomb": (b"\x92\x91\xa1a\xc6\xff\xff\xff\xff", "4294967295 bytes"),
    "nesting bomb": (b"\x91" * 10_000, "inside another"),
    "value bomb": (b"\xdd" + struct.pack(">I", 200_000) + b"\xc0" * 200_000, "more than 100000"),
    "long name": (b"\x92\x91" + msgpack.packb("x" * 5000) + b"\xc4\x00", "the most"),
    "bad name": (b"\x92\x91\xa2\xff\xff\xc4\x00", "UTF-8"),
    "a number for a name": (msgpack.packb(([1], b"")), "no text"),
    "twice": (WHOLE + WHOLE, "stands twice"),
    "trailing bytes": (foreign.flax(GOOD) + b"\x00", "1 bytes after the end"),
    "shape against bytes": (array((4, 4), "float32", bytes(60)), "in 60 bytes"),
    "negative shape": (array((-4, -4), "float32", bytes(64)), "a shape that is none"),
    "shape that overflows": (array((1 << 32, 1 << 32), "float32", b""), "in 0 bytes"),
    "too many axes": (array((1,) * 9, "float32", bytes(4)), "a shape that is none"),
    "object type": (array((1,), "object", bytes(8)), "'object', which no weight has"),
    "type that is code": (array((1,), "O,O", bytes(8)), "no weight has"),
    "type of bytes": (array((1,), b"float32", bytes(4)), "no array of flax's"),
    "unknown extension": (one(msgpack.ExtType(9, b"x")), "no array of flax's"),
    "parts out of order": (
        one({"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"1": 0}}),
        "not in order",
    ),
    "parts of numbers": (
        one({"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": 0}}),
        "do not fit together",
    ),
    "a number for a tensor": (one(3), "one array for transformer/wte"),
    "another model": (foreign.streaming({("params", "dense"): np.ones(3)}), "no LWM has"),
    "layers that differ": (foreign.streaming(UNEVEN), "no whole number of layers"),
    "nan": (foreign.streaming(NAN), "lm_head.weight .* not finite"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as caught:
        read_all(write(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert "streaming_params" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_attention_heads": 3}, "8 features among 3 heads"),
        ({"num_attention_heads": "two"}, "num_attention_heads as a whole number"),
        ({"theta": 0}, "theta as a positive number"),
        ({"theta": float("nan")}, "theta as a positive number"),
        ({"vocab_size": 17}, "says vocab_size 17 and .* has 16"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(tmp_path, config, said):
    with pytest.raises(InputError, match=said):
        read_lwm(write(tmp_path, WHOLE, config))


def test_a_missing_config_says_what_to_write(tmp_path):
    path = write(tmp_path, WHOLE)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="max_sequence_length.* 1048576"):
        read_lwm(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="streaming_params is empty"):
        read_lwm(path)
