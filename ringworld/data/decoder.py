"""The program that opens foreign media files, alone in a process that can harm nobody.

`ringworld.data.media` starts it by its path as `python -I decoder.py JSON`, hands it one read-only
file descriptor and reads records from its standard output:

    16 bytes word | float64 value | size * size * 3 bytes of RGB, after the word "frame" only

The words are "length" (seconds of film, nan if the container does not say), "frame" (its
timestamp), "end", or one of the fault words that `media` knows a sentence for. Nothing the codec
libraries say leaves this process. It imports nothing of ringworld, so that it needs no search path,
and it lowers its own limits before it touches the first foreign byte.
"""

import json
import math
import os
import resource
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps

HEADER = struct.Struct("<16sd")
FILM_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
OPEN_FILES = 16


class Fault(Exception):
    """A reason to refuse the file; its only argument is the fault word."""


def confine(*, memory: int, cpu_seconds: int) -> None:
    """Lower this process's limits for good: memory in bytes, processor seconds, no file writes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fit(image: Image.Image, size: int) -> bytes:
    """Shorter side to `size` (bicubic), then the centre `size` x `size` square, as RGB bytes."""
    width, height = image.size
    if width < height:
        wide, high = size, max(size, int(size * height / width))
    else:
        wide, high = max(size, int(size * width / height)), size
    image = image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) / 2, (high - size) / 2
    return image.crop((round(left), round(top), round(left) + size, round(top) + size)).tobytes()


def fit_frame(frame: av.VideoFrame, size: int) -> bytes:
    """A decoded frame, turned upright by its rotation metadata, fitted to `size`."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return fit(Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns))), size)


class Film:
    """One open container and its first picture track, with an exact clock that starts at 0."""

    def __init__(self, file: BinaryIO, *, pixels: int, threads: int) -> None:
        """Open the container; refuse what is no film or has over `pixels` pixels a frame."""
        self.file, self.pixels = file, pixels
        options = {"format_whitelist": FILM_FORMATS, "protocol_whitelist": "none"}
        try:
            self.container = av.open(file, "r", options=options, buffer_size=1 << 20)
        except MemoryError:
            raise
        except FFmpegError as error:
            raise Fault("truncated" if looks_like_mp4(file) else "not-media") from error
        if not self.container.streams.video:
            raise Fault("no-pictures")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = threads
        self.check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)
        self.tick = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.origin = None if self.stream.start_time is None else self.stream.start_time * self.tick
        rate = self.stream.average_rate
        self.step = 1 / Fraction(rate) if rate else Fraction(1, 25)
        length = self.container.duration
        self.length = None if length is None else Fraction(length, av.time_base)
        self.reached, self.broken = Fraction(0), False

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a frame of more pixels than allowed."""
        if width * height > self.pixels:
            raise Fault("pixels")

    def frames(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """(timestamp, time on screen, frame) in order, from the last key frame before `start`."""
        if start > 0 and self.origin is not None:
            target = int((start + self.origin) / self.tick)
            self.container.seek(target, stream=self.stream, backward=True)
            frames = self.decode()
            first = next(frames, None)
            if first is not None and first[0] <= start:
                yield first
                yield from frames
                return
            self.container.seek(0)
        yield from self.decode()

    def decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Every frame from the present place on; notes how far the container's packets reach."""
        for packet in self.container.demux():
            self.note_reach(packet)
            if packet.stream.index != self.stream.index:
                continue
            try:
                pictures = packet.decode()
            except MemoryError:
                raise
            except FFmpegError:
                self.broken = True
                continue
            for frame in pictures:
                if not isinstance(frame, av.VideoFrame) or frame.pts is None:
                    continue
                self.check_pixels(frame.width, frame.height)
                self.broken |= frame.is_corrupt
                stamp = frame.pts * Fraction(frame.time_base or self.tick)
                if self.origin is None:
                    self.origin = stamp
                shown = frame.duration * self.tick if frame.duration else self.step
                yield stamp - self.origin, shown, frame

    def note_reach(self, packet: av.Packet) -> None:
        """Remember the latest moment that any packet of any track covers."""
        if packet.pts is not None and packet.time_base:
            last = (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)
            self.reached = max(self.reached, last - (self.origin or 0))

    def check_whole(self) -> None:
        """Refuse a film whose packets stop before the length its container promises."""
        slack = Fraction(1, 4) + 3 * self.step
        if self.length is not None and self.reached + slack < self.length * Fraction(999, 1000):
            raise Fault("truncated")
        if self.container.format.name == "gif" and not ends_like_gif(self.file):
            raise Fault("truncated")
        if self.broken:
            raise Fault("damaged")


def looks_like_mp4(file: BinaryIO) -> bool:
    """Whether the file begins as MP4 and QuickTime files do."""
    file.seek(4)
    return file.read(4) in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")


def ends_like_gif(file: BinaryIO) -> bool:
    """Whether the last byte, padding aside, is a GIF's trailer."""
    file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
    return file.read().rstrip(b"\0").endswith(b";")


def sample(film: Film, ask: dict[str, Any]) -> Iterator[tuple[float, bytes]]:
    """(timestamp in seconds, RGB bytes) of the frame on screen at start, start + 1/fps, ...

    A frame counts from its timestamp less half a tick of the container's clock (at most half a
    millisecond), because containers round; each frame is converted at most once.
    """
    start, period = Fraction(ask["start"]), 1 / Fraction(ask["fps"])
    slack = min(film.tick / 2, Fraction(1, 2000))
    stop = math.inf if ask["end"] is None else Fraction(ask["end"])
    count, stamp, until = 0, Fraction(0), Fraction(0)
    shown: av.VideoFrame | None = None
    pixels = b""

    def due(moment: Fraction) -> Iterator[tuple[float, bytes]]:
        nonlocal count, pixels
        while shown is not None and (at := start + count * period) < min(moment - slack, stop):
            if count >= ask["frames"]:
                raise Fault("frames")
            if at - start > ask["seconds"]:
                raise Fault("seconds")
            pixels = pixels or fit_frame(shown, ask["size"])
            yield float(stamp), pixels
            count += 1

    for moment, duration, frame in film.frames(start):
        if shown is not None and moment <= stamp:
            continue
        yield from due(moment)
        if moment - slack >= stop:
            if film.broken:
                raise Fault("damaged")
            return
        shown, stamp, until, pixels = frame, moment, moment + duration, b""
    film.check_whole()
    if shown is None:
        raise Fault("no-pictures")
    yield from due(max(until, stamp + 2 * slack))
    if count == 0:
        raise Fault("after-end")


def read_film(file: BinaryIO, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the film's length and its sampled frames as records."""
    film = Film(file, pixels=ask["pixels"], threads=ask["threads"])
    if film.length is not None:
        span = min(film.length, film.length if ask["end"] is None else Fraction(ask["end"]))
        span -= Fraction(ask["start"])
        if span > ask["seconds"]:
            raise Fault("seconds")
        if span * Fraction(ask["fps"]) > ask["frames"] + 1:
            raise Fault("frames")
    write(out, b"length", math.nan if film.length is None else float(film.length))
    for seconds, pixels in sample(film, ask):
        write(out, b"frame", seconds, pixels)


def read_picture(file: BinaryIO, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the first frame of a still picture, turned upright, as one record."""
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(file, formats=PICTURE_FORMATS)
        if image.width * image.height > ask["pixels"]:
            raise Fault("pixels")
    except (OSError, ValueError, SyntaxError) as error:
        raise Fault("not-media") from error
    try:
        image.load()
        pixels = fit(ImageOps.exif_transpose(image), ask["size"])
    except (OSError, ValueError, SyntaxError) as error:
        raise Fault("truncated") from error
    write(out, b"frame", 0.0, pixels)


def write(out: BinaryIO, word: bytes, value: float, payload: bytes = b"") -> None:
    """Write one record."""
    out.write(HEADER.pack(word, value) + payload)
    out.flush()


def main() -> None:
    """Read the request from the command line, confine the process, decode, and report."""
    ask = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)
    os.dup2(void, 2)
    av.logging.set_level(None)
    confine(memory=ask["memory"], cpu_seconds=ask["cpu_seconds"])
    read = read_picture if ask["still"] else read_film
    try:
        with os.fdopen(ask["file"], "rb") as file:
            read(file, ask, out)
        write(out, b"end", 0.0)
    except Fault as fault:
        write(out, str(fault).encode(), 0.0)
    except BrokenPipeError:
        os._exit(0)
    except MemoryError:
        write(out, b"memory", 0.0)
    except Exception:
        write(out, b"damaged", 0.0)


if __name__ == "__main__":
    main()
