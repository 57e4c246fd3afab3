"""Worker: our own loading, chunked prefill and streamed decoding, on one device."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve
from ringworld.cpu import widen_vectors
from ringworld.data.example import text
from ringworld.inference.stream import (
    DecodeState,
    decode_tokens,
    empty_state,
    prefill,
    truncate_state,
)
from ringworld.mesh import make_mesh
from ringworld.settings import Sampling
from ringworld.weights.model import load_model


def prepare(request: dict[str, Any]) -> Prepared:
    """The model of the folder, and the work that is asked for."""
    began = time.perf_counter()
    model = load_model(Path(request["folder"]), request.get("dtype") or "float32")
    jax.block_until_ready(model.weights)
    loaded = time.perf_counter() - began
    given, c = text(draw_prompt(request["length"]), 0.0), model.config

    def read() -> DecodeState:
        return prefill(model.weights, empty_state(c), given, c)

    def write(state: DecodeState) -> tuple[list[int], DecodeState]:
        ids: list[int] = []
        while len(ids) < WRITTEN:
            more, state = decode_tokens(
                model.weights,
                state,
                c,
                max_tokens=WRITTEN - len(ids),
                seed=0,
                sampling=Sampling(),
                stops=(),
            )
            ids += more
        return ids, state

    held = [read()]
    last, length = np.asarray(held[0].x), held[0].length
    if request["work"] == "prefill":
        return Prepared(read, [loaded, *last[0, :4].tolist()])

    def again() -> list[int]:
        ids, state = write(held.pop())
        held.append(replace(truncate_state(state, length), x=last))
        return ids

    return Prepared(again, [loaded, *map(float, again()[:4])])


if __name__ == "__main__":
    widen_vectors()
    with jax.set_mesh(make_mesh()):
        serve(prepare)
