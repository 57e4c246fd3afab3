"""The recipes that have a name, such as those that `ringworld train` knows.

A recipe's module is imported when the recipe is asked for, so that listing the names costs nothing.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from ringworld.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from ringworld.recipes.recipe import Recipe


def _make(module: str, function: str) -> "Recipe":
    return getattr(import_module(f"ringworld.recipes.{module}"), function)()


# A function makes each, without reading files or asking for devices.
RECIPES: "dict[str, Callable[[], Recipe]]" = {
    "nano-tokenizer": partial(_make, "tokenizer", "nano_tokenizer"),
    "nano-codec": partial(_make, "codec", "nano_codec"),
    "folder-codec": partial(_make, "codec", "folder_codec"),
    "nano-base": partial(_make, "nano", "nano_base"),
    "demo": partial(_make, "nano", "demo"),
    "shards": partial(_make, "shards", "shards"),
}


def find_recipe(name: str) -> "Recipe":
    """The recipe of that name.

    Raises InputError when there is none, proposing the nearest name and listing all.
    """
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES)
        raise InputError(f"there is no recipe {name}{near or ':'} use one of {', '.join(RECIPES)}")
    return RECIPES[name]()
