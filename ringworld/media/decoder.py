"""The program that decodes media files, confined to a process that can do no harm.

`forkserver.py` forks it with the file as its standard input, and `sandbox` reads records
from its standard output:

    16 bytes word | float64 value | payload

The words are "length" (seconds of film, nan if the container does not say), "frame" (its timestamp,
then rows * columns * 3 bytes of RGB), "end", or one of the fault words that `sandbox` knows a
sentence for (the value counts the letters of a name that follows). Nothing else that the codec
libraries say leaves this process. It imports nothing of ringworld but `film`, `headers` and
`pixels`. Before it touches the first foreign byte it gives up memory, processor time and the right
to open a file, a socket or a pipe.
"""

import math
import os
import resource
import struct
from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.subtitles.stream import SubtitleStream
from PIL import ImageOps, PngImagePlugin, TiffImagePlugin
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ringworld.media.film import Animation, Film, make_schedule, sample_frames
from ringworld.media.headers import starts_with
from ringworld.media.pixels import Fault, draw_picture

HEADER = struct.Struct("<16sd")
PICTURES = {
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"\xff\xd8\xff": JpegImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8": GifImageFile,
}
# Pictures that are not read. FFmpeg takes single tiles of a HEIC for its frames.
OTHER_PICTURES = {
    rb"....ftyp(hei[cx]|mif1|msf1|hevc)": "HEIC",
    rb"....ftypavi[fs]": "AVIF",
    rb"(II\*\0|MM\0\*)": "TIFF",
    rb"BM....\0\0\0\0": "BMP",
    rb"(\xff\x0a|\0\0\0\x0cJXL )": "JPEG XL",
    rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)": "JPEG 2000",
}
BAD_EXIF = (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)
IMPORTED_LATE = (TiffImagePlugin, SubtitleStream)  # by the libraries, when it cannot be opened
# A profile, or the workflow that made a picture, is a few megabytes at most.
TEXT_LIMIT = 16 << 20  # bytes


def confine(*, memory: int, cpu_seconds: int, most_cpu_seconds: int) -> None:
    """Lower this process's limits for good: memory in bytes, processor seconds, nothing opened.

    `allow_processor` may raise those of the processor, to the most.

    With no descriptor left to give, `open`, `socket` and `pipe` fail, in every library: what the
    file names, on the disk or on the net, cannot be reached. Nor can anything be written to a file.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, most_cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_processor(cpu_seconds: int) -> None:
    """Let this process compute for so many seconds in all, as far as `confine` has left room."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (min(cpu_seconds, most), most))


def read_film(film: Film | Animation, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the film's length and its sampled frames as records."""
    length = None if film.length is None else film.length - film.begin
    if length is not None:
        span = min(length, Fraction(ask["video_end"] or length)) - Fraction(ask["video_start"])
        if span > ask["seconds"]:
            raise Fault("seconds")
        bounded = ask["max_frames"] is not None or ask["num_frames"] is not None
        if not bounded and span * Fraction(ask["fps"] or 0) > ask["frames"] + 1:
            raise Fault("frames")
        allow_processor(ask["cpu_seconds"] + math.ceil(ask["cpu_pace"] * max(span, 0)))
    schedule = make_schedule(film, ask)
    write(out, b"length", math.nan if length is None else float(length))
    for seconds, pixels in sample_frames(film, schedule, ask):
        write(out, b"frame", seconds, pixels)


def read_picture(file: BinaryIO, kind: type[ImageFile], ask: dict[str, Any], out: BinaryIO) -> None:
    """Write a picture as one record, upright; an animation as a film, or its first frame if still.

    An EXIF block that is broken does not turn the picture.
    """
    try:
        image = kind(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise Fault("not-media") from error
    if image.width * image.height > ask["picture_pixels"]:
        raise Fault("picture-pixels")
    if not ask["still"] and getattr(image, "is_animated", False):
        read_film(Animation(image), ask, out)
        return
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Fault("truncated") from error
    upright = image
    with suppress(*BAD_EXIF):
        upright = ImageOps.exif_transpose(image)
    write(out, b"frame", 0.0, draw_picture(upright, ask["rows"], ask["columns"]))


def read_file(file: BinaryIO, ask: dict[str, Any], out: BinaryIO) -> None:
    """Write the frames of a picture or of a film; a GIF is either."""
    if other := next(
        (k for pattern, k in OTHER_PICTURES.items() if starts_with(file, pattern)), ""
    ):
        raise Fault("format", other)
    kind = next((k for pattern, k in PICTURES.items() if starts_with(file, pattern)), None)
    if kind is not None and (ask["still"] or kind is not GifImageFile):
        read_picture(file, kind, ask, out)
    elif ask["still"]:
        raise Fault("not-media")
    else:
        read_film(Film(file, pixels=ask["pixels"], threads=ask["threads"]), ask, out)


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
    vars(PngImagePlugin).update(MAX_TEXT_CHUNK=TEXT_LIMIT)
    most = ask["cpu_seconds"] + math.ceil(ask["cpu_pace"] * ask["seconds"])
    confine(memory=ask["memory"], cpu_seconds=ask["cpu_seconds"], most_cpu_seconds=most)
    try:
        with os.fdopen(0, "rb") as file:
            read_file(file, ask, out)
        write(out, b"end", 0.0)
    except Fault as fault:
        write(out, fault.word.encode(), len(fault.detail), fault.detail.encode())
    except BrokenPipeError:
        os._exit(0)
    except MemoryError:
        write(out, b"memory", 0.0)
    except Exception:
        write(out, b"damaged", 0.0)
