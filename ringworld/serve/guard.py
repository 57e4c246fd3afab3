"""What every request passes before a route sees it: who asks, from where, and how much.

    Host      a server for this machine answers to this machine's names only (DNS rebinding)
    Origin    a page of another site may not post
    key       every path but those of `OPEN` needs a key, if there is one; it is the tenant
    drain     a server that is shutting down takes no new request
    queue     what would be computed is refused unread when as much waits as may
    body      a limit of bytes, counted as they come

Answers get the headers that keep a browser from running or loading anything of elsewhere. An error
that nobody foresaw is answered without its text.
"""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ringworld.serve.config import LOOPBACK, ServeConfig
from ringworld.serve.refusals import RETRY_AFTER, BusyError, HttpRefusal, explain_error

_LOG = logging.getLogger(__name__)
# A Host header: an address of IPv6, or a name or another address, and a port.
HOST_HEADER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]+)?")
# A film of 100 MiB in base64, and the text beside it.
MOST_BYTES = 150 << 20
OPEN = ("/", "/health", "/ready")
OPEN_FOLDER = "/page/"
UNQUEUED = ("/tokenize", "/detokenize")
# What is still answered while the server shuts down.
OPEN_WHILE_DRAINING = ("/health", "/metrics")
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


DRAINING = HttpRefusal(
    503, "this server is shutting down: send the request to another", retry_after=RETRY_AFTER
)
TOO_MANY_BYTES = HttpRefusal(413, f"the request has more than {MOST_BYTES:,} bytes: send less")


class TooManyBytesError(Exception):
    """A body is longer than the server reads."""


class RequestGuard:
    """The application behind these checks, as an ASGI application; `full` tells of the queue."""

    def __init__(self, app: ASGIApp, config: ServeConfig, full: Callable[[], bool]) -> None:
        self._app, self._config, self._full = app, config, full
        self._draining, self._running = False, 0

    def drain(self) -> None:
        """Refuse every request that comes from now on."""
        self._draining = True

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._running

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

        async def refuse(why: HttpRefusal) -> None:
            await why.respond(scope["path"])(scope, receive, tell)

        given = _find_key(Headers(scope=scope))
        scope.setdefault("state", {})["tenant"] = hashlib.sha256(given).hexdigest()
        refused = self._refuse(scope, given)
        if refused is not None:
            await refuse(refused)
            return
        self._running += 1
        try:
            await self._app(scope, count, tell)
        except asyncio.CancelledError:
            if not self._draining:  # what is cut at the end of a drain is no error
                raise
        except TooManyBytesError:
            if not begun:
                await refuse(TOO_MANY_BYTES)
        except Exception as error:
            _LOG.error("a request failed: %s", type(error).__name__)
            if not begun:
                await refuse(explain_error(error))
        finally:
            self._running -= 1

    def _refuse(self, scope: Scope, given: bytes) -> HttpRefusal | None:
        """Why a request is not answered; None when it is."""
        headers, path, keys = Headers(scope=scope), scope["path"], self._config.keys
        host = headers.get("host", "")
        if not keys and self._config.is_local and _find_name(host) not in LOOPBACK:
            return HttpRefusal(403, "this server answers to names of its own machine only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return HttpRefusal(403, "pages of other sites may not use this server")
        # All are compared, so that the time says nothing of which it was.
        known = sum(hmac.compare_digest(given, key.encode()) for key in keys)
        if keys and not known and path not in OPEN and not path.startswith(OPEN_FOLDER):
            return HttpRefusal(401, "this server needs its key: send it as a Bearer token")
        if self._draining and path not in OPEN_WHILE_DRAINING:
            return DRAINING
        if scope["method"] == "POST" and path not in UNQUEUED and self._full():
            return explain_error(BusyError())
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return TOO_MANY_BYTES
        return None


def _find_name(host: str) -> str:
    """The name or the address in a Host header, without its port; "" for what is none."""
    found = HOST_HEADER.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _find_key(headers: Headers) -> bytes:
    """The key that a request brings, as OpenAI's clients send it or as Anthropic's; or nothing."""
    found = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
    return found.encode()
