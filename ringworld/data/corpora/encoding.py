"""Films and pictures as codes: decoded in the sandbox, encoded in full batches, frames not kept.

Frames of neighbouring films share a batch, so that a thousand pictures cost what a film of a
thousand frames does; what is held is a batch of frames and the codes so far, whatever the length of
a film.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from ringworld.data.example import Example, frames, join, text
from ringworld.media.clip import read_image, stream_clip
from ringworld.media.codec import BATCH, Codec
from ringworld.media.sampling import FrameSampling
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture (`still`) or a film: its path or its bytes, and which frames are taken."""

    source: Path | bytes
    still: bool
    sampling: FrameSampling


@dataclass
class EncodedMedia:
    """The frames of one film or picture: when each was on the screen, and its codes, once known."""

    media: Media
    moments: list[float] = field(default_factory=list)
    coded: list[Int[np.ndarray, "Q"]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every frame has its codes."""
        return len(self.coded) == len(self.moments)

    @property
    def codes(self) -> Int[np.ndarray, "Z Q"]:
        """The codes of all frames."""
        return np.stack(self.coded)


class Encoder:
    """Encodes the frames of many films and pictures in full batches."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._waiting: list[tuple[EncodedMedia, UInt8[np.ndarray, "Y X 3"]]] = []

    def add(self, media: Media) -> EncodedMedia:
        """Read a film; its codes come with the batches that it falls into, the last with `flush`.

        Raises InputError for a file that is no film or picture, or is damaged.
        """
        encoded = EncodedMedia(media)
        for moment, pixels in stream_frames(media, self.codec.config.size):
            encoded.moments.append(moment)
            self._waiting.append((encoded, pixels))
            if len(self._waiting) == BATCH:
                self.flush()
        return encoded

    def flush(self) -> None:
        """Encode the frames that wait for a full batch."""
        if self._waiting:
            codes = self.codec.encode(np.stack([pixels for _, pixels in self._waiting]))
            for (encoded, _), code in zip(self._waiting, codes, strict=True):
                encoded.coded.append(code)
            self._waiting = []


def stream_frames(media: Media, size: int) -> Iterator[tuple[float, UInt8[np.ndarray, "Y X 3"]]]:
    """The timestamp in seconds and the pixels of each frame.

    Raises InputError for a file that is no film or picture, or is damaged.
    """
    if media.still:
        yield 0.0, read_image(media.source, size=size)
        return
    yield from stream_clip(media.source, media.sampling, size=size)


def wrap_frames(
    codes: Int[np.ndarray, "Z Q"],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    *,
    around: float,
    inside: float,
) -> Example:
    """Frames between `<vision>` and `</vision>`, each with its weight."""
    before, after = tokenizer.vision_marks
    return join([text(before, around), frames(codes, vocabulary, inside), text(after, around)])
