"""A film to codes as it is decoded: its length costs codes, a kilobyte a frame, and nothing else.

The decoder's pipe holds few frames and waits while a batch is encoded, so what is in memory is one
batch of frames, however long the film: an hour at one frame a second is 3,600 frames, one example
of 925,206 tokens at 257 a frame and 6 around them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int

from ringworld.data.codec import BATCH, Codec
from ringworld.data.media import Clip, stream_clip
from ringworld.data.pick import Pick
from ringworld.data.sandbox import OWN_FILES, MediaLimits


@dataclass(frozen=True, kw_only=True)
class CodedFilm:
    """The codes of each frame, and when it appears, in seconds from the film's start."""

    codes: Int[np.ndarray, "Z Q"]
    seconds: Float64[np.ndarray, "Z"]


def stream_batches(
    source: str | Path | bytes,
    pick: Pick,
    *,
    size: int,
    count: int = BATCH,
    limits: MediaLimits = OWN_FILES,
    on_length: Callable[[float], None] | None = None,
) -> Iterator[Clip]:
    """The picked frames, `count` at a time, then the rest. Raises as `stream_clip` does."""
    frames, seconds = np.empty((count, size, size, 3), np.uint8), []
    stream = stream_clip(source, pick, size=size, limits=limits, on_length=on_length)
    with closing(stream):
        for moment, frame in stream:
            frames[len(seconds)] = frame
            seconds.append(moment)
            if len(seconds) == count:
                yield Clip(frames=frames, seconds=np.array(seconds))
                frames, seconds = np.empty_like(frames), []
    if seconds:
        yield Clip(frames=frames[: len(seconds)], seconds=np.array(seconds))


def encode_film(
    source: str | Path | bytes,
    codec: Codec,
    pick: Pick,
    *,
    limits: MediaLimits = OWN_FILES,
    on_frame: Callable[[float, float], None] | None = None,
) -> CodedFilm:
    """The codes of the picked frames of a film, or of a picture.

    Frames are cut as LWM does to the codec's size, and encoded in batches of one size. `on_frame`
    hears (the last frame's, the film's seconds or nan) after each batch. Raises InputError as
    `stream_clip` does.
    """
    codes, seconds, length = [], [], [math.nan]
    size = codec.config.size
    for batch in stream_batches(source, pick, size=size, limits=limits, on_length=length.append):
        codes.append(codec.encode(batch.frames))
        seconds.append(batch.seconds)
        if on_frame is not None:
            on_frame(float(batch.seconds[-1]), length[-1])
    return CodedFilm(codes=np.concatenate(codes), seconds=np.concatenate(seconds))
