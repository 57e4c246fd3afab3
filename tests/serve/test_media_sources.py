"""What a request can make the server open: nothing but what the operator has allowed."""

import http.server
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from ringworld.errors import InputError
from ringworld.serve.media_sources import MediaSources, is_public

PORT = "{port}"  # of a listener on loopback that counts who comes
ALLOWED = [
    "media.example",
    "rebound.example",
    "v6.example",
    "mixed.example",
    "http://plain.example",
]
# Where the stub resolver says that names are. What it does not know is asked of the system's.
NAMES: dict[str, Sequence[str]] = {
    "media.example": ["127.0.0.1"],
    "rebound.example": ["10.0.0.7"],
    "v6.example": ["::ffff:127.0.0.1"],
    "mixed.example": ["8.8.8.8", "127.0.0.1"],
    "plain.example": ["169.254.169.254"],
}
# Every one names this machine, its net, a cloud's metadata, or a host that is not allowed.
HOSTILE = [
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.255.255.254:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254.:80/",
    "http://metadata.google.internal/",
    "http://100.100.100.200/",
    "http://192.168.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://localhost.localdomain:{port}/",
    "https://media.example/",
    "https://MEDIA.example/",
    "https://media.example:443/",
    "https://media.example:{port}/",
    "https://media.example.:{port}/",
    "https://rebound.example/",
    "https://v6.example/",
    "https://mixed.example/",
    "http://plain.example/",
    "http://plain.example:{port}/",
    "http://media.example/",
    "https://media.example@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}@media.example/",
    "https://user:secret@media.example/",
    "https://media.example\\@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}\\@media.example/",
    "https:\\\\127.0.0.1:{port}\\",
    "https:127.0.0.1:{port}/",
    "https:///127.0.0.1:{port}/",
    "https://media.example#@127.0.0.1:{port}/",
    "https://media.example?@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#media.example",
    "https://127.0.0.1:{port}/media.example",
    "https://sub.media.example:{port}/",
    "https://media.example.evil.example:{port}/",
    "https://xn--lcalhost-54a:{port}/",
    "https://loc\u0430lhost:{port}/",
    "https://\uff11\uff12\uff17.0.0.1:{port}/",
    "https://127\u30020\u30020\u30021:{port}/",
    " https://127.0.0.1:{port}/",
    "https://media.example/\r\nHost: 127.0.0.1:{port}",
    "https://media.example:{port}:443/",
    "https://media.example:99999/",
    "https://[media.example]/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "dict://127.0.0.1:{port}/",
    "file://127.0.0.1:{port}/etc/passwd",
    "jar:http://127.0.0.1:{port}/!/",
    "//127.0.0.1:{port}/",
    "concat:http://127.0.0.1:{port}/|",
    "",
]


@contextmanager
def counting() -> Iterator[tuple[int, list[str]]]:
    """A port of loopback, in both families, and the list of who has connected to it."""
    came: list[str] = []
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, place = listener.accept()
                came.append(place[0])
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1], came
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_no_hostile_address_is_ever_connected_to() -> None:
    dialled: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        if host in NAMES:
            return NAMES[host]
        return [str(p[4][0]) for p in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        dialled.append(address)
        return socket.create_connection((address, port), timeout=seconds)

    with counting() as (port, came):
        for hosts in (ALLOWED, [], ["127.0.0.1", "http://127.0.0.1", "localhost", "[::1]"]):
            sources = MediaSources(None, hosts, resolve=resolve, dial=dial)
            for url in HOSTILE:
                with pytest.raises(InputError) as refused:
                    sources.read(url.replace(PORT, str(port)))
                assert not any(char.isdigit() for char in str(refused.value).replace("64", ""))
        with socket.create_connection(("127.0.0.1", port)) as last:
            assert last.recv(1) == b"", "who is counted is closed"
    assert dialled == []
    assert len(came) == 1, "the one that shows that the listener counts"


def test_only_addresses_that_everyone_reaches_are_public() -> None:
    for address in ("8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"):
        assert is_public(address), address
    for address in (
        "127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::808:808",
        "2002:808:808::",
        "ff02::1",
    ):
        assert not is_public(address), address


class Site(http.server.BaseHTTPRequestHandler):
    """A site with a film, and with redirections to others."""

    moved = {
        "/once": "http://plain.example/film",
        "/loop": "/loop",
        "/away": "http://other.example/film",
        "/port": "http://plain.example:8080/film",
        "/file": "file:///etc/passwd",
        "/secure": "https://plain.example/film",
    }

    def do_GET(self) -> None:  # the name that http.server calls
        if self.path in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[self.path])
            self.end_headers()
            return
        self.send_response(200 if self.path in ("/film", "/short") else 404)
        self.send_header("Content-Length", "9" if self.path == "/short" else "4")
        self.end_headers()
        self.wfile.write(b"film")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_an_allowed_host_is_dialled_at_the_address_that_was_looked_at() -> None:
    site = http.server.HTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    dialled, asked = [], []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["93.184.216.34", "2606:2800::1"]

    def dial(address: str, port: int, seconds: float) -> socket.socket:
        dialled.append((address, port))
        return socket.create_connection(site.server_address[:2], timeout=seconds)

    sources = MediaSources(None, ["http://plain.example"], resolve=resolve, dial=dial)
    assert sources.read("http://plain.example/film") == b"film"
    assert sources.read("http://plain.example:80/once") == b"film"
    assert {*dialled} == {("93.184.216.34", 80)} and len(asked) == len(dialled) == 3
    for path in ("loop", "away", "port", "file", "secure", "missing", "short"):
        before = len(dialled)
        with pytest.raises(InputError):
            sources.read(f"http://plain.example/{path}")
        assert len(dialled) - before == (4 if path == "loop" else 1), path
    site.shutdown()
    site.server_close()


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that is allowed, with good files, and one beside it with a secret."""
    allowed, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    (allowed / "in ner").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (allowed / "film").write_text("film")
    (allowed / "in ner" / "f%lm").write_text("film")
    (allowed / "link-in").symlink_to(allowed / "film")
    (allowed / "link-out").symlink_to(outside / "secret")
    (allowed / "folder-out").symlink_to(outside)
    (allowed / "loop").symlink_to(allowed / "loop")
    os.link(outside / "secret", allowed / "hard")
    os.mkfifo(allowed / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(allowed / "socket"))
    yield allowed, outside
    listener.close()


def test_files_below_the_allowed_folder_are_read(folders: tuple[Path, Path]) -> None:
    allowed, _ = folders
    sources = MediaSources(allowed)
    for name in ("film", "in%20ner/f%25lm", "link-in", "in%20ner/../film", "%66ilm"):
        assert sources.read(f"file://{allowed}/{name}") == b"film", name


def test_nothing_else_of_the_disk_is_read(folders: tuple[Path, Path]) -> None:
    allowed, outside = folders
    sources = MediaSources(allowed)
    root = f"file://{allowed}"
    deep = "/.." * (len(allowed.parts) + 1)
    urls = [
        f"{root}/../allowed-not/secret",
        f"{root}/%2e%2e/allowed-not/secret",
        f"{root}/..%2fallowed-not/secret",
        f"{root}/%252e%252e/allowed-not/secret",
        f"{root}-not/secret",
        f"{root}/link-out",
        f"{root}/folder-out/secret",
        f"{root}/hard",
        f"{root}/loop",
        f"{root}/fifo",
        f"{root}/socket",
        f"{root}",
        f"{root}/",
        f"{root}/in%20ner",
        f"{root}/FILM",
        f"{root}/film/x",
        f"{root}/film%00.mp4",
        f"{root}/film\0",
        f"{root}/film?x",
        f"{root}/film#x",
        f"{root}{deep}/etc/passwd",
        f"{root}/\ud800",
        f"{root}/{'x' * 5000}",
        f"file://localhost{allowed}/film",
        f"file:{allowed}/film",
        f"file:/{allowed}/film",
        f"file://./{allowed}/film",
        f"file://{quote(str(outside))}/secret",
        "file:///proc/self/environ",
        "file:///proc/self/fd/0",
        "file:///proc/self/root/etc/passwd",
        "file:///dev/zero",
        "file:///dev/stdin",
        "file:///etc/passwd",
        str(allowed / "film"),
        "film",
        "file://",
    ]
    for url in urls:
        with pytest.raises(InputError) as refused:
            sources.read(url)
        assert "allowed-not" not in str(refused.value) and "passwd" not in str(refused.value), url
    assert MediaSources(Path("/")).read(f"file://{outside}/../allowed/film") == b"film"
    with pytest.raises(InputError):
        MediaSources().read(f"{root}/film")


def test_a_file_that_is_replaced_by_a_link_when_it_is_opened_is_not_followed(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, outside = folders
    (allowed / "film").unlink()
    (allowed / "film").symlink_to(outside / "secret")
    monkeypatch.setattr(os.path, "realpath", lambda path: str(path))  # as it was a moment before
    with pytest.raises(InputError):
        MediaSources(allowed).read(f"file://{allowed}/film")
    with pytest.raises(InputError):
        MediaSources(allowed).read(f"file://{allowed}/folder-out/secret")
