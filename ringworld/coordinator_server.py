"""The program of a run's coordinator: JAX's service, and the door to it at the run's address.

    coordinator_server.py PORT COUNT HEARTBEAT_S LINGER_S        until its standard input ends

JAX's service shares its port with whoever asks for it, and it has to outlive process 0. So it
listens within this machine, and only the door has the run's port, which nobody else can have. The
door is closed as soon as process 0 has ended, and the next run may have one at the same port; those
who are within stay until they have learnt of the end.
"""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress

from jaxlib import _jax

HOME = "127.0.0.1"
BLOCK_BYTES = 1 << 16


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Hand on what comes from one side to the other, until one of them ends."""
    with suppress(OSError):
        while data := await source.read(BLOCK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _serve(port: int, count: int, heartbeat_s: int, linger_s: int) -> None:
    """Serve `count` processes. Raises OSError when the port is taken."""
    with socket.create_server((HOME, 0)) as free:
        within = free.getsockname()[1]
    service = _jax.get_distributed_runtime_service(
        f"{HOME}:{within}", count, heartbeat_timeout=heartbeat_s, recoverable=True
    )

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection(HOME, within)
        await asyncio.gather(_forward(reader, questions), _forward(answers, writer))

    door = await asyncio.start_server(welcome, port=port)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    door.close()
    await asyncio.sleep(linger_s)
    del service


def main() -> None:
    """Serve as the words say, whatever signals come: process 0 decides when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    port, count, heartbeat_s, linger_s = map(int, sys.argv[1:])
    asyncio.run(_serve(port, count, heartbeat_s, linger_s))
    os._exit(0)  # threads of the service would end the interpreter with an abort


if __name__ == "__main__":
    main()
