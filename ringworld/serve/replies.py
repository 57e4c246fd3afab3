"""An accepted request as one whole answer or as events; each API has a form of its own."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ringworld.serve.answers import JSON, AnswerChoice, Answers, count_usage
from ringworld.serve.engine_thread import Update
from ringworld.serve.events import EventStream, while_connected
from ringworld.serve.front import Asked, Front, RequestProgress
from ringworld.serve.refusals import openai_failure

# A stream that is not accepted after so many seconds begins, to tell how far it is.
PATIENCE = 1.0


class ApiReply(ABC):
    """The answer to one request; subclasses are the forms of the APIs.

    `named` says whether the events of a stream have names, as `events.EventStream` sends them.
    """

    named = False

    def __init__(self, front: Front) -> None:
        self._front, self._words = front, front.served.words

    @abstractmethod
    def _open(self, asked: Asked) -> Answers:
        """Answers with their writers, nothing written yet."""

    @abstractmethod
    def _complete(self, asked: Asked, answers: Answers, last: Update | None) -> JSON:
        """The whole answer; `last` is the last update."""

    @abstractmethod
    def _begin(self, asked: Asked) -> Iterable[JSON]:
        """The events before the answer."""

    @abstractmethod
    def _gain(self, choice: AnswerChoice) -> Iterable[JSON]:
        """The events of what an answer has gained."""

    @abstractmethod
    def _end(self, asked: Asked, answers: Answers) -> Iterable[JSON]:
        """The events behind the answer."""

    def failure(self, error: Exception) -> JSON:
        """The event that ends a stream which has failed."""
        return openai_failure(error)

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
        return await asyncio.to_thread(self._complete, asked, answers, last)

    async def events(self, accepted: Awaitable[Asked]) -> AsyncGenerator[JSON | None, None]:
        """The answer as it comes, once the request is accepted."""
        asked = await accepted
        answers, updates = self._open(asked), self._front.follow(asked)
        try:
            for event in self._begin(asked):
                yield event
            async for update in updates:
                for choice in await asyncio.to_thread(answers.take, update):
                    for event in self._gain(choice):
                        yield event
        finally:
            await updates.aclose()
        for event in self._end(asked, answers):
            yield event


async def reply_to(
    request: Request,
    reply: ApiReply,
    accept: Coroutine[Any, Any, Asked],
    job: RequestProgress,
    *,
    stream: bool,
) -> Response:
    """One whole answer; or events, which begin when it is accepted or takes long to be."""
    if not stream:

        async def complete() -> JSON:
            return await reply.whole(await accept)

        return JSONResponse(await while_connected(request, complete()))
    accepted = asyncio.ensure_future(accept)
    try:
        await while_connected(request, _wait(accepted))
        if accepted.done():
            accepted.result()
    except BaseException:
        release(accepted)
        raise
    events, end = reply.events(accepted), partial(release, accepted)
    return EventStream(events, lambda: job.note, reply.failure, end, named=reply.named)


def release(accepted: asyncio.Future[Asked]) -> None:
    """End a request in the engine, whether it has accepted it already or not."""
    if accepted.done() and not accepted.cancelled() and accepted.exception() is None:
        accepted.result().ticket.cancel()
    accepted.cancel()


async def _wait(accepted: asyncio.Future[Asked]) -> None:
    await asyncio.wait({accepted}, timeout=PATIENCE)


def tell_usage(asked: Asked, answers: Answers) -> JSON:
    """The usage of a request in OpenAI's form."""
    media = [film for prompt in asked.prompts for film in prompt.media]
    return count_usage(asked.prompt_tokens, answers, media)
