"""SentencePiece models (`tokenizer.model`, LLaMA's and LWM's) as the tokenizers that we use.

The file is a protocol buffer. It is read here, by the few fields that matter, within bounds: what
is no such file is one sentence. Its pieces and scores then become a `tokenizers` object that gives
the ids that SentencePiece gives:

    BPE       the pair whose union has the highest score is joined first, the leftmost of equals
    unigram   the segmentation of the highest total score

and what no piece covers becomes its UTF-8 bytes, where the model has pieces for them. Source: Kudo
and Richardson, "SentencePiece" (arXiv 1808.06226), and the field numbers of its
sentencepiece_model.proto.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer

# Gemma's and mT5's models, the largest that are known, take 4 MB and 256 thousand pieces.
LARGEST_MODEL = 32 << 20
MOST_PIECES = 1 << 20
# SentencePiece's own default is 16 characters; those of code models hold long runs of spaces.
LONGEST_PIECE = 512
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
# What the parts of a tokenizer's template are written with; no first token of a model has them.
PART_MARKS = " :$"
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # how pieces write a space

Value = int | bytes


class Malformed(Exception):
    """Bytes that are no protocol buffer, or not this one; the argument says where."""


@dataclass(frozen=True)
class VocabularyPiece:
    """One entry of the vocabulary: its text, its score, and of which kind it is."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a model file says, by the names of its fields; defaults are those of the format."""

    pieces: tuple[VocabularyPiece, ...]
    kind: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    fold_spaces: bool = True
    escape_spaces: bool = True
    names: dict[str, int] = field(default_factory=dict)


def load_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`. Raises InputError when it is missing or broken."""
    if not path.is_file():
        raise InputError(f"there is no tokenizer at {path}: give the path of a tokenizer.model")
    if path.stat().st_size > LARGEST_MODEL:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes and a tokenizer.model at most "
            f"{LARGEST_MODEL:,}: give another file"
        )
    return read_sentencepiece(path.read_bytes(), str(path))


def read_sentencepiece(data: bytes, name: str = "the tokenizer.model") -> Tokenizer:
    """The tokenizer of a model file's bytes, called `name` in errors.

    `.backend.to_str()` of it is a whole tokenizer.json. Raises InputError when the bytes are none,
    or the model is neither BPE nor unigram.
    """
    try:
        model = parse_model(data)
    except (Malformed, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not a SentencePiece model ({error}): copy it again") from None
    backend = _make_bpe(model) if model.kind == BPE else _make_unigram(model)
    texts = [piece.text for piece in model.pieces]
    special = [p.text for p in model.pieces if p.kind in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    given = [p.text for p in model.pieces if p.kind == USER]
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in given])
    ends = (model.names.get(key, -1) for key in ("bos", "eos"))
    bos, eos = (texts[i] if 0 <= i < len(texts) else None for i in ends)
    if bos is not None:
        # Models with such a token are trained with it before every text, as LLaMA is.
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, texts.index(bos))]
        )
    return Tokenizer(backend, {"bos_token": bos, "eos_token": eos})


# ---- the file


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Malformed("it is cut short")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field: an int, or the bytes of anything that is longer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise Malformed(f"it has a field of the unknown kind {wire}")
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            length, at = _varint(data, at)
        if length > len(data) - at:
            raise Malformed("it is cut short")
        yield number, data[at : at + length]
        at += length


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise Malformed("a field is a number where text should be")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise Malformed("a field is text where a number should be")
    # A negative number of 32 bits is written as one of 64.
    return value - (1 << 64) if value >> 63 else value


def _piece(data: bytes) -> VocabularyPiece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            if len(_bytes(value)) > LONGEST_PIECE:
                raise Malformed(f"a piece is longer than {LONGEST_PIECE} bytes")
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            if len(_bytes(value)) != 4:
                raise Malformed("a score is no float32")
            score = struct.unpack("<f", _bytes(value))[0]
        elif number == 3:
            kind = _int(value)
    if not NORMAL <= kind <= BYTE or score != score or abs(score) == float("inf"):
        raise Malformed("a piece has no valid kind or score")
    return VocabularyPiece(text, score, kind)


def parse_model(data: bytes) -> SentencePieceModel:
    """What a model file says. Raises Malformed, or UnicodeDecodeError for a piece that is no text.

    Fields that say how the model was trained are skipped, as the format asks of a reader.
    """
    pieces: list[VocabularyPiece] = []
    trainer = normalizer = b""
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
            if len(pieces) > MOST_PIECES:
                raise Malformed(f"it has more than {MOST_PIECES:,} pieces")
        elif number == 2:
            trainer = _bytes(value)
        elif number == 3:
            normalizer = _bytes(value)
    texts = [piece.text for piece in pieces]
    if not pieces or len(set(texts)) < len(texts) or "" in texts:
        raise Malformed("its pieces are missing, empty or repeated")
    said = dict(_fields(trainer))
    rules = dict(_fields(normalizer))
    kind = _int(said.get(3, UNIGRAM))
    if kind not in (UNIGRAM, BPE):
        raise Malformed(f"its kind is {kind} and only unigram (1) and BPE (2) can be read")
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        raise Malformed("it has not one unknown piece")
    names = {"bos": _int(said.get(41, 1)), "eos": _int(said.get(42, 2))}
    if 0 <= names["bos"] < len(texts) and set(PART_MARKS) & set(texts[names["bos"]]):
        raise Malformed("its first token cannot be put before a text")
    charsmap = _bytes(rules.get(2, b""))
    # A tree of 4-byte nodes behind its size, then the texts that its leaves point into.
    nodes = int.from_bytes(charsmap[:4], "little")
    if charsmap and (nodes % 4 or not 0 < nodes <= len(charsmap) - 4):
        raise Malformed("its table of characters is damaged")
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=kind,
        charsmap=charsmap,
        dummy_prefix=bool(_int(rules.get(3, 1))),
        fold_spaces=bool(_int(rules.get(4, 1))),
        escape_spaces=bool(_int(rules.get(5, 1))),
        names=names,
    )


# ---- the tokenizer


def _unknown(model: SentencePieceModel) -> int:
    return next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)


def _has_bytes(model: SentencePieceModel) -> bool:
    return sum(piece.kind == BYTE for piece in model.pieces) == 256


def _make_bpe(model: SentencePieceModel) -> Backend:
    """Every way to put a piece together of two is a merge, the best scores first."""
    joined = {
        piece.text: -piece.score for piece in model.pieces if piece.kind in (NORMAL, USER, UNUSED)
    }
    ranked = [
        (rank, i, text[:i], text[i:])
        for text, rank in joined.items()
        for i in range(1, len(text))
        if text[:i] in joined and text[i:] in joined
    ]
    ranked.sort(key=lambda merge: merge[:2])
    bpe = models.BPE(
        vocab={piece.text: i for i, piece in enumerate(model.pieces)},
        merges=[merge[2:] for merge in ranked],
        unk_token=model.pieces[_unknown(model)].text,
        fuse_unk=True,
        byte_fallback=_has_bytes(model),
    )
    return _dress(Backend(bpe), model)


def _make_unigram(model: SentencePieceModel) -> Backend:
    """The pieces with their scores; reserved ones have the worst, and are kept out by a cut."""
    normal = [piece.score for piece in model.pieces if piece.kind == NORMAL]
    least = min(normal, default=0.0)
    best = max(normal, default=0.0)

    def score(piece: VocabularyPiece) -> float:
        if piece.kind == USER:
            return len(piece.text) * best - 0.1
        return piece.score if piece.kind == NORMAL else least

    vocabulary = [(piece.text, score(piece)) for piece in model.pieces]
    backend = Backend(models.Unigram(vocabulary, _unknown(model), _has_bytes(model)))
    reserved = [p.text for p in model.pieces if p.kind in (CONTROL, UNKNOWN, BYTE, UNUSED)]
    inner = "|".join(re.escape(text[1:]) for text in reserved if len(text) > 1)
    first = "".join(sorted({re.escape(text[0]) for text in reserved if len(text) > 1}))
    if inner:
        # A text that spells a reserved piece is its letters: it is cut behind the first of them.
        cut = Regex(f"[{first}](?={inner})")
        backend.pre_tokenizer = pre_tokenizers.Split(cut, "merged_with_previous")
    return _dress(backend, model)


def _dress(backend: Backend, model: SentencePieceModel) -> Backend:
    """Spaces, and the characters that the model replaces before it looks for pieces."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.fold_spaces:
        # At the end of a text its own way to write a space counts as one.
        ends = Regex(f"^ +|[ {SPACE_MARK}]+$" if model.escape_spaces else "^ +| +$")
        steps += [normalizers.Replace(ends, ""), normalizers.Replace(Regex(" +"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    mark = SPACE_MARK if model.escape_spaces else " "
    steps.append(normalizers.Replace(" ", mark))
    backend.normalizer = normalizers.Sequence(steps)
    undone: list[decoders.Decoder] = [decoders.Replace(mark, " "), decoders.ByteFallback()]
    undone.append(decoders.Fuse())
    if model.dummy_prefix:
        undone.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(undone)
    return backend
