"""Answers that follow a JSON schema: the ids that may come next, by llguidance.

An answer may have a line break and some spaces between its values, and no more: a weak model would
write white space for ever.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from llguidance import LLMatcher, LLTokenizer

from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer

BETWEEN = r"\n?[ ]{0,8}"


class SchemaFollower:
    """The ids that may follow an answer so far; a function of the answer alone.

    Where each answer stands in the schema is kept until its next id comes. An answer that is not
    known is read from its beginning.
    """

    def __init__(self, start: LLMatcher, rows: int) -> None:
        self._start, self._rows = start, rows
        self._places: dict[tuple[int, ...], LLMatcher] = {}

    def __call__(self, ids: Sequence[int]) -> Bool[np.ndarray, "V"]:
        """Which of the model's text ids may follow; one that ends the answer, where it may end."""
        answer = tuple(ids)
        if answer not in self._places:
            self._places[answer] = self._advance(answer)
        bits = np.frombuffer(self._places[answer].compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._rows].astype(np.bool_)

    def _advance(self, answer: tuple[int, ...]) -> LLMatcher:
        before = self._places.pop(answer[:-1], None) if answer else None
        place = self._start.deep_copy() if before is None else before
        place.consume_tokens(list(answer if before is None else answer[-1:]))
        return place


class SchemaReader:
    """Reads JSON schemas for one tokenizer, whose model has `rows` text ids and ends at `ends`.

    Raises InputError when no id ends an answer, or llguidance cannot read the tokenizer.
    """

    def __init__(self, words: Tokenizer, rows: int, ends: Sequence[int]) -> None:
        if not ends:
            raise InputError("no token of this model ends an answer: ask for text of any form")
        self._rows = rows
        try:
            spelled = words.backend.to_str()
            self._tokenizer = LLTokenizer(spelled, n_vocab=rows, eos_token=[*ends])
        except ValueError as error:
            raise InputError(
                f"llguidance cannot read this model's tokenizer ({_first_line(error)}): ask for "
                "text of any form"
            ) from error

    def follow(self, schema: dict[str, Any]) -> SchemaFollower:
        """What an answer may be that the schema allows.

        Raises InputError, with the reason, for a schema that is broken, that nothing satisfies, or
        that has a keyword which cannot be followed.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": BETWEEN}
            )
        except ValueError as error:
            raise _refusal(error) from error
        start = LLMatcher(self._tokenizer, grammar, log_level=0)
        if start.is_error():
            raise _refusal(start.get_error())
        start.compute_bitmask()
        if start.is_error():
            raise _refusal("no value satisfies it")
        return SchemaFollower(start, self._rows)


def _first_line(said: object) -> str:
    return f"{str(said).partition(chr(10))[0]:.200}"


def _refusal(reason: object) -> InputError:
    return InputError(
        f"the JSON schema cannot be followed ({_first_line(reason)}): change it",
        setting="response_format",
    )
