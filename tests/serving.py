"""A server that listens in this process, and what is asked of it in tests."""

import base64
import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import uvicorn
from PIL import Image

from ringworld.media.clip import write_animation
from ringworld.serve.app import make_app
from ringworld.serve.config import ServeConfig
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from ringworld.serve.server import listen, make_settings
from ringworld.weights.shipped import NANO

BOOK = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20
CONFIG = ServeConfig(model=NANO, port=0, rows=4)
# What conftest.py says for this process's own programs: a user's server has as many devices and
# threads as it needs, and is compiled to run fast. A film's second question took 0.65 s without
# that, and 0.22 s with it (2026-12-01).
OWN_SETTINGS = ("JAX_NUM_CPU_DEVICES", "NPROC", "XLA_FLAGS")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens on this machine."""

    port: int

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0
        )

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request in JSON."""
        data = None if body is None else json.dumps(body).encode()
        return self.send(method, path, data, **headers)

    def send(
        self, method: str, path: str, data: bytes | None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        try:
            kind = {} if data is None else {"Content-Type": "application/json"}
            connection.request(method, path, data, {**kind, **headers})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        status, _, answer = self.ask("POST", path, body)
        return status, json.loads(answer)

    def events(self, path: str, **body: Any) -> list[str]:
        """The events of a stream, without `data: `."""
        _, _, answer = self.ask("POST", path, {**body, "stream": True})
        lines = answer.decode().split("\n\n")
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@dataclass(frozen=True, kw_only=True)
class Running(Address):
    """A server in threads of this process, and what is behind it."""

    served: Served
    thread: EngineThread


@dataclass(frozen=True, kw_only=True)
class Process(Address):
    """A server that is a process of its own; `said` is what it has written since it listens."""

    process: subprocess.Popen[str]
    said: list[str]

    def gauge(self, name: str) -> float:
        """The sum of a metric."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def busy(self) -> float:
        """Rows that run, requests that wait, and pages that are read."""
        names = (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "ringworld:kv_pages_read",
        )
        return sum(map(self.gauge, names))


@contextmanager
def serving(*options: str) -> Iterator[Process]:
    """`ringworld serve` as a user starts it, ended by SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ringworld", "serve", *options, "--port", "0"],
        env={name: value for name, value in os.environ.items() if name not in OWN_SETTINGS},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = next(line for line in process.stderr if "http://" in line)
    said = list[str]()
    listener = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    listener.start()
    try:
        yield Process(port=int(told.rsplit(":", 1)[1]), process=process, said=said)
    finally:
        process.terminate()
        process.wait(60)
        listener.join()


@contextmanager
def listening(config: ServeConfig, served: Served, thread: EngineThread) -> Iterator[Running]:
    """A server in threads of this process."""
    listener = listen(config)
    app = make_app(config, served, thread)
    server = uvicorn.Server(make_settings(app, drain_seconds=5))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    running.start()
    try:
        yield Running(port=listener.getsockname()[1], served=served, thread=thread)
    finally:
        server.should_exit = True
        running.join()
        listener.close()


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(shade: int = 200) -> str:
    held = io.BytesIO()
    Image.new("RGB", (48, 40), (shade, 30, 60)).save(held, format="PNG")
    return data_url("image/png", held.getvalue())


def film(folder: Path, frames: int = 6) -> str:
    """A film of so many frames, one a second."""
    shades = np.linspace(0, 255, frames).astype(np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (frames, 64, 64, 3))
    path = folder / "film.mp4"
    write_animation(path, np.ascontiguousarray(pixels), 1.0)
    return data_url("video/mp4", path.read_bytes())


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]


def wait_until_idle(server: Running) -> bool:
    """Whether the engine has nothing to do within some seconds."""
    for _ in range(200):
        held = server.thread.counters
        if held is not None and held.running == held.waiting == held.pages_read == 0:
            return True
        time.sleep(0.05)
    return False
