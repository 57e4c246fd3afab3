"""Dataclasses from the tables of files: every key is known, every value is of its field's type.

TOML and JSON give dicts, lists, strings and numbers. `from_dict` makes the dataclass that they
describe, or refuses them in one sentence; nothing is guessed and nothing is ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ringworld.errors import InputError

C = TypeVar("C")

NOUNS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
# Values are shown in messages up to so many characters: a file may hold anything.
SHOWN_CHARACTERS = 40


def from_dict(cls: type[C], table: Any, where: str) -> C:
    """The dataclass `cls` with the values of `table`, nested dataclasses and lists included.

    `where` names the table in messages. Raises InputError when the table has an unknown key (the
    message names the nearest known one), lacks one without a default, holds a value of another
    type, or when the dataclass itself refuses its values.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is not a table: give it keys and values")
    hints, known = get_type_hints(cls), _fields(cls)
    for key in table:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"{where} has the unknown key {str(key):.{SHOWN_CHARACTERS}}: the nearest known "
                f"one is {near}"
            )
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in table:
            raise InputError(f"{where} lacks the key {name}: add it")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _fields(cls: type[Any]) -> dict[str, Field[Any]]:
    assert is_dataclass(cls), "only dataclasses are made of tables"
    return {field.name: field for field in fields(cls)}


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`. Raises InputError when it is of another type."""
    kind = get_origin(hint)
    if kind is Literal:
        if value not in get_args(hint):
            raise InputError(
                f"{where} must be one of {', '.join(get_args(hint))}, not {_show(value)}"
            )
        return value
    if kind in (UnionType, Union):
        return None if value is None else _convert(_choose(hint, value), value, where)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, not {_show(value)}")
        inner = get_args(hint)[0]
        if not is_dataclass(inner):
            return tuple(_convert(inner, item, where) for item in value)
        return tuple(_convert(inner, item, f"{where} {i}") for i, item in enumerate(value, 1))
    if kind is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a table, not {_show(value)}")
        inner = get_args(hint)[1]
        return {key: _convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, hint) or not finite or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where} must be {NOUNS[hint]}, not {_show(value)}")
    return value


def _choose(hint: Any, value: Any) -> Any:
    """The part of a union that a value is for: of several dataclasses, one that has its keys."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    if isinstance(value, Mapping):
        for part in parts:
            if is_dataclass(part) and set(value) <= set(_fields(part)):
                return part
    return parts[0]


def _show(value: Any) -> str:
    return f"{value!r:.{SHOWN_CHARACTERS}}"


def flatten(tree: Any, name: str = "") -> dict[str, Any]:
    """The values of nested tables and lists by dotted name, such as "stages.0.loop.steps"."""
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return {name: tree}
    return {
        key: leaf
        for k, child in tree.items()
        for key, leaf in flatten(child, f"{name}.{k}" if name else str(k)).items()
    }
