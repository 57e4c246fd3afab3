"""What every request passes before a route sees it: who asks, from where, and how much.

    Host      a server for this machine answers to this machine's names only (DNS rebinding)
    Origin    a page of another site may not post
    key       every path but those of `OPEN` needs the key, if there is one
    body      a limit of bytes, counted as they come

Answers get the headers that keep a browser from running or loading anything of elsewhere. An error
that nobody foresaw is answered without its text.
"""

import hmac
import logging
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ringworld.serve.config import LOOPBACK, ServeConfig

_LOG = logging.getLogger(__name__)
# A film of 100 MiB in base64, and the text beside it.
MOST_BYTES = 150 << 20
OPEN = ("/", "/health", "/ready")
OPEN_FOLDER = "/page/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refusal(
    status: int,
    sentence: str,
    *,
    code: str | None = None,
    setting: str | None = None,
    retry_after: int | None = None,
) -> JSONResponse:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    error: dict[str, Any] = {"message": sentence, "type": kind, "param": setting, "code": code}
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": error}, status, headers)


class TooManyBytesError(Exception):
    """A body is longer than the server reads."""


class RequestGuard:
    """The application behind these checks, as an ASGI application."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, held = False, 0

        async def tell(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        async def count() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > MOST_BYTES:
                raise TooManyBytesError
            return message

        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, tell)
            return
        try:
            await self._app(scope, count, tell)
        except TooManyBytesError:
            if not begun:
                await _too_many_bytes()(scope, receive, tell)
        except Exception as error:
            _LOG.error("a request failed: %s", type(error).__name__)
            if not begun:
                await refusal(500, "the server failed: try again")(scope, receive, tell)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        """Why a request is not answered; None when it is."""
        headers, path, key = Headers(scope=scope), scope["path"], self._config.key
        host = headers.get("host", "")
        if key is None and self._config.is_local and _name(host) not in LOOPBACK:
            return refusal(403, "this server answers to names of its own machine only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return refusal(403, "pages of other sites may not use this server")
        if key is not None and path not in OPEN and not path.startswith(OPEN_FOLDER):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), key.encode()):
                return refusal(401, "this server needs its key: send it as a Bearer token")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return _too_many_bytes()
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return urlsplit(f"//{host}").hostname or ""


def _too_many_bytes() -> JSONResponse:
    return refusal(413, f"the request has more than {MOST_BYTES:,} bytes: send less")
