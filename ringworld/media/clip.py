"""One door for foreign media: nothing else in the package opens a film or a picture.

A picture is a clip of one frame. What comes back is plain arrays and **the container's own
timestamps** (presentation time, counted from the first frame), never a frame's index over a nominal
rate: films with variable frame rates keep their time. Who decodes, and how it is kept from doing
harm, is in `sandbox`; which frames are taken, in `pick`.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ringworld.errors import InputError
from ringworld.files import whole
from ringworld.media.sampling import Pick
from ringworld.media.sandbox import OWN_FILES, MediaLimits, converse, opened

LARGEST_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames and when each appears, in seconds from the film's start, never decreasing."""

    frames: UInt8[np.ndarray, "Z Y X 3"]
    seconds: Float64[np.ndarray, "Z"]


def stream_clip(
    source: str | Path | bytes,
    pick: Pick,
    *,
    size: int,
    columns: int | None = None,
    limits: MediaLimits = OWN_FILES,
    on_length: Callable[[float], None] | None = None,
) -> Generator[tuple[float, UInt8[np.ndarray, "Y X 3"]], None, None]:
    """Yield (timestamp in seconds, frame) of the picked moments of a film, or of a picture.

    Frames are cut to `size` x `size` as LWM does: shorter side resized (bicubic), centre kept; with
    `columns`, to `size` rows of so many pixels in the same way. `source` is a path or the file's
    content. `on_length` hears a film's length in seconds once, nan where the file does not say.
    One frame is held at a time, however long the film. Closing the generator ends the decoder.
    Raises InputError for a file that is missing, neither film nor picture, cut short, damaged or
    over a limit, or whose picked part is empty.
    """
    ask = {"still": False, **asdict(pick), **shape(size, columns)}
    with opened(source, limits) as (name, descriptor):
        for word, value, pixels in converse(ask, name, descriptor, limits):
            if word == "frame":
                yield value, pixels
            elif on_length is not None:
                on_length(value)


def read_clip(
    source: str | Path | bytes,
    pick: Pick,
    *,
    size: int,
    columns: int | None = None,
    limits: MediaLimits = OWN_FILES,
    on_frame: Callable[[float, float], None] | None = None,
) -> Clip:
    """`stream_clip`, collected; `on_frame` hears (the frame's, the film's seconds or nan)."""
    pixels, seconds, length = bytearray(), [], [math.nan]
    stream = stream_clip(
        source, pick, size=size, columns=columns, limits=limits, on_length=length.append
    )
    for moment, frame in stream:
        pixels += frame.data
        seconds.append(moment)
        if on_frame is not None:
            on_frame(moment, length[-1])
    wide = size if columns is None else columns
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, size, wide, 3)
    return Clip(frames=frames, seconds=np.array(seconds, np.float64))


def read_video(
    source: str | Path | bytes,
    *,
    fps: float,
    size: int,
    on_frame: Callable[[float, float], None] | None = None,
    limits: MediaLimits = OWN_FILES,
    start: float = 0.0,
    end: float | None = None,
    columns: int | None = None,
) -> Clip:
    """`read_clip` of the moments start, start + 1/fps, ... before `end`."""
    pick = Pick(fps=fps, start=start, end=end)
    return read_clip(source, pick, size=size, columns=columns, limits=limits, on_frame=on_frame)


def read_image(
    source: str | Path | bytes, *, size: int, limits: MediaLimits = OWN_FILES
) -> UInt8[np.ndarray, "Y X 3"]:
    """A PNG, JPEG, WebP or GIF picture (its first frame), fitted to `size` x `size` pixels."""
    ask = {"still": True, **shape(size, None)}
    with opened(source, limits) as (name, descriptor):
        return list(converse(ask, name, descriptor, limits))[0][2]


def shape(size: int, columns: int | None) -> dict[str, int]:
    """The rows and columns of every frame. Refuses sizes that have no meaning."""
    wide = size if columns is None else columns
    for side in (size, wide):
        if not 1 <= side <= LARGEST_SIDE:
            raise InputError(f"The frame size must be from 1 to {LARGEST_SIDE} pixels, not {side}.")
    return {"rows": size, "columns": wide}


def write_animation(path: str | Path, frames: UInt8[np.ndarray, "Z Y X 3"], fps: float) -> None:
    """Write frames as a looping GIF or an MP4, by the path's suffix, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() not in ANIMATIONS:
        raise InputError(f"{path.name} must end in .gif or .mp4 to say which kind to write.")
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


# The writers of films, by the ending of the file.
ANIMATIONS = {".gif": write_gif, ".mp4": write_mp4}
