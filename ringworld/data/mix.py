"""Mixing: how many of a stage's tokens come from which source."""

from collections.abc import Callable, Mapping

import numpy as np

from ringworld.data.example import Example
from ringworld.errors import InputError

# A source draws one example of at most so many tokens.
Source = Callable[[np.random.Generator, int], Example]


def draw_examples(
    sources: Mapping[str, Source],
    shares: Mapping[str, float],
    *,
    tokens: int,
    longest: int,
    seed: int,
) -> list[Example]:
    """Examples of at least `tokens` tokens in all, each source near its share throughout.

    The next example comes from the source that is furthest behind its share; example i draws from a
    generator of (seed, i), so that the same call gives the same examples. Raises InputError when a
    share names no source.
    """
    unknown = sorted(set(shares) - set(sources))
    if unknown:
        raise InputError(
            f"the mix names {unknown[0]}, which is no source: use {', '.join(sources)}"
        )
    given = {name: 0 for name, share in shares.items() if share > 0}
    examples: list[Example] = []
    while sum(given.values()) < tokens:
        name = min(given, key=lambda name: (given[name] / shares[name], name))
        example = sources[name](np.random.default_rng((seed, len(examples))), longest)
        examples.append(example)
        given[name] += len(example)
    return examples
