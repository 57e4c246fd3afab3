"""What both sides of the data benchmark are given: a corpus in the cache, made once, and the works.

The texts are the King James Bible and Shakespeare, whole and as verses; the film is Big Buck Bunny;
the pictures are drawn.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.environment import cache_folder
from ringworld.data.books import read_books
from ringworld.fetch import fetch
from ringworld.files import whole

Work = Literal["books", "verses", "every frame", "frame a second", "pictures", "rows"]
# What each work is counted in.
UNITS: dict[Work, str] = {
    "books": "tokens",
    "verses": "tokens",
    "every frame": "frames",
    "frame a second": "frames",
    "pictures": "pictures",
    "rows": "rows",
}
PICTURES, PICTURE_SIDES = 1000, (240, 320)
SIZE = 256  # of a frame as LWM's codec sees it
# Seconds of the film that are read: every frame of the first ones, or one a second of more.
EVERY, SPARSE = 30.0, 240.0
CONTEXT, BATCH, BATCHES = 4096, 8, 100
SAMPLED = 8  # frames of which both sides compare the pixels


def make_corpus() -> Path:
    """The folder of the corpus; made when it is not there."""
    folder = cache_folder() / "data-corpus"
    if not (folder / "done").exists():
        bible, plays = fetch("kjv"), fetch("shakespeare")
        books = [*read_books(bible), *read_books(plays)]
        write_lines(folder / "books.jsonl", [{"text": book.written} for book in books])
        verses = [json.loads(line) for line in bible.read_text("utf-8").splitlines()]
        write_lines(folder / "verses.jsonl", [{"text": verse["text"]} for verse in verses])
        draw_pictures(folder / "pictures")
        (folder / "done").touch()
    return folder


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Rows as JSONL, whole or not at all."""
    with whole(path) as draft:
        draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def draw_pictures(folder: Path) -> None:
    """A thousand JPEGs as large as a thumbnail, each of its own coarse noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    high, wide = PICTURE_SIDES
    for number in range(PICTURES):
        noise = rng.integers(0, 256, (high // 20, wide // 20, 3), np.uint8)
        Image.fromarray(noise).resize((wide, high)).save(folder / f"{number:04d}.jpg", quality=85)


def sample_frames(frames: Iterable[np.ndarray]) -> list[float]:
    """How many there are, and the sums of the first ones: equal where the pixels are."""
    sums, count = [], 0
    for frame in frames:
        count += 1
        if len(sums) < SAMPLED:
            sums.append(float(np.asarray(frame, np.int64).sum()))
    return [float(count), *sums]
