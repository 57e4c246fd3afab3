"""Films whose frames carry their number, so that a test can say which of them were taken.

A number is sixteen bits, a grid of 4 x 4 black or white squares: they survive compression, scaling
and cutting out the centre of a square frame.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRID = 4
SIDE = 64
CLOCK = Fraction(1, 1000)


def paint(number: int, side: int = SIDE) -> np.ndarray:
    """The frame of a number, `side` x `side`."""
    bits = number >> np.arange(GRID * GRID) & 1
    cells = np.arange(side) * GRID // side
    light = np.where(bits.reshape(GRID, GRID), 235, 20).astype(np.uint8)[cells][:, cells]
    return light[..., None].repeat(3, axis=-1)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that square frames carry."""
    count, side, _, _ = frames.shape
    middles = (2 * np.arange(GRID) + 1) * side // (2 * GRID)
    bits = frames[:, middles][:, :, middles].mean(axis=-1) > 127
    return (bits.reshape(count, -1) << np.arange(GRID * GRID)).sum(axis=-1).tolist()


def film(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    coding: dict[str, str] | None = None,
    picture: Callable[[int], np.ndarray] = paint,
    sound: float = 0.0,
    clock: Fraction = CLOCK,
) -> Path:
    """Write numbered frames at these seconds of the `clock`, beside `sound` seconds of silence.

    `options` are the container's, `coding` the codec's.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30 if clock == CLOCK else int(1 / clock))
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        stream.codec_context.gop_size = 8
        stream.options = coding or {}
        track = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number, moment in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(moment / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            for packet in range(round(sound * 8000 / 1024)):
                silence = np.zeros((1, 1024), np.float32)
                part = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = 8000, packet * 1024, Fraction(1, 8000)
                container.mux(track.encode(part))
            container.mux(track.encode(None))
    return path


def song(path: Path) -> Path:
    """A file of sound alone."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=8000, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate = 8000
        container.mux(track.encode(part))
        container.mux(track.encode(None))
    return path
