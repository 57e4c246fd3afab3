"""`ringworld train RECIPE`: a recipe's own fields are its options.

Those of a stage are `--stages.N.*`, counted from 0, and of all stages at once `--stages.all.*`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from ringworld.cli.options import list_flags, parse_options
from ringworld.cli.verbs import prepare_jax
from ringworld.distributed import is_first
from ringworld.errors import InputError, did_you_mean
from ringworld.settings import Processes

if TYPE_CHECKING:
    from ringworld.recipes.recipe import Recipe

# What `train --help` says of each recipe, without importing any.
SUMMARIES = {
    "nano-tokenizer": "the tokenizer of the shipped model, from its books and captions",
    "nano-codec": "the codec of the shipped model, from a film and moving shapes",
    "shapes-codec": "the codec of nano-world, from moving shapes: each tile is encoded by itself",
    "folder-codec": "a codec of your own films and pictures",
    "nano-base": "the shipped model from fresh weights, at 1K tokens",
    "nano-text": "the language model of the shipped model, grown from 1K to 64K",
    "nano-world": "the shipped model with a codec of shapes, taught to draw what words ask for",
    "nano-world-chat": "an adapter for nano-world that answers questions about clips and pictures",
    "play-codec": "the codec of the small world with actions, from its tiles",
    "nano-play": "the shipped model of the small world with actions, from fresh weights",
    "demo": "the shipped model grown from 1K to 4K to 16K tokens on a ring of eight",
    "shards": "a model trained further on your own token shards",
    "lwm-text": "LWM's text ladder: LLaMA-2 7B from 4K to 1M tokens on 256 chips",
    "lwm-text-chat": "LWM's text models as chat models, from 128K to 1M",
    "lwm-vision": "LWM's vision ladder: pictures at 1K and films at 8K on 512 chips",
    "lwm-vision-chat": "LWM's vision chat, from 32K to 1M tokens on 512 chips",
    "extend": "any model taken to longer contexts on your own token shards",
}
STAGE_OPTION = re.compile(r"--stages[.](?:\d+|all)[.]")
ALL_STAGES = "--stages.all."
OPTIMIZER = re.compile(r"--stages[.](\d+|all)[.]optimizer")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every recipe is asked for besides its own fields."""

    folder: Path
    """the folder of the run, to begin it or to go on"""
    dry_run: bool = False
    """print the stages with their tokens, bases, meshes and memory, and stop"""
    world: Annotated[Processes, arg(name="")] = field(default_factory=Processes)


def prepare_recipe(
    name: str, words: list[str], announce: Callable[[str], None]
) -> tuple[Any, Callable[[], None]]:
    """The options of a recipe with their defaults, and the function that trains it as `words` say.

    Raises InputError when there is no recipe or option of that name.
    """
    from ringworld.recipes.recipe import Recipe
    from ringworld.recipes.registry import find_recipe

    prog, found = f"ringworld train {name}", find_recipe(name)
    if isinstance(found, Recipe):
        found, words = choose_optimizers(found, words)
        defaults = _options(name, found)
        asked = parse_options(type(defaults), _spread(words, defaults), prog, defaults)
        prepare_jax(asked.world)
        return defaults, _work(asked, asked.recipe, announce, shows=False)
    own, of_stages = _split(words)
    defaults = _options(name, found)
    asked = parse_options(type(defaults), own, prog, defaults)
    prepare_jax(asked.world)
    import jax

    made, of_stages = choose_optimizers(asked.recipe.make(jax.device_count()), of_stages)
    recipe = parse_options(Recipe, _spread(of_stages, made), prog, made)
    return defaults, _work(asked, recipe, announce, shows=True)


def _options(name: str, recipe: Any) -> Any:
    """The options of a run, those of the recipe without a name before them."""
    flat: Any = Annotated  # of a type that is not known before
    parts = [("recipe", flat[type(recipe), arg(name="")])]
    options = make_dataclass(f"Train {name}", parts, bases=(RunOptions,), frozen=True, kw_only=True)
    return options(folder=Path("runs") / name, recipe=recipe)


def _work(
    asked: RunOptions, recipe: "Recipe", announce: Callable[[str], None], *, shows: bool
) -> Callable[[], None]:
    """The function that shows the recipe, if that is asked for or `shows`, and trains it."""

    def work() -> None:
        if (shows or asked.dry_run) and is_first():
            from rich.console import Console

            from ringworld.recipes.preview import print_preview

            print_preview(recipe, Console(stderr=not asked.dry_run))
        if not asked.dry_run:
            announce(f"done: {recipe.run(asked.folder, announce)}")

    return work


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without those about stages, and these."""
    parts: tuple[list[str], list[str]] = [], []
    for group in _group(words):
        parts[STAGE_OPTION.match(group[0]) is not None].extend(group)
    return parts


def _spread(words: list[str], options: Any) -> list[str]:
    """The words with an option of all stages as one of every stage that has it, before the others.

    One that no stage has stays as it is, to be refused by its name.
    """
    flags, general, special = list(list_flags(options)), list[str](), list[str]()
    for first, *values in _group(words):
        name, joined, value = first.removeprefix(ALL_STAGES).partition("=")
        own = re.compile(rf"--stages[.]\d+[.]{re.escape(name.replace('_', '-'))}")
        found = list(filter(own.fullmatch, flags)) if first.startswith(ALL_STAGES) else []
        for flag in found:
            general += [f"{flag}{joined}{value}", *values]
        special += [] if found else [first, *values]
    return general + special


def _group(words: list[str]) -> list[list[str]]:
    """Each option with its values."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def choose_optimizers(recipe: Any, words: list[str]) -> tuple[Any, list[str]]:
    """The recipe with the optimizers that `--stages.N.optimizer NAME` names, and the other words.

    An optimizer keeps the settings that it shares with the one of the recipe. Raises InputError
    when there is no optimizer of that name, or none in that stage.
    """
    from ringworld.train.optimizer import OPTIMIZERS

    stages, rest = list(recipe.stages), list[str]()
    for first, *values in _group(words):
        flag, joined, value = first.partition("=")
        name = value if joined else " ".join(values)
        match = OPTIMIZER.fullmatch(flag)
        if match is None:
            rest += [first, *values]
            continue
        chosen = [n for n, stage in enumerate(stages) if hasattr(stage, "optimizer")]
        chosen = [n for n in chosen if match[1] in ("all", str(n))]
        if name not in OPTIMIZERS or not chosen:
            near = did_you_mean(name, OPTIMIZERS) or ":"
            raise InputError(f"{flag} is {name}{near} use one of {', '.join(OPTIMIZERS)}")
        kind = OPTIMIZERS[name]
        for n in chosen:
            old = vars(stages[n].optimizer)
            kept = {field.name: old[field.name] for field in fields(kind) if field.name in old}
            stages[n] = replace(stages[n], optimizer=kind(**kept))
    return replace(recipe, stages=tuple(stages)), rest
