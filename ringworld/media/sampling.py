"""Which frames of a film are taken, in seconds of its own clock."""

import math
from dataclasses import dataclass, replace

from ringworld.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """The moments of a film whose frames are taken, between `video_start` and `video_end`.

    The frame of a moment is the last one that appeared at or before it. Moment 0 is when the film's
    first frame appears. "Before" allows for the rounding of the container's clock: half a tick, at
    most half a millisecond. So a frame or a moment that is the end, as nearly as that clock can
    tell, is not taken, and a frame that is the start is. The moments, with [start, end) cut off at
    the film's own end and `span` what is left of it:

        fps                      start, start + 1/fps, ... before the end
        num_frames = n           start + k span / n, k from 0 to n - 1: where n equal parts begin;
                                 `fps` is not used
        min_frames, max_frames   bound the number that fps or num_frames gives; where it is out of
                                 bounds the nearer bound is taken, as num_frames
        fps = None alone         the frame on the screen at start, and every one that appears before
                                 the end

    A frame that stays on the screen for several moments is taken as often. A picture has no clock:
    it is one frame at second 0 for every sampling. Raises InputError for rates, counts and spans
    that have no meaning.
    """

    fps: float | None = 1.0
    """frames a second"""
    num_frames: int | None = None
    """so many frames, evenly over the span, in place of fps"""
    min_frames: int | None = None
    """the fewest frames"""
    max_frames: int | None = None
    """the most frames"""
    video_start: float = 0.0
    """the second where the span begins"""
    video_end: float | None = None
    """the second before which it ends; without it the film's own end"""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise InputError(f"fps must be a number above 0, not {self.fps}")
        for name in ("num_frames", "min_frames", "max_frames"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} must be at least 1, not {count}")
        low, high = self.min_frames, self.max_frames
        if self.fps is None and self.num_frames is None and (low, high) != (None, None):
            raise InputError("min_frames and max_frames need fps or num_frames: set one of them")
        if low is not None and high is not None and low > high:
            raise InputError(f"min_frames {low} is over max_frames {high}: swap them")
        end = math.inf if self.video_end is None else self.video_end
        if self.video_end == math.inf:
            raise InputError("video_end is no number of seconds: leave it out for the film's end")
        if not 0 <= self.video_start < end:
            raise InputError(
                f"a film from second {self.video_start:g} to {end:g} is none: give a start of at "
                "least 0 and an end after it"
            )

    def at_most(self, most: int | None) -> "FrameSampling":
        """The same sampling of no more than `most` frames; None is no bound."""
        if most is None:
            return self
        low = None if self.min_frames is None else min(self.min_frames, most)
        return replace(self, min_frames=low, max_frames=min(self.max_frames or most, most))
