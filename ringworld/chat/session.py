"""A conversation: what was said, what the cache holds of it, and the next answer.

The template renders the whole conversation; of that text the cache holds a beginning, and only the
rest is tokenized and read. So a turn costs its own tokens, and what was written stays as it was
written, however its text would be tokenized again. A template that rewrites what was said before
makes everything be read again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, frames, join, text
from ringworld.errors import InputError
from ringworld.inference.stream import (
    Tick,
    decode_tokens,
    empty_state,
    prefill,
    truncate,
)
from ringworld.mesh import axis_size
from ringworld.models.world import World
from ringworld.settings import Sampling
from ringworld.text.template import FORMS, IMAGE_PLACEHOLDER, Message, render
from ringworld.text.tokenizer import Detokenizer, Tokenizer
from ringworld.weights.model import Model

Codes = Int[np.ndarray, "Z Q"]
# An answer that is looked for in a rendered text, to see what a template puts behind answers.
PROBE = "ringworld"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a session asks and answers; `most` is the longest answer in tokens."""

    template: str = FORMS["lwm"]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    most: int = 512


@dataclass(frozen=True)
class Said:
    """The messages so far, the codes in them, and their text that the cache holds."""

    messages: tuple[Message, ...] = ()
    sights: tuple[Codes, ...] = ()
    read: str = ""


class Session:
    """Turns of a conversation with one model, on the mesh that is set.

    Raises InputError when the mesh divides the batch: a conversation is one row.
    """

    def __init__(self, model: Model, c: World, style: Style) -> None:
        if axis_size("data") * axis_size("fsdp") > 1:
            raise InputError(
                "a conversation is one row, which data and fsdp cannot divide: use seq and tensor"
            )
        self._c, self._style = c, style
        self._words, self._weights = model.tokenizer, model.sharded_weights()
        ends = (c.vocabulary.eos, *model.ends)
        self._stops = find_stops(self._words, ends, style.template)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._said, self._state, self._cut = Said(), empty_state(self._c), False

    @property
    def used(self) -> int:
        """The tokens that the cache holds."""
        return self._state.length

    @property
    def left(self) -> int:
        """The tokens that can still be read or written."""
        return self._c.llama.context - self.used

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, an answer without the spaces around it."""
        return self._said.messages

    @property
    def most(self) -> int:
        """The longest answer in tokens."""
        return self._style.most

    @property
    def cut(self) -> bool:
        """Whether the last answer was as long as it may be and had more to say."""
        return self._cut

    def measure(self, document: str) -> int:
        """The tokens of a document. Raises InputError when it does not fit the context any more."""
        tokens = len(self._words.encode(document))
        self._check_room(self.used + tokens + 1)
        return tokens

    def ask(
        self,
        question: str,
        *,
        document: str = "",
        sights: Sequence[Codes] = (),
        on_read: Callable[[int], Tick] = lambda total: lambda done: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """The pieces of the answer, as they are written.

        A document stands before the question, films and pictures (their codes) behind it. `on_read`
        is told how many tokens there are to read, and gives what hears how many have been read.
        Once `stopped()` the turn ends: nothing of it stays if it was still being read, and else the
        answer so far. Raises InputError before anything is read when the question does not fit the
        context, and after the last piece when the answer has filled it.
        """
        messages = (*self._said.messages, self._make_message(question, document, len(sights)))
        every_sight = (*self._said.sights, *sights)
        rendered = self._render(messages)
        state, rest = self._state, self._find_rest(rendered)
        if rest is None:
            state, rest, sights = empty_state(self._c), rendered, every_sight
        new = make_example(rest, sights, self._words, self._c)
        self._check_room(state.length + len(new) + 1)
        before, tick, self._cut = state.length, on_read(len(new)), False
        state = prefill(self._weights, state, new, self._c, on_chunk=tick, stopped=stopped)
        if state.length < before + len(new):
            self._state = truncate(state, before)
            self._said = self._said if before else Said()
            return
        self._state = state
        answer: list[str] = []
        try:
            for piece in self._write(stopped):
                answer.append(piece)
                yield piece
        finally:
            said = "".join(answer)
            reply = {"role": "assistant", "content": said.strip()}
            self._said = Said((*messages, reply), every_sight, rendered + said)
        if not self.left:
            raise InputError(
                f"the answer stopped at {self.used:,} tokens, because the context is "
                f"{self._c.llama.context:,}: reset the conversation, or ask for a longer --context"
            )

    def _write(self, stopped: Callable[[], bool]) -> Iterator[str]:
        """The pieces of one answer; the state is kept after every one."""
        detokenizer, written, ended = Detokenizer(self._words), 0, False
        while not (ended or stopped()):
            most = min(self.most - written, self.left)
            if most <= 0:
                self._cut = self.left > 0
                break
            ids, self._state = decode_tokens(
                self._weights,
                self._state,
                self._c,
                max_tokens=most,
                seed=self._style.seed,
                sampling=self._style.sampling,
                stops=self._stops,
            )
            written += len(ids)
            ended = ids[-1] in self._stops
            if ended:
                self._state = truncate(self._state, self.used - 1)
            if piece := detokenizer.add(ids[:-1] if ended else ids):
                yield piece
        if piece := detokenizer.finish():
            yield piece

    def _make_message(self, question: str, document: str, sights: int) -> Message:
        asked = self._words.escape_special(question).replace(IMAGE_PLACEHOLDER, "")
        given = self._words.escape_special(document).replace(IMAGE_PLACEHOLDER, "")
        gap = " " if self._style.template == FORMS["needle"] else "\n\n"
        shown = "\n" + IMAGE_PLACEHOLDER * sights if sights else ""
        return {"role": "user", "content": (given + gap if given else "") + asked + shown}

    def _render(self, messages: Sequence[Message]) -> str:
        first, last = self._words.bos_name or "", self._words.eos_name or ""
        return render(self._style.template, messages, bos_token=first, eos_token=last)

    def _find_rest(self, rendered: str) -> str | None:
        """What of the text is new; None when it does not begin as what was read."""
        if not self._said.messages:
            return rendered
        answer = self._said.messages[-1]["content"]
        prompt = self._said.read.rstrip()[: -len(answer) or None].rstrip()
        if not rendered.startswith(prompt):
            return None
        rest = rendered[len(prompt) :].lstrip()
        return rest[len(answer) :] if rest.startswith(answer) else None

    def _check_room(self, needed: int) -> None:
        if needed > self._c.llama.context:
            raise InputError(
                f"the conversation would take {needed:,} tokens and the context is "
                f"{self._c.llama.context:,}: reset it, give less to read, or ask for a longer "
                "--context"
            )


def find_stops(words: Tokenizer, ends: Iterable[int], template: str) -> tuple[int, ...]:
    """The tokens that end an answer: the model's `ends`, and what a template puts behind answers.

    An end below 0 is none.
    """
    own = {end for end in ends if end >= 0}
    talk = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    first, last = words.bos_name or "", words.eos_name or ""
    try:
        shown = render(template, talk, add_generation_prompt=False, bos_token=first, eos_token=last)
    except InputError:
        return tuple(sorted(own))
    behind = words.encode_spelled(shown.rpartition(PROBE)[2].lstrip())[:1]
    return tuple(sorted(own | {*behind} & {*words.special.values()}))


def make_example(rest: str, sights: Sequence[Codes], words: Tokenizer, c: World) -> Example:
    """The tokens of a rendered text, codes where it has `IMAGE_PLACEHOLDER`.

    Raises InputError when the text has room for fewer sights than there are.
    """
    pieces = rest.split(IMAGE_PLACEHOLDER)
    if len(pieces) != len(sights) + 1:
        raise InputError(
            f"the chat template shows {len(pieces) - 1} of {len(sights)} pictures: use --template "
            "lwm"
        )
    parts = [text(words.encode_spelled(pieces[0]), 0.0)]
    for codes, piece in zip(sights, pieces[1:], strict=True):
        before, after = words.vision_marks
        parts += [text(before, 0.0), frames(codes, c.vocabulary, 0.0), text(after, 0.0)]
        parts.append(text(words.encode_spelled(piece), 0.0))
    return join(parts)
