"""Films: an open container with an exact clock, and the frames that a request takes of it.

This module is part of the confined decoder: it imports nothing of ringworld but its neighbours.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import av
from av.codec.context import CodecContext
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from PIL.ImageFile import ImageFile

from ringworld.media.headers import MP4, ends_like_gif, find_margins, is_whole_riff, starts_with
from ringworld.media.pixels import Fault, draw_frame, draw_picture

# What cameras, phones, editors, discs and the web have written.
FILM_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,ogg,asf,flv,rm"
# Left out is what few films need and what has been broken into most: JPEG 2000, EXR, PNG, and the
# old game codecs that MOV and AVI may hold too.
FILM_CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg1video,mpeg2video,mpeg4,h263,flv,"
    "msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,rv10,rv20,rv30,rv40,vp6,vp6f,svq1,svq3,"
    "theora,cinepak,mjpeg,dvvideo,dnxhd,prores,qtrle,ffv1,gif"
)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # the built-in ones drop the alpha layer
UNTIMED = 100  # milliseconds of an animation's frame that states none, as in browsers

# (appears, leaves the screen, its sRGB bytes at so many rows and columns, whether it is the last)
Displayed = tuple[Fraction, Fraction, Callable[[int, int], bytes], bool]


class Film:
    """One open container and its first picture track, with an exact clock.

    Moment 0 is when the first frame that can be decoded appears. `slack` is the rounding of the
    container's clock, half a tick, at most half a millisecond.
    """

    def __init__(self, file: BinaryIO, *, pixels: int, threads: int) -> None:
        """Open the container; refuse what is no film or has over `pixels` pixels a frame."""
        self.file, self.pixels, self.threads = file, pixels, threads
        whole = is_whole_riff(file)
        self.origin: Fraction | None = None
        self.reached, self.broken = Fraction(0), False
        self.open()
        self.tick = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.slack = min(self.tick / 2, Fraction(1, 2000))
        self.step = 1 / Fraction(self.stream.average_rate or 25)
        length = self.container.duration
        self.length = Fraction(length, av.time_base) if length and length > 0 else None
        if self.container.format.name == "avi":  # its length is guessed from what is there
            self.length = self.stream.frames * self.step
        # An elementary stream has no timestamps: those of the demuxer drift, and its length is
        # guessed from the bit rate.
        self.timed = self.container.format.name != "mpegvideo"
        if not self.timed:
            self.length = None
        start = self.container.start_time
        self.begin = self.find_origin() if start is None else Fraction(start, av.time_base)
        # Empty frames at the end of an AVI repeat the last one; the demuxer passes over them.
        self.holds = whole and self.container.format.name == "avi"
        self.aspect = Fraction(self.stream.sample_aspect_ratio or 1)
        self.margins = find_margins(
            file,
            self.container.format.name,
            self.stream.codec_context.width,
            self.stream.codec_context.height,
        )

    def open(self) -> None:
        """Open the container at its beginning, for the first time or again."""
        self.file.seek(0)
        options = {
            "format_whitelist": FILM_FORMATS,
            "codec_whitelist": FILM_CODECS,
            "protocol_whitelist": "none",
            "max_pixels": str(self.pixels),
        }
        try:
            self.container = av.open(self.file, "r", options=options, buffer_size=1 << 20)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise Fault("truncated" if starts_with(self.file, MP4) else "not-media") from error
        cover = Disposition.attached_pic  # of a song
        tracks = [s for s in self.container.streams.video if not s.disposition & cover]
        if not tracks:
            raise Fault("no-pictures")
        self.stream = tracks[0]
        decoder: CodecContext | None = self.stream.codec_context
        if decoder is None or decoder.name not in FILM_CODECS.split(","):
            codec = "an unknown codec" if decoder is None else decoder.name
            raise Fault("codec", f"{codec} in {self.container.format.name.split(',')[0]}")
        self.check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)
        if self.stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
            decoder = CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        assert isinstance(decoder, VideoCodecContext), "the codec is one of pictures"
        self.decoder = decoder
        self.decoder.thread_type = "AUTO"
        self.decoder.thread_count = self.threads
        self.decoder.options = {"max_pixels": str(self.pixels)}

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a frame of more pixels than allowed."""
        if width * height > self.pixels:
            raise Fault("pixels")

    def measure(self) -> Fraction:
        """When the last frame leaves the screen; reads all packets and rewinds."""
        origin = end = self.find_origin()
        if not self.timed:
            *_, (_, end, _, _) = self.displayed(Fraction(0))
            self.open()
            return end
        for packet in self.container.demux():
            covered = self.record_reach(packet)
            if packet.stream.index == self.stream.index and not packet.is_discard:
                end = max(end, covered)
        self.check_length()
        self.open()
        return max(end - origin, self.held_until)

    @property
    def held_until(self) -> Fraction:
        """The moment until which the last frame is held at least."""
        if not self.holds or self.length is None:
            return Fraction(0)
        return self.begin + self.length - (self.origin or Fraction(0))

    def find_origin(self) -> Fraction:
        """The timestamp of the first frame, which is decoded for it; rewinds."""
        if next(self.decode(), None) is None or self.origin is None:
            raise Fault("damaged" if self.broken else "no-pictures")
        self.open()
        return self.origin

    def frames(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """(timestamp, time on screen, frame) in order, from the last key frame before `start`."""
        if start > 0 and self.timed:
            origin = self.find_origin() if self.origin is None else self.origin
            target = math.floor((start + origin) / self.tick)
            first = None
            with suppress(FFmpegError, OverflowError):
                self.container.seek(target, stream=self.stream, backward=True)
                first = next(frames := self.decode(), None)
            if first is not None and first[0] <= start:
                yield first
                yield from frames
                return
            self.open()
        yield from self.decode()

    def displayed(self, start: Fraction) -> Iterator[Displayed]:
        """The frames of a film that is read from `start`.

        A frame leaves when the next appears, the last one after its own duration.
        """
        stamp, shown, held = Fraction(0), Fraction(0), None
        for moment, duration, frame in self.frames(start):
            if held is not None and moment <= stamp:
                continue
            if held is not None:
                yield stamp, moment, partial(self.draw, held), False
            stamp, shown, held = moment, duration, frame
        if held is not None:
            yield (
                stamp,
                max(stamp + max(shown, 2 * self.slack), self.held_until),
                partial(self.draw, held),
                True,
            )

    def decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Every frame from the present place on; notes how far the container's packets reach."""
        stamp = due = Fraction(-1)
        for packet in self.container.demux():
            self.record_reach(packet)
            if packet.stream.index != self.stream.index:
                continue
            try:
                pictures = self.decoder.decode(packet)
            except MemoryError:
                raise
            except FFmpegError:
                self.broken = True
                continue
            for frame in pictures:
                self.check_pixels(frame.width, frame.height)
                self.broken |= frame.is_corrupt
                tick = Fraction(frame.time_base or self.tick)
                latest, stamp = (
                    stamp,
                    frame.pts * tick if self.timed and frame.pts is not None else due,
                )
                if packet.size == 0 and stamp == latest:  # the last of an AVI, reordered
                    stamp = due
                if self.origin is None:
                    self.origin = stamp
                shown = frame.duration * tick if frame.duration else self.step
                due = stamp + shown
                yield stamp - self.origin, shown, frame

    def record_reach(self, packet: av.Packet) -> Fraction:
        """The moment of the container's clock by which the packet is played; the latest is kept."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or not packet.time_base:
            return Fraction(0)
        shown = packet.duration * packet.time_base if packet.duration else self.step
        covered = stamp * packet.time_base + shown
        self.reached = max(self.reached, covered)
        return covered

    def check_length(self) -> None:
        """Refuse a film whose packets, all read, stop before the length its container promises."""
        reached = self.reached + Fraction(1, 4) + 3 * self.step
        if (
            self.length is not None
            and not self.holds
            and reached < self.length * Fraction(999, 1000)
        ):
            raise Fault("truncated")
        if self.container.format.name == "gif" and not ends_like_gif(self.file):
            raise Fault("truncated")

    def draw(self, frame: av.VideoFrame, rows: int, columns: int) -> bytes:
        """The sRGB bytes of a frame as it is shown, fitted to `rows` x `columns`."""
        return draw_frame(frame, rows, columns, aspect=self.aspect, margins=self.margins)


class Animation:
    """An animated PNG or WebP with the interface of `Film`; its clock counts milliseconds."""

    begin = origin = Fraction(0)
    length = None
    slack = Fraction(1, 2000)
    broken = False

    def __init__(self, image: ImageFile) -> None:
        """Take the frames of an opened picture."""
        self.image = image

    def displayed(self, start: Fraction) -> Iterator[Displayed]:
        """The frames from the one on the screen at `start` on; Fault for a damaged one."""
        stamp, last = Fraction(0), int(getattr(self.image, "n_frames", 1)) - 1
        first = int(bool(getattr(self.image, "default_image", False)))  # shown by old viewers only
        for number in range(first, last + 1):
            try:
                self.image.seek(number)
                self.image.load()
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise Fault("truncated") from error
            leaves = stamp + Fraction(self.image.info.get("duration") or UNTIMED) / 1000
            if leaves > start or number == last:
                yield stamp, leaves, partial(draw_picture, self.image.copy()), number == last
            stamp = leaves

    def measure(self) -> Fraction:
        """When the last frame leaves the screen; decodes all."""
        return [leaves for _, leaves, _, _ in self.displayed(Fraction(0))][-1]

    def check_length(self) -> None:
        """Nothing: a frame that is missing is noticed when it is decoded."""


@dataclass(frozen=True)
class FrameSchedule:
    """The moments wanted: start, start + period, ... before `stop`, or `count` of them.

    Without a period it is the frame on the screen at start and every one that appears before stop.
    """

    start: Fraction
    stop: Fraction
    period: Fraction | None = None
    count: int | None = None

    def due(self, taken: int, stamp: Fraction, reach: Fraction, last: bool) -> int:
        """How many moments, `taken` of them past, fall to a frame from `stamp` to `reach`."""
        if self.period is None:
            return int(reach > self.start and (taken == 0 or stamp < self.stop))
        if last and self.count is not None:
            return self.count - taken
        reached = math.ceil((reach - self.start) / self.period)
        return max(0, min(reached, self.count or reached) - taken)


def make_schedule(film: Film | Animation, ask: dict[str, Any]) -> FrameSchedule:
    """The schedule of a request for this film; reads all its packets where it depends on them.

    What is nearer to the end than the clock can tell is at the end, and no longer wanted.
    """
    start = Fraction(ask["video_start"])
    end = Fraction(1 << 80 if ask["video_end"] is None else ask["video_end"])
    period = None if ask["fps"] is None else 1 / Fraction(ask["fps"])
    most, least = ask["max_frames"], ask["min_frames"]
    wanted = ask["num_frames"]
    if wanted is None and most is None and least is None:
        return FrameSchedule(start, max(end - film.slack, (start + end) / 2), period)
    span = min(end, film.measure()) - start
    if span <= 0:
        raise Fault("after-end")
    if span > ask["seconds"]:
        raise Fault("seconds")
    natural = wanted or max(1, math.ceil((span - film.slack) * Fraction(ask["fps"] or 0)))
    count = max(min(natural, most or natural), least or 1)
    if wanted is None and count == natural:
        return FrameSchedule(start, end, period, count)
    return FrameSchedule(start, end, span / count, count)


def sample_frames(
    film: Film | Animation, schedule: FrameSchedule, ask: dict[str, Any]
) -> Iterator[tuple[float, bytes]]:
    """(timestamp in seconds, RGB bytes) of the frame on the screen at each moment of the schedule.

    A frame counts from its timestamp less the clock's slack, because containers round; each frame
    is converted at most once.
    """
    taken, seen = 0, False
    for stamp, until, draw, last in film.displayed(schedule.start):
        seen = True
        if stamp - film.slack >= schedule.stop or taken == schedule.count:
            break
        due = schedule.due(taken, stamp, min(until - film.slack, schedule.stop), last)
        if due == 0:
            continue
        if taken + due > ask["frames"]:
            raise Fault("frames")
        if stamp - schedule.start > ask["seconds"]:
            raise Fault("seconds")
        pixels = draw(ask["rows"], ask["columns"])
        yield from [(float(stamp), pixels)] * due
        taken += due
    else:
        film.check_length()
    if film.broken or taken == 0:
        raise Fault("damaged" if film.broken else "after-end" if seen else "no-pictures")
