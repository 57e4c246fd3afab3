"""One door for foreign media: nothing else in the package opens a film or a picture.

Files are decoded by `decoder.py` in a child process with little memory, no environment, no writable
file and a clock, so a hostile or broken file can end the child and nothing else. What comes back is
plain arrays and **the container's own timestamps** (presentation time, the track's start taken
off), never a frame's index over a nominal rate: films with variable frame rates keep their time.
Every refusal is one sentence in our words.
"""

import json
import math
import os
import select
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ringworld.data.decoder import HEADER
from ringworld.errors import InputError
from ringworld.files import whole

DECODER = Path(__file__).with_name("decoder.py")
LARGEST_SIDE = 4096
MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """How much one media file may cost; the defaults suit a person's own films, 4 hours of 4K.

    `bytes` of file, `pixels` of one frame, `frames` returned, `seconds` of film read, `memory` of
    the decoding process in bytes, and `timeout`, the seconds that the caller waits for the decoder
    in all (time that the caller spends on the frames is not counted).
    """

    bytes: int = 16 << 30
    pixels: int = 4096 * 2304
    frames: int = 100_000
    seconds: float = 4 * 3600.0
    memory: int = 2 << 30
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        """Refuse limits that would let nothing through."""
        for name in ("bytes", "pixels", "frames", "seconds", "memory", "timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"The media limit {name} must be larger than 0.")


OWN_FILES = MediaLimits()
STRANGERS = MediaLimits(bytes=100 << 20, frames=2048, seconds=3600.0, memory=1 << 30, timeout=30.0)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames and when each appears, in seconds from the film's start, never decreasing."""

    frames: UInt8[np.ndarray, "Z Y X 3"]
    seconds: Float64[np.ndarray, "Z"]


def stream_video(
    source: str | Path | bytes,
    *,
    fps: float,
    size: int,
    limits: MediaLimits = OWN_FILES,
    start: float = 0.0,
    end: float | None = None,
    on_length: Callable[[float], None] | None = None,
) -> Generator[tuple[float, UInt8[np.ndarray, "Y X 3"]], None, None]:
    """Yield (timestamp in seconds, frame) of the screen at start, start + 1/fps, ... before `end`.

    Frames are cut to `size` x `size` as LWM does: shorter side resized (bicubic), centre kept. A
    frame that stays on screen for several samples is yielded as often, with the same timestamp.
    `source` is a path or the file's content. `on_length` hears the film's length in seconds once,
    nan where the file does not say. Closing the generator ends the decoder. Raises InputError for
    a file that is missing, no film, cut short, damaged or over a limit.
    """
    check_request(fps=fps, size=size, start=start, end=end)
    ask = {"still": False, "fps": fps, "start": start, "end": end, "size": size}
    with opened(source, limits) as (name, descriptor):
        for word, value, pixels in converse(ask, name, descriptor, limits):
            if word == "frame":
                yield value, pixels
            elif on_length is not None:
                on_length(value)


def read_video(
    source: str | Path | bytes,
    *,
    fps: float,
    size: int,
    on_frame: Callable[[float, float], None] | None = None,
    limits: MediaLimits = OWN_FILES,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """`stream_video`, collected; `on_frame` hears (the frame's, the film's seconds or nan)."""
    pixels, seconds, length = bytearray(), [], [math.nan]
    stream = stream_video(
        source, fps=fps, size=size, limits=limits, start=start, end=end, on_length=length.append
    )
    for moment, frame in stream:
        pixels += frame.data
        seconds.append(moment)
        if on_frame is not None:
            on_frame(moment, length[-1])
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, size, size, 3)
    return Clip(frames=frames, seconds=np.array(seconds, np.float64))


def read_image(
    source: str | Path | bytes, *, size: int, limits: MediaLimits = OWN_FILES
) -> UInt8[np.ndarray, "Y X 3"]:
    """A PNG, JPEG, WebP or GIF picture (its first frame), fitted to `size` x `size` pixels."""
    check_request(fps=1.0, size=size, start=0.0, end=None)
    with opened(source, limits) as (name, descriptor):
        records = list(converse({"still": True, "size": size}, name, descriptor, limits))
    return records[0][2]


def check_request(*, fps: float, size: int, start: float, end: float | None) -> None:
    """Refuse rates, sizes and spans that have no meaning."""
    if not (0 < fps < math.inf):
        raise InputError(f"Frames per second must be a number above 0, not {fps}.")
    if not 1 <= size <= LARGEST_SIDE:
        raise InputError(f"The frame size must be from 1 to {LARGEST_SIDE} pixels, not {size}.")
    if not (0 <= start < math.inf) or (end is not None and not start < end < math.inf):
        raise InputError(
            f"Choose a start of at least 0 s and an end after it, not {start} to {end}."
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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"There is no file at {path}: check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be opened: check its permissions.") from error
    try:
        check_file(path.name, os.fstat(descriptor), limits)
        yield path.name, descriptor
    finally:
        os.close(descriptor)


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
        "not-media": "is not a video that can be read: give an MP4, MOV, MKV, WebM, AVI or GIF",
        "no-pictures": "has no picture track: give a file that holds a film",
        "truncated": "is cut short: copy or download it again",
        "damaged": "is damaged and cannot be decoded: copy or download it again",
        "pixels": f"has frames of more than {limits.pixels:,} pixels: scale it down first",
        "frames": f"gives more than {limits.frames:,} frames: lower the frame rate or read a part",
        "seconds": f"lasts longer than {limits.seconds:g} s: read a part of it with start and end",
        "after-end": "is shorter than the start that was asked for: choose an earlier start",
        "memory": f"needs more than {limits.memory:,} bytes to decode: scale it down first",
        "time": f"takes longer than {limits.timeout:g} s to decode: read a part with start and end",
        "missing": "could not be decoded as its decoder did not start: reinstall av and pillow",
    }
    return f"{name} {sentences.get(word, sentences['damaged'])}."


def converse(
    ask: Mapping[str, object], name: str, descriptor: int, limits: MediaLimits
) -> Iterator[tuple[str, float, UInt8[np.ndarray, "Y X 3"]]]:
    """Start the decoder on `descriptor`; yield its (word, value, pixels) records until its end."""
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    request = {
        **ask,
        "file": descriptor,
        "pixels": limits.pixels,
        "frames": limits.frames,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "threads": threads,
        "cpu_seconds": math.ceil(limits.timeout * threads),
    }
    still, size = bool(ask["still"]), int(str(ask["size"]))
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
            side = size if word == "frame" else 0
            body = answer.read(side * side * 3)
            if len(body) < side * side * 3:
                raise InputError(explain(answer.epitaph(), name, limits, still=still))
            yield word, value, np.frombuffer(body, np.uint8).reshape(side, side, 3)


@contextmanager
def child(ask: str, descriptor: int) -> Generator[subprocess.Popen[bytes], None, None]:
    """A decoder in an empty folder with an empty environment; killed when the block is left."""
    environment = {"LC_ALL": "C", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with tempfile.TemporaryDirectory(prefix="ringworld-decoder-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(DECODER.resolve()), ask],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(descriptor,),
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
        return "time" if code == -24 else "damaged"


def write_animation(path: str | Path, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """Write frames as a looping GIF or an MP4, by the path's suffix, whole or not at all."""
    path = Path(path)
    writers = {".gif": write_gif, ".mp4": write_mp4}
    if path.suffix.lower() not in writers:
        raise InputError(f"{path.name} must end in .gif or .mp4 to say which kind to write.")
    if len(frames) == 0 or not 0 < fps < math.inf:
        raise InputError("An animation needs at least one frame and a frame rate above 0.")
    with whole(path) as draft:
        writers[path.suffix.lower()](str(draft), frames, fps)


def write_gif(name: str, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """A looping GIF; its clock counts hundredths of a second."""
    images = [Image.fromarray(frame) for frame in frames]
    hold = max(20, round(100 / fps) * 10)
    images[0].save(
        name, format="GIF", save_all=True, append_images=images[1:], duration=hold, loop=0
    )


def write_mp4(name: str, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """An H.264 film (MPEG-4 where the build has no H.264); odd sides are padded by one pixel."""
    _, high, wide, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, high % 2), (0, wide % 2), (0, 0)), mode="edge")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(name, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "18"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
