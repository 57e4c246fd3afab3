"""Where the bytes of media come from: data: URLs, and files and hosts that the operator allows.

Both are closed by default. A file lies under the allowed folder, and no component of its path is a
link when it is opened. A host is resolved once, every address it has is a public one, and that
address is the one that is dialled; a redirection is another address, looked at in the same way.
What a client is told says nothing of the server's files, names or net.
"""

import base64
import binascii
import http.client
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from ringworld.errors import InputError
from ringworld.media.sandbox import UNTRUSTED

MOST_REDIRECTIONS = 3
FETCH_SECONDS = 30.0
REDIRECTIONS = {301, 302, 303, 307, 308}
PORTS = {"https": 443, "http": 80}
CHUNK = 1 << 16
HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REFUSED = (
    "this server reads media from data: URLs, and from what its operator allows: send the file as "
    "data:TYPE;base64,CONTENT"
)
UNREADABLE = "the media address could not be read: send the file as data:TYPE;base64,CONTENT"
TOO_LARGE = f"the media file has more than {UNTRUSTED.bytes:,} bytes: send a smaller one"

Resolve = Callable[[str, int], Sequence[str]]
Dial = Callable[[str, int, float], socket.socket]


def find_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """A connection to an address, never to a name. Raises OSError."""
    return socket.create_connection((address, port), timeout=seconds)


class MediaSources:
    """Reads URLs of media. `folder` and `hosts` are what is allowed besides data: URLs.

    A host is its name, reached over https, or `http://` with its name.
    """

    def __init__(
        self,
        folder: Path | None = None,
        hosts: Sequence[str] = (),
        *,
        resolve: Resolve = find_addresses,
        dial: Dial = connect,
    ) -> None:
        self._folder = None if folder is None else Path(os.path.realpath(folder))
        self._hosts = frozenset(h if "://" in h else f"https://{h}" for h in map(str.lower, hosts))
        self._resolve, self._dial = resolve, dial

    def read(self, url: str) -> bytes:
        """The bytes that a URL names. Raises InputError for what is not allowed or not there."""
        if url[:5].lower() == "data:":
            return parse_data_url(url)
        if self._folder is not None and url[:7].lower() == "file://":
            return _read_file(self._folder, url)
        if self._hosts:
            return self._fetch(url)
        raise InputError(REFUSED)

    def _fetch(self, url: str) -> bytes:
        until = time.monotonic() + FETCH_SECONDS
        for _ in range(1 + MOST_REDIRECTIONS):
            place = self._check(url)
            try:
                found = self._ask(place, until)
            except (OSError, http.client.HTTPException, ValueError):
                raise InputError(UNREADABLE) from None
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise InputError(UNREADABLE)

    def _check(self, url: str) -> SplitResult:
        """The parts of a URL of an allowed host. Nothing of it is left to interpretation."""
        try:
            if not re.fullmatch(r"https?://[!-~]+", url, re.ASCII) or "\\" in url:
                raise InputError(REFUSED)
            place = urlsplit(url)
            port = place.port
        except ValueError:
            raise InputError(REFUSED) from None
        host = place.hostname or ""
        named = place.netloc.lower() in (host, f"{host}:{port}") and HOST.fullmatch(host)
        if not named or port not in (None, PORTS[place.scheme]):
            raise InputError(REFUSED)
        if f"{place.scheme}://{host}" not in self._hosts:
            raise InputError(REFUSED)
        return place

    def _ask(self, place: SplitResult, until: float) -> bytes | str:
        """The content, or where it is instead."""
        host, port = place.hostname or "", PORTS[place.scheme]
        addresses = self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise InputError(REFUSED)
        connection = http.client.HTTPConnection(host, port)
        held = self._dial(addresses[0], port, _left(until))
        # However slowly an answer comes, it ends with the time.
        alarm = threading.Timer(_left(until), _hang_up, [held])
        alarm.start()
        try:
            if place.scheme == "https":
                context = ssl.create_default_context()
                held = context.wrap_socket(held, server_hostname=host)
            connection.sock = held
            path = (place.path or "/") + (f"?{place.query}" if place.query else "")
            connection.request("GET", path, headers={"Accept": "*/*", "Connection": "close"})
            answer = connection.getresponse()
            if answer.status in REDIRECTIONS:
                return answer.headers.get("Location", "")
            if answer.status != 200:
                raise InputError(UNREADABLE)
            return _read_all(answer, until)
        finally:
            alarm.cancel()
            connection.close()
            held.close()


def is_public(address: str) -> bool:
    """Whether an address is one that the whole Internet reaches, and hides no other in it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in NAT64:
            return False
    return ip.is_global and not ip.is_multicast


def _left(until: float) -> float:
    """The seconds that are left. Raises OSError when none are."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hang_up(held: socket.socket) -> None:
    with suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)


def _read_all(answer: http.client.HTTPResponse, until: float) -> bytes:
    """The body, within the limits of bytes and time. Raises OSError when the time is over."""
    content = bytearray()
    while True:
        part = answer.read1(CHUNK)
        _left(until)
        if not part:
            break
        content += part
        if len(content) > UNTRUSTED.bytes:
            raise InputError(TOO_LARGE)
    if answer.length:
        raise InputError(UNREADABLE)
    return bytes(content)


def _read_file(folder: Path, url: str) -> bytes:
    """A regular file below a folder, with one name only: a second name may lie elsewhere."""
    try:
        path = os.fsdecode(unquote_to_bytes(url[len("file://") :]))
        if not path.startswith("/") or "\0" in path or re.search(r"[?#]", url):
            raise InputError(REFUSED)
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(folder) or real == folder:
            raise InputError(REFUSED)
        with os.fdopen(_open_below(folder, real.relative_to(folder).parts), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise InputError(REFUSED)
            if found.st_size > UNTRUSTED.bytes:
                raise InputError(TOO_LARGE)
            return file.read(UNTRUSTED.bytes)
    except (OSError, ValueError):
        raise InputError(REFUSED) from None


def _open_below(folder: Path, parts: Sequence[str]) -> int:
    """A descriptor of a file, none of whose names below the folder is a link. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    held = os.open(folder, flags | os.O_DIRECTORY)
    for i, part in enumerate(parts, 1):
        try:
            inner = os.open(part, flags | (os.O_DIRECTORY if i < len(parts) else 0), dir_fd=held)
        finally:
            os.close(held)
        held = inner
    return held


def parse_data_url(url: str) -> bytes:
    """The bytes of a data: URL in base64. Raises InputError for every other URL."""
    head, comma, body = url.partition(",")
    if not (comma and head[:5].lower() == "data:" and head.endswith(";base64")):
        raise InputError(REFUSED)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the data: URL is not valid base64: encode the whole file") from None
