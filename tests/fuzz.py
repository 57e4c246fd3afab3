"""Fuzzers for what reads foreign files: nothing but InputError, within a second and 512 MB.

    python -m tests.fuzz gguf --minutes 10

A file of the corpus is changed as its format is built: bytes flip, numbers take the values at the
edges of their types, parts are cut, doubled, moved, or taken from another file, and the words of
the format are put in. What fails is kept beside the corpus under its hash. The same seed and number
of cases make the same files, so that the suite runs some without a clock. Minutes and seconds are
the processor's: a machine that does other things too tries as many files.
"""

import argparse
import hashlib
import random
import resource
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ringworld.errors import InputError
from ringworld.files import read_json_object
from ringworld.text.sentencepiece import load_sentencepiece
from ringworld.weights.codecs import _diffusers_config
from ringworld.weights.gguf_model import read_gguf
from ringworld.weights.lwm import read_lwm
from ringworld.weights.msgpack import read_tree
from ringworld.weights.tensors import check_numbers, read_tensors
from ringworld.weights.unpickle import read_pickle

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 1.0  # of this process's time, for one file
MEGABYTES = 512  # more than the process has when it starts
LONGEST_MESSAGE = 600
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
EDGES += [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def read_all_gguf(path: Path) -> None:
    """A model with all its tensors and its tokenizer."""
    for read in read_gguf(path).tensors.values():
        read()


def read_all_lwm(path: Path) -> None:
    """A model with all its tensors."""
    for read in read_lwm(path).tensors.values():
        read()


def read_all_flax(path: Path) -> None:
    """A tree of arrays, then as a model."""
    for stored in read_tree(path).values():
        if stored is not None:
            stored.read()
    read_all_lwm(path)


def read_all_pickle(path: Path) -> None:
    """A tree of arrays."""
    for stored in read_pickle(path).values():
        stored.read()


def read_codec_config(path: Path) -> None:
    """The sizes of a codec of diffusers'."""
    _diffusers_config(path, read_json_object(path), None)


def read_all_safetensors(path: Path) -> None:
    """All tensors; where a change has moved the header's end, the file with its length mended."""
    try:
        tensors = read_tensors(path)
    except InputError as refused:
        check_sentence(refused)
        content = path.read_bytes()
        length = max(content.rfind(b"}") - 7, 0)
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        tensors = read_tensors(path)
    for name, tensor in tensors.items():
        check_numbers(name, tensor)


def read_all_sentencepiece(path: Path) -> None:
    """A tokenizer. It encodes nothing here: `tokenizers` keeps 7 KB of each that ever did."""
    load_sentencepiece(path)


PICKLE_WORDS = [
    b"\x80\x04",
    b".",
    b"(",
    b"N",
    b"K\x01",
    b"\x85",
    b"\x86",
    b"\x87",
    b"t",
    b")",
    b"}",
    b"s",
    b"u",
    b"\x94",
    b"h\x00",
    b"q\x00",
    b"\x93",
    b"R",
    b"b",
    b"cnumpy\ndtype\n",
    b"cos\nsystem\n",
    b"\x8c\x05numpy\x8c\x07ndarray\x93",
    b"\x8c\x02f4",
    b"\x8c\x02O8",
    b"\x81",
    b"\x92",
    b"\x82\x01",
    b"X\xff\xff\xff\xff",
    b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 8,
    b"c_codecs\nencode\n",
]
PACK_WORDS = [
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 40,
    b"\x80",
    b"\x93",
    b"\xc7\x00\x01",
    b"\xd4\x01",
    b"\xa7float32",
    b"\xa8bfloat16",
    b"\xa6object",
    b"\xb9__msgpack_chunked_array__\xc3",
    b"\xa5shape",
    b"\xa6chunks",
    b"\xa10",
    b"\xc0",
    b"\xcb",
]
GGUF_WORDS = [
    *(n.to_bytes(4, "little") for n in (*range(14), 16, 29, 30, 34, 35, 39, 40)),
    *(n.to_bytes(8, "little") for n in (0, 1, 2, 31, 32, 33, 256, 1 << 32, 1 << 60)),
    b"blk.0.attn_q.weight",
    b"general.alignment",
    b"llama.block_count",
    b"qwen3",
    b"llama",
]
JSON_WORDS = [
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"0.5",
    b"1" * 400,
    b"[",
    b"{}",
    b'"a"',
    b"9" * 5000,
    b"[]",
    b'"block_out_channels"',
    b'"vq_embed_dim"',
    b"[1,1]",
    b"\xff",
    b'"\\ud800"',
]
TENSOR_WORDS = [
    *(
        f'"{code}"'.encode()
        for code in ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3")
    ),
    b'"__metadata__":{}',
    b'"data_offsets":[0,4]',
    b'"shape":[]',
    b"[1,1,1]",
    b"[-1]",
    b"[[2]]",
    b"281474976710655",
    b"18446744073709551616",
    b"1e3",
    b"0.5",
    b"true",
    b"null",
    b"NaN",
    b"{",
    b"[" * 2000,
    b'"\\ud800"',
    b'"a\\nb"',
    b"9" * 5000,
    b"\xff",
]
PIECE_WORDS = [
    *(bytes([field << 3 | wire]) for field in range(1, 6) for wire in (0, 1, 2, 3, 5)),
    b"\xc8\x02",  # the field 41, the first token
    b"\xff" * 9 + b"\x01",
    b"\xff" * 12,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0a\x03\xe2\x96\x81",
    b"\x0a\x06<0x41>",
    b"\x0a\x00",
    b"\x15\x00\x00\x80\x7f",  # a score without end
    b"\x15\x00\x00\xc0\x7f",  # and one that is no number
    b"\x18\x02",
    b"\x18\x06",
    b"a" * 200,
    b"\xff\xfe",
]
Target = tuple[Callable[[Path], None], list[bytes]]
TARGETS: dict[str, Target] = {
    "gguf": (read_all_gguf, GGUF_WORDS),
    "streaming": (read_all_lwm, PACK_WORDS),
    "flax": (read_all_flax, PACK_WORDS),
    "pickle": (read_all_pickle, PICKLE_WORDS),
    "vqmodel": (read_codec_config, JSON_WORDS),
    "safetensors": (read_all_safetensors, TENSOR_WORDS),
    "sentencepiece": (read_all_sentencepiece, PIECE_WORDS),
}


def load_corpus(target: str) -> list[bytes]:
    """The files that a target starts from, in order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def change(content: bytes, others: list[bytes], words: list[bytes], rng: random.Random) -> bytes:
    """A file with one to eight changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        # Half of the changes go where formats keep their structure: near the beginning.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 256)
        at, size = rng.randrange(reach + 1), rng.choice((1, 2, 4, 8, 16, 64))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            edge = (rng.choice(EDGES) + rng.randrange(-1, 2)) % (1 << 8 * width)
            data[at : at + width] = edge.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 2:
            word = rng.choice(words)
            data[at : at + (len(word) if rng.random() < 0.5 else 0)] = word
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 100))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            other = rng.choice(others)
            there = rng.randrange(len(other) + 1)
            data[at : at + size] = other[there : there + size]
        else:
            data[at : at + size] = rng.randbytes(size)
    return bytes(data)


def try_file(target: str, path: Path) -> bool:
    """Read one file; whether it was taken for whole. Raises whatever is no InputError."""
    try:
        TARGETS[target][0](path)
    except InputError as error:
        check_sentence(error)
        return False
    return True


def check_sentence(error: InputError) -> None:
    """Raise ValueError when an error is more than a sentence."""
    message = str(error)
    if "\n" in message or len(message) > LONGEST_MESSAGE:
        raise ValueError(f"a message of {len(message)} letters: {message[:200]!r}") from error


def run(target: str, *, cases: int | None, seconds: float | None, seed: int, folder: Path) -> str:
    """Read changed files until the cases or seconds are over; the report. Raises at a failure."""
    rng, corpus, words = random.Random(seed), load_corpus(target), TARGETS[target][1]
    path, start, done, whole, slowest = folder / "file", time.process_time(), 0, 0, 0.0
    (folder / "config.json").write_text(
        '{"num_attention_heads": 2, "theta": 1e4, "max_sequence_length": 32}'
    )
    while done != cases and (seconds is None or time.process_time() - start < seconds):
        content = change(rng.choice(corpus), corpus, words, rng)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            whole += try_file(target, path)
        except BaseException:
            keep = folder / f"{target}-{hashlib.sha256(content).hexdigest()[:16]}"
            keep.write_bytes(content)
            print(f"{keep} fails", flush=True)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - began)
        done += 1
    return f"{target}: {done} files, {whole} of them whole, the slowest {slowest:.3f} s"


def stop(*_: object) -> None:
    """What the timer calls."""
    raise TimeoutError(f"one file took more than {SECONDS} s")


def limit_memory() -> None:
    """Let this process have MEGABYTES more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz what reads foreign files.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGPROF, stop)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit_memory()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    seconds = 60 * options.minutes
    print(run(options.target, cases=None, seconds=seconds, seed=options.seed, folder=folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"memory grew by {grown / 1024:.0f} MB at most")


if __name__ == "__main__":
    main()
