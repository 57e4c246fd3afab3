"""JAX's coordinator in a process of its own, which outlives each process that computes.

JAX runs it within process 0 and ends a process, with a stack trace and no way to say why, when it
loses touch with its coordinator. From here it can still tell that process 0 is gone.
"""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ringworld.errors import UnavailableError

# How long it stays when process 0 has ended: until the others have learnt of it and have left.
LINGER_S = 30
SERVE = """
import os, signal, sys, time
from jaxlib import _jax
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
address, count, heartbeat, linger = sys.argv[1], *map(int, sys.argv[2:])
service = _jax.get_distributed_runtime_service(
    address, count, heartbeat_timeout=heartbeat, recoverable=True
)
print("ready", flush=True)
sys.stdin.read()
time.sleep(linger)
os._exit(0)
"""


class Coordinator:
    """The coordinator of `count` processes, listening at an address; for JAX to hold.

    Raises UnavailableError when it cannot listen there.
    """

    def __init__(self, address: str, count: int, heartbeat_s: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, address, str(count), str(heartbeat_s), str(LINGER_S)],
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
