"""The program that opens foreign media files, alone in a process that can harm nobody.

`forkserver.py` forks it with the file as its standard input, and `sandbox` reads records
from its standard output:

    16 bytes word | float64 value | rows * columns * 3 bytes of RGB, after the word "frame" only

The words are "length" (seconds of film, nan if the container does not say), "frame" (its
timestamp), "end", or one of the fault words that `sandbox` knows a sentence for. Nothing the codec
libraries say leaves this process. It imports nothing of ringworld, and before it touches the first
foreign byte it gives up memory, processor time and the right to open a file, a socket or a pipe.
"""

import math
import os
import re
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

HEADER = struct.Struct("<16sd")
FILM_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
# What cameras, phones, editors and the web write. Left out is what few films need and what has been
# broken into most: JPEG 2000, EXR, PNG and the old game codecs that MOV and AVI may carry too.
FILM_CODECS = "h264,hevc,av1,libdav1d,vp8,vp9,mpeg4,mpeg2video,theora,mjpeg,prores,ffv1,gif"
PICTURES = {
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"\xff\xd8\xff": JpegImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8": GifImageFile,
}
MP4 = rb"....(ftyp|moov|mdat|free|wide|skip)"
BAD_EXIF = (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)
IMPORTED_LATE = (TiffImagePlugin, SubtitleStream)  # by the libraries, when it cannot be opened
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


class Fault(Exception):
    """A reason to refuse the file; its only argument is the fault word."""


def confine(*, memory: int, cpu_seconds: int) -> None:
    """Lower this process's limits for good: memory in bytes, processor seconds, nothing opened.

    With no descriptor left to give, `open`, `socket` and `pipe` fail, in every library: what the
    file names, on the disk or on the net, cannot be reached. Nor can anything be written to a file.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fit(image: Image.Image, rows: int, columns: int) -> bytes:
    """The least size that covers `rows` x `columns` (bicubic), then its centre, as RGB bytes."""
    width, height = image.size
    if width * rows < height * columns:
        wide, high = columns, max(rows, int(columns * height / width))
    else:
        wide, high = max(columns, int(rows * width / height)), rows
    image = image.convert("RGB") if image.mode != "RGB" else image
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - columns) / 2), round((high - rows) / 2)
    return image.crop((left, top, left + columns, top + rows)).tobytes()


def fit_frame(frame: av.VideoFrame, rows: int, columns: int) -> bytes:
    """A decoded frame, turned upright by its rotation metadata, fitted to `rows` x `columns`."""
    image, turn = frame.to_image(), TURNS[round(frame.rotation / 90) % 4]
    return fit(image if turn is None else image.transpose(turn), rows, columns)


class Film:
    """One open container and its first picture track, with an exact clock.

    Moment 0 is when the first frame that can be decoded appears. `slack` is the rounding of the
    container's clock, half a tick, at most half a millisecond.
    """

    def __init__(self, file: BinaryIO, *, pixels: int, threads: int) -> None:
        """Open the container; refuse what is no film or has over `pixels` pixels a frame."""
        self.file, self.pixels, self.threads = file, pixels, threads
        self.origin: Fraction | None = None
        self.reached, self.broken = Fraction(0), False
        self.open()
        self.tick = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.slack = min(self.tick / 2, Fraction(1, 2000))
        self.step = 1 / Fraction(self.stream.average_rate or 25)
        length = self.container.duration
        self.length = Fraction(length, av.time_base) if length and length > 0 else None
        if self.container.format.name == "avi":  # its length is guessed from what is there
            self.length = self.stream.frames * self.step
        start = self.container.start_time
        self.begin = self.find_origin() if start is None else Fraction(start, av.time_base)

    def open(self) -> None:
        """Open the container at its beginning, for the first time or again."""
        self.file.seek(0)
        options = {
            "format_whitelist": FILM_FORMATS,
            "codec_whitelist": FILM_CODECS,
            "protocol_whitelist": "none",
            "max_pixels": str(self.pixels),
        }
        try:
            self.container = av.open(self.file, "r", options=options, buffer_size=1 << 20)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise Fault("truncated" if begins(self.file, MP4) else "not-media") from error
        cover = Disposition.attached_pic  # of a song
        tracks = [s for s in self.container.streams.video if not s.disposition & cover]
        if not tracks:
            raise Fault("no-pictures")
        self.stream = tracks[0]
        if self.stream.codec_context.name not in FILM_CODECS.split(","):
            raise Fault("codec")
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = self.threads
        self.stream.codec_context.options = {"max_pixels": str(self.pixels)}
        self.check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a frame of more pixels than allowed."""
        if width * height > self.pixels:
            raise Fault("pixels")

    def measure(self) -> Fraction:
        """When the last frame leaves the screen, by the packets, all of which are read; rewinds."""
        origin = end = self.find_origin()
        for packet in self.container.demux():
            covered = self.note(packet)
            if packet.stream.index == self.stream.index and not packet.is_discard:
                end = max(end, covered)
        self.check_length()
        self.open()
        return end - origin

    def find_origin(self) -> Fraction:
        """The timestamp of the first frame, which is decoded for it; rewinds."""
        if next(self.decode(), None) is None or self.origin is None:
            raise Fault("damaged" if self.broken else "no-pictures")
        self.open()
        return self.origin

    def frames(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """(timestamp, time on screen, frame) in order, from the last key frame before `start`."""
        if start > 0:
            origin = self.find_origin() if self.origin is None else self.origin
            target = math.floor((start + origin) / self.tick)
            first = None
            with suppress(FFmpegError, OverflowError):
                self.container.seek(target, stream=self.stream, backward=True)
                first = next(frames := self.decode(), None)
            if first is not None and first[0] <= start:
                yield first
                yield from frames
                return
            self.open()
        yield from self.decode()

    def screen(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame, bool]]:
        """(appears, leaves the screen, frame, whether it is the last) for a film read from `start`.

        A frame leaves when the next appears, the last one after its own duration.
        """
        stamp, shown, held = Fraction(0), Fraction(0), None
        for moment, duration, frame in self.frames(start):
            if held is not None and moment <= stamp:
                continue
            if held is not None:
                yield stamp, moment, held, False
            stamp, shown, held = moment, duration, frame
        if held is not None:
            yield stamp, stamp + max(shown, 2 * self.slack), held, True

    def decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Every frame from the present place on; notes how far the container's packets reach."""
        stamp = due = Fraction(-1)
        for packet in self.container.demux():
            self.note(packet)
            if packet.stream.index != self.stream.index:
                continue
            try:
                pictures = self.stream.decode(packet)
            except MemoryError:
                raise
            except FFmpegError:
                self.broken = True
                continue
            for frame in pictures:
                self.check_pixels(frame.width, frame.height)
                self.broken |= frame.is_corrupt
                tick = Fraction(frame.time_base or self.tick)
                latest, stamp = stamp, due if frame.pts is None else frame.pts * tick
                if packet.size == 0 and stamp == latest:  # the last of an AVI, reordered
                    stamp = due
                if self.origin is None:
                    self.origin = stamp
                shown = frame.duration * tick if frame.duration else self.step
                due = stamp + shown
                yield stamp - self.origin, shown, frame

    def note(self, packet: av.Packet) -> Fraction:
        """The moment of the container's clock by which the packet is played; the latest is kept."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or not packet.time_base:
            return Fraction(0)
        shown = packet.duration * packet.time_base if packet.duration else self.step
        covered = stamp * packet.time_base + shown
        self.reached = max(self.reached, covered)
        return covered

    def check_length(self) -> None:
        """Refuse a film whose packets, all read, stop before the length its container promises."""
        reached = self.reached + Fraction(1, 4) + 3 * self.step
        if self.length is not None and reached < self.length * Fraction(999, 1000):
            raise Fault("truncated")
        if self.container.format.name == "gif" and not ends_like_gif(self.file):
            raise Fault("truncated")


def begins(file: BinaryIO, pattern: bytes) -> bool:
    """Whether the file's first bytes match; rewinds."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return re.match(pattern, head, re.DOTALL) is not None


def ends_like_gif(file: BinaryIO) -> bool:
    """Whether the last byte, padding aside, is a GIF's trailer."""
    file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
    return file.read().rstrip(b"\0").endswith(b";")


@dataclass(frozen=True)
class FrameSchedule:
    """The moments wanted: start, start + period, ... before `stop`, or `count` of them.

    Without a period it is the frame on the screen at start and every one that appears before stop.
    """

    start: Fraction
    stop: Fraction
    period: Fraction | None = None
    count: int | None = None

    def due(self, taken: int, stamp: Fraction, reach: Fraction, last: bool) -> int:
        """How many moments, `taken` of them past, fall to a frame from `stamp` to `reach`."""
        if self.period is None:
            return int(reach > self.start and (taken == 0 or stamp < self.stop))
        if last and self.count is not None:
            return self.count - taken
        reached = math.ceil((reach - self.start) / self.period)
        return max(0, min(reached, self.count or reached) - taken)


def make_schedule(film: Film, ask: dict[str, Any]) -> FrameSchedule:
    """The schedule of a request for this film; reads all its packets where it depends on them.

    What is nearer to the end than the clock can tell is at the end, and no longer wanted.
    """
    start = Fraction(ask["video_start"])
    end = Fraction(1 << 80 if ask["video_end"] is None else ask["video_end"])
    period = None if ask["fps"] is None else 1 / Fraction(ask["fps"])
    most, least = ask["max_frames"], ask["min_frames"]
    wanted = ask["num_frames"]
    if wanted is None and most is None and least is None:
        return FrameSchedule(start, max(end - film.slack, (start + end) / 2), period)
    span = min(end, film.measure()) - start
    if span <= 0:
        raise Fault("after-end")
    if span > ask["seconds"]:
        raise Fault("seconds")
    natural = wanted or max(1, math.ceil((span - film.slack) * Fraction(ask["fps"] or 0)))
    count = max(min(natural, most or natural), least or 1)
    if wanted is None and count == natural:
        return FrameSchedule(start, end, period, count)
    return FrameSchedule(start, end, span / count, count)


def sample(
    film: Film, schedule: FrameSchedule, ask: dict[str, Any]
) -> Iterator[tuple[float, bytes]]:
    """(timestamp in seconds, RGB bytes) of the frame on the screen at each moment of the schedule.

    A frame counts from its timestamp less the clock's slack, because containers round; each frame
    is converted at most once.
    """
    taken, seen = 0, False
    for stamp, until, frame, last in film.screen(schedule.start):
        seen = True
        if stamp - film.slack >= schedule.stop or taken == schedule.count:
            break
        due = schedule.due(taken, stamp, min(until - film.slack, schedule.stop), last)
        if due == 0:
            continue
        if taken + due > ask["frames"]:
            raise Fault("frames")
        if stamp - schedule.start > ask["seconds"]:
            raise Fault("seconds")
        pixels = fit_frame(frame, ask["rows"], ask["columns"])
        yield from [(float(stamp), pixels)] * due
        taken += due
    else:
        film.check_length()
    if film.broken or taken == 0:
        raise Fault("damaged" if film.broken else "after-end" if seen else "no-pictures")


def read_film(file: BinaryIO, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the film's length and its sampled frames as records."""
    film = Film(file, pixels=ask["pixels"], threads=ask["threads"])
    length = None if film.length is None else film.length - film.begin
    if length is not None:
        span = min(length, Fraction(ask["video_end"] or length)) - Fraction(ask["video_start"])
        if span > ask["seconds"]:
            raise Fault("seconds")
        bounded = ask["max_frames"] is not None or ask["num_frames"] is not None
        if not bounded and span * Fraction(ask["fps"] or 0) > ask["frames"] + 1:
            raise Fault("frames")
    schedule = make_schedule(film, ask)
    write(out, b"length", math.nan if length is None else float(length))
    for seconds, pixels in sample(film, schedule, ask):
        write(out, b"frame", seconds, pixels)


def read_picture(file: BinaryIO, kind: type[ImageFile], ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the first frame of a picture as one record, turned upright where its EXIF is whole."""
    try:
        image: Image.Image = kind(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise Fault("not-media") from error
    if image.width * image.height > ask["picture_pixels"]:
        raise Fault("picture-pixels")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Fault("truncated") from error
    with suppress(*BAD_EXIF):
        image = ImageOps.exif_transpose(image)
    write(out, b"frame", 0.0, fit(image, ask["rows"], ask["columns"]))


def read(file: BinaryIO, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write what the file holds: a picture, or a film where one may be; a GIF is either."""
    kind = next((k for pattern, k in PICTURES.items() if begins(file, pattern)), None)
    if kind is not None and (ask["still"] or kind is not GifImageFile):
        read_picture(file, kind, ask, out)
    elif ask["still"]:
        raise Fault("not-media")
    else:
        read_film(file, ask, out)


def write(out: BinaryIO, word: bytes, value: float, payload: bytes = b"") -> None:
    """Write one record."""
    out.write(HEADER.pack(word, value) + payload)
    out.flush()


def main(ask: dict[str, Any]) -> None:
    """Confine the process, decode what was asked for, and report."""
    out = os.fdopen(os.dup(1), "wb")
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)
    os.dup2(void, 2)
    av.logging.set_level(None)
    confine(memory=ask["memory"], cpu_seconds=ask["cpu_seconds"])
    try:
        with os.fdopen(0, "rb") as file:
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
