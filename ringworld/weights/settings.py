"""The fields of a config.json from elsewhere, asked for by type and within reason."""

from pathlib import Path
from typing import Any

from ringworld.errors import InputError

# No size of a model comes near it, and products of a few of them are made without harm.
LARGEST_SIZE = 1 << 32
LARGEST_NUMBER = 1e18


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
