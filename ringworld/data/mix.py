"""Mixing: how many of a stage's tokens come from which source.

draw_examples    sources that make examples up, one call an example, kept in memory
MixedExamples    sequences of examples, such as token shards: which come when, from lengths alone
EitherOrder      one of several forms of each example, drawn by a seed

Examples that are mixed here share rows; sources that should not are packed apart and mixed by rows
(`ringworld.data.rows.MixedRows`).
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example
from ringworld.data.rows import Examples, check_shares, measure, seed_of
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
    shares = check_shares(sources, shares)
    given = {name: 0 for name in shares}
    examples: list[Example] = []
    while sum(given.values()) < tokens:
        name = min(given, key=lambda name: (given[name] / shares[name], name))
        example = sources[name](np.random.default_rng((seed, len(examples))), longest)
        examples.append(example)
        given[name] += len(example)
    return examples


class MixedExamples:
    """Examples of several sources in one order, each source near its share of tokens throughout.

    `tokens` in all, up to an example a source. As in `draw_examples` the next one comes from the
    source that is furthest behind its share, but here it is the next of a shuffle of the source,
    and of another shuffle in each of its epochs. Only lengths are read; the order is three arrays,
    13 bytes an example. Raises InputError when a share names no source, or one without a token.
    """

    def __init__(
        self,
        sources: Mapping[str, Examples],
        shares: Mapping[str, float],
        *,
        tokens: int,
        seed: int,
    ) -> None:
        used = check_shares(sources, shares)
        self._sources = [sources[name] for name in used]
        columns, due = [], []
        for i, (name, share) in enumerate(used.items()):
            wanted = tokens * share / sum(used.values())
            index, lengths = _shuffle(measure(sources[name]), wanted, seed, name)
            due.append((np.cumsum(lengths) - lengths) / share)
            columns.append((np.full(len(index), i, np.uint8), index, lengths))
        order = np.argsort(np.concatenate(due), kind="stable")
        source, index, lengths = (np.concatenate(x)[order] for x in zip(*columns, strict=True))
        self._source, self._index, self.lengths = source, index, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        return self._sources[self._source[i]][int(self._index[i])]


def _shuffle(
    lengths: Int[np.ndarray, "N"], tokens: float, seed: int, name: str
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Examples and their lengths, epoch after epoch, until `tokens` are reached."""
    total = int(lengths.sum())
    if not total:
        raise InputError(f"the source {name} has no tokens: give it some, or a share of 0")
    epochs = [
        np.random.default_rng((seed_of(seed, name), epoch)).permutation(len(lengths))
        for epoch in range(-int(-tokens // total))
    ]
    index = np.concatenate(epochs).astype(np.int32)
    given = lengths[index]
    enough = int(np.searchsorted(np.cumsum(given), tokens)) + 1
    return index[:enough], given[:enough]


class EitherOrder:
    """Examples that exist in several forms, such as text first and vision first: one of each.

    `forms` are sequences of the same examples. Which form example i takes is drawn by `seed`, with
    the shares as probabilities, and stays; another epoch may take another seed. Raises InputError
    when the forms differ in number, or a share names none.
    """

    def __init__(
        self, forms: Mapping[str, Examples], shares: Mapping[str, float], seed: int
    ) -> None:
        used = check_shares(forms, shares)
        self._forms = [forms[name] for name in used]
        counts = {len(form) for form in self._forms}
        if len(counts) > 1:
            raise InputError(
                f"the forms have {min(counts)} to {max(counts)} examples: give each example in "
                "every form"
            )
        weights = np.array(list(used.values()))
        rng = np.random.default_rng(seed_of(seed, "order"))
        bounds = np.cumsum(weights / weights.sum())[:-1]
        self._form = np.searchsorted(bounds, rng.random(counts.pop()), side="right").astype(
            np.uint8
        )
        lengths = np.stack([measure(form) for form in self._forms])
        self.lengths = np.take_along_axis(lengths, self._form[None].astype(int), axis=0)[0]

    def __len__(self) -> int:
        return len(self._form)

    def __getitem__(self, i: int) -> Example:
        return self._forms[self._form[i]][i]
