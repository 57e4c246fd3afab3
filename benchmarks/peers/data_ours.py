"""Worker: our own build, our door for media, our loader."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.peers.data_work import (
    BATCH,
    BATCHES,
    CONTEXT,
    EVERY,
    SIZE,
    SPARSE,
    make_corpus,
    sample_frames,
)
from benchmarks.protocol import Prepared, serve
from ringworld.data.corpora.build import build_shards
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.loader import make_batches
from ringworld.data.packing.rows import PackedRows
from ringworld.fetch import fetch
from ringworld.media.clip import read_image, stream_clip
from ringworld.media.sampling import FrameSampling
from ringworld.mesh import make_mesh

SPEC = '[[documents]]\nname = "{name}"\npath = "{path}"\nrows_per_shard = {rows}\n'


def make_builder(name: str, corpus: Path, out: Path) -> Callable[[], Shards]:
    """A build of a table, from its file to finished shards, each time in a folder of its own."""
    spec, numbers = out / f"{name}.toml", itertools.count()
    path = (corpus / f"{name}.jsonl").as_posix()
    spec.write_text(SPEC.format(name=name, path=path, rows=10_000))

    def run() -> Shards:
        place = out / f"{name}-{next(numbers)}"
        build_shards(spec, place, lambda said: None)
        return Shards(place)

    return run


def prepare(request: dict[str, Any]) -> Prepared:
    """The work that is asked for, done once."""
    corpus, work = make_corpus(), request["work"]
    out = Path(tempfile.mkdtemp(prefix="bench-data-"))
    if work in ("books", "verses"):
        run = make_builder(work, corpus, out)
        counts = run().manifest.counts
        return Prepared(run, [float(counts.tokens - 2 * counts.examples)])
    if work == "pictures":
        files = sorted((corpus / "pictures").iterdir())

        def look() -> list[float]:
            return sample_frames(read_image(file, size=SIZE) for file in files)

        return Prepared(look, look())
    if work == "rows":
        shards = make_builder("verses", corpus, out)()
        rows = PackedRows(shards, CONTEXT)

        def load() -> None:
            with jax.set_mesh(make_mesh()):
                batches = make_batches(rows, batch=BATCH, seed=0, ring=1)
                for step in range(BATCHES):
                    jax.block_until_ready(batches(step))

        load()
        return Prepared(load, [float(BATCH * BATCHES)])
    film = fetch("film")
    sampling = (
        FrameSampling(fps=None, video_end=EVERY)
        if work == "every frame"
        else FrameSampling(fps=1.0, video_end=SPARSE)
    )

    def watch() -> list[float]:
        return sample_frames(frame for _, frame in stream_clip(film, sampling, size=SIZE))

    return Prepared(watch, watch())


if __name__ == "__main__":
    serve(prepare)
