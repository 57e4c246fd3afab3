"""SentencePiece: the ids that its own library gives, and one sentence for what is no model."""

import random
from io import BytesIO
from pathlib import Path

import pytest
from sentencepiece_files import BYTES, JOINED, LETTERS, RESERVED, SMALL, make_model, message

from ringworld.errors import InputError
from ringworld.text.sentencepiece import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    load_sentencepiece,
    read_sentencepiece,
)
from ringworld.text.tokenizer import Detokenizer, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
VARIED = [
    "Привет, как дела? Ёлка",
    "你好，世界！今天天气怎么样",
    "こんにちは世界 ｶﾀｶﾅ Ａｆｕｌｌ",
    "مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดี 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301",
    "  leading and trailing  ",
    "a  b   c\td\ne",
    "<s> </s> <unk> <0x41>",
    "1234567890 3.14159 1e-9",
    "ﬁ ﬂ ™ ½ ① x\x00y \u200b",
    "▁literal ▁▁ _",
    "",
    "   ",
]


def spell(tokenizer: Tokenizer, written: str) -> list[str | None]:
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(written)]


def test_the_best_pair_is_joined_first_and_what_is_unknown_becomes_bytes() -> None:
    tokenizer = read_sentencepiece(SMALL)
    assert spell(tokenizer, "abc") == ["▁", "abc"]
    assert spell(tokenizer, "bbc a") == ["▁", "b", "bc", "▁a"]
    assert spell(tokenizer, " a") == ["▁", "▁a"]
    assert spell(tokenizer, "é") == ["▁", "<0xC3>", "<0xA9>"]
    assert spell(tokenizer, "<s>") == ["▁", "<", "s", ">"]
    assert tokenizer.encode("") == []


def test_a_unigram_takes_the_likeliest_pieces_and_never_a_reserved_one() -> None:
    pieces = [("▁ab", -1.0, NORMAL), ("c", -1.5, NORMAL), ("▁a", -2.0, NORMAL)]
    pieces += [("bc", -0.1, NORMAL), ("▁", -3.0, NORMAL)]
    pieces += [(letter, -5.0, NORMAL) for letter in "ab<s>/"]
    tokenizer = read_sentencepiece(make_model([*RESERVED, *BYTES, *pieces], UNIGRAM))
    assert spell(tokenizer, "abc") == ["▁a", "bc"]
    assert spell(tokenizer, "  ab  c ") == ["▁ab", "▁", "c"]
    assert spell(tokenizer, "<s>") == ["▁", "<", "s", ">"]
    assert spell(tokenizer, "<0xC3>")[1] == "<"


def test_it_names_its_ends_and_gives_back_what_was_written() -> None:
    tokenizer = read_sentencepiece(SMALL)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.opening) == (1, 2, [1])
    assert tokenizer.encode_spelled("<s>ab")[0] == 1
    for written in (*VARIED[:9], " a", "  ", "é🙂"):
        assert tokenizer.decode(tokenizer.encode(written)) == written
    detokenizer, typed = Detokenizer(tokenizer), ""
    for i in tokenizer.encode("ab é🙂 abc"):
        piece = detokenizer.add([i])
        assert "\ufffd" not in piece
        typed += piece
    assert typed == "ab é🙂 abc"


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("folded", [True, False])
def test_a_thousand_varied_lines_have_the_ids_of_sentencepiece(
    kind: str, rule: str, folded: bool
) -> None:
    library = pytest.importorskip("sentencepiece")
    lines = [*VARIED]
    for page in ("README.md", "ringworld/rope.py", "ringworld/attention/mask.py", "docs/log.md"):
        lines += (ROOT / page).read_text(encoding="utf-8").splitlines()
    lines = lines[:900]
    draw = random.Random(0)
    spans = ((32, 126), (0xA0, 0x24F), (0x400, 0x4FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF))
    for _ in range(100):
        ranges = (draw.choice(spans) for _ in range(draw.randint(1, 40)))
        lines.append("".join(chr(draw.randint(*span)) for span in ranges))
    made = BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        vocab_size=1000,
        model_type=kind,
        normalization_rule_name=rule,
        byte_fallback=True,
        add_dummy_prefix=folded,
        remove_extra_whitespaces=folded,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    theirs = library.SentencePieceProcessor(model_proto=made.getvalue())
    ours = read_sentencepiece(made.getvalue())
    # Rows of dashes have several segmentations of the very same score.
    lines = [line for line in lines if "--" not in line or kind == "bpe"]
    assert [ours.encode(line) for line in lines] == [theirs.encode(line) for line in lines]
    # A written mark for a space is one more space to us, and at the front none to them.
    ids = [theirs.encode(line) for line in lines if "▁" not in line]
    assert [ours.decode(row) for row in ids] == [theirs.decode(row) for row in ids]


# ---- what is no model


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "missing, empty or repeated"),
        (b"\x0b", "unknown kind 3"),
        (b"\xff" * 11, "cut short"),
        (SMALL[:-3], "cut short"),
        (b"\x0a\xff\xff\xff\xff\x7f", "cut short"),
        (make_model([*RESERVED, ("a", 0.0, NORMAL), ("a", 0.0, NORMAL)], BPE), "repeated"),
        (make_model([("a", 0.0, NORMAL)], BPE), "not one unknown"),
        (make_model([*RESERVED, ("a", float("nan"), NORMAL)], BPE), "kind or score"),
        (make_model([*RESERVED, ("a", 0.0, 9)], BPE), "kind or score"),
        (make_model([*RESERVED, ("a" * 600, 0.0, NORMAL)], BPE), "longer than 512"),
        (make_model([RESERVED[0], ("<s:", 0.0, CONTROL)], BPE), "before a text"),
        (make_model(RESERVED, 3), "only unigram"),
        (make_model(RESERVED, BPE) + message(3, message(2, b"\xff" * 9)), "table of characters"),
        (message(1, message(1, b"\xff\xfe")), "utf-8"),
        (b"PK\x03\x04 some other file", "is not a SentencePiece model"),
    ],
)
def test_what_is_no_model_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match="is not a SentencePiece model") as refused:
        read_sentencepiece(data)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_model_is_refused_or_is_a_tokenizer() -> None:
    draw = random.Random(0)
    short = make_model([*RESERVED, *JOINED, *LETTERS], BPE, fold=1)
    for _ in range(400):
        data = bytearray(short)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        cut = bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.3 else data)
        try:
            read_sentencepiece(cut).encode("abc é <s>")
        except InputError as error:
            assert "copy it again" in str(error)


def test_a_file_that_is_missing_or_too_large_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="there is no tokenizer at"):
        load_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(SMALL)
    assert load_sentencepiece(tmp_path / "tokenizer.model").bos == 1
    monkeypatch.setattr("ringworld.text.sentencepiece.LARGEST_MODEL", 100)
    with pytest.raises(InputError, match="and a tokenizer.model at most 100"):
        load_sentencepiece(tmp_path / "tokenizer.model")
