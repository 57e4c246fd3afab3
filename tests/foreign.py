"""Small valid files in the formats of others, written by the libraries that others use."""

import gzip
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import msgpack
import numpy as np

PARITY = Path(__file__).parent / "parity"
Tree = dict[tuple[str, ...], np.ndarray]

# LWM's names, and the shapes of a model of LAYERS layers.
LAYERS, WIDTH, HEADS, MLP, VOCAB, ROWS = 2, 8, 2, 12, 16, 260
LAYER_SHAPES = {
    ("attention", "wq", "kernel"): (WIDTH, WIDTH),
    ("attention", "wk", "kernel"): (WIDTH, WIDTH),
    ("attention", "wv", "kernel"): (WIDTH, WIDTH),
    ("attention", "wo", "kernel"): (WIDTH, WIDTH),
    ("feed_forward", "w1", "kernel"): (WIDTH, MLP),
    ("feed_forward", "w2", "kernel"): (MLP, WIDTH),
    ("feed_forward", "w3", "kernel"): (WIDTH, MLP),
    ("attention_norm", "kernel"): (WIDTH,),
    ("ffn_norm", "kernel"): (WIDTH,),
}
LWM_CONFIG = {"num_attention_heads": HEADS, "theta": 1e4, "max_sequence_length": 32}


def unpack(name: str, folder: Path) -> Path:
    """A packed file of the parity data in `folder`, its config beside it."""
    source = PARITY / name
    target = folder / source.name.removesuffix(".gz")
    target.write_bytes(gzip.decompress(source.read_bytes()))
    (folder / "config.json").write_bytes((source.parent / "config.json").read_bytes())
    return target


# --- msgpack ---------------------------------------------------------------------------------


def lwm_tree(rng: np.random.Generator, *, vision: bool, scanned: bool, dtype: Any) -> Tree:
    """A random model in LWM's names; the numbers do not depend on `scanned`."""
    tree: Tree = {
        ("transformer", "wte", "embedding"): rng.normal(size=(VOCAB, WIDTH)),
        ("transformer", "ln_f", "kernel"): rng.normal(size=(WIDTH,)),
        ("lm_head", "kernel"): rng.normal(size=(WIDTH, VOCAB)),
    }
    if vision:
        tree["transformer", "vte", "embedding"] = rng.normal(size=(ROWS, WIDTH))
        tree["vision_head", "kernel"] = rng.normal(size=(WIDTH, ROWS))
    for name, shape in LAYER_SHAPES.items():
        stack = rng.normal(size=(LAYERS, *shape))
        if scanned:
            tree["transformer", "h", "scan_decoder", *name] = stack
        else:
            tree |= {("transformer", "h", str(l), *name): stack[l] for l in range(LAYERS)}
    return {name: array.astype(dtype) for name, array in tree.items()}


def flax_array(array: np.ndarray) -> msgpack.ExtType:
    """An array as `flax.serialization` writes it."""
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(3 if array.ndim == 0 else 1, msgpack.packb(content))


def flax_value(array: np.ndarray, chunk: int | None = None) -> Any:
    """An array, in parts of `chunk` numbers if there are more, as flax does from 2^30 bytes on."""
    if chunk is None or array.size <= chunk:
        return flax_array(array)
    parts = [array.ravel()[i : i + chunk] for i in range(0, array.size, chunk)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): flax_array(part) for i, part in enumerate(parts)},
    }


def streaming(tree: Tree, *, chunk: int | None = None) -> bytes:
    """A tree as LWM's StreamingCheckpointer writes it."""
    packer = msgpack.Packer()
    entries = ((name, msgpack.packb(flax_value(array, chunk))) for name, array in tree.items())
    return b"".join(packer.pack(entry) for entry in entries)


def read_streaming(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a streaming file whose arrays are whole, by their path joined with "/"."""
    found = {}
    for name, packed in msgpack.Unpacker(BytesIO(content), max_buffer_size=0):
        shape, dtype, numbers = msgpack.unpackb(msgpack.unpackb(packed).data)
        found["/".join(name)] = np.frombuffer(numbers, dtype).reshape(shape)
    return found


def flax(tree: Tree) -> bytes:
    """A tree as `flax.serialization.to_bytes` writes it."""
    nested: dict[str, Any] = {}
    for (*folders, last), array in tree.items():
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = flax_value(array)
    return msgpack.packb(nested)


def training_state(tree: Tree) -> Tree:
    """A whole state as LWM saves it: the parameters, a step, and the optimiser's moments."""
    state: Tree = {("step",): np.array(7, np.int32), ("opt_state", "0", "count"): np.array(7)}
    for name, array in tree.items():
        state["params", "params", *name] = array
        state["opt_state", "0", "mu", "params", *name] = np.zeros_like(array)
    return state


# --- GGUF ------------------------------------------------------------------------------------


def gguf_shapes(width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    """A layer's tensors by llama.cpp's names; two heads of queries to one of keys."""
    return {
        "attn_norm": (width,),
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
        "attn_output": (width, width),
        "ffn_norm": (width,),
        "ffn_gate": (mlp, width),
        "ffn_up": (mlp, width),
        "ffn_down": (width, mlp),
    }


GGUF_SHAPES = gguf_shapes(WIDTH, MLP)
LETTERS = [chr(c) for c in range(ord("a"), ord("a") + 12)]
WORDS = ["<s>", "</s>", *LETTERS, "ab", "abc"]


def gguf_tensors(rng: np.random.Generator, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The random tensors of a small Llama in llama.cpp's names."""
    shapes = {"token_embd": (VOCAB, WIDTH), "output_norm": (WIDTH,), "output": (VOCAB, WIDTH)}
    for l in range(LAYERS):
        shapes |= {f"blk.{l}.{name}": shape for name, shape in GGUF_SHAPES.items()}
    return {f"{n}.weight": rng.normal(size=shape).astype(dtype) for n, shape in shapes.items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    architecture: str = "llama",
    words: str | None = "gpt2",
    ends: tuple[int, int] = (0, 1),
    part: int = 0,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """A file as llama.cpp's converter writes it, with a tokenizer of the kind `words`.

    With `part` it is cut into files of so many tensors, and the first of them is returned.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part)
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    if words is not None:
        writer.add_tokenizer_model(words)
        writer.add_token_types([3, 3] + [1] * (len(WORDS) - 2))
        writer.add_bos_token_id(ends[0])
        writer.add_eos_token_id(ends[1])
    if words == "gpt2":
        writer.add_token_list(WORDS)
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["a b", "ab c"])
        writer.add_chat_template("{{ messages }}")
    if words == "llama":
        pieces = [*WORDS[:13], "\u2581", *WORDS[14:]]
        writer.add_token_list(pieces)
        writer.add_token_scores([0.0] * 14 + [-1.0, -2.0])
    more(writer)
    for name, array in tensors.items():
        bf16 = array.dtype == ml_dtypes.bfloat16
        raw = gguf.GGMLQuantizationType.BF16 if bf16 else None
        writer.add_tensor(name, array.view(np.uint8) if bf16 else array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0] if part else path
