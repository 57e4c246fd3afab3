"""The fork server: a program with the codec libraries loaded that forks one decoder for each file.

`sandbox` starts it once by its path, with a socket as its standard input. A request is a line of
JSON, the answer a number:

    {"decode": REQUEST}, two descriptors   fork a decoder that reads the first and writes to the
                                           second; answers its process id
    {"end": PROCESS, "grace": S}           wait S seconds for it to end, then kill it; answers its
                                           exit code

A fork costs milliseconds where a new interpreter with the libraries costs half a second, and the
decoders are as isolated: nothing of one file reaches the decoder of the next. The server itself
never reads from a file that it passes on. It ends, with all decoders, when its socket is closed.
"""

import gc
import importlib.util
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

NUMBER = struct.Struct("<q")
DESCRIPTORS = 1024  # more than the fork server ever holds
POLL_S = 0.0001  # between two looks at a decoder that is ending: it takes a millisecond


def load_decoder() -> ModuleType:
    """The decoder and its parts, from the files beside this one.

    They are entered under their full names: nothing else of the package is imported.
    """
    for name in ("headers", "pixels", "film", "decoder"):
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"ringworld.media.{name}", path)
        assert spec is not None and spec.loader is not None, "the decoder is a file"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next request and its descriptors. Raises EOFError when the connection is closed."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        part, given, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        if not part:
            raise EOFError
        line += part
        descriptors += given
    return json.loads(line), descriptors


def fork_decoder(decoder: ModuleType, request: dict[str, Any], file: int, out: int) -> int:
    """The process id of a new decoder, which has these two descriptors and no other."""
    process = os.fork()
    if not process:
        failed = 1
        try:
            os.dup2(file, 0)
            os.dup2(out, 1)
            os.closerange(3, DESCRIPTORS)
            decoder.main(request)
            failed = 0
        finally:
            os._exit(failed)
    os.close(file)
    os.close(out)
    return process


def end_process(process: int, grace: float) -> int:
    """The exit code of a decoder, negative for the signal that ended it."""
    until = time.monotonic() + grace
    ended, status = os.waitpid(process, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(POLL_S)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serve the socket on standard input until it is closed."""
    connection = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client
    decoder = load_decoder()
    running: set[int] = set()
    gc.freeze()
    try:
        connection.sendall(NUMBER.pack(os.getpid()))
        while True:
            request, descriptors = receive(connection)
            if "decode" in request:
                number = fork_decoder(decoder, request["decode"], *descriptors)
                running.add(number)
            else:
                running.discard(request["end"])
                number = end_process(request["end"], request["grace"])
            connection.sendall(NUMBER.pack(number))
    except (EOFError, OSError):
        for process in running:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
