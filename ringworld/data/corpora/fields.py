"""LWM's language of `fields`: how the keys of a JSONL row become one stream of tokens.

    fields   =  field , field , ...      one after another, as tokens
    field    =  part  or  [part]         in brackets: given, not learned
    part     =  key + key + ...          texts with `subfield_separator` between them
             or <|bos|>  or  <|eos|>     the special token

A key whose name contains "vision" and whose value is a list holds codes: Q a frame, without frame
markers. They are wrapped in `<vision>` and `</vision>`, with `eof` after every frame but the last,
`eov` after that; all of it is learned or not as its field is. Of more than `max_n_frames`, that
many are taken evenly. `fields_from_example` names the key of the row that holds the language
itself: one string, or a list of which `fields_index` picks one, or, below 0, Python's
`Random(line).choice`, so that a line has the same form for ever. `<s>` is put before everything and
not learned, `</s>` after everything and learned, unless `add_bos_token`, `add_eos_token` say
otherwise. `prepend_text` goes before the first field, if that is text.

Source: LWM's `lwm/data.py`, line by line, but for three faults of it. Nothing but the `<s>` above
is added to a text, where LWM's tokenizer puts one before each; a first text that begins with a
written `<s>` has that token once, not twice. And codes may be joined to texts with `+`, as LWM's
own page shows and its code refuses: codes stand where they are named, the texts between them are
joined.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby
from random import Random
from typing import Any

import numpy as np
from jaxtyping import Int

from ringworld.data.corpora.encoding import wrap_frames
from ringworld.data.corpora.spec import FieldSource
from ringworld.data.example import Example, join, text
from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

BOS, EOS = "<s>", "</s>"


def make_fields(
    row: Mapping[str, Any],
    line: int,
    rules: FieldSource,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
) -> Example:
    """The example of row `line`, from 1. Raises InputError when it does not fit the rules."""
    parts = [text(tokenizer.bos_ids, 0.0)] if rules.add_bos_token else []
    for number, field in enumerate(choose(row, line, rules).split(",")):
        given = field.startswith("[") and field.endswith("]")
        weight = 0.0 if given else 1.0
        name = field[1:-1] if given else field
        special = {"<|bos|>": tokenizer.bos_ids, "<|eos|>": [tokenizer.eos]}
        if name in special:
            parts.append(text(special[name], weight))
            continue
        pieces = list(read_part(row, name, rules.subfield_separator))
        if number == 0 and isinstance(pieces[0], str):
            written = rules.prepend_text + pieces[0]
            if written.startswith(BOS):
                written = written.removeprefix(BOS).removeprefix(" ")
                parts = [text(tokenizer.bos_ids, 0.0)]
            pieces[0] = written
        for piece in pieces:
            if isinstance(piece, str):
                parts.append(text(tokenizer.encode(piece), weight))
            else:
                codes = make_frames(piece, name, rules.max_n_frames, vocabulary)
                parts.append(
                    wrap_frames(codes, tokenizer, vocabulary, around=weight, inside=weight)
                )
    if rules.add_eos_token:
        parts.append(text([tokenizer.eos], 1.0))
    return join(parts)


def choose(row: Mapping[str, Any], line: int, rules: FieldSource) -> str:
    """The language of this row."""
    if not rules.fields_from_example:
        return rules.fields
    found = row.get(rules.fields_from_example)
    if isinstance(found, list) and found:
        try:
            found = (
                Random(line).choice(found) if rules.fields_index < 0 else found[rules.fields_index]
            )
        except IndexError:
            raise InputError(
                f"{rules.fields_from_example} has no entry {rules.fields_index}: lower fields_index"
            ) from None
    if not isinstance(found, str):
        raise InputError(
            f"the key {rules.fields_from_example} holds no fields: give a text or a list of texts"
        )
    return found


def read_part(row: Mapping[str, Any], name: str, separator: str) -> Iterator[str | list[Any]]:
    """The texts and the lists of codes of `key+key`, neighbouring texts joined."""
    values: list[str | list[Any]] = []
    for key in name.split("+"):
        value = row.get(key)
        if isinstance(value, str) or ("vision" in key and isinstance(value, list)):
            values.append(value)
        else:
            raise InputError(
                f"the key {key} is missing or holds no {'codes' if 'vision' in key else 'text'}: "
                "add it, or change fields"
            )
    for are_texts, run in groupby(values, lambda value: isinstance(value, str)):
        if are_texts:
            yield separator.join(map(str, run))
        else:
            yield from run


def make_frames(
    codes: list[Any], name: str, most: int, vocabulary: Vocabulary
) -> Int[np.ndarray, "Z Q"]:
    """A list of codes as frames, `most` of them at most. Raises InputError when it is none."""
    try:
        flat = np.array([int(code) for code in codes if not isinstance(code, bool | float)])
    except (TypeError, ValueError, OverflowError):
        flat = np.zeros(0, np.int64)
    each = vocabulary.codes_per_frame
    if len(flat) != len(codes) or not len(flat) or len(flat) % each:
        raise InputError(
            f"the key {name} holds {len(codes)} values that are not whole frames of {each} codes: "
            "encode them with this codec"
        )
    if flat.min() < 0 or flat.max() >= vocabulary.codes:
        wrong = flat[(flat < 0) | (flat >= vocabulary.codes)][0]
        raise InputError(
            f"the key {name} holds the code {wrong}, which is not from 0 to "
            f"{vocabulary.codes - 1}: encode it with this codec"
        )
    frames = flat.reshape(-1, each)
    if 0 < most < len(frames):
        frames = frames[np.linspace(0, len(frames) - 1, most).astype(int)]
    return frames
