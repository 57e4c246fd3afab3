"""Bodies of requests: a large one is parsed in a thread, so that the event loop answers others.

Python's parser lets nobody else run while it reads one string, half a second for a film of 100 MB.
Long strings are therefore cut out first, which is a search and a copy, and put back afterwards.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

# Bytes above which a body is parsed in a thread, and above which a string is cut out of it.
LARGE, LONG = 1 << 20, 1 << 16
BACKSLASH = ord("\\")


def parse_large(body: bytes) -> Any:
    """What `json.loads` returns. Raises ValueError for what is no JSON."""
    mark, cut, rest, at = secrets.token_hex(16), list[str](), bytearray(), 0
    while (begin := body.find(b'"', at) + 1) > 0:
        end = _find_end(body, begin)
        rest += body[at:begin]
        if end - begin > LONG and body.find(b"\\", begin, end) < 0:
            rest += f"{mark}{len(cut)}".encode()
            cut.append(body[begin:end].decode())
        else:
            rest += body[begin:end]
        rest += body[end : end + 1]
        at = end + 1
    rest += body[at:]
    return _put_back(json.loads(bytes(rest)), mark, cut)


def _find_end(body: bytes, begin: int) -> int:
    """The place of the quote that ends a string, or the end of the body."""
    end = begin - 1
    while (end := body.find(b'"', end + 1)) >= 0:
        escapes = end
        while escapes > begin and body[escapes - 1] == BACKSLASH:
            escapes -= 1
        if (end - escapes) % 2 == 0:
            return end
    return len(body)


def _put_back(value: Any, mark: str, cut: list[str]) -> Any:
    if isinstance(value, str):
        return cut[int(value[len(mark) :])] if value.startswith(mark) else value
    if isinstance(value, list):
        return [_put_back(each, mark, cut) for each in value]
    if isinstance(value, dict):
        return {
            _put_back(key, mark, cut): _put_back(each, mark, cut) for key, each in value.items()
        }
    return value


class BodyRequest(Request):
    """A request whose JSON is parsed in a thread if there is much of it."""

    async def json(self) -> Any:
        """The parsed body. Raises ValueError for what is no JSON."""
        body = await self.body()
        if len(body) <= LARGE:
            return json.loads(body)
        return await asyncio.to_thread(parse_large, body)


class BodyRoute(APIRoute):
    """A route that is asked with a `BodyRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(BodyRequest(request.scope, request.receive))

        return answer
