"""LWM's files come in: the logits of the original code, every form of the format, no broken one."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from jax.typing import ArrayLike

from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.rope import Rope, turn_halves, turn_neighbours
from ringworld.weights.lwm import read_lwm
from ringworld.weights.model import load_model
from tests import foreign, lwm_by_hand

# What the project promises for logits in float32; seen is 2.2e-5 of up to 8.
PARITY = 2e-4
HEADS = ("text", "vision")
# Two orders of the same products of a score, in float32.
ROUNDING = 1e-5


def write(folder: Path, content: bytes, config: dict[str, object] | None = None) -> Path:
    """A file of LWM's beside its config."""
    (folder / "config.json").write_text(json.dumps(foreign.LWM_CONFIG | (config or {})))
    path = folder / "streaming_params"
    path.write_bytes(content)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file of LWM's."""
    return {name: read() for name, read in read_lwm(path).tensors.items()}


@dataclass(frozen=True)
class Rows:
    """Rows of LWM's run and what they hold: tokens [B, T], and the logits that were kept."""

    ids: np.ndarray
    vision: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    logits: dict[str, np.ndarray]
    columns: np.ndarray | None

    def kept(self, head: str, logits: ArrayLike) -> np.ndarray:
        """Of a head's logits [B, T, V], those that were kept: half the text's, some columns."""
        found = np.asarray(logits)
        return found[:, ::2] if head == "text" else found[..., self.columns]


def read_rows(name: str, packed: bool) -> Rows:
    """The whole causal rows of LWM's inference, or the rows of two segments of its ring."""
    held = np.load(foreign.PARITY / name / f"expected{'_packed' if packed else ''}.npz")
    ids = held["input_ids"]
    return Rows(
        ids=ids,
        vision=held["vision_mask"] if "vision_mask" in held else np.zeros_like(ids, bool),
        positions=held["positions"],
        segments=held["segment_ids"] if packed else np.ones_like(ids),
        logits={head: held[f"{head}_logits"] for head in HEADS if f"{head}_logits" in held},
        columns=held.get("vision_columns"),
    )


MODELS = pytest.mark.parametrize("name", ["lwm_text", "lwm_vision"])
KINDS = pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])


@MODELS
@KINDS
@pytest.mark.parametrize("ring", [1, 4])
def test_causal_and_packed_rows_have_the_logits_of_lwm_on_one_device_and_on_a_ring(
    tmp_path, name, packed, ring
):
    rows = read_rows(name, packed)
    with jax.set_mesh(make_mesh(seq=ring)):
        model = load_model(foreign.unpack(f"{name}/streaming_params.gz", tmp_path))
        found = model.logits(rows.ids, rows.vision, rows.positions, rows.segments)
        assert len(found.text.sharding.device_set) == ring
    assert set(rows.logits) == ({"text", "vision"} if name == "lwm_vision" else {"text"})
    for head, wanted in rows.logits.items():
        kept = rows.kept(head, getattr(found, head))
        np.testing.assert_allclose(kept, wanted, atol=PARITY, rtol=0)


@MODELS
def test_segments_are_a_part_of_lwms_logits(name):
    """The causal and the packed rows are the same tokens: the second segment differs."""
    causal, packed = read_rows(name, False), read_rows(name, True)
    np.testing.assert_array_equal(causal.ids, packed.ids)
    for head, logits in causal.logits.items():
        differs = np.abs(logits - packed.logits[head]).max(-1)
        second = packed.segments == 2
        second = second[:, ::2] if head == "text" else second
        assert differs[second].min() > 100 * PARITY
        assert differs[~second].max() < PARITY


def test_the_sizes_of_vision_are_those_of_lwm(tmp_path):
    path = foreign.unpack("lwm_vision/streaming_params.gz", tmp_path)
    vision = read_lwm(path).config["vision"]
    assert vision == {"codes": 8192, "codes_per_frame": 256, "rows": 8448}


def logits_by_hand(path: Path, rows: Rows) -> dict[str, np.ndarray]:
    """What LWM's arithmetic, written out, says of the given rows."""
    sizes = json.loads((path.parent / "config.json").read_text())
    return lwm_by_hand.read_logits(
        foreign.read_streaming(path.read_bytes()),
        rows.ids,
        rows.vision,
        rows.positions,
        rows.segments,
        heads=sizes["num_attention_heads"],
        theta=sizes["theta"],
        eps=sizes["rms_norm_eps"],
    )


@MODELS
@KINDS
def test_lwms_arithmetic_written_out_has_its_logits(tmp_path, name, packed):
    rows = read_rows(name, packed)
    path = foreign.unpack(f"{name}/streaming_params.gz", tmp_path)
    for head, logits in logits_by_hand(path, rows).items():
        kept = rows.kept(head, logits)
        np.testing.assert_allclose(kept, rows.logits[head], atol=PARITY, rtol=0)


@MODELS
def test_a_causal_row_has_the_logits_of_lwms_arithmetic_written_out(tmp_path, name):
    """Every token and every row of both heads, those too that LWM's run did not keep."""
    path = foreign.unpack(f"{name}/streaming_params.gz", tmp_path)
    rows = read_rows(name, False)
    found = load_model(path).logits(rows.ids, modality=rows.vision)
    for head, logits in logits_by_hand(path, rows).items():
        np.testing.assert_allclose(getattr(found, head), logits, atol=PARITY, rtol=0)


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
