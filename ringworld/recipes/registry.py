"""The recipes that have a name, such as those that `ringworld train` knows.

A recipe's module is imported when the recipe is asked for, so that listing the names costs nothing.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ringworld.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from ringworld.recipes.extend import Extend
    from ringworld.recipes.recipe import Recipe


def _make(module: str, function: str) -> Any:
    return getattr(import_module(f"ringworld.recipes.{module}"), function)()


# A function makes each, without reading files or asking for devices.
RECIPES: "dict[str, Callable[[], Recipe]]" = {
    "nano-tokenizer": partial(_make, "tokenizer", "nano_tokenizer"),
    "nano-codec": partial(_make, "codec", "nano_codec"),
    "shapes-codec": partial(_make, "codec", "shapes_codec"),
    "folder-codec": partial(_make, "codec", "folder_codec"),
    "nano-base": partial(_make, "nano", "nano_base"),
    "nano-text": partial(_make, "nano", "nano_text"),
    "nano-world": partial(_make, "nano", "nano_world"),
    "nano-world-chat": partial(_make, "nano", "nano_world_chat"),
    "play-codec": partial(_make, "play", "play_codec"),
    "nano-play": partial(_make, "play", "nano_play"),
    "demo": partial(_make, "nano", "demo"),
    "shards": partial(_make, "shards", "shards"),
    "lwm-text": partial(_make, "lwm", "lwm_text"),
    "lwm-text-chat": partial(_make, "lwm", "lwm_text_chat"),
    "lwm-vision": partial(_make, "lwm", "lwm_vision"),
    "lwm-vision-chat": partial(_make, "lwm", "lwm_vision_chat"),
}
# The options from which a recipe is made for the devices that there are.
TEMPLATES: "dict[str, Callable[[], Extend]]" = {"extend": partial(_make, "extend", "Extend")}


def find_recipe(name: str) -> "Recipe | Extend":
    """The recipe of that name, or the options from which it is made.

    Raises InputError when there is none, proposing the nearest name and listing all.
    """
    known = RECIPES | TEMPLATES
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(f"there is no recipe {name}{near or ':'} use one of {', '.join(known)}")
    return known[name]()
