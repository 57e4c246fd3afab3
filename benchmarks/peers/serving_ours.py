"""Worker: the engine with 1, 4 or 16 requests, and the second question on a long text."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers.model_work import WRITTEN, draw_prompt
from benchmarks.protocol import Prepared, serve
from ringworld.cpu import widen_vectors
from ringworld.data.example import text
from ringworld.inference.generate import make_engine
from ringworld.inference.request import Output, Request
from ringworld.mesh import make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.weights.model import load_model

# Repeats that one answer has tokens for. Each sees a longer context than the one before.
REPEATS = 8
QUESTION = 32


def prepare(asked: dict[str, Any]) -> Prepared:
    """The model of the file, and the work that is asked for."""
    model = load_model(Path(asked["model"]), asked.get("dtype") or "float32")
    count, length, work = asked["requests"], asked["length"], asked["work"]
    longest = length + REPEATS * max(WRITTEN, QUESTION)
    c = extend_context(model.config, max(longest, model.config.llama.context), "yarn")
    engine = make_engine(model.weights, c, [longest] * count, count)
    prompts = [text((draw_prompt(length) + i) % c.vocabulary.text, 0.0) for i in range(count)]

    def read(tokens: int) -> list[Output]:
        answers = [engine.submit(Request(prompt=p, max_new_tokens=tokens)) for p in prompts]
        while not all(answer.ids for answer in answers):
            engine.step()
        return answers

    if work == "prefill":

        def again() -> None:
            engine.forget()
            read(1)

        again()
        return Prepared(again, [])
    if work == "book":

        def ask(start: int, seed: int) -> None:
            words = np.random.default_rng(seed).integers(3, 49152, QUESTION)
            ids = np.concatenate([prompts[0].tokens[start:], words])
            engine.finish(engine.submit(Request(prompt=text(ids, 0.0), max_new_tokens=1)))

        for _ in range(2):  # compiles: of another text, a sixteenth as long, asked about twice
            ask(length - length // 16, 0)
        asking = iter(range(1, REPEATS + 1))
        return Prepared(lambda: ask(0, next(asking)), [])
    answers = read(REPEATS * WRITTEN)

    def write() -> None:
        stop = len(answers[0].ids) + WRITTEN
        while len(answers[-1].ids) < stop:
            engine.step()

    write()
    return Prepared(write, [])


if __name__ == "__main__":
    widen_vectors()
    with jax.set_mesh(make_mesh()):
        serve(prepare)
