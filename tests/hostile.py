"""More than a hundred files that mean no good, or are merely odd, and what must become of each.

Run it to look at them: `python tests/hostile.py FOLDER` writes them all.
"""

import gzip
import io
import os
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from painted import film, paint, song
from PIL import Image

ODD = 0b0001_0011_0111_0010  # a number whose picture looks different from every side
REFUSED = "."
CUT = "is cut short|is damaged|is neither|has no picture"


@dataclass(frozen=True)
class Suspect:
    """A file, and either the numbers of its frames at 2 a second or words of its refusal.

    `or_frames` allows both: then whatever frames come must be in order.
    """

    name: str
    path: Path
    frames: list[int] | None = None
    words: str = REFUSED
    or_frames: bool = False


def suspects(folder: Path) -> list[Suspect]:
    """Every file, written into `folder`."""
    good = samples(folder)
    made = [
        *cut_short(folder, good),
        *bombs(folder),
        *scripts(folder),
        *strangers(folder, good),
        *absurd(folder, good),
        *odd(folder, good),
        *places(folder, good),
    ]
    assert len({suspect.name for suspect in made}) == len(made)
    return made


def written(folder: Path, name: str, content: bytes, **becomes: object) -> Suspect:
    """A suspect with this content."""
    path = folder / name
    path.write_bytes(content)
    return Suspect(name, path, **becomes)


def samples(folder: Path) -> dict[str, bytes]:
    """Sound files of every kind, 4 s at 10 frames a second."""
    times = [k / 10 for k in range(40)]
    place = folder / "samples"
    place.mkdir()
    made = {}
    for name, how in {
        "film.mp4": {},
        "fast.mp4": {"options": {"movflags": "faststart"}},
        "film.mkv": {},
        "film.webm": {"codec": "libvpx-vp9", "coding": {"deadline": "realtime", "cpu-used": "8"}},
        "film.avi": {"codec": "mpeg4", "clock": Fraction(1, 10)},
    }.items():
        made[name] = film(place / name, times, **how).read_bytes()
    pictures = [Image.fromarray(paint(k)) for k in range(8)]
    pictures[0].save(
        place / "film.gif", save_all=True, append_images=pictures[1:], duration=500, loop=0
    )
    made["film.gif"] = (place / "film.gif").read_bytes()
    for kind in ("png", "jpeg", "webp", "gif"):
        file = io.BytesIO()
        Image.fromarray(paint(ODD)).save(file, kind)
        made[f"picture.{kind}"] = file.getvalue()
        (place / f"picture.{kind}").write_bytes(file.getvalue())
    return made


def cut_short(folder: Path, good: dict[str, bytes]) -> Iterator[Suspect]:
    """Everything, cut off at many places."""
    for name, content in good.items():
        for percent in (1, 20, 50, 75):
            part = content[: max(9, len(content) * percent // 100)]
            yield written(folder, f"cut_{percent}_{name}", part, words=CUT)


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(wide: int, high: int, body: bytes, *extra: bytes) -> bytes:
    """A PNG of RGB pixels with this header, whatever its body holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end


def gif(wide: int, high: int, inner: tuple[int, int] = (1, 1), frames: int = 1) -> bytes:
    """A GIF with this screen, and frames of another size that hold one pixel of data."""
    screen = b"GIF89a" + struct.pack("<HHBBB", wide, high, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"," + struct.pack("<HHHHB", 0, 0, *inner, 0) + b"\x02\x02\x44\x01\0"
    return screen + image * frames + b";"


def webp(wide: int, high: int) -> bytes:
    """A WebP whose canvas has this size and whose picture is missing."""
    sides = struct.pack("<I", wide - 1)[:3] + struct.pack("<I", high - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + sides
    body += b"VP8L" + struct.pack("<I", 8) + b"\x2f" + b"\xff" * 7
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bombs(folder: Path) -> Iterator[Suspect]:
    """Small files that declare, or become, large ones."""
    jpeg = io.BytesIO()
    Image.fromarray(paint(0)).save(jpeg, "JPEG")
    frame = jpeg.getvalue().index(b"\xff\xc0") + 5
    large = jpeg.getvalue()[:frame] + b"\xff\xdc\xff\xdc" + jpeg.getvalue()[frame + 4 :]
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20)))
    black = zlib.decompress(zlib.compress(bytes(4800 * 3 + 1))) * 4800
    contents = {
        "bomb_9000.png": (png(9000, 9000, b""), "pixels"),
        "bomb_65535.png": (png(65535, 65535, b""), "pixels"),
        "bomb_most.png": (png((1 << 31) - 1, (1 << 31) - 1, b""), "pixels"),
        "bomb_negative.png": (png((1 << 32) - 1, 2, b""), REFUSED),
        "bomb_strip.png": (png(20_000_000, 1, bytes(60_000_001)), "needs more|is cut short"),
        "bomb_text.png": (png(4, 4, bytes(52), text), REFUSED),
        "bomb_profile.png": (png(4, 4, bytes(52), profile), REFUSED),
        "bomb_inflates.png": (png(4, 4, bytes(100 << 20)), REFUSED),
        "bomb_large.jpg": (large, "pixels"),
        "bomb_65535.gif": (gif(65535, 65535), REFUSED),
        "bomb_inner.gif": (gif(4, 4, (65535, 65535)), REFUSED),
        "bomb_frames.gif": (gif(4, 4, (1, 1), 50_000), REFUSED),
        "bomb_65535_frames.gif": (gif(65535, 65535, (1, 1), 99), REFUSED),
        "bomb_canvas.webp": (webp(1 << 24, 1 << 7), REFUSED),
        "bomb_most.webp": (webp(1 << 24, 1 << 24), REFUSED),
    }
    for name, (content, words) in contents.items():
        yield written(folder, name, content, words=words, or_frames=words == REFUSED)
    yield written(folder, "black_23_megapixels.png", png(4800, 4800, black), frames=[0])


def scripts(folder: Path) -> Iterator[Suspect]:
    """Texts that make a media library open something else: a neighbour, the net, a device."""
    film(folder / "secret.mp4", [0.0, 0.5])
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    texts = {
        "concat.mp4": "ffconcat version 1.0\nfile 'secret.mp4'\n",
        "concat_absolute.mkv": f"ffconcat version 1.0\nfile '{folder / 'secret.mp4'}'\n",
        "concat_plain.txt": "file 'secret.mp4'\nduration 2\n",
        "concat_net.mp4": "ffconcat version 1.0\nfile 'http://127.0.0.1:9/film.mp4'\n",
        "concat_option.mp4": "ffconcat version 1.0\nfile secret.mp4\noption safe 0\n",
        "concat_protocol.mp4": "concat:secret.mp4|secret.mp4",
        "list.m3u8": hls.format("secret.mp4"),
        "list_as_film.mp4": hls.format("secret.mp4"),
        "list_net.avi": hls.format("http://127.0.0.1:9/a.ts"),
        "list_file.m3u8": hls.format("file:///etc/passwd"),
        "list_nested.m3u8": hls.format("concat:http://127.0.0.1:9/a|file:///etc/passwd"),
        "list.m3u": "secret.mp4\n",
        "list.pls": "[playlist]\nFile1=secret.mp4\nNumberOfEntries=1\n",
        "dash.mpd": "<?xml version='1.0'?><MPD><BaseURL>secret.mp4</BaseURL><Period/></MPD>",
        "talk.sdp": "v=0\ns=a\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "filter.mp4": "movie=secret.mp4",
        "subject.webm": "http://127.0.0.1:9/film.webm",
        "pattern_%03d.png": "secret",
        "drawing.svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='secret.mp4'/></svg>",
        "entity.svg": "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
        "page.html": "<html><video src='secret.mp4'></video></html>",
        "words.srt": "1\n00:00:00,000 --> 00:00:04,000\n<img src='secret.mp4'>\n",
        "words.ass": "[Script Info]\nScriptType: v4.00+\n[Events]\nFormat: Start, End, Text\n",
        "words.vtt": "WEBVTT\n\n00:00.000 --> 00:04.000\nHello\n",
        "code.py": "import os\nos.system('true')\n",
        "meta.ffmeta": ";FFMETADATA1\ntitle=a\n",
    }
    for name, text in texts.items():
        yield written(folder, name, text.encode(), words="is neither")


def strangers(folder: Path, good: dict[str, bytes]) -> Iterator[Suspect]:
    """Files of other kinds, or with another kind's ending."""
    packed, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("film.mp4", good["film.mp4"])
    with tarfile.open(fileobj=tape, mode="w") as archive:
        archive.add(folder / "secret.mp4", "film.mp4")
    noise = np.random.default_rng(0).bytes(5000)
    contents = {
        "zip.mp4": packed.getvalue(),
        "gzip.mp4": gzip.compress(good["film.mp4"]),
        "tar.mkv": tape.getvalue(),
        "exr.exr": b"\x76\x2f\x31\x01\x02\0\0\0channels\0chlist\0" + bytes(99),
        "tiff.tiff": b"II*\0\x08\0\0\0\xff\xff" + bytes(99),
        "bitmap.bmp": b"BM" + struct.pack("<IIIIIIHH", 99, 0, 54, 40, 65535, 65535, 1, 24),
        "icon.ico": b"\0\0\x01\0\x01\0" + bytes(40),
        "photoshop.psd": b"8BPS\0\x01" + bytes(40),
        "jpeg2000.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "program.mp4": b"\x7fELF\x02\x01\x01" + bytes(99),
        "page.pdf": b"%PDF-1.7\n%%EOF\n",
        "pickle.png": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "wave.wav": b"RIFF\x64\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0" + bytes(80),
        "music.mp3": b"ID3\x04\0\0\0\0\0\0" + b"\xff\xfb\x90\x64" + bytes(400),
        "music.ogg": b"OggS\0\x02" + bytes(90),
        "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "noise.mp4": noise,
        "noise.png": b"\x89PNG\r\n\x1a\n" + noise,
        "noise.jpg": b"\xff\xd8\xff" + noise,
        "noise.webp": b"RIFF\x88\x13\0\0WEBP" + noise,
        "noise.gif": b"GIF89a" + noise,
        "noise.mkv": b"\x1a\x45\xdf\xa3" + noise,
        "noise.avi": b"RIFF\x88\x13\0\0AVI LIST" + noise,
        "noise_boxes.mp4": b"\0\0\0\x14ftypisom\0\0\0\0isom" + noise,
        "zeros.mp4": bytes(5000),
        "ones.mp4": b"\xff" * 5000,
        "byte.mp4": b"\0",
        "empty.mp4": b"",
        "empty.png": b"",
    }
    for name, content in contents.items():
        yield written(folder, name, content)
    for name, source, frames in (
        ("film.png", "film.mp4", [0, 5, 10, 15, 20, 25, 30, 35]),
        ("film.txt", "film.mkv", [0, 5, 10, 15, 20, 25, 30, 35]),
        ("picture.mp4", "picture.png", [ODD]),
        ("picture_gif.jpg", "picture.gif", [ODD]),
    ):
        yield written(folder, name, good[source], frames=frames)
    script = b"\nffconcat version 1.0\nfile secret.mp4\n"
    yield written(folder, "polyglot.png", good["picture.png"] + script, frames=[ODD])


def boxes(kind: bytes, body: bytes) -> bytes:
    """One box of an MP4."""
    return struct.pack(">I4s", 8 + len(body), kind) + body


def absurd(folder: Path, good: dict[str, bytes]) -> Iterator[Suspect]:
    """Films with one number of their headers made impossible."""
    mp4, mkv, avi = good["film.mp4"], good["film.mkv"], good["film.avi"]

    def patched(content: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
        place = content.index(mark) + len(mark) + offset
        return content[:place] + new + content[place + len(new) :]

    most = b"\xff\xff\xff\xff"
    contents = {
        "sides.mp4": patched(mp4, b"avc1", 24, b"\xff\xff\xff\xff"),
        "no_sides.mp4": patched(mp4, b"avc1", 24, bytes(4)),
        "no_clock.mp4": patched(mp4, b"mdhd", 12, bytes(4)),
        "fast_clock.mp4": patched(mp4, b"mdhd", 12, most),
        "no_film_clock.mp4": patched(mp4, b"mvhd", 12, bytes(4)),
        "length.mp4": patched(mp4, b"mvhd", 16, most),
        "no_steps.mp4": patched(mp4, b"stts", 12, bytes(4)),
        "huge_steps.mp4": patched(mp4, b"stts", 12, b"\x7f\xff\xff\xff"),
        "negative_steps.mp4": patched(mp4, b"stts", 12, most),
        "many_steps.mp4": patched(mp4, b"stts", 8, most),
        "many_entries.mp4": patched(mp4, b"stts", 4, most),
        "many_sizes.mp4": patched(mp4, b"stsz", 8, most),
        "huge_sizes.mp4": patched(mp4, b"stsz", 12, b"\x7f\xff\xff\xff"),
        "outside.mp4": patched(mp4, b"stco", 8, most),
        "before_the_beginning.mp4": patched(mp4, b"stco", 8, bytes(4)),
        "edit_length.mp4": patched(mp4, b"elst", 8, most),
        "edit_far.mp4": patched(mp4, b"elst", 12, b"\x7f\xff\xff\xff"),
        "edit_negative.mp4": patched(mp4, b"elst", 12, b"\x80\0\0\0"),
        "edits.mp4": patched(mp4, b"elst", 4, most),
        "box_of_4_gigabytes.mp4": patched(mp4, b"isomiso2avc1mp41", 0, most),
        "elsewhere.mov": patched(mp4, b"url ", 0, b"\0\0\0\0/etc")[: len(mp4)],
        "deep.mp4": boxes(b"ftyp", b"qt  \0\0\0\0") + b"\xff\xff\xff\xf0moov" * 5000,
        "no_tracks.mp4": boxes(b"ftyp", b"isom\0\0\0\0") + boxes(b"moov", b""),
        "only_type.mp4": boxes(b"ftyp", b"isom\0\0\0\0"),
        "fragments.mp4": boxes(b"ftyp", b"isom\0\0\0\0") + boxes(b"moof", b"") * 3000,
        "nan.mkv": patched(mkv, b"\x44\x89\x88", 0, struct.pack(">d", float("nan"))),
        "negative.mkv": patched(mkv, b"\x44\x89\x88", 0, struct.pack(">d", -1e9)),
        "forever.mkv": patched(mkv, b"\x44\x89\x88", 0, struct.pack(">d", float("inf"))),
        "long.mkv": patched(mkv, b"\x44\x89\x88", 0, struct.pack(">d", 1e300)),
        "no_clock.mkv": patched(mkv, b"\x2a\xd7\xb1\x83", 0, bytes(3)),
        "slow_clock.mkv": patched(mkv, b"\x2a\xd7\xb1\x83", 0, b"\xff\xff\xff"),
        "sides.mkv": patched(mkv, b"\xb0\x81", 0, b"\0"),
        "cluster.mkv": patched(mkv, b"\x1f\x43\xb6\x75", 0, b"\x01" + b"\xff" * 7),
        "endless.mkv": patched(mkv, b"\x18\x53\x80\x67", 0, b"\x01" + b"\xff" * 7),
        "no_rate.avi": patched(avi, b"strh", 24, bytes(8)),
        "huge_rate.avi": patched(avi, b"strh", 24, b"\x01\0\0\0\xff\xff\xff\x7f"),
        "slow.avi": patched(avi, b"strh", 24, b"\xff\xff\xff\x7f\x01\0\0\0"),
        "sides.avi": patched(avi, b"strf", 8, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"),
        "frames.avi": patched(avi, b"avih", 20, most),
        "code.avi": avi.replace(b"FMP4", b"EXR "),
        "no_frames.gif": gif(4, 4, frames=0),
        "no_sides.gif": gif(0, 0, (0, 0)),
        "no_sides.png": png(0, 0, b""),
        "no_body.png": png(4, 4, b""),
        "wrong_sum.png": patched(good["picture.png"], b"IHDR", 13, bytes(4)),
    }
    for name, content in contents.items():
        yield written(folder, f"absurd_{name}", content, or_frames=True)


def turned(content: bytes, matrix: tuple[int, ...]) -> bytes:
    """An MP4 whose track is shown through another matrix."""
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    place = content.index(upright, content.index(b"tkhd"))
    new = struct.pack(">9i", *(n << 16 for n in matrix[:8]), 1 << 30)
    return content[:place] + new + content[place + 36 :]


def odd(folder: Path, good: dict[str, bytes]) -> Iterator[Suspect]:
    """Unusual films, most of them sound."""

    def made(name: str, times: list[float], **how: object) -> Path:
        return film(folder / name, times, **how)

    def quarter(turns: int) -> Callable[[int], np.ndarray]:
        return lambda number: np.rot90(paint(ODD + number), turns)

    lossless = {"codec": "ffv1"}
    ones = [ODD, ODD + 1]
    for turns, matrix in {
        1: (0, 1, 0, -1, 0, 0, 0, 0),
        2: (-1, 0, 0, 0, -1, 0, 0, 0),
        3: (0, -1, 0, 1, 0, 0, 0, 0),
    }.items():
        path = made(f"turned_{turns}.mp4", [0.0, 0.5], picture=quarter(turns))
        path.write_bytes(turned(path.read_bytes(), matrix))
        yield Suspect(path.name, path, frames=ones)
    for name, side in (("odd_33.mkv", 33), ("odd_65.mkv", 65), ("odd_127.mkv", 127)):
        path = made(name, [0.0, 0.5], picture=lambda n, s=side: paint(ODD + n, s), **lossless)
        yield Suspect(name, path, frames=ones)
    for name, high, wide in (("pixel.mkv", 1, 1), ("line.mkv", 1, 400), ("post.mkv", 400, 1)):
        white = np.full((high, wide, 3), 255, np.uint8)
        path = made(name, [0.0, 0.5], picture=lambda n, w=white: w, codec="libvpx-vp9")
        yield Suspect(name, path, frames=[0xFFFF] * 2)
    yield written(folder, "pixel.png", png(1, 1, b"\0\xff\xff\xff"), frames=[0xFFFF])
    yield written(folder, "pixel.gif", gif(1, 1), or_frames=True)
    yield Suspect("one.mp4", made("one.mp4", [0.0]), frames=[0])
    yield Suspect(
        "uneven.mkv", made("uneven.mkv", [0, 0.01, 0.7, 3.0]), frames=[0, 1] + [2] * 4 + [3]
    )
    late = [100_000.0, 100_000.6]
    yield Suspect("late.mkv", made("late.mkv", late), frames=[0, 0])
    yield Suspect("gap.mkv", made("gap.mkv", [0.0, 90_000.0]), words="lasts longer")
    yield Suspect("slow.mkv", made("slow.mkv", [0.0, 1500.0]), words="2,048 frames")
    yield Suspect("song.mp4", song(folder / "song.mp4"), words="no picture track")
    yield Suspect("song.mkv", song(folder / "song.mkv"), words="no picture track")
    for name, codec in (("code_png.mov", "png"), ("code_exr.mov", "exr"), ("raw.avi", "rawvideo")):
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=2)
            stream.height = stream.width = 64
            stream.pix_fmt = {"png": "rgb24", "exr": "gbrpf32le", "rawvideo": "yuv420p"}[codec]
            frame = av.VideoFrame.from_ndarray(paint(0), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        yield Suspect(name, path, words="in a codec that is not read")


def places(folder: Path, good: dict[str, bytes]) -> Iterator[Suspect]:
    """Names that lead to something else than a film."""
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "linked.png").symlink_to(folder / "samples" / "picture.png")
    with socket.socket(socket.AF_UNIX) as door:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # the path of a socket is at most 107 bytes long
        door.bind("socket.mp4")
        os.fchdir(here)
        os.close(here)
    name = "a\nb\x1b[2J'%s{}\u202e.mp4"
    (folder / name).write_bytes(good["film.mp4"][:999])
    yield Suspect("folder", folder / "folder.mp4", words="not a regular file")
    yield Suspect("pipe", folder / "pipe.mp4", words="not a regular file")
    yield Suspect("device", folder / "device.mp4", words="not a regular file")
    yield Suspect("zero", Path("/dev/zero"), words="not a regular file")
    yield Suspect("null", Path("/dev/null"), words="not a regular file")
    yield Suspect("socket", folder / "socket.mp4", words="cannot be opened|not a regular file")
    yield Suspect("loop", folder / "loop.mp4", words="cannot be opened")
    yield Suspect("dangling", folder / "dangling.mp4", words="There is no file")
    yield Suspect("missing", folder / "missing.mp4", words="There is no file")
    yield Suspect("under a file", folder / "secret.mp4" / "film.mp4", words="There is no file")
    yield Suspect("zero byte", folder / "a\0b.mp4", words="cannot be opened")
    yield Suspect("long name", folder / ("a" * 5000), words="cannot be opened")
    yield Suspect("address", Path("http://127.0.0.1:9/film.mp4"), words="There is no file")
    yield Suspect("concatenated", Path("concat:other.mp4"), words="There is no file")
    yield Suspect("letters", folder / name, words=CUT)
    yield Suspect("linked", folder / "linked.png", frames=[ODD])


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    print(len(suspects(Path(sys.argv[1]))), "files")
