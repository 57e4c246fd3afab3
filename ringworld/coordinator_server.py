"""The program of a run's coordinator: JAX's service, and a TCP proxy to it at the run's address.

    coordinator_server.py PORT COUNT HEARTBEAT_S LINGER_S        until its standard input ends

JAX's service shares its port with whoever asks for it, and it has to outlive process 0. So the
service listens on the loopback interface, and only the proxy has the run's port, exclusively. The
proxy stops listening as soon as process 0 has ended, so the next run can use the port at once; open
connections stay until the other processes have learnt that process 0 is gone.
"""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress

from jaxlib import _jax

LOCAL_ADDRESS = "127.0.0.1"
BLOCK_BYTES = 1 << 16


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy bytes from one connection to the other until one of them is closed."""
    with suppress(OSError):
        while data := await source.read(BLOCK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _serve(port: int, count: int, heartbeat_s: int, linger_s: int) -> None:
    """Serve `count` processes. Raises OSError when the port is taken."""
    with socket.create_server((LOCAL_ADDRESS, 0)) as free:
        service_port = free.getsockname()[1]
    service = _jax.get_distributed_runtime_service(
        f"{LOCAL_ADDRESS}:{service_port}", count, heartbeat_timeout=heartbeat_s, recoverable=True
    )

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_service, to_service = await asyncio.open_connection(LOCAL_ADDRESS, service_port)
        await asyncio.gather(_forward(reader, to_service), _forward(from_service, writer))

    proxy = await asyncio.start_server(accept, port=port)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    proxy.close()
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
