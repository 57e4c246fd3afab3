"""Films of every common container and codec are read; what is not read is named."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from painted import film, numbers, paint
from PIL import Image

from ringworld.errors import InputError
from ringworld.media.clip import read_clip, read_image
from ringworld.media.sampling import FrameSampling

SIDE = 64
MADE = [
    ("mpeg1.mpg", "mpeg1video", {}),
    ("mpeg2.vob", "mpeg2video", {}),
    ("mpeg2.ts", "mpeg2video", {}),
    ("elementary.m1v", "mpeg1video", {}),
    ("elementary.m2v", "mpeg2video", {"container": "mpeg2video"}),
    ("windows.wmv", "wmv2", {}),
    ("windows.asf", "msmpeg4", {}),
    ("windows1.wmv", "wmv1", {}),
    ("flash.flv", "flv1", {}),
    ("phone.3gp", "h263", {"side": (144, 176)}),
    ("phone.3g2", "mpeg4", {}),
    ("real.rm", "rv10", {"side": (144, 176)}),
    ("real2.rm", "rv20", {}),
    ("microsoft2.avi", "msmpeg4v2", {}),
    ("microsoft3.avi", "msmpeg4", {}),
    ("cinepak.avi", "cinepak", {"format": "rgb24"}),
    ("h264.flv", "libx264", {}),
    ("vp8.webm", "libvpx", {}),
    ("animation.mov", "qtrle", {"format": "rgb24"}),
    ("sorenson.mov", "svq1", {"format": "yuv410p"}),
    ("camera.dv.avi", "dvvideo", {"side": (576, 720), "format": "yuv420p"}),
    ("intermediate.mov", "prores_ks", {"format": "yuv422p10le"}),
]


def made(
    path: Path,
    codec: str,
    *,
    side: tuple[int, int] = (64, 64),
    format: str = "yuv420p",
    container: str | None = None,
) -> Path:
    """A film of three seconds whose n-th second shows the number n + 1, stretched to `side`."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = side
        stream.pix_fmt = format
        stream.bit_rate = 2_000_000
        for k in range(75):
            image = Image.fromarray(paint(1 + k // 25)).resize(side[::-1], Image.Resampling.NEAREST)
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "how"), MADE, ids=[name for name, _, _ in MADE])
def test_ordinary_films_are_read(tmp_path, name, codec, how):
    path = made(tmp_path / name, codec, **how)
    high, wide = how.get("side", (64, 64))
    clip = read_clip(path, FrameSampling(fps=1.0), size=SIDE, columns=SIDE * wide // high)
    squares = [Image.fromarray(frame).resize((SIDE, SIDE)) for frame in clip.frames]
    assert numbers(np.stack([np.asarray(square) for square in squares])) == [1, 2, 3]
    assert clip.seconds.tolist() == pytest.approx([0, 1, 2], abs=2e-3)


def test_an_elementary_stream_has_the_times_of_its_frames(tmp_path):
    path = made(tmp_path / "film.m1v", "mpeg1video")
    for sampling in (FrameSampling(num_frames=3), FrameSampling(fps=1.0, video_end=2.5)):
        assert numbers(read_clip(path, sampling, size=SIDE).frames) == [1, 2, 3]
    part = read_clip(path, FrameSampling(fps=1.0, video_start=2.0), size=SIDE)
    assert numbers(part.frames) == [3] and part.seconds.tolist() == [2.0]


def with_empty_frames(content: bytes, count: int) -> bytes:
    """An AVI with empty frames after its last one; they repeat it."""
    place = content.index(b"movi") - 8
    size = struct.unpack("<I", content[place + 4 : place + 8])[0]
    end = place + 8 + size
    index = content.index(b"idx1", end)
    length = struct.unpack("<I", content[index + 4 : index + 8])[0]
    entries = b"".join(b"00dc" + struct.pack("<III", 0, size + 8 * k, 0) for k in range(count))
    made = bytearray(
        content[: place + 4]
        + struct.pack("<I", size + 8 * count)
        + content[place + 8 : end]
        + (b"00dc" + bytes(4)) * count
        + b"idx1"
        + struct.pack("<I", length + len(entries))
        + content[index + 8 : index + 8 + length]
        + entries
    )
    struct.pack_into("<I", made, 4, len(made) - 8)
    for mark, offset in ((b"avih", 24), (b"strh", 40)):
        field = made.index(mark) + offset
        struct.pack_into("<I", made, field, struct.unpack_from("<I", made, field)[0] + count)
    return bytes(made)


@pytest.mark.parametrize("count", [3, 30])
def test_empty_frames_at_the_end_of_an_avi_hold_the_last_frame(tmp_path, count):
    path = film(
        tmp_path / "film.avi", [k / 10 for k in range(10)], codec="mpeg4", clock=Fraction(1, 10)
    )
    content = with_empty_frames(path.read_bytes(), count)
    every = read_clip(content, FrameSampling(fps=10.0), size=SIDE)
    assert numbers(every.frames) == [*range(10), *[9] * count]
    halves = read_clip(content, FrameSampling(num_frames=2), size=SIDE)
    assert numbers(halves.frames) == [0, min(9, (10 + count) // 2)]
    with pytest.raises(InputError, match="is cut short"):
        read_clip(content[: content.index(b"movi") + 200], FrameSampling(fps=10.0), size=SIDE)


def test_what_is_not_read_is_named_with_the_command_that_converts_it(tmp_path):
    path = made(tmp_path / "film.avi", "rawvideo")
    with pytest.raises(InputError, match=r"rawvideo in avi: convert it with `ffmpeg -i FILM"):
        read_clip(path, FrameSampling(), size=SIDE)
    Image.fromarray(paint(1)).save(tmp_path / "picture.tiff")
    Image.fromarray(paint(1)).save(tmp_path / "picture.avif")
    for kind in ("tiff", "avif"):
        with pytest.raises(InputError, match=rf"not read, {kind.upper()}: convert it with `ffmpeg"):
            read_image(tmp_path / f"picture.{kind}", size=SIDE)
