"""JSON schemas: whatever is drawn of the ids that may follow, the answer is as the schema says."""

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import validate
from sentencepiece_files import SMALL

from ringworld.errors import InputError
from ringworld.text.grammar import SchemaReader
from ringworld.text.load import load_tokenizer
from ringworld.text.sentencepiece import read_sentencepiece
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.shipped import NANO

WORDS = load_tokenizer(NANO)
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "green", 'a "b"', "été", 7, None]},
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -3, "maximum": 120},
        "minItems": 2,
        "maxItems": 4,
    },
    "nested": {
        "$defs": {
            "shape": {
                "type": "object",
                "properties": {
                    "kind": {"enum": ["circle", "square"]},
                    "at": {
                        "type": "array",
                        "items": {"type": "number", "minimum": 0, "maximum": 9.5},
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
                "required": ["kind", "at"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {
            "shapes": {"type": "array", "items": {"$ref": "#/$defs/shape"}, "maxItems": 2}
        },
        "required": ["shapes"],
        "additionalProperties": False,
    },
    "choice": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]},
}


def read(words: Tokenizer = WORDS) -> SchemaReader:
    """With more rows than ids, as a model's table may have."""
    return SchemaReader(words, words.size + 5, [words.eos])


def draw(
    follow: Any, rng: np.random.Generator, end: int, answer: tuple[int, ...] = ()
) -> list[int]:
    """An answer of ids that are drawn evenly from those that may follow."""
    ids = [*answer]
    while True:
        allowed = follow(ids)
        assert allowed.dtype == np.bool_ and allowed.any()
        token = int(rng.choice(np.flatnonzero(allowed)))
        if token == end:
            return ids
        ids.append(token)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_answers_drawn_at_random_follow_their_schema(
    schema: dict[str, Any], rng: np.random.Generator
) -> None:
    for words in (WORDS, read_sentencepiece(SMALL)):
        follow = read(words).follow(schema)
        assert follow([]).shape == (words.size + 5,)
        for _ in range(20):
            validate(json.loads(words.decode(draw(follow, rng, words.eos))), schema)


def test_what_may_follow_depends_on_the_answer_alone(rng: np.random.Generator) -> None:
    """Several answers at one time, in any order and again, as one by one."""
    follow = read().follow(SCHEMAS["nested"])
    answers = [draw(follow, rng, WORDS.eos) for _ in range(3)]
    places = [(i, n) for i, answer in enumerate(answers) for n in range(len(answer) + 1)]
    fresh = {place: read().follow(SCHEMAS["nested"]) for place in places[::7]}
    for i, n in rng.permutation(places).tolist():
        found = follow(answers[i][:n])
        if (i, n) in fresh:
            np.testing.assert_array_equal(found, fresh[i, n](answers[i][:n]))


def test_special_tokens_never_follow_but_where_the_answer_may_end() -> None:
    follow = read().follow({"type": "string", "maxLength": 4})
    special = [*WORDS.special.values()]
    assert not follow([])[special].any() and not follow(WORDS.encode('"ab'))[special].any()
    ended = follow(WORDS.encode('"ab"'))
    assert np.flatnonzero(ended).tolist() == [WORDS.eos]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "(("}, "regex"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "retriev"),
        ({"$ref": "#"}, "no value satisfies it"),
        ({"enum": ["\ud800"]}, "escape"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_one_sentence(
    schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read().follow(schema)
    assert str(caught.value).startswith("the JSON schema cannot be followed (")
    assert len(str(caught.value)) < 300 and caught.value.setting == "response_format"


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="no token of this model ends an answer"):
        SchemaReader(WORDS, WORDS.size, [])
