"""The program that starts decoders: it has their libraries loaded, and forks one for each file.

`sandbox` starts it once by its path, with a socket as its standard input. What is
asked for comes as a line of JSON, what is answered is a number:

    {"read": ASK}, two descriptors   a decoder of the first, that writes to the second: its process
    {"end": PROCESS, "patience": S}  it ends by itself in S seconds, or is killed: its exit code

A fork costs milliseconds where a new interpreter with the libraries costs half a second, and it is
as much alone: nothing of one file reaches the decoder of the next. The warden itself never reads
from a file that it hands on. It ends, with all decoders, when its socket does.
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
DESCRIPTORS = 1024  # more than a warden ever holds


def load_decoder() -> ModuleType:
    """The decoder beside this file, which is no package here."""
    path = Path(__file__).with_name("decoder.py")
    spec = importlib.util.spec_from_file_location("decoder", path)
    assert spec is not None and spec.loader is not None, "the decoder is a file"
    decoder = importlib.util.module_from_spec(spec)
    sys.modules["decoder"] = decoder
    spec.loader.exec_module(decoder)
    return decoder


def receive(door: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next request and its descriptors. Raises EOFError when there will be none."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        part, given, _, _ = socket.recv_fds(door, 1 << 16, 2)
        if not part:
            raise EOFError
        line += part
        descriptors += given
    return json.loads(line), descriptors


def start(decoder: ModuleType, ask: dict[str, Any], file: int, out: int) -> int:
    """The process of a new decoder, which has these two descriptors and no other."""
    process = os.fork()
    if not process:
        failed = 1
        try:
            os.dup2(file, 0)
            os.dup2(out, 1)
            os.closerange(3, DESCRIPTORS)
            decoder.main(ask)
            failed = 0
        finally:
            os._exit(failed)
    os.close(file)
    os.close(out)
    return process


def end(process: int, patience: float) -> int:
    """The exit code of a decoder, negative for the signal that ended it."""
    until = time.monotonic() + patience
    ended, status = os.waitpid(process, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.001)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Serve the socket on standard input until it is closed."""
    door = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for who asks
    decoder = load_decoder()
    running: set[int] = set()
    gc.freeze()
    try:
        door.sendall(NUMBER.pack(os.getpid()))
        while True:
            request, descriptors = receive(door)
            if "read" in request:
                number = start(decoder, request["read"], *descriptors)
                running.add(number)
            else:
                running.discard(request["end"])
                number = end(request["end"], request["patience"])
            door.sendall(NUMBER.pack(number))
    except (EOFError, OSError):
        for process in running:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
