"""Bodies of requests: a large one is parsed in a thread, so that the event loop answers others.

A form (multipart) is read as an object of JSON, where a route takes forms.

Python's parser lets nobody else run while it reads one string, half a second for a film of 100 MB.
Long strings are therefore cut out first, which is a search and a copy, and put back afterwards.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from typing import Any

import numpy as np
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

# Bytes above which a body is parsed in a thread, and above which a string is cut out of it.
LARGE, LONG = 1 << 20, 1 << 16
BACKSLASH = ord("\\")
FORM, MOST_FORM_BYTES = "multipart/form-data", 16 << 20


def parse_large(body: bytes) -> Any:
    """What `json.loads` returns. Raises ValueError for what is no JSON."""
    mark, cut, rest, at = secrets.token_hex(16), list[str](), bytearray(), 0
    while (begin := body.find(b'"', at) + 1) > 0:
        end = _find_end(body, begin)
        rest += body[at:begin]
        if end - begin > LONG and _is_plain(body, begin, end):
            rest += f"{mark}{len(cut)}".encode()
            cut.append(str(memoryview(body)[begin:end], "utf-8"))  # one copy; a slice is another
        else:
            rest += body[begin:end]
        rest += body[end : end + 1]
        at = end + 1
    rest += body[at:]
    return _put_back(json.loads(bytes(rest)), mark, cut)


def _is_plain(body: bytes, begin: int, end: int) -> bool:
    """Whether a string has no escape, and no control character, which JSON forbids."""
    inside = np.frombuffer(body, np.uint8, end - begin, begin)
    return body.find(b"\\", begin, end) < 0 and int(inside.min()) >= ord(" ")


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

    async def body(self) -> bytes:
        """The whole body, which grows as it comes: joining its parts at the end is a copy of it."""
        if not hasattr(self, "_body"):
            held = BytesIO()
            async for part in self.stream():
                held.write(part)
            self._body = held.getvalue()  # shares the buffer
        return self._body

    async def json(self) -> Any:
        """The parsed body. Raises HTTPException for what is no JSON, or no text in it."""
        body = await self.body()
        if len(body) <= LARGE:
            return parse(body, json.loads)
        return await asyncio.to_thread(parse, body, parse_large)


def parse(body: bytes, load: Callable[[bytes], Any]) -> Any:
    """What `load` makes of a body. Raises HTTPException where that is no JSON, or no text in it."""
    try:
        value = load(body)
        _check_texts(value)
    except json.JSONDecodeError as error:
        sentence = f"the body is not JSON: {error.msg.lower()} at character {error.pos}"
        raise HTTPException(400, sentence) from None
    except UnicodeEncodeError:
        sentence = "a text of the body has half a character, of U+D800 to U+DFFF: send whole ones"
        raise HTTPException(400, sentence) from None
    except (ValueError, RecursionError):
        sentence = "the body is not JSON that can be read: send UTF-8, less deep, shorter numbers"
        raise HTTPException(400, sentence) from None
    return value


def _check_texts(value: Any) -> None:
    """Raise UnicodeEncodeError for half of a surrogate pair, which JSON can spell."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list):
        for each in value:
            _check_texts(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_texts(key)
            _check_texts(each)


class BodyRoute(APIRoute):
    """A route that is asked with a `BodyRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(BodyRequest(request.scope, request.receive))

        return answer


def parse_form(kind: str, body: bytes) -> dict[str, Any]:
    """The fields of a form, whose `kind` is its Content-Type; a file is {"filename": its name}."""
    whole = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    fields: dict[str, Any] = {}
    for part in whole.iter_parts() if whole.is_multipart() else ():
        name, file = part.get_param("name", header="content-disposition"), part.get_filename()
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content.decode(errors="replace") if file is None else {"filename": file}
    return fields


class FormRequest(Request):
    """A request whose form is read as the JSON that its route takes."""

    def __init__(self, kind: str, request: Request) -> None:
        scope = {**request.scope, "headers": [*request.scope["headers"]]}
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        super().__init__(scope, request.receive)
        self._kind = kind

    async def json(self) -> Any:
        """The fields of the form. Raises HTTPException for a form that is too large."""
        body = await self.body()
        if len(body) > MOST_FORM_BYTES:
            raise HTTPException(413, f"a form has at most {MOST_FORM_BYTES:,} bytes: send less")
        return await asyncio.to_thread(parse_form, self._kind, body)


class FormRoute(BodyRoute):
    """A route that takes forms too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle, handle_form = super().get_route_handler(), APIRoute.get_route_handler(self)

        async def answer(request: Request) -> Response:
            kind = request.headers.get("content-type", "")
            if kind.lower().startswith(FORM):
                return await handle_form(FormRequest(kind, request))
            return await handle(request)

        return answer
