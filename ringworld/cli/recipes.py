"""`ringworld train RECIPE`: a recipe's own fields are its options."""

import re
from collections.abc import Callable
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from ringworld.cli.options import parse_options
from ringworld.cli.verbs import prepare_jax
from ringworld.errors import InputError, did_you_mean

OPTIMIZER = re.compile(r"--stages\.(\d+)\.optimizer")
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
    prepare_jax()
    folder = Annotated[Path, arg(help="the folder of the run, to begin it or to go on")]
    flat: Any = Annotated  # of a type that is not known before
    parts = [("folder", folder), ("recipe", flat[type(recipe), arg(name="")])]
    recipe, words = choose_optimizers(recipe, words)
    options = make_dataclass(f"Train {name}", parts, frozen=True, kw_only=True)
    defaults = options(folder=Path("runs") / name, recipe=recipe)
    asked = parse_options(options, words, f"ringworld train {name}", defaults)
    return defaults, lambda: announce(f"done: {asked.recipe.run(asked.folder, announce)}")


def choose_optimizers(recipe: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The recipe with the optimizers that `--stages.N.optimizer NAME` names, and the other words.

    An optimizer keeps the settings that it shares with the one of the recipe. Raises InputError
    when there is no optimizer of that name, or none in that stage.
    """
    from ringworld.train.optimizer import OPTIMIZERS

    stages, rest, coming = list(recipe.stages), [], iter(words)
    for word in coming:
        flag, joined, name = word.partition("=")
        match = OPTIMIZER.fullmatch(flag)
        if match is None or int(match[1]) >= len(stages):
            rest.append(word)
            continue
        number, name = int(match[1]), name if joined else next(coming, "")
        if name not in OPTIMIZERS or not hasattr(stages[number], "optimizer"):
            near = did_you_mean(name, OPTIMIZERS) or ":"
            raise InputError(f"{flag} is {name}{near} use one of {', '.join(OPTIMIZERS)}")
        kind = OPTIMIZERS[name]
        shared = {f.name for f in fields(kind)}
        kept = {k: v for k, v in vars(stages[number].optimizer).items() if k in shared}
        stages[number] = replace(stages[number], optimizer=kind(**kept))
    return replace(recipe, stages=tuple(stages)), rest
