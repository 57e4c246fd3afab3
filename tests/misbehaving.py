"""An OpenAI-compatible endpoint on this machine that answers, or does what real ones do instead.

A behaviour is a function of the request's handler. `Endpointlike.plan` holds those of the next
requests; when it is empty every request is answered, with a fact that its chunk tells.
"""

import json
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FACT = re.compile(r"The keeper of (\w+) is (\w+) (\w+)\.")
USAGE = {"prompt_tokens": 1100, "completion_tokens": 40}


@dataclass
class Endpointlike:
    """The server's address, what it was asked, and what it does next."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    plan: deque["Behaviour"] = field(default_factory=deque)
    always: "Behaviour | None" = None
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Behaviours that stall wait for this, so that the server can be closed at any time.
    released: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """One request: noted, then handed to its behaviour."""

    protocol_version = "HTTP/1.1"
    state: Endpointlike
    said: dict[str, Any]

    def do_POST(self) -> None:  # the name that http.server asks for
        state = self.state
        self.said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.asked.append(self.said)
            state.headers.append(dict(self.headers))
            state.paths.append(self.path)
            state.under_way += 1
            state.most_under_way = max(state.most_under_way, state.under_way)
            behave = state.plan.popleft() if state.plan else state.always or answer
        try:
            behave(self)
        except OSError:
            pass  # the client has gone, which is what some tests want
        finally:
            with state.lock:
                state.under_way -= 1
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """A whole response."""
        self.send_response(status)
        given = {"Content_Type": "application/json", "Content_Length": str(len(body))} | headers
        for name, value in given.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


Behaviour = Callable[[Handler], None]


def completion(content: str | None, finish: str = "stop", usage: Any = USAGE) -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return json.dumps(
        {"id": "x", "choices": [choice | {"finish_reason": finish}], "usage": usage}
    ).encode()


def fact_of(chunk: str) -> dict[str, str]:
    """A question and its answer about the first fact of a chunk; empty ones when it tells none."""
    found = FACT.search(chunk)
    if not found:
        return {"question": "", "answer": "", "evidence": ""}
    place, first, last = found.groups()
    return {
        "question": f"Who is the keeper of {place}?",
        "answer": f"{first} {last}",
        "evidence": found[0],
    }


def answer(handler: Handler) -> None:
    """What a good endpoint does."""
    handler.send(200, completion(json.dumps(fact_of(handler.said["messages"][-1]["content"]))))


def say(content: str | None, finish: str = "stop", usage: Any = USAGE) -> Behaviour:
    """Answer with this text."""
    return lambda handler: handler.send(200, completion(content, finish, usage))


def status(number: int, body: bytes = b"{}", **headers: str) -> Behaviour:
    """Answer with a status."""
    return lambda handler: handler.send(number, body, **headers)


def stall(handler: Handler) -> None:
    """Never answer."""
    handler.state.released.wait()


def drip(handler: Handler) -> None:
    """Send the headers, then a byte at a time, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.state.released.wait(0.02):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    """Send a header a byte at a time, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.state.released.wait(0.02):
        handler.wfile.write(b"x")


def truncate(handler: Handler) -> None:
    """Promise more than is sent."""
    body = completion("{}")
    handler.send(200, body[:40], Content_Length=str(len(body)))


def cut_without_length(handler: Handler) -> None:
    """Promise no length, and end in the middle."""
    handler.send(200, completion("{}")[:40], Content_Length="")


def flood(handler: Handler) -> None:
    """Send spaces until nobody listens."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.state.released.is_set():
        handler.wfile.write(b" " * 2**16)


def reset(handler: Handler) -> None:
    """Drop the connection with a TCP reset."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.shutdown(socket.SHUT_RD)
    handler.connection.close()


def garble(handler: Handler) -> None:
    """Speak no HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def repeat_key(handler: Handler) -> None:
    """Answer with the key that was sent, and repeat it in a header."""
    key = handler.headers["Authorization"]
    handler.send(200, completion(json.dumps({"question": key, "answer": key})), X_Key=key)


def refuse_with_key(handler: Handler) -> None:
    """Refuse, and repeat the key in every field of the error."""
    key = handler.headers["Authorization"].split()[1]
    error = {"message": f"bad key {key}", "code": key, "param": key}
    handler.send(400, json.dumps({"error": error}).encode())


@contextmanager
def serving() -> Iterator[Endpointlike]:
    """A running endpoint, closed at the end."""
    state = Endpointlike()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}), bind_and_activate=True
    )
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
