"""A stream whose client goes away at any moment leaves nothing in the engine."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ringworld.serve.front import Asked
from ringworld.serve.refusals import GoneError
from ringworld.serve.replies import reply_to

# Turns of the event loop after which a request is accepted, its client goes, and a send ends.
MOMENTS = range(8)


class Ticket:
    """Requests in the engine, and whether they were ended."""

    def __init__(self) -> None:
        self.submitted = self.cancelled = False

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


class Reply:
    """A reply that never has an event, as of an engine that is busy."""

    named = False

    async def events(self, accepted: Awaitable[Asked]) -> AsyncGenerator[dict[str, Any], None]:
        """Nothing, for as long as the stream is open."""
        await accepted
        await asyncio.get_running_loop().create_future()
        yield {}

    def failure(self, error: Exception) -> dict[str, Any]:
        """No form."""
        raise error


async def turn(count: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def stream(ticket: Ticket, accepted_at: int, gone_at: int, sent_in: int) -> None:
    """A stream of which the client goes away while it is accepted, or begun."""

    async def accept() -> Any:
        ticket.submitted = True
        try:
            await turn(accepted_at)
        except BaseException:
            ticket.cancel()
            raise
        return SimpleNamespace(ticket=ticket)

    gone = asyncio.ensure_future(turn(gone_at))

    async def receive() -> dict[str, Any]:
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await turn(sent_in)

    request, job = SimpleNamespace(receive=receive), SimpleNamespace(note="")
    try:
        response = await reply_to(
            cast(Any, request), cast(Any, Reply()), accept(), cast(Any, job), stream=True
        )
    except GoneError:
        return
    await response({"type": "http"}, receive, send)


@pytest.mark.parametrize("sent_in", [0, 1, 5])
def test_a_stream_whose_client_goes_at_any_moment_ends_its_request(sent_in: int) -> None:
    for accepted_at, gone_at in product(MOMENTS, MOMENTS):
        ticket = Ticket()
        asyncio.run(stream(ticket, accepted_at, gone_at, sent_in))
        assert ticket.cancelled == ticket.submitted, (accepted_at, gone_at)
