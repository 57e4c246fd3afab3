"""Mixing: how many of a stage's tokens come from which source.

draw_examples    sources that make examples up, one call an example, kept in memory
MixedExamples    sequences of examples, such as token shards: which come when, from lengths alone
mix_sources      both ways at once: some sources packed apart, the others sharing rows
Chosen           some examples of a sequence, such as those of one source of token shards
draw_forms       one of several forms of each example, drawn by a seed

Examples that are mixed here share rows; sources that should not are packed apart and mixed by rows
(`ringworld.data.packing.rows.MixedRows`).
"""

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example
from ringworld.data.packing.rows import Apart, Examples, check_shares, example_lengths, seed_of
from ringworld.errors import InputError

# The sources that share rows, as one more beside those packed apart. No source is called so.
SHARED_ROWS = "the others"

# A source draws one example of at most so many tokens.
DrawExample = Callable[[np.random.Generator, int], Example]


def draw_examples(
    sources: Mapping[str, DrawExample],
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
            index, lengths = _shuffle(example_lengths(sources[name]), wanted, seed, name)
            due.append((np.cumsum(lengths) - lengths) / share)
            columns.append((np.full(len(index), i, np.uint8), index, lengths))
        order = np.argsort(np.concatenate(due), kind="stable")
        source, index, lengths = (np.concatenate(x)[order] for x in zip(*columns, strict=True))
        self._source, self._index, self.lengths = source, index, lengths

    def __len__(self) -> int:
        """The number of examples drawn."""
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        """Example i of the mix."""
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


def mix_sources(
    sources: Mapping[str, Examples],
    shares: Mapping[str, float],
    apart: Collection[str],
    *,
    tokens: int,
    seed: int,
) -> Examples | Apart:
    """What a stage of `tokens` tokens is trained on.

    A source that is named in `apart` has rows of its own, of which it gets its share in every
    batch; the others share rows, in which each has its share of the tokens. Raises InputError when
    a name is no source, one apart has no share, or the shares do not add up to 1.
    """
    used = check_shares(sources, shares)
    check_whole(used)
    if without := sorted(set(apart) - set(used)):
        raise InputError(f"{without[0]} is packed apart and has no share: give it one")
    sharing = {name: share for name, share in used.items() if name not in apart}
    rows = {name: share for name, share in used.items() if name in apart}
    part = sum(sharing.values())
    if not rows:
        return MixedExamples(sources, sharing, tokens=tokens, seed=seed)
    groups = {name: sources[name] for name in rows}
    if sharing:
        wanted = math.ceil(tokens * part)
        groups[SHARED_ROWS] = MixedExamples(sources, sharing, tokens=wanted, seed=seed)
        rows[SHARED_ROWS] = part
    return Apart(groups, rows)


def check_whole(shares: Mapping[str, float]) -> None:
    """Raise InputError when shares do not add up to 1."""
    if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
        raise InputError(f"the shares add up to {total:g}: change them so that they add up to 1")


class Chosen:
    """Some examples of a sequence, by their numbers in it and their lengths."""

    def __init__(
        self, examples: Examples, numbers: Int[np.ndarray, "M"], lengths: Int[np.ndarray, "M"]
    ) -> None:
        self._examples, self._numbers, self.lengths = examples, numbers, lengths

    def __len__(self) -> int:
        """The number of examples chosen."""
        return len(self._numbers)

    def __getitem__(self, i: int) -> Example:
        """Example i of those chosen."""
        return self._examples[int(self._numbers[i])]


def draw_forms(numbers: Int[np.ndarray, "N"], forms: int, seed: int) -> Int[np.ndarray, "M"]:
    """One of each `forms` numbers that follow one another, such as text first and vision first.

    Each is as likely as another; `seed` alone draws them, so another seed gives other forms of the
    same examples.
    """
    if forms == 1:
        return numbers
    rng = np.random.default_rng(seed_of(seed, "order"))
    rows = numbers.reshape(-1, forms)
    return rows[np.arange(len(rows)), rng.integers(forms, size=len(rows))]
