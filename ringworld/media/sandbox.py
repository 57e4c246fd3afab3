"""Decode media files in a confined process: the client of the fork server.

A hostile or broken file can end the process and nothing else: `decoder.py` gets the file as a
read-only descriptor and has no environment, little memory, a clock, and nothing that it may open or
write. Every file has a process of its own, forked by `forkserver.py`. The decoder returns plain
arrays and fault words; every sentence about a file is made here, and names the file without its
folder.
"""

import atexit
import fcntl
import json
import math
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ringworld.errors import InputError
from ringworld.media.decoder import HEADER
from ringworld.media.forkserver import NUMBER

PROGRAM = Path(__file__).with_name("forkserver.py")
# Bytes that a decoder may be ahead of its reader: five frames of 256 x 256.
PIPE_BYTES = 1 << 20
# A decoder is waited for as long as it gets one part in so many of a processor.
SMALLEST_SHARE = 20
# A decoder that closed its output has so many seconds to end by itself; its exit code says why.
GRACE = 1.0
LONGEST_NAME = 80  # letters of a file's name in a sentence


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """How much one media file may cost; the defaults suit a person's own films, 4 hours of 4K.

    `bytes` of file, `pixels` of one frame of film, `picture_pixels` of a still picture, `frames`
    returned, `seconds` of film read, `memory` of the decoding process in bytes (of addresses, its
    programs included), `threads` that decode, `processor` seconds that they compute in all, `pace`
    more of them for each second of film that is asked for, and `timeout`, the seconds that the
    caller waits for a decoder that does not compute. One that computes is waited for longer,
    `SMALLEST_SHARE` times what it has computed: a busy machine slows a film down and refuses none.
    """

    bytes: int = 16 << 30
    pixels: int = 4096 * 2304
    picture_pixels: int = 100_000_000
    frames: int = 100_000
    seconds: float = 4 * 3600.0
    memory: int = 2 << 30
    threads: int = 8
    processor: int = 8 * 3600
    pace: float = 1.0
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse limits that would let nothing through."""
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"The media limit {field.name} must be larger than 0.")


TRUSTED = MediaLimits()
# A camera's 24 million pixels need up to 14 bytes each while they are decoded and turned, 340 MB,
# beside 130 MB of programs. One thread, as each more holds a frame of its own. It decodes a film of
# 640 x 360 ten times as fast as it plays, and more.
UNTRUSTED = MediaLimits(
    bytes=100 << 20,
    picture_pixels=25_000_000,
    frames=2048,
    seconds=3600.0,
    memory=512 << 20,
    threads=1,
    processor=20,
    pace=0.1,
    timeout=30.0,
)


@contextmanager
def open_media(
    source: str | Path | bytes, limits: MediaLimits
) -> Generator[tuple[str, int], None, None]:
    """(name for messages, read-only descriptor at offset 0) of a regular file of allowed size."""
    if isinstance(source, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(source)
            file.flush()
            check_file("The file", os.fstat(file.fileno()), limits)
            file.seek(0)
            yield "The file", file.fileno()
        return
    path = Path(source)
    name = printable_name(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"There is no file {name} where it is looked for: check the path."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be opened: check its permissions.") from error
    try:
        check_file(name, os.fstat(descriptor), limits)
        yield name, descriptor
    finally:
        os.close(descriptor)


def printable_name(path: Path) -> str:
    """The file's name as a sentence can hold it: no folder, nothing unprintable, not too long."""
    name = "".join(letter if letter.isprintable() else "?" for letter in path.name)
    return f"{name[:LONGEST_NAME]}..." if len(name) > LONGEST_NAME else name or "The file"


def check_file(name: str, status: os.stat_result, limits: MediaLimits) -> None:
    """Refuse what is no regular file, is empty, or is larger than the limit."""
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is not a regular file: give the path of a film or a picture.")
    if status.st_size == 0:
        raise InputError(f"{name} is empty: give a film or a picture.")
    if status.st_size > limits.bytes:
        raise InputError(
            f"{name} is too large, {status.st_size:,} bytes where {limits.bytes:,} are allowed."
        )


def fault_sentence(
    word: str, name: str, limits: MediaLimits, *, still: bool, detail: str = ""
) -> str:
    """The sentence for a fault word of the decoder; `detail` names the format that was found."""
    detail = re.sub(r"[^A-Za-z0-9 _-]", "?", detail)
    if word == "not-media" and still:
        return f"{name} is not a picture that can be read: give a PNG, JPEG, WebP or GIF file."
    sentences = {
        "not-media": "is neither a film nor a picture that can be read: give an MP4, MOV, MKV, "
        "WebM, AVI, MPEG, OGV, WMV, FLV, 3GP, RM or GIF, or a PNG, JPEG or WebP; convert other "
        "films with `ffmpeg -i FILM NEW.mp4`",
        "codec": f"is a film in a codec that is not read, {detail}: convert it with "
        "`ffmpeg -i FILM NEW.mp4`",
        "format": f"is a picture in a format that is not read, {detail}: convert it with "
        "`ffmpeg -i PICTURE NEW.png`",
        "colours": f"has a colour matrix that is not read, number {detail} of H.273: convert it "
        "with `ffmpeg -i FILM -pix_fmt yuv420p -colorspace bt709 NEW.mp4`",
        "angle": "is turned by an angle that is no multiple of 90 degrees: convert it with "
        "`ffmpeg -i FILM NEW.mp4`",
        "no-pictures": "has no picture track: give a file that holds a film",
        "truncated": "is cut short: copy or download it again",
        "damaged": "is damaged and cannot be decoded: copy or download it again",
        "pixels": f"has frames of more than {limits.pixels:,} pixels: scale it down first",
        "picture-pixels": f"has more than {limits.picture_pixels:,} pixels: scale it down first",
        "frames": f"gives more than {limits.frames:,} frames: lower the frame rate or read a part",
        "seconds": f"lasts longer than {limits.seconds:g} s: read a part of it with start and end",
        "after-end": "is shorter than the start that was asked for: choose an earlier start",
        "memory": f"needs more than {limits.memory:,} bytes to decode: scale it down first",
        "time": f"is not decoded, as its decoder stood still for {limits.timeout:g} s: try again "
        "when the machine is less busy",
        "processor": f"takes more than {limits.processor} s of computing and {limits.pace:g} s for "
        "each second of it: read a part of it with start and end",
        "missing": "could not be decoded as its decoder did not start: reinstall av and pillow",
    }
    return f"{name} {sentences.get(word, sentences['damaged'])}."


def decode_media(
    ask: Mapping[str, object], name: str, descriptor: int, limits: MediaLimits
) -> Iterator[tuple[str, float, UInt8[np.ndarray, "Y X 3"]]]:
    """Start a decoder on `descriptor`; yield its (word, value, pixels) records until its end."""
    request = {
        **ask,
        "pixels": limits.pixels,
        "picture_pixels": limits.picture_pixels,
        "frames": limits.frames,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "threads": min(os.cpu_count() or 1, limits.threads),
        "cpu_seconds": limits.processor,
        "cpu_pace": limits.pace,
    }
    still = bool(ask["still"])
    shape = (int(str(ask["rows"])), int(str(ask["columns"])), 3)
    with decoding(request, descriptor, limits.timeout) as output:
        while True:
            header = output.read(HEADER.size)
            if len(header) < HEADER.size:
                raise InputError(fault_sentence(output.diagnose(), name, limits, still=still))
            raw, value = HEADER.unpack(header)
            word = raw.rstrip(b"\0").decode("ascii", "replace")
            if word == "end":
                return
            if word not in ("length", "frame"):
                length = int(value) if 0 <= value <= LONGEST_NAME else 0
                detail = bytes(output.read(length)).decode("ascii", "replace")
                raise InputError(fault_sentence(word, name, limits, still=still, detail=detail))
            held = shape if word == "frame" else (0, 0, 3)
            body = output.read(math.prod(held))
            if len(body) < math.prod(held):
                raise InputError(fault_sentence(output.diagnose(), name, limits, still=still))
            yield word, value, np.frombuffer(body, np.uint8).reshape(held)


class ForkServer:
    """A running fork server; any thread may send it requests."""

    def __init__(self) -> None:
        """Start it in a folder that is already gone, with an empty environment.

        Raises EOFError when it does not start.
        """
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair()
        with tempfile.TemporaryDirectory(prefix="ringworld-decoder-") as folder, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(PROGRAM.resolve())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"},
            )
            theirs.close()
            self._read()

    def request(self, request: Mapping[str, object], *descriptors: int) -> int:
        """The number that it answers. Raises EOFError or OSError when the process has ended."""
        with self._lock:
            socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], descriptors)
            return self._read()

    def close(self) -> None:
        """End it, and all its decoders."""
        self._connection.close()
        self.process.kill()
        self.process.wait()

    def _read(self) -> int:
        answer = b""
        while len(answer) < NUMBER.size:
            part = self._connection.recv(NUMBER.size - len(answer))
            if not part:
                raise EOFError("the fork server has ended")
            answer += part
        return NUMBER.unpack(answer)[0]


class SharedForkServer:
    """The fork server of this process: started at the first request, and again if it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.current: ForkServer | None = None
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._close)

    def start_decoder(
        self, request: Mapping[str, object], *descriptors: int
    ) -> tuple[ForkServer, int]:
        """The server, and the process id of the decoder that it forked.

        Raises EOFError or OSError if none can be started.
        """
        with self._lock:
            if self.current is not None:
                with suppress(EOFError, OSError):
                    return self.current, self.current.request(request, *descriptors)
                self._close()
            self.current = ForkServer()
            return self.current, self.current.request(request, *descriptors)

    def _close(self) -> None:
        if self.current is not None:
            self.current.close()
        self.current = None

    def _forget(self) -> None:
        """A forked process starts a fork server of its own."""
        self._lock, self.current = threading.Lock(), None


FORK_SERVER = SharedForkServer()


@contextmanager
def decoding(
    request: Mapping[str, object], descriptor: int, seconds: float
) -> Generator["DecoderOutput", None, None]:
    """The output of a new decoder of the file; the decoder is killed when the block is left.

    Raises InputError when none can be started.
    """
    pipe, theirs = os.pipe()
    try:
        try:
            if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux's; a pipe elsewhere holds less
                with suppress(OSError):
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            server, process = FORK_SERVER.start_decoder({"decode": request}, descriptor, theirs)
        except (EOFError, OSError) as error:
            raise InputError(
                "The decoder of films and pictures did not start: reinstall av and pillow."
            ) from error
        finally:
            os.close(theirs)
        output = DecoderOutput(server, process, pipe, seconds)
        try:
            yield output
        finally:
            output.end(0.0)
    finally:
        os.close(pipe)


def count_processor_seconds(process: int) -> float:
    """What a process has computed so far; 0 where that is not known."""
    try:
        stated = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended, or the system has no such file
        return 0.0
    user, system = stated.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class DecoderOutput:
    """A decoder's output, read within a budget of waiting time, to which its computing adds."""

    def __init__(self, server: ForkServer, process: int, pipe: int, seconds: float) -> None:
        """Read from `pipe`; wait for `seconds`, and `SMALLEST_SHARE` times what it computes."""
        self.pipe, self.left, self.begun = pipe, seconds, False
        self._server, self._process, self._computed = server, process, 0.0
        self._code: int | None = None

    def read(self, count: int) -> memoryview:
        """Exactly `count` bytes, or fewer if the decoder ended or the time is spent."""
        data, held = memoryview(bytearray(count)), 0
        while held < count:
            part = os.readv(self.pipe, [data[held:]]) if self._wait() else 0
            if not part:
                break
            self.begun = True
            held += part
        return data[:held]

    def _wait(self) -> bool:
        """Whether there is output to read; False when the time is spent."""
        while True:
            before = time.monotonic()
            ready, _, _ = select.select([self.pipe], [], [], max(self.left, 0.0))
            self.left -= time.monotonic() - before
            if ready:
                return True
            computed = count_processor_seconds(self._process)
            self.left += SMALLEST_SHARE * max(computed - self._computed, 0.0)
            self._computed = computed
            if self.left <= 0:
                return False

    def end(self, grace: float) -> int:
        """The exit code of the decoder, which is killed if it has not ended in `grace` seconds."""
        if self._code is None:
            self._code = -signal.SIGKILL
            with suppress(EOFError, OSError):  # the server's decoders end with it
                self._code = self._server.request({"end": self._process, "grace": grace})
        return self._code

    def diagnose(self) -> str:
        """Why the output stopped early: the fault word "time", "missing" or "damaged"."""
        if self.left <= 0:
            return "time"
        code = self.end(GRACE)
        if code == 1 and not self.begun:
            return "missing"
        return "processor" if code == -signal.SIGXCPU else "damaged"
