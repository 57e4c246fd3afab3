"""One POST over HTTP: the whole reply, in bounded time and memory, or one word for what broke.

The standard library gives TLS, proxies and framing; what it lacks is here: a deadline for the whole
exchange (its timeouts restart with every byte), a largest reply, redirects that are never followed
(a key would travel with them), and errors that carry nothing of what was sent.
"""

import base64
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ringworld.errors import InputError

# A pair of a question and an answer has some hundred bytes, with its envelope some thousand; this
# leaves room for a model that thinks aloud.
LARGEST_REPLY = 4 * 2**20


class TransportError(Exception):
    """The exchange broke off, and may go better next time; its text is one word that says how."""


@dataclass(frozen=True)
class Response:
    """What came back: the status, the headers by lower-case name, the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Sends requests to one URL, from any number of threads; a connection for each."""

    def __init__(self, url: str, seconds: float, largest: int = LARGEST_REPLY) -> None:
        self.url = urlsplit(url)
        self.seconds = seconds
        self.largest = largest
        self._proxy = _proxy(self.url)
        self._tls = ssl.create_default_context()
        self._open: set[_OpenSocket] = set()
        self._cut = False

    def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send `body` and read the whole reply, all within `seconds`.

        Raises TransportError (timeout, unreachable, reset, truncated, oversized, garbage), and
        InputError for what waiting does not change: a redirect, or an invalid certificate.
        """
        connection, target, proxied = self._connection()
        line = _OpenSocket()
        clock = threading.Timer(self.seconds, line.hang_up)
        clock.daemon = True
        self._open.add(line)
        clock.start()
        try:
            with _said_in_a_word(line):
                connection.connect()
                line.socket = connection.sock
                if line.hung_up or self._cut:
                    raise TimeoutError
                connection.request("POST", target, body, {**headers, **proxied})
                with connection.getresponse() as reply:
                    said = {name.lower(): value for name, value in reply.getheaders()}
                    self._check_direction(reply.status)
                    whole = self._read(reply)
                if line.hung_up:
                    raise TimeoutError  # a body of no promised length ends where it was cut
                return Response(reply.status, said, whole)
        finally:
            clock.cancel()
            self._open.discard(line)
            connection.close()

    def abort(self) -> None:
        """Break off every exchange that is under way; each raises TransportError in its thread."""
        self._cut = True
        for line in list(self._open):
            line.hang_up()

    @property
    def origin(self) -> str:
        """Scheme, host and port: what an error may say of the address."""
        return f"{self.url.scheme}://{self.url.netloc}"

    def _check_direction(self, status: int) -> None:
        if 300 <= status < 400:
            raise InputError(
                f"the endpoint {self.origin} redirects elsewhere, where the key must not go: set "
                "base_url to the address that it is at now"
            )

    def _read(self, reply: http.client.HTTPResponse) -> bytes:
        promised = reply.length
        if promised is not None and promised > self.largest:
            raise TransportError("oversized")
        body = reply.read(self.largest + 1)
        if len(body) > self.largest:
            raise TransportError("oversized")
        if promised is not None and len(body) < promised:
            raise TransportError("truncated")
        return body

    def _connection(self) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """A connection that is not open yet, what to ask it for, and the headers for a proxy."""
        url = self.url
        host, secure = url.hostname or "", url.scheme == "https"
        proxy = self._proxy
        via = proxy or url
        port = via.port or (80 if proxy or not secure else 443)
        place, grant = via.hostname or "", _proxy_grant(proxy)
        if not secure:
            plain = http.client.HTTPConnection(place, port, timeout=self.seconds)
            return plain, url.geturl() if proxy else url.path, grant
        safe = http.client.HTTPSConnection(place, port, timeout=self.seconds, context=self._tls)
        if proxy:
            safe.set_tunnel(host, url.port or 443, grant)
        return safe, url.path, {}


def is_loopback(host: str) -> bool:
    """Whether what is sent to `host` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for `url`, as curl would; none on this machine."""
    host = url.hostname or ""
    named = getproxies().get(url.scheme)
    if not named or is_loopback(host) or proxy_bypass(host):
        return None
    try:
        proxy = urlsplit(named if "://" in named else f"http://{named}")
        if proxy.scheme == "http" and proxy.hostname and proxy.port != 0:
            return proxy
    except ValueError:
        pass  # a port that is no number
    raise InputError(f"the proxy in {url.scheme}_proxy is none: give it as http://HOST:PORT")


def _proxy_grant(proxy: SplitResult | None) -> dict[str, str]:
    if proxy is None or proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


class _OpenSocket:
    """A socket that another thread may hang up: who reads it then reads its end at once.

    It is kept here because a connection forgets its socket when the reply has no promised length.
    """

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.hung_up = False

    def hang_up(self) -> None:
        """Shut it down by the method of plain sockets: that of TLS drops what reading needs."""
        self.hung_up = True
        if self.socket is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


@contextmanager
def _said_in_a_word(line: _OpenSocket) -> Generator[None, None, None]:
    """Turn what sockets, TLS and framing raise into TransportError; no text of theirs is kept."""
    word = ""
    try:
        yield
    except ssl.SSLCertVerificationError:
        raise InputError(
            "the certificate of the endpoint does not hold: correct base_url, or name the "
            "authority that signed it in SSL_CERT_FILE"
        ) from None
    except (TransportError, TimeoutError, OSError, http.client.HTTPException, ValueError) as error:
        word = "timeout" if line.hung_up else _word_for(error)
    if word:
        raise TransportError(word)


def _word_for(error: Exception) -> str:
    match error:
        case TransportError():
            return str(error)
        case TimeoutError():
            return "timeout"
        case http.client.IncompleteRead():
            return "truncated"
        case ConnectionRefusedError():
            return "unreachable"
        case ConnectionError():  # RemoteDisconnected too
            return "reset"
        case OSError():
            return "unreachable"
    return "garbage"
