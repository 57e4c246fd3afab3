"""Tables of other people's files as dataclasses, to the letter: a key that is unknown is an error.

TOML and JSON give dicts, lists, strings and numbers. Each becomes the type that the dataclass names
or is refused in one sentence; nothing is guessed and nothing is ignored.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ringworld.errors import InputError

C = TypeVar("C")

NOUNS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def strictly(cls: type[C], table: Any, where: str) -> C:
    """The dataclass `cls` of a table; `where` names the table in messages.

    Raises InputError for a key that is unknown (naming the nearest known one) or missing, for a
    value of another type, and for what the dataclass itself refuses.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is not a table: give it keys and values")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(_dataclass(cls))}
    for key in table:
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(f"{where} has the unknown key {key}: the nearest known one is {near}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in table:
            raise InputError(f"{where} lacks the key {name}: add it")
    values = {key: _fit(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _dataclass(cls: type[Any]) -> type[Any]:
    assert is_dataclass(cls), "only dataclasses are made of tables"
    return cls


def _fit(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`."""
    kind = get_origin(hint)
    if kind is Literal:
        if value not in get_args(hint):
            raise InputError(f"{where} must be one of {', '.join(get_args(hint))}, not {value!r}")
        return value
    if kind is UnionType:
        inner = next(part for part in get_args(hint) if part is not NoneType)
        return None if value is None else _fit(inner, value, where)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, not {value!r}")
        inner = get_args(hint)[0]
        if not is_dataclass(inner):
            return tuple(_fit(inner, item, where) for item in value)
        return tuple(_fit(inner, item, f"{where} {i}") for i, item in enumerate(value, 1))
    if kind is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a table, not {value!r}")
        return {key: _fit(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        return strictly(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where} must be {NOUNS[hint]}, not {value!r}")
    return value


def plainly(value: Any) -> dict[str, Any]:
    """A dataclass as the table that `strictly` takes back."""
    return asdict(value)
