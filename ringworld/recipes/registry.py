"""The recipes that have a name, such as those that `ringworld train` knows."""

from collections.abc import Callable
from difflib import get_close_matches

from ringworld.errors import InputError
from ringworld.recipes.codec import folder_codec, nano_codec
from ringworld.recipes.nano import demo, nano_base
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.shards import shards
from ringworld.recipes.tokenizer import nano_tokenizer

# A function makes each, without reading files or asking for devices.
RECIPES: dict[str, Callable[[], Recipe]] = {
    "nano-tokenizer": nano_tokenizer,
    "nano-codec": nano_codec,
    "folder-codec": folder_codec,
    "nano-base": nano_base,
    "demo": demo,
    "shards": shards,
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises InputError when there is none, proposing the nearest name and listing all.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "choose one of"
        raise InputError(f"there is no recipe {name}: {meant} {', '.join(RECIPES)}")
    return RECIPES[name]()
