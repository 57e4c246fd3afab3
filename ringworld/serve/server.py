"""`ringworld serve`: load the model, listen, and answer until a signal ends it."""

import signal
import socket
import sys
import time
from types import FrameType

import uvicorn

from ringworld.errors import InputError
from ringworld.inference.engine import Engine
from ringworld.progress import Announce
from ringworld.serve.app import make_app
from ringworld.serve.config import ServeConfig
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.guard import RequestGuard
from ringworld.serve.http_versions import HttpProtocol
from ringworld.serve.served import Served, load_served

# After so many seconds the engine's Python lets the event loop run. With Python's own 5 ms, each
# read and write of the loop waits as long, and 200 connections wait a second.
SWITCH_S = 0.0002


class DrainingServer(uvicorn.Server):
    """Uvicorn that, after SIGTERM, goes on listening until the answers it writes have ended.

    What comes meanwhile is refused with 503, so that a balancer takes the request elsewhere.
    Answers that have not ended after `drain_seconds` are cut.
    """

    def __init__(self, config: uvicorn.Config, guard: RequestGuard, drain_seconds: int) -> None:
        super().__init__(config)
        self._guard, self._drain_seconds = guard, drain_seconds
        self._drained_by = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first SIGTERM; end at Ctrl-C and at the next signal."""
        if sig == signal.SIGTERM and self._drained_by == float("inf"):
            self._guard.drain()
            self._drained_by = time.monotonic() + self._drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: asked ten times a second."""
        if time.monotonic() > self._drained_by:
            self.force_exit = True  # what is still written is cut
        drained = self._drained_by < float("inf") and self._guard.idle
        return await super().on_tick(counter) or self.force_exit or drained


def make_settings(app: RequestGuard, drain_seconds: int) -> uvicorn.Config:
    """How uvicorn serves the app: HTTP/1.0 and 1.1, without a log of its own."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=drain_seconds,
    )


def start_engine(config: ServeConfig) -> tuple[Served, EngineThread]:
    """The model, loaded in the thread that runs its engine. Raises InputError as loading does."""
    loaded: list[Served] = []

    def open_engine() -> Engine:
        if not loaded:
            loaded.append(load_served(config))
        return loaded[0].open_engine(config)

    thread = EngineThread(config.mesh, open_engine)
    thread.start()
    return loaded[0], thread


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the address. Raises InputError when it cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise InputError(
            f"port {config.port} of {config.host} cannot be listened on ({error.strerror}): choose "
            "another",
            setting="port",
        ) from error


def serve(config: ServeConfig, announce: Announce) -> None:
    """Serve until SIGTERM or Ctrl-C, after which answers have `config.drain_seconds` to end.

    Raises InputError when the model cannot be loaded or the address cannot be had.
    """
    sys.setswitchinterval(SWITCH_S)
    with listen(config) as listener:
        announce(f"loading {config.model}")
        served, thread = start_engine(config)
        if served.model.about:
            announce(served.model.about)
        guard = make_app(config, served, thread)
        server = DrainingServer(
            make_settings(guard, config.drain_seconds), guard, config.drain_seconds
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        announce(
            f"{config.name}, {served.context:,} tokens of context, is at "
            f"http://{host}:{listener.getsockname()[1]}"
        )
        try:
            server.run(sockets=[listener])
        except SystemExit:
            if not server.should_exit:
                raise
        finally:
            thread.close()
        announce("stopped")
