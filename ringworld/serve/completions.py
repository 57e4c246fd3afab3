"""/v1/chat/completions and /v1/completions: answers as choices, whole or in chunks."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from secrets import token_hex
from typing import Any

from ringworld.inference.request import TokenScore
from ringworld.serve.answers import (
    JSON,
    AnswerChoice,
    Answers,
    ChatWriter,
    TextWriter,
    chat_logprobs,
    describe_media,
    text_logprobs,
)
from ringworld.serve.engine_thread import Update
from ringworld.serve.front import Asked, Front
from ringworld.serve.protocol import ChatBody, CompletionBody, SamplingBody
from ringworld.serve.replies import ApiReply, tell_usage


class ChoicesReply(ApiReply):
    """An object with a list of choices; subclasses are the two of OpenAI's older API."""

    prefix = ""
    whole_object = chunk_object = ""

    def __init__(self, front: Front, body: SamplingBody) -> None:
        super().__init__(front)
        self._body = body
        self._id, self._created = f"{self.prefix}-{token_hex(12)}", int(time.time())

    @abstractmethod
    def _choice(self, choice: AnswerChoice, asked: Asked, last: Update | None) -> JSON:
        """A complete answer; `last` is the last update."""

    @abstractmethod
    def _chunk(self, choice: AnswerChoice) -> JSON:
        """What an answer has gained."""

    @abstractmethod
    def _first(self, asked: Asked) -> list[JSON]:
        """The chunks before the answer."""

    def _object(self, kind: str, choices: Sequence[JSON], **more: Any) -> JSON:
        head = {"id": self._id, "object": kind, "created": self._created}
        return head | {"model": self._front.config.name, "choices": [*choices], **more}

    def _complete(self, asked: Asked, answers: Answers, last: Update | None) -> JSON:
        choices = [self._choice(choice, asked, last) for choice in answers.choices]
        return self._object(self.whole_object, choices, usage=tell_usage(asked, answers))

    def _begin(self, asked: Asked) -> Iterator[JSON]:
        media = [film for prompt in asked.prompts for film in prompt.media]
        more = {"media": describe_media(media)} if media else {}
        for first in self._first(asked):
            yield self._object(self.chunk_object, [first], **more)

    def _gain(self, choice: AnswerChoice) -> Iterator[JSON]:
        if choice.text or choice.scores or choice.finish:
            yield self._object(self.chunk_object, [self._chunk(choice)])

    def _end(self, asked: Asked, answers: Answers) -> Iterator[JSON]:
        if self._body.include_usage:
            yield self._object(self.chunk_object, [], usage=tell_usage(asked, answers))


class ChatReply(ChoicesReply):
    """The answer to a conversation."""

    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, front: Front, body: ChatBody) -> None:
        super().__init__(front, body)
        self._scored = body.alternatives is not None

    def _open(self, asked: Asked) -> Answers:
        count = self._body.n
        return Answers([ChatWriter(self._words, self._body.stops) for _ in range(count)], count)

    def _logprobs(self, choice: AnswerChoice) -> JSON | None:
        return chat_logprobs(choice, self._front.speller) if self._scored else None

    def _choice(self, choice: AnswerChoice, asked: Asked, last: Update | None) -> JSON:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish,
        }

    def _first(self, asked: Asked) -> list[JSON]:
        return [self._piece(i, {"role": "assistant", "content": ""}) for i in range(self._body.n)]

    def _chunk(self, choice: AnswerChoice) -> JSON:
        piece = self._piece(choice.index, {"content": choice.text} if choice.text else {})
        found = {"logprobs": self._logprobs(choice)} if self._scored else {}
        return piece | found | {"finish_reason": choice.finish}

    def _piece(self, index: int, delta: JSON) -> JSON:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class CompletionReply(ChoicesReply):
    """What comes behind each prompt, and with `echo` the prompt itself."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, front: Front, body: CompletionBody) -> None:
        super().__init__(front, body)
        self._echo, self._scored = body.echo, body.logprobs is not None
        self._starts: dict[int, int] = {}

    def _open(self, asked: Asked) -> Answers:
        count, prompts = self._body.n, len(asked.prompts)
        writers = [TextWriter(self._words, self._body.stops) for _ in range(prompts * count)]
        return Answers(writers, count)

    def _prompt_of(self, choice: AnswerChoice, asked: Asked) -> list[int]:
        return asked.prompts[choice.index // self._body.n].example.tokens.tolist()

    def _choice(self, choice: AnswerChoice, asked: Asked, last: Update | None) -> JSON:
        prompt = self._prompt_of(choice, asked) if self._echo else []
        before = self._words.decode(prompt) if prompt else ""
        said = None
        if self._scored:
            scores: list[TokenScore | None] = [*choice.scores]
            if prompt and last is not None:
                known = last.prompt_scores[choice.index // self._body.n]
                scores = [None, *known, *scores]
            said = text_logprobs([*prompt, *choice.ids], scores, 0, self._front.speller)
        return _text_choice(choice, before + choice.text, said)

    def _first(self, asked: Asked) -> list[JSON]:
        if not self._echo:
            return []
        choices = [AnswerChoice(i) for i in range(len(asked.prompts) * self._body.n)]
        texts = [self._words.decode(self._prompt_of(choice, asked)) for choice in choices]
        return [_text_choice(c, text, None) for c, text in zip(choices, texts, strict=True)]

    def _chunk(self, choice: AnswerChoice) -> JSON:
        said = None
        if self._scored:
            start = self._starts.get(choice.index, 0)
            said = text_logprobs(choice.ids, choice.scores, start, self._front.speller)
            self._starts[choice.index] = start + sum(map(len, said["tokens"]))
        return _text_choice(choice, choice.text, said)


def _text_choice(choice: AnswerChoice, said: str, logprobs: JSON | None) -> JSON:
    head = {"index": choice.index, "text": said, "logprobs": logprobs}
    return head | {"finish_reason": choice.finish}
