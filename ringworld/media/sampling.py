"""Which frames of a film are wanted, in seconds of its own clock."""

import math
from dataclasses import dataclass

from ringworld.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A choice of moments; the frame of a moment is the last one that appeared at or before it.

    Moment 0 is when the film's first frame appears. "Before" allows for the rounding of the
    container's clock: half a tick, at most half a millisecond. So a frame or a moment that is the
    end, as nearly as that clock can tell, is not taken, and a frame that is the start is. The
    moments, with [start, end) cut off at the film's own end and `span` what is left of it:

        nothing        the frame on the screen at start, and every one that appears before the end
        fps            start, start + 1/fps, ... before the end
        num_frames=n   start + k span / n, k from 0 to n - 1: where n equal parts begin
        fps, min_frames, max_frames
                       as fps, if it gives so many frames; else as num_frames with the nearer bound

    A frame that stays on the screen for several moments is taken as often. A picture has no clock:
    it is one frame at second 0, whatever is picked.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        """Refuse rates, counts and spans that have no meaning."""
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise InputError(f"Frames per second must be a number above 0, not {self.fps}.")
        for name in ("num_frames", "min_frames", "max_frames"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} must be at least 1, not {count}.")
        bounds = (self.min_frames, self.max_frames)
        if self.num_frames is not None and (self.fps, *bounds) != (None, None, None):
            raise InputError(
                "num_frames fixes the number of frames: leave out fps, min_frames and max_frames."
            )
        if self.fps is None and bounds != (None, None):
            raise InputError("min_frames and max_frames bound what fps gives: set fps too.")
        if None not in bounds and (self.min_frames or 0) > (self.max_frames or 0):
            raise InputError(
                f"min_frames {self.min_frames} is over max_frames {self.max_frames}: swap them."
            )
        late = self.end is not None and not self.start < self.end < math.inf
        if late or not 0 <= self.start < math.inf:
            raise InputError(
                f"Choose a start of at least 0 s and an end after it, not {self.start} to "
                f"{self.end}."
            )


EVERY_FRAME = Pick()
