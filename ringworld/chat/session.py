"""A conversation: its messages, their tokens, and the next answer.

The template renders the whole conversation, and only what is new of it is tokenized: an answer
keeps the tokens it was decoded with, however its text would be tokenized again. Every turn asks the
engine with all tokens so far, and the engine reads from the last page on that it has read before.
When a template changes what it rendered of earlier messages, the conversation is tokenized again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, frames, join, text
from ringworld.errors import InputError, TooLargeError
from ringworld.inference.generate import make_engine
from ringworld.inference.request import Output, Request
from ringworld.mesh import axis_size
from ringworld.models.world import World
from ringworld.settings import Sampling
from ringworld.text.template import FORMS, IMAGE_PLACEHOLDER, Message, render
from ringworld.text.tokenizer import Detokenizer, Tokenizer
from ringworld.weights.model import Model

Codes = Int[np.ndarray, "_ Q"]
Tick = Callable[[int], None]
# An answer that is looked for in a rendered text, to see what a template puts behind answers.
PROBE = "ringworld"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a session renders messages and samples answers of at most `max_new_tokens`.

    `int8` is how keys and values are kept.
    """

    template: str = FORMS["lwm"]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_new_tokens: int
    int8: bool = False


@dataclass(frozen=True)
class History:
    """The messages so far, the codes of their images, and all of it as text and as tokens."""

    messages: tuple[Message, ...] = ()
    images: tuple[Codes, ...] = ()
    rendered: str = ""
    tokens: Example = field(default_factory=lambda: text([], 0.0))


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
        self._history, self._cut, self._answered = History(), False, 0
        room = [self._c.llama.context]
        self._engine = make_engine(self._weights, self._c, room, 1, int8=self._style.int8)

    @property
    def used(self) -> int:
        """The tokens of the conversation."""
        return len(self._history.tokens)

    @property
    def left(self) -> int:
        """The tokens that the context has room for."""
        return self._c.llama.context - self.used

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages so far; answers are without the spaces around them."""
        return self._history.messages

    @property
    def max_new_tokens(self) -> int:
        """The longest answer in tokens."""
        return self._style.max_new_tokens

    @property
    def answered(self) -> int:
        """The tokens of the last answer."""
        return self._answered

    @property
    def cut(self) -> bool:
        """Whether the last answer was cut at `max_new_tokens`."""
        return self._cut

    def measure(self, document: str) -> int:
        """The tokens of a document. Raises TooLargeError when it does not fit the context."""
        tokens = len(self._words.encode(document))
        self._check_room(self.used + tokens + 1)
        return tokens

    def ask(
        self,
        question: str,
        *,
        document: str = "",
        images: Sequence[Codes] = (),
        on_read: Callable[[int], Tick] = lambda total: lambda done: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """Yield the answer to a question in pieces of text, as they are decoded.

        A document stands before the question, images (codes of pictures and films) behind it.
        `on_read` is called with the number of tokens to prefill; what it returns is called with the
        tokens read so far. When `stopped()` returns true the turn ends: the conversation keeps the
        answer so far, or nothing of the turn when the question was still being read.

        Raises TooLargeError before anything is read when the question does not fit the context,
        and after the last piece when the answer has filled it.
        """
        messages = (*self._history.messages, self._make_message(question, document, len(images)))
        all_images = (*self._history.images, *images)
        rendered = self._render(messages)
        known, rest = self._history.tokens, self._find_rest(rendered)
        if rest is None:
            known, rest, images = text([], 0.0), rendered, all_images
        new = make_example(rest, images, self._words, self._c)
        self._check_room(len(known) + len(new) + 1)
        asked = join([known, new])
        tick, self._cut, self._answered = on_read(len(new)), False, 0
        answer = self._engine.submit(self._make_request(asked))
        said: list[str] = []
        try:
            while not (answer.ids or answer.finished or stopped()):
                self._engine.step()
                tick(max(answer.reused + answer.computed - len(known), 0))
            for piece in self._write(answer, stopped):
                said.append(piece)
                yield piece
        finally:
            self._engine.cancel(answer)
            if answer.ids or answer.samples[0].finish == "stop":
                reply = {"role": "assistant", "content": "".join(said).strip()}
                whole = join([asked, text(answer.ids, 0.0)])
                self._history = History(
                    (*messages, reply), all_images, rendered + "".join(said), whole
                )
        if not self.left:
            raise TooLargeError(
                f"the answer stopped at {self.used:,} tokens, because the context is "
                f"{self._c.llama.context:,}: reset the conversation, or use a longer context",
                setting="context",
            )

    def _make_request(self, asked: Example) -> Request:
        room = self._c.llama.context - len(asked)
        return Request(
            prompt=asked,
            max_new_tokens=min(self.max_new_tokens, room),
            sampling=self._style.sampling,
            seed=self._style.seed,
            stops=self._stops,
        )

    def _write(self, answer: Output, stopped: Callable[[], bool]) -> Iterator[str]:
        """The pieces of an answer as they are decoded."""
        detokenizer = Detokenizer(self._words)
        while answer.ids:
            if piece := detokenizer.add(answer.ids[self._answered :]):
                yield piece
            self._answered = len(answer.ids)
            if answer.finished or stopped():
                break
            self._engine.step()
        room = self._c.llama.context - len(answer.request.prompt) - self._answered
        self._cut = answer.samples[0].finish == "length" and room > 0
        if piece := detokenizer.finish():
            yield piece

    def measure_image(self, codes: Codes, waiting: int) -> int:
        """The tokens of an image's codes `[Z, Q]`, to be read with `waiting` tokens of others.

        Raises TooLargeError when they do not fit the context together.
        """
        tokens = len(frames(codes, self._c.vocabulary, 0.0))
        self._check_room(self.used + waiting + tokens + 1)
        return tokens

    def _make_message(self, question: str, document: str, images: int) -> Message:
        asked = self._words.escape_special(question).replace(IMAGE_PLACEHOLDER, "")
        given = self._words.escape_special(document).replace(IMAGE_PLACEHOLDER, "")
        gap = " " if self._style.template == FORMS["needle"] else "\n\n"
        shown = "\n" + IMAGE_PLACEHOLDER * images if images else ""
        return {"role": "user", "content": (given + gap if given else "") + asked + shown}

    def _render(self, messages: Sequence[Message]) -> str:
        first, last = self._words.bos_name or "", self._words.eos_name or ""
        return render(self._style.template, messages, bos_token=first, eos_token=last)

    def _find_rest(self, rendered: str) -> str | None:
        """What of the text is new; None when it does not begin as what was read."""
        if not self._history.messages:
            return rendered
        answer = self._history.messages[-1]["content"]
        prompt = self._history.rendered.rstrip()[: -len(answer) or None].rstrip()
        if not rendered.startswith(prompt):
            return None
        rest = rendered[len(prompt) :].lstrip()
        return rest[len(answer) :] if rest.startswith(answer) else None

    def _check_room(self, needed: int) -> None:
        if needed > self._c.llama.context:
            raise TooLargeError(
                f"the conversation would take {needed:,} tokens and the context is "
                f"{self._c.llama.context:,}: reset it, give less to read, or use a longer context",
                setting="context",
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


def make_example(rest: str, images: Sequence[Codes], words: Tokenizer, c: World) -> Example:
    """The tokens of a rendered text, codes where it has `IMAGE_PLACEHOLDER`.

    Raises InputError when the text has room for fewer images than there are.
    """
    pieces = rest.split(IMAGE_PLACEHOLDER)
    if len(pieces) != len(images) + 1:
        raise InputError(
            f"the chat template shows {len(pieces) - 1} of {len(images)} pictures: use the "
            "template lwm",
            setting="template",
        )
    parts = [text(words.encode_spelled(pieces[0]), 0.0)]
    for codes, piece in zip(images, pieces[1:], strict=True):
        before, after = words.vision_marks
        parts += [text(before, 0.0), frames(codes, c.vocabulary, 0.0), text(after, 0.0)]
        parts.append(text(words.encode_spelled(piece), 0.0))
    return join(parts)
