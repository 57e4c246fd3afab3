"""A pickle comes in as data or not at all: what weights need, no known way round, no bomb."""

import codecs
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.weights.unpickle import ALLOWED, OPCODES, read_pickle
from tests import foreign


def write(folder: Path, content: bytes) -> Path:
    """A file of these bytes."""
    path = folder / "vqgan"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_arrays_come_in_as_they_went_out(tmp_path, protocol, dtype):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2, 3)).astype(dtype)
    expected = {
        "a/kernel": shared,
        "a/bias": rng.normal(size=4).astype(dtype),
        "b/again": shared,
        "b/columns": np.ones((2, 2), dtype),
    }
    if protocol > 2:  # which writes no bytes at all as a call of `bytes`
        expected["b/none"] = np.zeros((0, 2), dtype)
    if dtype is not ml_dtypes.bfloat16:  # whose scalars are no scalars of numpy's
        expected["b/one"] = dtype(3.5)
    tree = {"a": {}, "b": OrderedDict()}
    for name, array in expected.items():
        tree[name[0]][name[2:]] = array
    found = read_pickle(write(tmp_path, pickle.dumps(tree, protocol)))
    assert set(found) == set(expected)
    for name, array in expected.items():
        read = found[name].read()
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


def test_the_file_of_lwm_comes_in_whole(tmp_path):
    path = foreign.unpack("vqgan/vqgan.gz", tmp_path)
    found = read_pickle(path)
    assert len(found) == 133
    assert found["quantize/embeddings"].shape == (128, 16)
    assert sum(array.read().nbytes for array in found.values()) > 0.99 * path.stat().st_size - 5000


def text(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(value.encode())]) + value.encode()


def call(module: str, name: str, arguments: bytes = b")") -> bytes:
    """STACK_GLOBAL and REDUCE."""
    return text(module) + text(name) + b"\x93" + arguments + b"R"


START, STOP = b"\x80\x04", b"."
RUN = text("echo") + b"\x85"
NESTED = START + b")" + b"\x85" * 90_000 + STOP
# Each dict holds the one before it twice: 2^60 paths in a thousand bytes.
DOUBLED = START + b"}" + text("0") + b"}\x94s"
for i in range(60):
    again = b"h" + bytes([i])
    DOUBLED += text(str(i + 1)) + b"}\x94(" + text("a") + again + text("b") + again + b"us"
DOUBLED += STOP
ITSELF = START + b"}\x94" + text("a") + b"h\x00s" + STOP
ENCODE = (
    START
    + text("x" * 200)
    + b"\x94"
    + b"".join(call("_codecs", "encode", b"h\x00" + text("latin1") + b"\x86") for _ in range(90))
)
ARRAY = call("numpy.core.multiarray", "_reconstruct", b"(cnumpy\nndarray\nK\x00\x85C\x01bt")
KIND = call("numpy", "dtype", text("f4") + b"\x89\x88\x87")


def state(shape: bytes, numbers: bytes, kind: bytes = KIND, columns: bytes = b"\x89") -> bytes:
    """An array with this state."""
    content = b"B" + struct.pack("<I", len(numbers)) + numbers
    return START + ARRAY + b"(K\x01" + shape + kind + columns + content + b"tb" + STOP


# What others have been fooled by, and what the format can do beyond data.
ATTACKS = {
    "os.system": START + call("os", "system", RUN) + STOP,
    "posix.system": START + b"cposix\nsystem\n" + RUN + b"R" + STOP,
    "builtins.eval": START + call("builtins", "eval", RUN) + STOP,
    "builtins.getattr": START + call("builtins", "getattr", RUN) + STOP,
    "dotted": START + call("numpy.core.numeric", "builtins.eval", RUN) + STOP,
    "dotted in an allowed module": START + call("numpy", "core.numeric.builtins.eval", RUN) + STOP,
    "dotted below an allowed name": START + call("numpy", "dtype.__class__", RUN) + STOP,
    "f2py": START + call("numpy.f2py.diagnose", "run_command", RUN) + STOP,
    "exec_command": START + call("numpy.distutils.exec_command", "exec_command", RUN) + STOP,
    "numpy.size": START + call("numpy", "size", RUN) + STOP,
    "numpy.load": START + call("numpy", "load", RUN) + STOP,
    "numpy.memmap": START + call("numpy", "memmap", RUN) + STOP,
    "a space after": START + call("numpy ", "dtype", RUN) + STOP,
    "a wide letter": START + call("numpy", "\uff44type", RUN) + STOP,
    "copyreg": START + call("copyreg", "_reconstructor", RUN) + STOP,
    "functools.partial": START + call("functools", "partial", RUN) + STOP,
    "operator.attrgetter": START + call("operator", "attrgetter", RUN) + STOP,
    "runpy": START + call("runpy", "run_path", RUN) + STOP,
    "pickle.loads": START + call("pickle", "loads", RUN) + STOP,
    "torch": START + call("torch.storage", "_load_from_bytes", RUN) + STOP,
    "inst": b"\x80\x02(S'echo'\nios\nsystem\n.",
    "obj": START + b"(" + text("os") + text("system") + b"\x93" + RUN + b"o" + STOP,
    "newobj": START + text("numpy") + text("ndarray") + b"\x93)\x81" + STOP,
    "newobj_ex": START + text("numpy") + text("ndarray") + b"\x93)}\x92" + STOP,
    "ext1": START + b"\x82\x01" + STOP,
    "ext2": START + b"\x83\x01\x00" + STOP,
    "ext4": START + b"\x84\x01\x00\x00\x00" + STOP,
    "persid": START + b"Pid\n" + STOP,
    "binpersid": START + text("id") + b"Q" + STOP,
    "next_buffer": START + b"\x97" + STOP,
    "readonly_buffer": START + b"C\x00\x98" + STOP,
    "a class instead of ndarray": START
    + call("numpy._core.multiarray", "_reconstruct", b"(" + KIND + b"K\x00\x85C\x01bt")
    + STOP,
    "a call of ndarray": START + call("numpy", "ndarray", b"K\x01\x85\x85") + STOP,
    "a call of bfloat16": START + call("ml_dtypes", "bfloat16", b"K\x01\x85") + STOP,
    "a call of a text": START + text("os.system") + RUN + b"R" + STOP,
    "a call of a result": START + KIND + RUN + b"R" + STOP,
    "arguments in no tuple": START + text("numpy") + text("dtype") + b"\x93" + text("f4") + b"R.",
    "state of a dict": START + b"}}b" + STOP,
    "state with __setstate__": START + b"}" + text("__setstate__") + b"}sb" + STOP,
    "state twice": state(b"K\x01\x85", bytes(4))[:-1] + b"(tb" + STOP,
    "another encoding": START
    + call("_codecs", "encode", text("x") + text("rot13") + b"\x86")
    + STOP,
    "jax around another": START + call("jax._src.array", "_reconstruct_array", b"(NN}}t") + STOP,
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
def test_no_known_attack_is_followed(tmp_path, content):
    with pytest.raises(InputError, match="which weights do not need and an attack may") as caught:
        read_pickle(write(tmp_path, content))
    assert "\n" not in str(caught.value)


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "no pickle of protocol 2"),
    "protocol 0": (b"(dp0\n.", "no pickle of protocol 2"),
    "protocol 6": (b"\x80\x06N.", "none of 2 to 5"),
    "truncated": (state(b"K\x01\x85", bytes(4))[:-9], "needs 4 bytes"),
    "no end": (START + b"}", "an opcode needs 1 bytes"),
    "nothing": (START + STOP, "does not end where"),
    "two values": (START + b"}}" + STOP, "does not end where"),
    "a tail": (START + b"}." + b"PK\x03\x04", "does not end where"),
    "a number": (START + b"K\x01" + STOP, "no array and no dict"),
    "an empty array": (START + ARRAY + STOP, "no array and no dict"),
    "frame bomb": (START + b"\x95" + b"\xff" * 8, "a frame needs"),
    "bytes bomb": (START + b"\x8e" + b"\xff" * 8, "bytes needs 18446744073709551615"),
    "bytearray bomb": (START + b"\x96" + b"\xff" * 8, "bytes needs 18446744073709551615"),
    "text bomb": (START + b"\x8d" + b"\xff" * 8, "are the most"),
    "number bomb": (START + b"\x8a\xff" + b"\xff" * 255 + STOP, "a number of 255 bytes"),
    "memo bomb": (START + b"}" + b"\x94" * 200_000, "more than 100000 opcodes"),
    "nesting bomb": (NESTED, "no array and no dict"),
    "doubling bomb": (DOUBLED, "more than 100000 values"),
    "encoding bomb": (ENCODE, "encodes more text than it holds"),
    "a dict in itself": (ITSELF, "dicts inside one another"),
    "recall of nothing": (START + b"h\x07" + STOP, "did not remember"),
    "no mark": (START + b"t" + STOP, "a mark is missing"),
    "a mark for a value": (START + b"(\x85" + STOP, "a value is missing"),
    "keys that are none": (START + b"}K\x01K\x02s" + STOP, "no dict of names"),
    "a long key": (START + b"}X" + struct.pack("<I", 300) + b"a" * 300 + b"Ns.", "dict of names"),
    "text that is none": (START + b"\x8c\x01\xff" + STOP, "not UTF-8"),
    "a name without an end": (START + b"cnumpy", "a name without an end"),
    "objects": (
        START + call("numpy", "dtype", text("O8") + b"\x89\x88\x87") + STOP,
        "no weight has",
    ),
    "records": (
        START + KIND + b"(K\x03" + text("<") + b"N}NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        "a type of parts",
    ),
    "big end first": (
        START + KIND + b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        "another byte order",
    ),
    "shape against bytes": (state(b"K\x02\x85", bytes(4)), r"\[2\] of float32 in 4 bytes"),
    "shape that overflows": (state(b"J\xff\xff\xff\x7f" * 3 + b"\x87", bytes(4)), "in 4 bytes"),
    "negative shape": (state(b"J\xff\xff\xff\xff\x85", bytes(4)), "a shape that is none"),
    "true for a shape": (state(b"\x88\x85", bytes(4)), "a shape that is none"),
    "columns first": (state(b"K\x01\x85", bytes(4), columns=b"\x88"), "row by row"),
    "no type": (state(b"K\x01\x85", bytes(4), kind=b"N"), "without a type"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as caught:
        read_pickle(write(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert "vqgan" in str(caught.value)


def test_what_pickle_itself_writes_for_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return codecs.open, (str(tmp_path / "written"), "w")

    for protocol in range(2, 6):
        with pytest.raises(InputError, match="of pickle"):
            read_pickle(write(tmp_path, pickle.dumps({"a": Evil()}, protocol)))
    assert not (tmp_path / "written").exists()


def test_the_tables_of_what_is_allowed_are_short_and_exact():
    """A new opcode or name is a decision: it shows here."""
    assert len(OPCODES) == 35
    assert sorted(f"{name.module}.{name.name}" for name in ALLOWED) == [
        "_codecs.encode",
        "collections.OrderedDict",
        "flax.core.frozen_dict.FrozenDict",
        "jax._src.array._reconstruct_array",
        "ml_dtypes.bfloat16",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "numpy.dtype",
        "numpy.ndarray",
    ]
