"""HTTP/1.0 and 1.1 on the wire, as no client library shows it."""

import json
import socket
import time

import pytest

from tests.serving import Running

BODY = json.dumps({"prompt": "It was", "max_tokens": 4, "stream": True, "seed": 0}).encode()


def exchange(server: Running, parts: list[bytes]) -> tuple[bytes, bytes]:
    """Head and body of what a connection says until the server closes it; parts come apart."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as place:
        for part in parts:
            place.sendall(part)
            time.sleep(0.05)
        said = b"".join(iter(lambda: place.recv(1 << 16), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    return head.lower(), body


def make_request(version: str, method: str = "POST", path: str = "/v1/completions") -> bytes:
    kind = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n"
    head = f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}{kind}\r\n".encode() + BODY


@pytest.mark.parametrize("cuts", [(), (9,), (3, 28, 31), (33, 200)])
def test_http_1_0_gets_no_chunks_and_the_connection_ends_the_answer(
    server: Running, cuts: tuple[int, ...]
) -> None:
    request = b"\r\n" + make_request("1.0")
    places = [0, *cuts, len(request)]
    parts = [request[i:j] for i, j in zip(places, places[1:], strict=False)]
    head, body = exchange(server, parts)
    assert head.startswith(b"http/1.1 200") and b"transfer-encoding" not in head
    *events, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert events and all(event.startswith((b"data: {", b": ")) for event in events)
    assert last == b"data: [DONE]"


def test_http_1_1_gets_chunks(server: Running) -> None:
    head, body = exchange(server, [make_request("1.1")])
    assert b"transfer-encoding: chunked" in head
    assert b"data: [DONE]" in body and body.endswith(b"0\r\n\r\n")


def test_what_is_no_http_and_a_line_without_an_end_are_refused(server: Running) -> None:
    for opening in (b"hello\r\n\r\n", b"GET /" + b"x" * 100_000, b"GET / HTTP/9.9\r\n\r\n"):
        head, _ = exchange(server, [opening])
        assert head.startswith((b"http/1.1 400", b"http/1.1 414", b"http/1.1 431")), head[:80]
    assert server.ask("GET", "/health")[0] == 200
