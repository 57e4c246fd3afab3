"""Read films and pictures, and write animations: all media files pass through this module.

A picture is a clip of one frame. Frames are plain arrays with **the container's own timestamps**
(presentation time, counted from the first frame), never a frame's index over a nominal rate: films
of variable frame rate keep their time. Files are decoded in a confined process (`sandbox`);
`sampling` says which frames of a film are taken.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float64, UInt8
from PIL import Image

from ringworld.errors import InputError
from ringworld.files import whole
from ringworld.media.sampling import FrameSampling
from ringworld.media.sandbox import TRUSTED, MediaLimits, decode_media, open_media

LARGEST_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames, and when each appears: seconds from the film's start, never decreasing."""

    frames: UInt8[np.ndarray, "Z Y X 3"]
    seconds: Float64[np.ndarray, "Z"]


def stream_clip(
    source: str | Path | bytes,
    sampling: FrameSampling,
    *,
    size: int,
    columns: int | None = None,
    limits: MediaLimits = TRUSTED,
    on_length: Callable[[float], None] | None = None,
) -> Generator[tuple[float, UInt8[np.ndarray, "Y X 3"]], None, None]:
    """Yield (timestamp in seconds, frame) of the sampled moments of a film, or of a picture.

    Frames are cut to `size` x `size` as LWM does: shorter side resized (bicubic), centre kept; with
    `columns`, to `size` rows of so many pixels in the same way. `source` is a path or the file's
    content. `on_length` is called once with a film's length in seconds, nan if it is not known.
    One frame is held at a time, however long the film. Closing the generator ends the decoder.
    Raises InputError for a file that is missing, neither film nor picture, cut short, damaged or
    over a limit, or whose sampled part is empty.
    """
    ask = {"still": False, **asdict(sampling), **frame_shape(size, columns)}
    with open_media(source, limits) as (name, descriptor):
        for word, value, pixels in decode_media(ask, name, descriptor, limits):
            if word == "frame":
                yield value, pixels
            elif on_length is not None:
                on_length(value)


def read_clip(
    source: str | Path | bytes,
    sampling: FrameSampling,
    *,
    size: int,
    columns: int | None = None,
    limits: MediaLimits = TRUSTED,
    on_frame: Callable[[float, float], None] | None = None,
) -> Clip:
    """All frames of `stream_clip`; `on_frame` is called with a frame's seconds and the film's."""
    pixels, seconds, length = bytearray(), [], [math.nan]
    stream = stream_clip(
        source, sampling, size=size, columns=columns, limits=limits, on_length=length.append
    )
    for moment, frame in stream:
        pixels += frame.data
        seconds.append(moment)
        if on_frame is not None:
            on_frame(moment, length[-1])
    wide = size if columns is None else columns
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, size, wide, 3)
    return Clip(frames=frames, seconds=np.array(seconds, np.float64))


def read_image(
    source: str | Path | bytes, *, size: int, limits: MediaLimits = TRUSTED
) -> UInt8[np.ndarray, "Y X 3"]:
    """A PNG, JPEG, WebP or GIF picture (its first frame), fitted to `size` x `size` pixels."""
    ask = {"still": True, **frame_shape(size, None)}
    with open_media(source, limits) as (name, descriptor):
        return list(decode_media(ask, name, descriptor, limits))[0][2]


def frame_shape(size: int, columns: int | None) -> dict[str, int]:
    """The rows and columns of every frame. Refuses sizes that have no meaning."""
    wide = size if columns is None else columns
    for side in (size, wide):
        if not 1 <= side <= LARGEST_SIDE:
            raise InputError(f"The frame size must be from 1 to {LARGEST_SIDE} pixels, not {side}.")
    return {"rows": size, "columns": wide}


def write_animation(path: str | Path, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """Write frames as a looping GIF, MP4 or WebM, by the path's suffix, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() not in ANIMATIONS:
        raise InputError(f"{path.name} must end in .gif, .mp4 or .webm to say which kind to write.")
    if len(frames) == 0 or not 0 < fps < math.inf:
        raise InputError("An animation needs at least one frame and a frame rate above 0.")
    with whole(path) as draft:
        ANIMATIONS[path.suffix.lower()](str(draft), frames, fps)


def write_gif(name: str, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """A looping GIF; its clock counts hundredths of a second."""
    images = [Image.fromarray(frame) for frame in frames]
    hold = max(20, round(100 / fps) * 10)
    images[0].save(
        name, format="GIF", save_all=True, append_images=images[1:], duration=hold, loop=0
    )


def write_mp4(name: str, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """An H.264 film (MPEG-4 where the build has no H.264); odd sides are padded by one pixel."""
    if "libx264" in av.codecs_available:
        write_film(name, frames, fps, kind="mp4", codec="libx264", options={"crf": "18"})
    else:
        write_film(name, frames, fps, kind="mp4", codec="mpeg4", options={})


def write_webm(name: str, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """A VP9 film; odd sides are padded by one pixel."""
    options: dict[str, object] = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4"}
    write_film(name, frames, fps, kind="webm", codec="libvpx-vp9", options=options)


def write_film(
    name: str,
    frames: UInt8[np.ndarray, "Z Y X 3"],
    fps: float,
    *,
    kind: str,
    codec: str,
    options: dict[str, object],
) -> None:
    """A film in a container of this kind; odd sides are padded by one pixel."""
    _, high, wide, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, high % 2), (0, wide % 2), (0, 0)), mode="edge")
    with av.open(name, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, VideoStream), "the codec is one of pictures"
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


# The writers of films, by the ending of the file.
ANIMATIONS = {".gif": write_gif, ".mp4": write_mp4, ".webm": write_webm}
