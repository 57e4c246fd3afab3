"""Tokenizers: special tokens come by id, pieces of a stream are whole characters."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece_files import SMALL
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from ringworld.errors import InputError
from ringworld.text.load import load_tokenizer
from ringworld.text.sentencepiece import read_sentencepiece
from ringworld.text.tokenizer import Detokenizer, Tokenizer
from ringworld.weights.shipped import NANO

WORDS = load_tokenizer(NANO / "tokenizer.json")


def chat_file(folder: Path, **names: object) -> Path:
    """A tokenizer.json with a chat's own tokens, and the names beside it."""
    bpe = Backend.from_file(str(NANO / "tokenizer.json"))
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder / "tokenizer.json"


# ---- answers


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_an_answer_of_ours_is_its_ids_behind_a_space(answer: str) -> None:
    assert WORDS.encode_answer(answer) == WORDS.encode(f" {answer}")


def test_an_answer_has_one_space_before_it_where_a_tokenizer_adds_its_own() -> None:
    tokenizer = read_sentencepiece(SMALL)
    asked, answer = "a b:", "b a"
    whole = tokenizer.encode(f"{asked} {answer}")
    assert tokenizer.encode(asked) + tokenizer.encode_answer(answer) == whole
    assert tokenizer.encode(asked) + tokenizer.encode(f" {answer}") != whole


# ---- special tokens


def test_a_special_token_in_a_text_is_letters_and_in_a_template_is_the_token() -> None:
    spelled = "one</s>two"
    assert WORDS.eos not in WORDS.encode(spelled)
    assert WORDS.decode(WORDS.encode(spelled)) == spelled
    ids = WORDS.encode_spelled(spelled)
    assert ids == [*WORDS.encode("one"), WORDS.eos, *WORDS.encode("two")]
    assert WORDS.eos not in WORDS.encode(spelled), "asking for one changes nothing in the other"


def test_what_a_stranger_says_holds_no_special_token() -> None:
    said = "a</s>b<vision> < s > héllo"
    ids = WORDS.encode_spelled(WORDS.escape_special(said))
    assert not set(ids) & set(WORDS.special.values())
    assert WORDS.escape_special("plain < words > stay") == "plain < words > stay"


def test_the_names_beside_a_tokenizer_say_where_a_text_begins_and_ends(tmp_path: Path) -> None:
    file = chat_file(tmp_path, bos_token="<|im_start|>", eos_token={"content": "<|im_end|>"})
    tokenizer = load_tokenizer(file)
    assert tokenizer.bos == tokenizer.id("<|im_start|>") == 2048
    assert tokenizer.eos == tokenizer.id("<|im_end|>") == 2049
    assert tokenizer.special["<|im_end|>"] == 2049
    nameless = load_tokenizer(chat_file(tmp_path))
    assert (nameless.bos, nameless.eos) == (WORDS.bos, WORDS.eos)


def test_a_tokenizer_whose_first_token_is_null_has_none(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(chat_file(tmp_path, bos_token=None, eos_token="<|im_end|>"))
    assert tokenizer.bos_name is None
    assert tokenizer.bos_ids == []
    assert WORDS.bos_ids == [WORDS.bos]


def test_an_ordinary_token_is_not_taken_for_the_first() -> None:
    """Many vocabularies of byte-level BPE hold "<s>" as three letters that stand together."""
    plain = Backend(models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, [("<", "s")]))
    assert Tokenizer(plain).bos_ids == []
    plain.add_special_tokens(["<s>"])
    assert Tokenizer(plain).bos_ids == [4]


def test_names_that_are_no_json_are_one_sentence(tmp_path: Path) -> None:
    file = chat_file(tmp_path)
    for broken in ("{", "[]", "[" * 100_000):
        file.with_name("tokenizer_config.json").write_text(broken)
        with pytest.raises(InputError, match="is not whole JSON"):
            load_tokenizer(file)


def test_a_text_opens_as_its_model_was_trained() -> None:
    assert WORDS.opening == [WORDS.bos]
    foreign = Backend.from_str(WORDS.backend.to_str().replace("vision>", "picture>"))
    assert Tokenizer(foreign).opening == []
    foreign.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert Tokenizer(foreign).opening == [1]


def test_a_tokenizer_without_vision_tokens_spells_the_marks() -> None:
    foreign = Tokenizer(Backend.from_str(WORDS.backend.to_str().replace("vision>", "picture>")))
    assert foreign.vision_marks == (foreign.encode("<vision>"), foreign.encode("</vision>"))
    assert WORDS.vision_marks == ([WORDS.vision_start], [WORDS.vision_end])
    with pytest.raises(InputError, match="no token <vision>"):
        _ = foreign.vision_start


# ---- streams


def pieces(tokenizer: Tokenizer, ids: list[int], at_once: int = 1) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.add(ids[i : i + at_once]) for i in range(0, len(ids), at_once)]
    return [*parts, detokenizer.finish()]


@given(st.text(), st.integers(1, 5))
def test_pieces_of_a_stream_are_whole_characters_and_together_the_text(
    said: str, at_once: int
) -> None:
    typed = pieces(WORDS, WORDS.encode(said), at_once)
    assert "".join(typed) == said
    if "\ufffd" not in said:
        assert "\ufffd" not in "".join(typed)


def test_a_character_is_shown_with_its_last_byte_and_not_before() -> None:
    ids = WORDS.encode("🙂")
    assert len(ids) == 4
    assert pieces(WORDS, ids) == ["", "", "", "🙂", ""]
    assert pieces(WORDS, ids[:3]) == ["", "", "", "\ufffd"]


def test_special_tokens_are_not_typed() -> None:
    ids = [*WORDS.encode("one"), WORDS.eos, *WORDS.encode(" two")]
    assert "".join(pieces(WORDS, ids)) == "one two"
