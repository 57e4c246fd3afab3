"""`ringworld train RECIPE`: a recipe's own fields are its options."""

from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from ringworld.cli.options import parse_options
from ringworld.cli.verbs import prepare_jax
from ringworld.settings import Processes

# What `train --help` says of each recipe, without importing any.
SUMMARIES = {
    "nano-tokenizer": "the tokenizer of the shipped model, from its books and captions",
    "nano-codec": "the codec of the shipped model, from a film and moving shapes",
    "folder-codec": "a codec of your own films and pictures",
    "nano-base": "the shipped model from fresh weights, at 1K tokens",
    "demo": "the shipped model grown from 1K to 4K to 16K tokens on a ring of eight",
    "shards": "a model trained further on your own token shards",
}


def prepare_recipe(
    name: str, words: list[str], announce: Callable[[str], None]
) -> tuple[Any, Callable[[], None]]:
    """The options of a recipe with their defaults, and the function that trains it as `words` say.

    Raises InputError when there is no recipe or option of that name.
    """
    from ringworld.recipes.registry import find_recipe

    recipe = find_recipe(name)
    folder = Annotated[Path, arg(help="the folder of the run, to begin it or to go on")]
    flat: Any = Annotated  # of a type that is not known before
    fields = [
        ("folder", folder),
        ("recipe", flat[type(recipe), arg(name="")]),
        ("world", flat[Processes, arg(name="")]),
    ]
    options = make_dataclass(f"Train {name}", fields, frozen=True, kw_only=True)
    defaults = options(folder=Path("runs") / name, recipe=recipe, world=Processes())
    asked = parse_options(options, words, f"ringworld train {name}", defaults)
    prepare_jax(asked.world)
    return defaults, lambda: announce(f"done: {asked.recipe.run(asked.folder, announce)}")
