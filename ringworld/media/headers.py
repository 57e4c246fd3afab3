"""What a media file's own headers say that the codec libraries do not report.

This module is part of the confined decoder: it imports nothing of ringworld.
"""

import os
import re
import struct
from fractions import Fraction
from typing import BinaryIO

Margins = tuple[int, int, int, int]  # pixels left, above, right and below that are not shown
NO_MARGINS = (0, 0, 0, 0)
MP4 = rb"....(ftyp|moov|mdat|free|wide|skip)"
LARGEST_HEADER = 64 << 20  # bytes of an MP4's moov box that are searched for a clean aperture


def starts_with(file: BinaryIO, pattern: bytes) -> bool:
    """Whether the file's first bytes match; rewinds."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return re.match(pattern, head, re.DOTALL) is not None


def ends_like_gif(file: BinaryIO) -> bool:
    """Whether the last byte, padding aside, is a GIF's trailer."""
    file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
    return file.read().rstrip(b"\0").endswith(b";")


def is_whole_riff(file: BinaryIO) -> bool:
    """Whether the file holds all bytes that the headers of its RIFF lists promise."""
    size, place = os.fstat(file.fileno()).st_size, 0
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or not length:
            return place > 0
        place += 8 + length + length % 2
    return 0 < place <= size + 1


def find_margins(file: BinaryIO, kind: str, width: int, height: int) -> Margins:
    """The margins of an MP4's or Matroska's frames; leaves the file at its place."""
    place = file.tell()
    found = NO_MARGINS
    if kind.startswith("mov"):
        found = clean_aperture(read_moov(file), width, height)
    elif kind.startswith("matroska"):
        file.seek(0)
        found = pixel_crop(file.read(1 << 20), width, height)
    file.seek(place)
    return found


def pixel_crop(head: bytes, width: int, height: int) -> Margins:
    """The margins that the tracks of a Matroska file crop (RFC 9559, PixelCrop...)."""
    place = head.find(b"\x16\x54\xae\x6b")  # Tracks
    until = head.find(b"\x1f\x43\xb6\x75", place)  # Cluster
    crops = re.finditer(rb"\x54([\xaa\xbb\xcc\xdd])(?:\x81(.)|\x82(..))", head[place:until], re.S)
    found = {crop[1]: int.from_bytes(crop[2] or crop[3]) for crop in crops}
    left, top, right, bottom = (found.get(name, 0) for name in (b"\xcc", b"\xbb", b"\xdd", b"\xaa"))
    inside = left + right < width and top + bottom < height
    return (left, top, right, bottom) if inside and place >= 0 else NO_MARGINS


def read_moov(file: BinaryIO) -> bytes:
    """The moov box of an MP4, where it is not too large."""
    size, place = os.fstat(file.fileno()).st_size, 0
    while place + 8 <= size:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8))
        if name == b"moov":
            return file.read(min(length, LARGEST_HEADER))
        if length < 8:
            break
        place += length
    return b""


def clean_aperture(moov: bytes, width: int, height: int) -> Margins:
    """The margins outside the first clean aperture (ISO/IEC 14496-12) of an MP4's header."""
    place = moov.find(b"\0\0\0\x28clap")
    if place < 0 or len(moov) < place + 40:
        return NO_MARGINS
    numbers = struct.unpack(">IIIIiIiI", moov[place + 8 : place + 40])
    if 0 in numbers[1::2]:
        return NO_MARGINS
    wide, high, x, y = (
        Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)
    )
    left, top = round((width - wide) / 2 + x), round((height - high) / 2 + y)
    right, bottom = width - left - round(wide), height - top - round(high)
    inside = min(left, top, right, bottom) >= 0 and min(wide, high) >= 1
    return (left, top, right, bottom) if inside else NO_MARGINS
