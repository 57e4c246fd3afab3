"""Pictures and films of requests: their content to codes, decoded in the sandbox, each read once.

The codes of a film are kept under the hash of its bytes and its sampling, so a second question
about it decodes nothing. Frames are encoded a batch at a time, between steps of the engine.
"""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from ringworld.errors import InputError, TooLargeError
from ringworld.media.clip import read_image, stream_clip
from ringworld.media.codec import BATCH, Codec
from ringworld.media.sampling import FrameSampling
from ringworld.media.sandbox import UNTRUSTED
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.media_sources import MediaSources

# Films and pictures that are decoded at one time.
READERS = 2
# Media whose content is fetched, and names of clients that are kept, at one time.
FETCHERS, MOST_NAMES = 4, 10_000
HASHED = 1 << 16  # characters of a data: URL that are hashed at one time, as the whole is a copy

MOST_ASKED = 1_000_000_000  # frames, frames a second, and seconds

K = TypeVar("K")
Progress = Callable[[float, float], None]
"""Takes the seconds of a film that were read, and the film's length, nan if it is not known."""


@dataclass(frozen=True)
class ShownMedium:
    """A picture, whose sampling is None, or a film, as a part of a conversation names it.

    Without a URL it is what the client has called `uuid` before.
    """

    url: str | None
    uuid: str | None
    sampling: FrameSampling | None


@dataclass(frozen=True)
class FilmCodes:
    """The codes `[Z, Q]` of the frames of a picture or a film, and their times in seconds.

    `key` is a hash of the file's bytes, and how frames were taken of them.
    """

    codes: Int[np.ndarray, "Z Q"]
    seconds: tuple[float, ...]
    is_film: bool
    key: bytes = b""

    @property
    def fps(self) -> float | None:
        """The frames a second that were really taken; None for a picture or a single frame."""
        if not self.is_film or len(self.seconds) < 2 or self.seconds[-1] <= self.seconds[0]:
            return None
        return (len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0])


class KeptCodes:
    """The codes of pictures and films, at most `room` bytes: those left longest ago go first."""

    def __init__(self, room: int) -> None:
        self.room, self.bytes, self.evicted = room, 0, 0
        self._kept: OrderedDict[bytes, FilmCodes] = OrderedDict()

    def __len__(self) -> int:
        """The pictures and films that are kept."""
        return len(self._kept)

    def find(self, key: bytes) -> FilmCodes | None:
        """What is kept under a key."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: bytes, found: FilmCodes) -> None:
        """Keep codes under a new key; those that all of the room could not hold are not kept."""
        size = found.codes.nbytes
        if size > self.room:
            return
        while self.bytes + size > self.room:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.codes.nbytes
            self.evicted += 1
        self._kept[key] = found
        self.bytes += size


class MediaReader:
    """Reads media into codes with the codec of a model, and keeps `room` bytes of the latest."""

    def __init__(
        self,
        thread: EngineThread,
        codec: Codec | None,
        context: int,
        sources: MediaSources,
        room: int,
    ) -> None:
        self._thread, self._codec, self._context = thread, codec, context
        self._sources, self._fetchers = sources, ThreadPoolExecutor(FETCHERS)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="media")
        self._named: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        # The digest of the content of a data: URL by that of its text: a film that is sent again
        # need not be decoded from base64, which takes longest of all.
        self._texts: OrderedDict[bytes, bytes] = OrderedDict()
        self.kept = KeptCodes(room)
        self._locks: dict[bytes, asyncio.Lock] = {}

    @property
    def reads(self) -> bool:
        """Whether the model sees pictures and films."""
        return self._codec is not None

    async def read(self, shown: ShownMedium, tenant: str, progress: Progress) -> FilmCodes:
        """The codes of a medium. A film that another request reads is waited for.

        Raises InputError when the model has no codec, or the file cannot be read or is too long, or
        the tenant has not named it.
        """
        if self._codec is None:
            raise InputError("this model reads text only: leave pictures and films out")
        if shown.url is None:
            return self._recall(shown, tenant)
        text = await asyncio.to_thread(_hash_data_url, shown.url)
        digest = self._texts.get(text)
        found = None if digest is None else self.kept.find(_make_key(digest, shown))
        if digest is None or found is None:
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(self._fetchers, self._sources.read, shown.url)
            digest = (await asyncio.to_thread(hashlib.sha256, data)).digest()
            found = await self._read_once(data, _make_key(digest, shown), shown, progress)
            if text:
                _keep_latest(self._texts, text, digest)
        if shown.uuid is not None:
            _keep_latest(self._named, (tenant, shown.uuid), digest)
        return found

    async def _read_once(
        self, data: bytes, key: bytes, shown: ShownMedium, progress: Progress
    ) -> FilmCodes:
        """The codes under a key, read if they are not kept."""
        assert self._codec is not None
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = self.kept.find(key)
                if found is None:
                    read = await self._read(data, shown.sampling, self._codec, progress)
                    found = replace(read, key=key)
                    self.kept.keep(key, found)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)
        return found

    def _recall(self, shown: ShownMedium, tenant: str) -> FilmCodes:
        """What a tenant has named, in the content that had the name last."""
        digest = self._named.get((tenant, shown.uuid or ""))
        found = None if digest is None else self.kept.find(_make_key(digest, shown))
        if found is None:
            raise InputError(
                "the server holds no film or picture of this uuid with this sampling: send its "
                "content with it",
                setting="uuid",
            )
        return found

    async def _read(
        self, data: bytes, sampling: FrameSampling | None, codec: Codec, progress: Progress
    ) -> FilmCodes:
        """Decode and encode in a thread of the pool, which stops soon after this is cancelled."""
        stopped = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._encode, data, sampling, codec, progress, stopped
            )
        finally:
            stopped.set()

    def _encode(
        self,
        data: bytes,
        sampling: FrameSampling | None,
        codec: Codec,
        progress: Progress,
        stopped: threading.Event,
    ) -> FilmCodes:
        size = codec.config.size
        if sampling is None:
            image = read_image(data, size=size, limits=UNTRUSTED)
            codes = self._thread.call(lambda: codec.encode(image[None])).result()
            return FilmCodes(codes, (0.0,), is_film=False)
        length, seconds, batch, parts = [float("nan")], [], [], []
        most = self._context // (codec.config.side**2 + 1)
        stream = stream_clip(data, sampling, size=size, limits=UNTRUSTED, on_length=length.append)
        try:
            for moment, frame in stream:
                if stopped.is_set():
                    break
                seconds.append(moment)
                batch.append(frame.copy())
                if len(seconds) > most:
                    raise TooLargeError(
                        f"the film gives more than {most:,} frames, which are "
                        f"{most * (codec.config.side**2 + 1):,} tokens, and the model's context is "
                        f"{self._context:,}: lower fps or num_frames, or give a shorter part"
                    )
                if len(batch) == BATCH:
                    parts.append(self._encode_batch(codec, batch))
                    batch = []
                progress(moment, length[-1])
        finally:
            stream.close()
        if batch:
            parts.append(self._encode_batch(codec, batch))
        return FilmCodes(np.concatenate(parts), tuple(seconds), is_film=True)

    def _encode_batch(self, codec: Codec, batch: list[np.ndarray]) -> Int[np.ndarray, "Z Q"]:
        return self._thread.call(lambda: codec.encode(np.stack(batch))).result()


def _hash_data_url(url: str) -> bytes:
    """The digest of a data: URL's text; nothing of other URLs, whose content may change."""
    if url[:5].lower() != "data:":
        return b""
    digest = hashlib.sha256()
    for begin in range(0, len(url), HASHED):
        digest.update(url[begin : begin + HASHED].encode())
    return digest.digest()


def _keep_latest(kept: OrderedDict[K, bytes], name: K, digest: bytes) -> None:
    kept[name] = digest
    kept.move_to_end(name)
    if len(kept) > MOST_NAMES:
        kept.popitem(last=False)


def _make_key(digest: bytes, shown: ShownMedium) -> bytes:
    return digest + repr(shown.sampling).encode()


def choose_frames(fps: float, *asked: dict[str, object] | None) -> FrameSampling:
    """How frames are taken: `fps`, unless the arguments of a request say more; later ones win.

    Names and meanings are those of `FrameSampling`; others are ignored, and a `num_frames` of -1
    says nothing. Raises InputError for values that have no meaning.
    """
    names = ("fps", "num_frames", "min_frames", "max_frames", "video_start", "video_end")
    found: dict[str, float] = {}
    for given in asked:
        for name, value in (given or {}).items():
            if name not in names or value is None or (name == "num_frames" and value == -1):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{name} has to be a number", setting=name)
            if not abs(value) <= MOST_ASKED:
                raise InputError(f"{name} is not between 0 and {MOST_ASKED:,}", setting=name)
            if name.endswith("frames") and value != int(value):
                raise InputError(f"{name} has to be a whole number", setting=name)
            found[name] = int(value) if name.endswith("frames") else float(value)
    counts = {name: int(found[name]) for name in names[1:4] if name in found}
    return replace(
        FrameSampling(fps=found.get("fps", fps), **counts),
        video_start=found.get("video_start", 0.0),
        video_end=found.get("video_end"),
    )
