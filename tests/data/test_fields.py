"""LWM's language of `fields`, written out token by token."""

from random import Random
from typing import Any

import pytest

from ringworld.data.corpora.fields import make_fields
from ringworld.data.corpora.spec import FieldSource
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer, train_tokenizer
from ringworld.vocab import Vocabulary

STORY = "What is this? It is a dark night. You are a helpful assistant. USER: ASSISTANT: red blue"
CODES = Vocabulary(text=400, bos=1, eos=2, codes=10, codes_per_frame=2, vision_rows=12)
EOF, EOV = 10, 11


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter([STORY] * 3), 400)


def make(tokenizer: Tokenizer, row: dict[str, Any], line: int = 1, **rules: Any) -> Example:
    """The example of a row under these rules."""
    return make_fields(row, line, FieldSource(name="x", path="x.jsonl", **rules), tokenizer, CODES)


def expect(tokenizer: Tokenizer, example: Example, *parts: tuple[Any, float]) -> None:
    """Fail unless the example is these parts: a text, a special token, or vision ids."""
    tokens, vision, weights = [], [], []
    for content, weight in parts:
        if isinstance(content, list):
            ids = content
        else:
            special = content in ("<s>", "</s>", "<vision>", "</vision>")
            ids = [tokenizer.id(content)] if special else tokenizer.encode(content)
        tokens += ids
        vision += [isinstance(content, list)] * len(ids)
        weights += [weight] * len(ids)
    assert example.tokens.tolist() == tokens
    assert example.vision.tolist() == vision
    assert example.weights.tolist() == weights


ROW = {"question": "What is this?", "answer": "It is red.", "note": "night", "vision": [1, 2, 3, 4]}


def test_fields_are_tokens_one_after_another_and_brackets_are_given(tokenizer: Tokenizer) -> None:
    made = make(tokenizer, ROW, fields="[question],answer")
    expect(
        tokenizer,
        made,
        ("<s>", 0.0),
        ("What is this?", 0.0),
        ("It is red.", 1.0),
        ("</s>", 1.0),
    )


def test_keys_with_a_plus_are_one_text(tokenizer: Tokenizer) -> None:
    made = make(tokenizer, ROW, fields="question+note+answer", subfield_separator=" | ")
    whole = "What is this? | night | It is red."
    expect(tokenizer, made, ("<s>", 0.0), (whole, 1.0), ("</s>", 1.0))


def test_special_tokens_take_the_weight_of_their_field(tokenizer: Tokenizer) -> None:
    rules = {"add_bos_token": False, "add_eos_token": False}
    made = make(tokenizer, ROW, fields="<|bos|>,[<|bos|>],note,[<|eos|>],<|eos|>", **rules)
    expect(
        tokenizer,
        made,
        ("<s>", 1.0),
        ("<s>", 0.0),
        ("night", 1.0),
        ("</s>", 0.0),
        ("</s>", 1.0),
    )


@pytest.mark.parametrize(
    ("fields", "weight"), [("[question],vision", 1.0), ("[vision],answer", 0.0)]
)
def test_codes_are_wrapped_and_take_the_weight_of_their_field(
    tokenizer: Tokenizer, fields: str, weight: float
) -> None:
    made = make(tokenizer, ROW, fields=fields)
    shown = [("<vision>", weight), ([1, 2, EOF, 3, 4, EOV], weight), ("</vision>", weight)]
    words = [("What is this?", 0.0)] if weight else []
    answer = [] if weight else [("It is red.", 1.0)]
    expect(tokenizer, made, ("<s>", 0.0), *words, *shown, *answer, ("</s>", 1.0))


def test_codes_may_be_written_as_texts_and_a_text_may_be_named_vision(tokenizer: Tokenizer) -> None:
    row = {"vision": ["1", "2"], "television": "red"}
    made = make(tokenizer, row, fields="vision,television")
    shown = [("<vision>", 1.0), ([1, 2, EOV], 1.0), ("</vision>", 1.0)]
    expect(tokenizer, made, ("<s>", 0.0), *shown, ("red", 1.0), ("</s>", 1.0))


def test_more_frames_than_allowed_are_thinned_evenly(tokenizer: Tokenizer) -> None:
    row = {"vision": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]}
    made = make(tokenizer, row, fields="vision", max_n_frames=3)
    assert made.tokens[made.vision].tolist() == [0, 0, EOF, 2, 2, EOF, 5, 5, EOV]
    made = make(tokenizer, row, fields="vision", max_n_frames=6)
    assert made.vision.sum() == 18


def test_the_row_may_hold_the_fields_and_a_line_keeps_its_form(tokenizer: Tokenizer) -> None:
    forms = ["[question],answer", "[answer],question", "note"]
    row = ROW | {"fields": forms}
    for line in range(1, 12):
        chosen = Random(line).choice(forms)
        one = make(tokenizer, row, line, fields_from_example="fields")
        other = make(tokenizer, ROW, line, fields=chosen)
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.weights.tolist() == other.weights.tolist()
    picked = make(tokenizer, row, 5, fields_from_example="fields", fields_index=2)
    expect(tokenizer, picked, ("<s>", 0.0), ("night", 1.0), ("</s>", 1.0))
    single = make(tokenizer, ROW | {"fields": "note"}, fields_from_example="fields")
    assert single.tokens.tolist() == picked.tokens.tolist()


def test_prepended_text_goes_before_a_first_text_only(tokenizer: Tokenizer) -> None:
    made = make(tokenizer, ROW, fields="note,answer", prepend_text="USER: ")
    expect(tokenizer, made, ("<s>", 0.0), ("USER: night", 1.0), ("It is red.", 1.0), ("</s>", 1.0))
    made = make(tokenizer, ROW, fields="vision,note", prepend_text="USER: ")
    assert made.tokens[-2:].tolist() == [*tokenizer.encode("night"), 2][-2:]


@pytest.mark.parametrize("add", [True, False])
def test_a_written_start_is_that_token_once(tokenizer: Tokenizer, add: bool) -> None:
    row = ROW | {"instruction": "<s> You are a helpful assistant."}
    made = make(tokenizer, row, fields="[instruction],[vision],answer", add_bos_token=add)
    expect(
        tokenizer,
        made,
        ("<s>", 0.0),
        ("You are a helpful assistant.", 0.0),
        ("<vision>", 0.0),
        ([1, 2, EOF, 3, 4, EOV], 0.0),
        ("</vision>", 0.0),
        ("It is red.", 1.0),
        ("</s>", 1.0),
    )


def test_codes_joined_to_texts_stand_where_they_are_named(tokenizer: Tokenizer) -> None:
    made = make(tokenizer, ROW, fields="[vision+question+note],answer")
    expect(
        tokenizer,
        made,
        ("<s>", 0.0),
        ("<vision>", 0.0),
        ([1, 2, EOF, 3, 4, EOV], 0.0),
        ("</vision>", 0.0),
        ("What is this? night", 0.0),
        ("It is red.", 1.0),
        ("</s>", 1.0),
    )


@pytest.mark.parametrize(
    ("row", "rules", "said"),
    [
        ({}, {"fields": "text"}, "the key text is missing"),
        ({"text": 3}, {"fields": "text"}, "the key text is missing or holds no text"),
        ({}, {"fields": "vision"}, "holds no codes"),
        ({"vision": [1]}, {"fields": "vision"}, "not whole frames"),
        ({"vision": []}, {"fields": "vision"}, "not whole frames"),
        ({"vision": [1, 10]}, {"fields": "vision"}, "the code 10"),
        ({"vision": [1, -1]}, {"fields": "vision"}, "the code -1"),
        ({"vision": [1, 10**30]}, {"fields": "vision"}, "the code 10000"),
        ({"vision": [1, 1.5]}, {"fields": "vision"}, "not whole frames"),
        ({"vision": [1, None]}, {"fields": "vision"}, "not whole frames"),
        ({"a": "b"}, {"fields_from_example": "f"}, "the key f holds no fields"),
        ({"f": []}, {"fields_from_example": "f"}, "the key f holds no fields"),
        ({"f": ["a"]}, {"fields_from_example": "f", "fields_index": 1}, "no entry 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tokenizer: Tokenizer, row: dict[str, Any], rules: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match="^[^\n]*:[^\n]*$") as caught:
        make(tokenizer, row, **rules)
    assert said in str(caught.value)
