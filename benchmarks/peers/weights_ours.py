"""Worker: our own loading, and the engine's prefill and decoding of one request, on one device."""

import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve
from ringworld.cpu import widen_vectors
from ringworld.data.example import text
from ringworld.inference.generate import make_engine
from ringworld.inference.request import Output, Request
from ringworld.mesh import make_mesh
from ringworld.weights.model import load_model

# Repeats that one answer has tokens for. Each sees a longer context than the one before.
REPEATS = 12


def prepare(request: dict[str, Any]) -> Prepared:
    """The model of the folder, and the work that is asked for."""
    began = time.perf_counter()
    model = load_model(Path(request["folder"]))
    jax.block_until_ready(model.weights)
    loaded = time.perf_counter() - began
    given, longest = text(draw_prompt(request["length"]), 0.0), REPEATS * WRITTEN
    engine = make_engine(model.weights, model.config, [len(given) + longest], 1)
    if request["work"] == "prefill":
        once = Request(prompt=given, max_new_tokens=1)

        def read() -> Output:
            engine.forget()
            return engine.finish(engine.submit(once))

        return Prepared(read, [loaded, *map(float, read().ids)])
    answer = engine.submit(Request(prompt=given, max_new_tokens=longest))

    def write() -> list[int]:
        stop = len(answer.ids) + WRITTEN
        while len(answer.ids) < stop:
            engine.step()
        return answer.ids

    return Prepared(write, [loaded, *map(float, write()[:4])])


if __name__ == "__main__":
    widen_vectors()
    with jax.set_mesh(make_mesh()):
        serve(prepare)
