"""/v1/chat/completions and /v1/completions: an accepted request as one answer, or as events."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Sequence
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
    count_usage,
    describe_media,
    text_logprobs,
)
from ringworld.serve.engine_thread import Update
from ringworld.serve.front import Asked, Front
from ringworld.serve.protocol import ChatBody, CompletionBody, SamplingBody


class ApiReply(ABC):
    """An accepted request, and the form of its answer; subclasses are the two forms."""

    prefix = ""
    whole_object = chunk_object = ""

    def __init__(self, front: Front, body: SamplingBody) -> None:
        self._front, self._body, self._words = front, body, front.served.words
        self._id, self._created = f"{self.prefix}-{token_hex(12)}", int(time.time())

    @abstractmethod
    def _open(self, asked: Asked) -> Answers:
        """Answers with their writers, nothing written yet."""

    @abstractmethod
    def _choice(self, choice: AnswerChoice, asked: Asked, update: Update | None) -> JSON:
        """A complete answer; `update` is the last one."""

    @abstractmethod
    def _chunk(self, choice: AnswerChoice) -> JSON:
        """What an answer has gained."""

    def _first(self, asked: Asked) -> list[JSON]:
        """The chunks before the answer."""
        return []

    def _object(self, kind: str, choices: Sequence[JSON], **more: Any) -> JSON:
        head = {"id": self._id, "object": kind, "created": self._created}
        return head | {"model": self._front.config.name, "choices": [*choices], **more}

    async def whole(self, asked: Asked) -> JSON:
        """The answer when it is complete."""
        answers, last = self._open(asked), None
        updates = self._front.follow(asked)
        try:
            async for update in updates:
                await asyncio.to_thread(answers.take, update)
                last = update
        finally:
            await updates.aclose()

        def choices() -> list[JSON]:
            return [self._choice(choice, asked, last) for choice in answers.choices]

        found = await asyncio.to_thread(choices)
        return self._object(self.whole_object, found, usage=_usage(asked, answers))

    async def events(self, accepted: Awaitable[Asked]) -> AsyncGenerator[JSON | None, None]:
        """The chunks of the answer, and the usage where it was asked for."""
        asked = await accepted
        answers, updates = self._open(asked), self._front.follow(asked)
        media = [film for prompt in asked.prompts for film in prompt.media]
        try:
            for first in self._first(asked):
                more = {"media": describe_media(media)} if media else {}
                yield self._object(self.chunk_object, [first], **more)
            async for update in updates:
                gained = await asyncio.to_thread(answers.take, update)
                for choice in gained:
                    if choice.text or choice.scores or choice.finish:
                        yield self._object(self.chunk_object, [self._chunk(choice)])
        finally:
            await updates.aclose()
        if self._body.include_usage:
            yield self._object(self.chunk_object, [], usage=_usage(asked, answers))


def _usage(asked: Asked, answers: Answers) -> JSON:
    media = [film for prompt in asked.prompts for film in prompt.media]
    return count_usage(asked.prompt_tokens, answers, media)


class ChatReply(ApiReply):
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

    def _choice(self, choice: AnswerChoice, asked: Asked, update: Update | None) -> JSON:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish,
        }

    def _first(self, asked: Asked) -> list[JSON]:
        said = {"role": "assistant", "content": ""}
        return [
            {"index": i, "delta": said, "logprobs": None, "finish_reason": None}
            for i in range(self._body.n)
        ]

    def _chunk(self, choice: AnswerChoice) -> JSON:
        return {
            "index": choice.index,
            "delta": {"content": choice.text} if choice.text else {},
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish,
        }


class CompletionReply(ApiReply):
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

    def _choice(self, choice: AnswerChoice, asked: Asked, update: Update | None) -> JSON:
        prompt = self._prompt_of(choice, asked) if self._echo else []
        before = self._words.decode(prompt) if prompt else ""
        said = None
        if self._scored:
            scores: list[TokenScore | None] = [*choice.scores]
            if prompt and update is not None:
                known = update.prompt_scores[choice.index // self._body.n]
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
