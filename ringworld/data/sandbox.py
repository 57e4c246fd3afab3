"""The confined process that decodes foreign media, seen from outside.

A hostile or broken file can end the process and nothing else: `decoder.py` gets the file as a
read-only descriptor and has no environment, little memory, a clock, and nothing that it may open or
write. What comes back is plain arrays and fault words; every sentence about a file is made here, in
our words, and names the file without its folder.
"""

import json
import math
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ringworld.data.decoder import HEADER
from ringworld.errors import InputError

DECODER = Path(__file__).with_name("decoder.py")
LONGEST_NAME = 80  # letters of a file's name in a sentence


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """How much one media file may cost; the defaults suit a person's own films, 4 hours of 4K.

    `bytes` of file, `pixels` of one frame of film, `picture_pixels` of a still picture, `frames`
    returned, `seconds` of film read, `memory` of the decoding process in bytes (of addresses, its
    programs included), `threads` that decode, `processor` seconds that they compute in all, and
    `timeout`, the seconds that the caller waits for the decoder in all (time that the caller spends
    on the frames is not counted).
    """

    bytes: int = 16 << 30
    pixels: int = 4096 * 2304
    picture_pixels: int = 100_000_000
    frames: int = 100_000
    seconds: float = 4 * 3600.0
    memory: int = 2 << 30
    threads: int = 8
    processor: int = 8 * 3600
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse limits that would let nothing through."""
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"The media limit {field.name} must be larger than 0.")


OWN_FILES = MediaLimits()
# A camera's 24 million pixels need up to 14 bytes each while they are decoded and turned, 340 MB,
# beside 130 MB of programs. One thread, as each more holds a frame of its own.
STRANGERS = MediaLimits(
    bytes=100 << 20,
    picture_pixels=25_000_000,
    frames=2048,
    seconds=3600.0,
    memory=512 << 20,
    threads=1,
    processor=20,
    timeout=30.0,
)


@contextmanager
def opened(
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
    name = called(path)
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


def called(path: Path) -> str:
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


def explain(word: str, name: str, limits: MediaLimits, *, still: bool) -> str:
    """The sentence for a fault word of the decoder."""
    if word == "not-media" and still:
        return f"{name} is not a picture that can be read: give a PNG, JPEG, WebP or GIF file."
    sentences = {
        "not-media": "is neither a film nor a picture that can be read: give an MP4, MOV, MKV, "
        "WebM, AVI or GIF, or a PNG, JPEG or WebP",
        "codec": "is a film in a code that is not read: convert it to H.264, VP9 or AV1",
        "no-pictures": "has no picture track: give a file that holds a film",
        "truncated": "is cut short: copy or download it again",
        "damaged": "is damaged and cannot be decoded: copy or download it again",
        "pixels": f"has frames of more than {limits.pixels:,} pixels: scale it down first",
        "picture-pixels": f"has more than {limits.picture_pixels:,} pixels: scale it down first",
        "frames": f"gives more than {limits.frames:,} frames: lower the frame rate or read a part",
        "seconds": f"lasts longer than {limits.seconds:g} s: read a part of it with start and end",
        "after-end": "is shorter than the start that was asked for: choose an earlier start",
        "memory": f"needs more than {limits.memory:,} bytes to decode: scale it down first",
        "time": f"takes longer than {limits.timeout:g} s to decode: read a part with start and end",
        "processor": f"takes more than {limits.processor} s of computing: read a part of it with "
        "start and end",
        "missing": "could not be decoded as its decoder did not start: reinstall av and pillow",
    }
    return f"{name} {sentences.get(word, sentences['damaged'])}."


def converse(
    ask: Mapping[str, object], name: str, descriptor: int, limits: MediaLimits
) -> Iterator[tuple[str, float, UInt8[np.ndarray, "Y X 3"]]]:
    """Start the decoder on `descriptor`; yield its (word, value, pixels) records until its end."""
    request = {
        **ask,
        "pixels": limits.pixels,
        "picture_pixels": limits.picture_pixels,
        "frames": limits.frames,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "threads": min(os.cpu_count() or 1, limits.threads),
        "cpu_seconds": limits.processor,
    }
    still = bool(ask["still"])
    shape = (int(str(ask["rows"])), int(str(ask["columns"])), 3)
    with child(json.dumps(request), descriptor) as process:
        answer = Answer(process, limits.timeout)
        while True:
            header = answer.read(HEADER.size)
            if len(header) < HEADER.size:
                raise InputError(explain(answer.epitaph(), name, limits, still=still))
            raw, value = HEADER.unpack(header)
            word = raw.rstrip(b"\0").decode("ascii", "replace")
            if word == "end":
                return
            if word not in ("length", "frame"):
                raise InputError(explain(word, name, limits, still=still))
            held = shape if word == "frame" else (0, 0, 3)
            body = answer.read(math.prod(held))
            if len(body) < math.prod(held):
                raise InputError(explain(answer.epitaph(), name, limits, still=still))
            yield word, value, np.frombuffer(body, np.uint8).reshape(held)


@contextmanager
def child(ask: str, descriptor: int) -> Generator[subprocess.Popen[bytes], None, None]:
    """A decoder in an empty folder with an empty environment; killed when the block is left."""
    environment = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}
    with tempfile.TemporaryDirectory(prefix="ringworld-decoder-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(DECODER.resolve()), ask],
            stdin=descriptor,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Answer:
    """The decoder's output, read against a budget of waiting time."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Read from `process`; wait for at most `seconds` in all."""
        self.process, self.left, self.begun = process, seconds, False

    def read(self, count: int) -> bytearray:
        """Exactly `count` bytes, or fewer if the decoder ended or the time is spent."""
        data = bytearray()
        pipe = self.process.stdout
        while pipe is not None and len(data) < count:
            before = time.monotonic()
            ready, _, _ = select.select([pipe], [], [], max(self.left, 0.0))
            self.left -= time.monotonic() - before
            part = os.read(pipe.fileno(), count - len(data)) if ready else b""
            if not part:
                break
            self.begun = True
            data += part
        return data

    def epitaph(self) -> str:
        """Why the output stopped early: the fault word "time", "missing" or "damaged"."""
        if self.left <= 0:
            return "time"
        code = self.process.wait()
        if code == 1 and not self.begun:
            return "missing"
        return "processor" if code == -signal.SIGXCPU else "damaged"
