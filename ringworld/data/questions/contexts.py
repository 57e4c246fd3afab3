"""Neighbouring chunks put together up to a target context, their pairs behind them as a chat."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ringworld.data.example import Example
from ringworld.data.questions.chunks import Chunk
from ringworld.data.questions.pairs import QAPair, qa_example, turn_length
from ringworld.text.template import SYSTEM
from ringworld.text.tokenizer import Tokenizer

# What another chat template than ours may add to a turn, so that its rows fit the same context.
TEMPLATE_ROOM = 8


@dataclass(frozen=True)
class Verdict:
    """A chunk, and the pair that it got or the word that says why it got none."""

    chunk: Chunk
    pair: QAPair | None
    word: str


@dataclass(frozen=True)
class Context:
    """A run of a document's chunks and the pairs about them; the example is what it teaches."""

    chunks: int
    document: str
    pairs: tuple[QAPair, ...]
    example: Example

    @property
    def length(self) -> int:
        """Its tokens, with room for another chat template."""
        return len(self.example) + TEMPLATE_ROOM * len(self.pairs)


def group_chunks(verdicts: Iterable[Verdict], most: int, tokenizer: Tokenizer) -> Iterator[Context]:
    """The chunks of one document in as few contexts of at most `most` tokens as their order allows.

    Every chunk is in one context, asked about or not. A document is never joined with another: a
    short one is a short context, which packing puts beside others.
    """
    opening = len(tokenizer.bos_ids) + len(tokenizer.encode(f"{SYSTEM} USER: "))
    held: list[Verdict] = []
    costs: list[int] = []
    for verdict in verdicts:
        cost = verdict.chunk.tokens
        if verdict.pair is not None:
            cost += turn_length(verdict.pair, tokenizer) + TEMPLATE_ROOM
        while held and opening + sum(costs) + cost > most:
            context = _longest(held, most, tokenizer)
            yield context
            held, costs = held[context.chunks :], costs[context.chunks :]
        held.append(verdict)
        costs.append(cost)
    while held:
        context = _longest(held, most, tokenizer)
        yield context
        held = held[context.chunks :]


def _longest(held: Sequence[Verdict], most: int, tokenizer: Tokenizer) -> Context:
    """As many of the first chunks as fit: at the seams a text has other tokens than its chunks."""
    count = len(held)
    context = _join(held, tokenizer)
    while context.length > most and count > 1:
        count -= 1
        context = _join(held[:count], tokenizer)
    return context


def _join(held: Sequence[Verdict], tokenizer: Tokenizer) -> Context:
    """The pairs stand in an order drawn by the place, so that it tells nothing about theirs."""
    document = "".join(verdict.chunk.written for verdict in held)
    pairs = [verdict.pair for verdict in held if verdict.pair is not None]
    first = held[0].chunk
    random.Random(f"{first.document}:{first.index}").shuffle(pairs)
    return Context(len(held), document, tuple(pairs), qa_example(document, pairs, tokenizer))
