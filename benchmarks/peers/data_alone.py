"""Worker: each library alone, with the least around it: tokenizers, PyAV, Pillow, Arrow and numpy.

It does no more than its name says: no file of shards is written, nothing is hashed, no file is kept
from doing harm, no row is packed or weighed.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from tokenizers import Tokenizer

import ringworld
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
from ringworld.fetch import fetch

TOKENIZER = Path(ringworld.__file__).parent / "assets" / "nano" / "tokenizer.json"


def read_texts(path: Path) -> list[str]:
    """The texts of a table."""
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


def encode(path: Path) -> tuple[Tokenizer, list[str]]:
    """The tokenizer, and texts that are in memory already."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.encode_special_tokens = True
    return tokenizer, read_texts(path)


def fit(image: Image.Image) -> np.ndarray:
    """The shorter side to `SIZE` (bicubic), and its centre."""
    scale = SIZE / min(image.size)
    wide, high = (max(SIZE, int(side * scale)) for side in image.size)
    image = image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - SIZE) / 2), round((high - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def watch(film: Path, rate: float | None, end: float) -> Iterator[np.ndarray]:
    """Every frame before `end`, or those of every 1/rate seconds: the film has an even rate."""
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = os.cpu_count() or 1
        step = 1 if rate is None else round(float(stream.average_rate or 24) / rate)
        for number, frame in enumerate(container.decode(stream)):
            if frame.time is None or frame.time >= end:
                return
            if number % step == 0:
                yield fit(frame.to_image())


def prepare(request: dict[str, Any]) -> Prepared:
    """The work that is asked for, done once."""
    corpus, work = make_corpus(), request["work"]
    if work in ("books", "verses"):
        tokenizer, texts = encode(corpus / f"{work}.jsonl")

        def tokens() -> int:
            found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return sum(len(one.ids) for one in found)

        return Prepared(tokens, [float(tokens())])
    if work == "pictures":
        files = sorted((corpus / "pictures").iterdir())

        def look() -> list[float]:
            return sample_frames(fit(Image.open(file)) for file in files)

        return Prepared(look, look())
    if work == "rows":
        tokenizer, texts = encode(corpus / "verses.jsonl")
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        flat = np.concatenate([one.ids for one in found]).astype(np.int32)
        path = Path(tempfile.mkdtemp(prefix="bench-data-")) / "tokens.arrow"
        table = pa.table({"tokens": flat})
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
        wanted = BATCH * BATCHES

        def cut() -> list[np.ndarray]:
            with pa.memory_map(str(path)) as source:
                held = pa.ipc.open_file(source).read_all()["tokens"].to_numpy()
                rows = len(held) // (CONTEXT + 1)
                order = np.random.default_rng(0).permutation(rows)
                picked = [order[i % rows] * (CONTEXT + 1) for i in range(wanted)]
                groups = [picked[i : i + BATCH] for i in range(0, wanted, BATCH)]
                return [np.stack([held[at : at + CONTEXT + 1] for at in own]) for own in groups]

        cut()
        return Prepared(cut, [float(wanted)])
    film = fetch("film")
    rate, end = (None, EVERY) if work == "every frame" else (1.0, SPARSE)
    return Prepared(
        lambda: sample_frames(watch(film, rate, end)), sample_frames(watch(film, rate, end))
    )


if __name__ == "__main__":
    serve(prepare)
