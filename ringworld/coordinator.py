"""JAX's coordinator in a process of its own, which outlives each process that computes.

JAX runs it within process 0 and ends a process, with a stack trace and no way to say why, when it
loses touch with its coordinator. From here it can still tell that process 0 is gone. Its address is
free as soon as process 0 has ended.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ringworld.errors import UnavailableError

# How long it stays when process 0 has ended: until the others have learnt of it and have left.
LINGER_S = 30
SERVER = Path(__file__).with_name("coordinator_server.py")


class Coordinator:
    """The coordinator of `count` processes, listening at an address; for JAX to hold.

    Raises UnavailableError when it cannot listen there.
    """

    def __init__(self, address: str, count: int, heartbeat_s: int) -> None:
        numbers = (address.rpartition(":")[2], count, heartbeat_s, LINGER_S)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._alive, started = self._process.stdin, self._process.stdout
        if not started.readline():
            raise UnavailableError(
                f"process 0 cannot listen at {address}: give another port of this machine",
                setting="coordinator",
            )

    def shutdown(self) -> None:
        """Let it end."""
        self._alive.close()


@contextmanager
def apart(heartbeat_s: int) -> Generator[None, None, None]:
    """Have `jax.distributed.initialize` start the coordinator in a process of its own.

    The processes then are what JAX calls recoverable: it ends none of them because another is gone.
    """
    from jax._src.lib import _jax

    def serve(address: str, count: int, **_: Any) -> Coordinator:
        return Coordinator(address, count, heartbeat_s)

    usual = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = serve
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = usual


def find_coordinator(address: str, seconds: int) -> None:
    """Wait until process 0 answers at its address. Raises UnavailableError after so many."""
    host, _, port = address.rpartition(":")
    end, why = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(min(0.2, seconds))
    raise UnavailableError(
        f"process 0 did not answer at {address} within {seconds} s ({why.lower()}): start it, or "
        "give the address at which this machine reaches it",
        setting="coordinator",
    )


@contextmanager
def ended_by_signals() -> Generator[None, None, None]:
    """Have SIGINT and SIGTERM end this process while JAX waits where Python's handlers do not run.

    Handlers belong to the first thread; from others nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
