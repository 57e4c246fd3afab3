"""Which weights are trained: by name, and kept apart from those that are frozen.

A frozen weight has no gradient and no optimizer state, and keeps its bits. The two halves of a
model are trees of its own shape with None where the other half has a weight, so that a table of
specs, arrays, or any other tree over the weights is divided in the same way.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax

from ringworld.errors import InputError
from ringworld.params import Param, paths

T = TypeVar("T")


def check_frozen(weights: Any, frozen: Sequence[str]) -> None:
    """Raise InputError when a pattern names no weight, or when no weight is left to train."""
    names = list(paths(weights))
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"the pattern {pattern} of frozen weights names none of them: use names such as "
                f"{names[0]} or {names[-1]}, with * for any text",
                setting="frozen",
            )
    if all(_matches(name, frozen) for name in names):
        raise InputError(
            "every weight is frozen: leave some of them out of the patterns", setting="frozen"
        )


def divide(weights: T, frozen: Sequence[str]) -> tuple[T, T]:
    """The weights that are trained, and those whose dotted name matches a pattern of `frozen`.

    Patterns are those of `fnmatch`: in `vision_*` or `blocks.*`, `*` stands for any text.
    """
    leaves, tree = jax.tree.flatten(weights, is_leaf=lambda x: isinstance(x, Param))
    still = [_matches(name, frozen) for name in paths(weights)]
    halves = [
        [leaf if kept == half else None for leaf, kept in zip(leaves, still, strict=True)]
        for half in (False, True)
    ]
    return jax.tree.unflatten(tree, halves[0]), jax.tree.unflatten(tree, halves[1])


def rejoin(trained: T, frozen: T) -> T:
    """The model that `divide` made two halves of."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
