"""A config.json from elsewhere: JSON of a sane size, whose fields are asked for by type."""

import json
from pathlib import Path
from typing import Any

from ringworld.errors import InputError

CONFIG = "config.json"
# A config is some kilobytes; what is larger is none.
LARGEST = 1 << 20
# No size of a model comes near it, and products of a few of them are made without harm.
LARGEST_SIZE = 1 << 32
LARGEST_NUMBER = 1e18


def read_settings(path: Path) -> dict[str, Any]:
    """The fields of a config.json. Raises InputError when it is missing or no JSON object."""
    if not path.is_file():
        raise InputError(f"there is no {path}: put the {path.name} of the weights there")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path} has more than {LARGEST} bytes: give the config of a model")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not whole JSON: copy it again") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} is not a JSON object: give the config of a model")
    return fields


def size_of(fields: dict[str, Any], name: str, path: Path, least: int = 1) -> int:
    """A whole number of `fields`. Raises InputError when it is missing or out of reason."""
    value = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= LARGEST_SIZE:
        raise InputError(f"{path} should give {name} as a whole number from {least}: correct it")
    return value


def number_of(fields: dict[str, Any], name: str, path: Path) -> float:
    """A positive number of `fields`. Raises InputError when it is missing or is none."""
    value = fields.get(name)
    if not isinstance(value, int | float) or not 0 < value < LARGEST_NUMBER:
        raise InputError(f"{path} should give {name} as a positive number: correct it")
    return float(value)
