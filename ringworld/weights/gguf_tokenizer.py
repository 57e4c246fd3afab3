"""A tokenizer.json out of the words in a GGUF file.

The file holds tokens, their kinds, merges or scores, and the name of a way to cut text; the
patterns behind these names are published ones, of GPT-2, Llama 3 and Qwen2. A SentencePiece
vocabulary has scores instead of merges: two pieces merge if both and their sum are tokens, those of
the best sum first. Source: ggml's docs/gguf.md, and the tokenizer.json of the models.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import InputError

PREFIX = "tokenizer.ggml."
# The tokens that no text spells, whatever kind a converter has given them.
END_TOKENS = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")
NORMAL_TOKEN, UNKNOWN_TOKEN, CONTROL_TOKEN, USER_TOKEN = 1, 2, 3, 4  # kinds of tokens
# No word is longer; finding the merges of one takes the square of it.
LONGEST_TOKEN = 1 << 10
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LATER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{LATER}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{LATER}"


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [split | {"invert": False}, _bytes(False)]


SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
# How text is cut before bytes merge, by the file's `tokenizer.ggml.pre`.
CUTS: dict[str, list[dict[str, Any]]] = {
    "default": [_bytes(True)],
    "gpt-2": [_bytes(True)],
    "smollm": [SINGLE_DIGITS, _bytes(True)],
    "starcoder": [SINGLE_DIGITS, _bytes(True)],
    "llama-bpe": _split(LLAMA3),
    "llama3": _split(LLAMA3),
    "qwen2": _split(QWEN2),
    "deepseek-r1-qwen": _split(QWEN2),
}
# Those whose tokenizers take a whole word that is a token without merging.
WHOLE_WORDS = {"llama-bpe", "llama3"}
# Those whose tokenizers compose characters first.
COMPOSED = {"qwen2", "deepseek-r1-qwen"}
# Those that begin a text with a token where the file does not say.
BEGUN = {"llama-bpe", "llama3"}


def make_tokenizer(path: Path, entries: dict[str, Any]) -> bytes | None:
    """The tokenizer.json of a file's words; None if it has none.

    Raises InputError when they are broken, or cut by a rule that is not known here.
    """
    model = entries.get(f"{PREFIX}model")
    if model is None:
        return None
    if model not in ("gpt2", "llama"):
        raise InputError(f"{path} has a tokenizer {model!r:.40}, and gpt2 and llama are read")
    tokens, kinds = _tokens(path, entries)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise InputError(f"{path} has a token that stands twice: convert it again")
    bpe = {"type": "BPE", "dropout": None, "vocab": vocabulary}
    made = _byte_level if model == "gpt2" else _pieces
    parts, begun = made(path, entries, tokens, kinds, bpe)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, token, special=kind != USER_TOKEN)
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL_TOKEN, USER_TOKEN) or (kind == UNKNOWN_TOKEN and model == "llama")
        ],
        "post_processor": _beginning(path, entries, tokens, begun),
        "model": bpe,
    }
    return json.dumps(whole | parts, ensure_ascii=False).encode()


def _tokens(path: Path, entries: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens and their kinds."""
    tokens = entries.get(f"{PREFIX}tokens")
    kinds = entries.get(f"{PREFIX}token_type")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{path} has a tokenizer without tokens: convert it again")
    if max(map(len, tokens)) > LONGEST_TOKEN:
        raise InputError(
            f"{path} has a token of more than {LONGEST_TOKEN} letters: convert it again"
        )
    if kinds is None:
        kinds = np.full(len(tokens), NORMAL_TOKEN)
    if not isinstance(kinds, np.ndarray) or kinds.shape != (len(tokens),):
        raise InputError(f"{path} does not give each token its kind: convert it again")
    ends = (entries.get(PREFIX + name) for name in END_TOKENS)
    marked = {end for end in ends if type(end) is int}
    return tokens, [CONTROL_TOKEN if i in marked else kind for i, kind in enumerate(kinds.tolist())]


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": special} | flags


def _byte_level(
    path: Path, entries: dict[str, Any], tokens: list[str], kinds: list[int], bpe: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The parts of a byte-level BPE, and whether a text begins with a token."""
    cut = entries.get(f"{PREFIX}pre", "default")
    if not isinstance(cut, str) or cut not in CUTS:
        raise InputError(f"{path} cuts text as {cut!r:.40}, and {', '.join(CUTS)} are known")
    merges = entries.get(f"{PREFIX}merges")
    if not isinstance(merges, list):
        raise InputError(f"{path} has a tokenizer without merges: convert it again")
    pairs = [merge.split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or any(part not in bpe["vocab"] for part in (*pair, "".join(pair))):
            raise InputError(f"{path} merges {' '.join(pair)!a:.40}, which are no two tokens")
    bpe |= {"merges": pairs, "byte_fallback": False, "fuse_unk": False, "unk_token": None}
    bpe["ignore_merges"] = cut in WHOLE_WORDS
    return {
        "normalizer": {"type": "NFC"} if cut in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[cut]},
        "decoder": _bytes(True),
    }, cut in BEGUN


def _pieces(
    path: Path, entries: dict[str, Any], tokens: list[str], kinds: list[int], bpe: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The parts of a SentencePiece BPE, and that a text begins with a token."""
    scores = entries.get(f"{PREFIX}scores")
    if not isinstance(scores, np.ndarray) or scores.shape != (len(tokens),):
        raise InputError(f"{path} does not give each token its score: convert it again")
    if not np.isfinite(scores).all():
        raise InputError(f"{path} has a token whose score is no number: convert it again")
    vocabulary, merges = bpe["vocab"], []
    for token, kind, score in zip(tokens, kinds, scores.tolist(), strict=True):
        if kind != NORMAL_TOKEN:
            continue
        for i in range(1, len(token)):
            left, right = vocabulary.get(token[:i]), vocabulary.get(token[i:])
            if left is not None and right is not None:
                merges.append((-score, vocabulary[token], left, right))
    unknown = next(
        (t for t, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN_TOKEN), None
    )
    bpe |= {"merges": [[tokens[a], tokens[b]] for *_, a, b in sorted(merges)]}
    bpe |= {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown, "ignore_merges": False}
    steps = [{"type": "Prepend", "prepend": SPACE}] * bool(
        entries.get(f"{PREFIX}add_space_prefix", True)
    )
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if len(steps) > 1:
        back += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
    }, True


def _beginning(
    path: Path, entries: dict[str, Any], tokens: list[str], begun: bool
) -> dict[str, Any] | None:
    """What puts the first token before a text, if the file or its family wants one."""
    first = entries.get(f"{PREFIX}bos_token_id")
    if not entries.get(f"{PREFIX}add_bos_token", begun) or first is None:
        return None
    if type(first) is not int or not 0 <= first < len(tokens):
        raise InputError(f"{path} begins texts with no token: convert it again")
    token = tokens[first]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    mark = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, text],
        "pair": [mark, text, mark, other],
        "special_tokens": {token: {"id": token, "ids": [first], "tokens": [token]}},
    }
