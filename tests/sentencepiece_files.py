"""Small `tokenizer.model` files, written field by field."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from ringworld.text.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def make_model(pieces: Sequence[tuple[str, float, int]], kind: int, **rules: int) -> bytes:
    """A model file; `rules` are the fields 3, 4 and 5 of the normalizer."""
    parts = [
        message(
            1,
            message(1, text.encode())
            + varint(2 << 3 | 5)
            + struct.pack("<f", score)
            + varint(3 << 3)
            + varint(what),
        )
        for text, score, what in pieces
    ]
    trainer = varint(3 << 3) + varint(kind)
    named = {"dummy": 3, "fold": 4, "escape": 5}
    normalizer = b"".join(varint(named[name] << 3) + varint(on) for name, on in rules.items())
    return b"".join([*parts, message(2, trainer), message(3, normalizer)])


RESERVED = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
LETTERS = [(letter, -100.0 - i, NORMAL) for i, letter in enumerate("▁abcs<>/")]
JOINED = [("ab", -1.0, NORMAL), ("bc", -2.0, NORMAL), ("abc", -3.0, NORMAL), ("▁a", -4.0, NORMAL)]
SMALL = make_model([*RESERVED, *BYTES, *JOINED, *LETTERS], BPE, fold=0)


def model_folder(folder: Path) -> Path:
    """A new folder with a tokenizer.model and two tokens that were added to it."""
    folder.mkdir()
    size = len([*RESERVED, *BYTES, *JOINED, *LETTERS])
    added = {"<|im_end|>": size + 1, "<|im_start|>": size}
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer.model").write_bytes(SMALL)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    return folder
