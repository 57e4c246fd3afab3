"""Answers over a connection that may go away: server-sent events, and work that ends with it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ringworld.serve.refusals import GoneError

T = TypeVar("T")
# Progress is told so often, in seconds, and silence is broken after so many.
TICK, KEEP_ALIVE = 1.0, 15.0
DONE = b"data: [DONE]\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is cancelled, and GoneError raised, when the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_end(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        await _end(task)
        await _end(gone)


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and wait until it has ended."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


class EventStream(Response):
    """JSON objects as server-sent events, ended by `[DONE]`.

    Named ones have their `type` as their name, and no such end. While none comes, `note()` is sent
    as a comment when it has changed, and otherwise from time to time. An error becomes an event, as
    `explain` has it. `events` is closed when the client goes, and `release()` is called at the end,
    also when the client went before the first of them.
    """

    def __init__(
        self,
        events: AsyncGenerator[dict[str, Any] | None, None],
        note: Callable[[], str],
        explain: Callable[[Exception], dict[str, Any]],
        release: Callable[[], None],
        *,
        named: bool = False,
    ) -> None:
        self._named, self._release = named, release
        self._events, self._note, self._explain = events, note, explain
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until the client goes away."""
        writing = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_wait_for_end(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._release()
            await _end(writing)
            await _end(gone)

    async def _write(self, send: Send) -> None:
        async def say(part: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pending, told, silent = self._next(), "", 0.0
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=TICK)
                if not done:
                    silent += TICK
                    if (note := self._note()) != told or silent >= KEEP_ALIVE:
                        told, silent = note, 0.0
                        await say(f": {note}\n\n".encode())
                    continue
                try:
                    event = pending.result()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    await say(self._frame(self._explain(error)))
                    break
                if event is not None:
                    silent = 0.0
                    await say(self._frame(event))
                pending = self._next()
            await say(b"" if self._named else DONE, more=False)
        finally:
            await _end(pending)
            await self._events.aclose()

    def _next(self) -> asyncio.Future[dict[str, Any] | None]:
        return asyncio.ensure_future(anext(self._events))

    def _frame(self, event: dict[str, Any]) -> bytes:
        name = f"event: {event['type']}\n" if self._named else ""
        return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
