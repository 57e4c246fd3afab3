"""What a viewer sees of a decoded picture or frame, as RGB bytes of the wanted size.

Everything that a file says of its looks is applied here: orientation, pixel shape, fields, bit
depth, transparency (laid over white), colour profile, gamma, primaries and HDR transfer. The result
is sRGB. This module is part of the confined decoder: it imports nothing of ringworld but
its neighbour.

Sources: ITU-R BT.2100 (PQ, HLG), BT.2408 (203 cd/m2 is the white of SDR), IEC 61966-2-1 (sRGB), the
PNG specification (gAMA, cHRM), ITU-T H.273 (code points of transfer and primaries).
"""

import io
import math
import struct
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageCms

from ringworld.media.headers import NO_MARGINS, Margins

TRANSPOSITIONS = {  # of the signs (a, b, c, d) of a display matrix: x' = ax + cy, y' = bx + dy
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
}
# Chromaticities (x, y) of white, red, green and blue, by their code points in H.273.
D65 = (0.3127, 0.3290)
SRGB = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES = {
    1: SRGB,
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
WIDE_GAMUTS = (9, 11, 12)
MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)  # code points of colour matrices that libswscale knows
PQ, HLG = 16, 18  # code points of transfer
SDR_WHITE = 203.0  # cd/m2
HLG_PEAK = 1000.0  # cd/m2
PNG_SRGB_GAMMA = 0.45455
# One for all frames: each has threads, whose stacks stay as long as the frame that it belongs to.
REFORMATTER = VideoReformatter()
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Fault(Exception):
    """A reason to refuse the file: the fault word, and a name that goes with it."""

    def __init__(self, word: str, detail: str = "") -> None:
        super().__init__(word)
        self.word, self.detail = word, detail


def covering_size(width: float, height: float, rows: int, columns: int) -> tuple[int, int]:
    """(width, height) of the least size of these proportions that covers `rows` x `columns`."""
    if width * rows < height * columns:
        return columns, max(rows, int(columns * height / width))
    return max(columns, int(rows * width / height)), rows


def fit_frame(
    image: Image.Image, rows: int, columns: int, shape: tuple[float, float] | None = None
) -> Image.Image:
    """The image resized (bicubic) to cover `rows` x `columns`, its centre kept.

    `shape` is (width, height) as shown, where the pixels are not square.
    """
    wide, high = covering_size(*(shape or image.size), rows, columns)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - columns) / 2), round((high - rows) / 2)
    return image.crop((left, top, left + columns, top + rows))


def draw_picture(image: Image.Image, rows: int, columns: int) -> bytes:
    """The sRGB bytes of an upright picture, fitted to `rows` x `columns`."""
    info = dict(image.info)
    return convert_picture(fit_frame(over_white(image), rows, columns), info).tobytes()


def over_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, L or CMYK of 8 bits, what is transparent in it laid over white."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        return Image.fromarray(np.where(deep == key, 255, deep >> 8).astype(np.uint8))
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image.getchannel("A"))
        return paper
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def convert_picture(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """The picture in sRGB, by its colour profile, or by a PNG's gamma and chromaticities.

    A profile that is broken or belongs to another kind of picture is not used, as in browsers.
    """
    if profile := info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(source).startswith("sRGB"):
                rgb = source.profile.xcolor_space == "RGB "
                image = image.convert("RGB") if rgb else image
                made = ImageCms.profileToProfile(image, source, SRGB_PROFILE, outputMode="RGB")
                return made if made is not None else image.convert("RGB")
        return image.convert("RGB")
    image = image.convert("RGB")
    gamma, corners = info.get("gamma"), info.get("chromaticity") or SRGB
    if not gamma or "srgb" in info:
        return image
    if abs(gamma - PNG_SRGB_GAMMA) < 0.001 and np.allclose(corners, SRGB, atol=0.002):
        return image
    light = (np.asarray(image) / 255.0) ** (1 / gamma)
    return Image.fromarray(encode_srgb(light @ primaries_matrix(tuple(corners)).T))


def draw_frame(
    frame: av.VideoFrame,
    rows: int,
    columns: int,
    *,
    aspect: Fraction = Fraction(1),
    margins: Margins = NO_MARGINS,
) -> bytes:
    """The sRGB bytes of a film's frame, fitted to `rows` x `columns`.

    `aspect` is the width of a pixel over its height; `margins` are the pixels left, above, right
    and below that are not shown. Of an interlaced frame the upper field is taken. Raises Fault for
    a frame that is turned by no multiple of 90 degrees, and for a colour matrix that is not read.
    """
    if frame.colorspace not in MATRICES:
        raise Fault("colours", str(int(frame.colorspace)))
    turn = transposition(frame)
    left, top, right, bottom = margins
    wide, high = frame.width - left - right, frame.height - top - bottom
    shape = (wide if aspect == 1 else float(wide * aspect), float(high))
    if turn in SIDEWAYS:
        shape = shape[::-1]

    def arrange(image: Image.Image) -> Image.Image:
        image = image.crop((left, top, left + wide, top + high)) if any(margins) else image
        if frame.interlaced_frame:
            image = Image.fromarray(np.asarray(image)[::2])
        return fit_frame(image if turn is None else image.transpose(turn), rows, columns, shape)

    if frame.color_trc in (PQ, HLG) or frame.color_primaries in WIDE_GAMUTS:
        deep = np.float32(1 / 65535) * REFORMATTER.reformat(frame, format="rgb48le").to_ndarray()
        channels = [arrange(Image.fromarray(deep[..., channel])) for channel in range(3)]
        light = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)
        return encode_srgb(to_light(light, frame.color_trc, frame.color_primaries)).tobytes()
    if frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components):
        image = Image.fromarray(REFORMATTER.reformat(frame, format="rgba").to_ndarray())
        return arrange(over_white(image)).tobytes()
    return arrange(REFORMATTER.reformat(frame, format="rgb24").to_image()).tobytes()


def transposition(frame: av.VideoFrame) -> Image.Transpose | None:
    """How the frame's display matrix turns and mirrors it; None where it stays as it is."""
    side_data: Any = frame.side_data
    if (matrix := side_data.get(Type.DISPLAYMATRIX)) is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    across, down = math.hypot(a, b), math.hypot(c, d)
    if not across or not down:
        return None
    exact = (a / across, b / across, c / down, d / down)
    signs = tuple(round(value) for value in exact)
    if signs not in TRANSPOSITIONS or not np.allclose(exact, signs, atol=0.02):
        raise Fault("angle")
    return TRANSPOSITIONS[signs]


def to_light(values: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Linear sRGB light [..., 3] of coded values from 0 to 1; 1 is the white of SDR.

    SDR of wide primaries keeps its greys: it is decoded by the curve of sRGB.
    """
    corners = PRIMARIES.get(primaries, SRGB if transfer not in (PQ, HLG) else PRIMARIES[9])
    if transfer == PQ:
        root = values ** (32 / 2523)
        light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (
            16384 / 2610
        )
        light = light * (10_000 / SDR_WHITE)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
        luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
        light = scene * luminance[..., None] ** 0.2 * (HLG_PEAK / SDR_WHITE)
    else:
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light @ primaries_matrix(corners).T


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Bytes of linear sRGB light; what is brighter than white, or no colour of sRGB, is clipped."""
    light = light.clip(0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded).astype(np.uint8)


def primaries_matrix(corners: tuple[float, ...]) -> np.ndarray:
    """[3, 3]: linear RGB of these chromaticities (white, red, green, blue) to linear sRGB.

    White stays white: each basis is scaled to its own.
    """

    def basis(points: tuple[float, ...]) -> np.ndarray:
        x, y = np.array(points).reshape(4, 2).T
        xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
        return xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])

    matrix = np.linalg.solve(basis(SRGB), basis(corners))
    return matrix / matrix.sum(axis=1, keepdims=True)
