"""`make bench-drafts`: one answer, with and without guesses of its next tokens.

SmolLM2-135M writes greedily: once it is asked to repeat a passage of its prompt, and once it
answers in words of its own. An engine for one row has no idle slots, and so no guesses; engines for
more rows guess in them. The engines take turns in one process, and the figure is the fastest
repeat. Steps are the dispatches of an answer: of four tokens each where nothing is guessed.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from rich.console import Console

from benchmarks.table import publish
from ringworld.chat.session import find_stops, make_example
from ringworld.cpu import widen_vectors
from ringworld.data.example import Example
from ringworld.fetch import fetch
from ringworld.inference.generate import make_engine
from ringworld.inference.request import Request
from ringworld.mesh import make_mesh
from ringworld.text.template import render
from ringworld.weights.model import Model, load_model

PASSAGE = (
    "The tide table for Ardvale: Monday, high water at 04:12 and 16:38; Tuesday, high water at "
    "05:01 and 17:26; Wednesday, high water at 05:49 and 18:13; Thursday, high water at 06:37 and "
    "19:02. Boats leave the old harbour one hour before high water and return one hour after it."
)
QUESTIONS = {
    "repeats its prompt": f"{PASSAGE}\n\nRepeat the text above word for word.",
    "free text": "Why do planets go round the sun? Explain it to a child.",
}
HEAD = ("answer", "rows of the engine", "tokens", "steps", "tokens/s", "x one row")
NAME = "drafts"  # the markers of its table in a page


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Tokens a second of one answer, in engines for one row and for more."""

    rows: tuple[int, ...] = (1, 4, 8)
    """rows of the engines; the first has to be 1"""
    tokens: int = 128
    """the longest answer"""
    repeats: int = 3
    page: Path | None = None
    """a Markdown page that gets the table, between its markers"""


def ask(model: Model, question: str) -> Example:
    """The question in the model's own chat template."""
    words = model.tokenizer
    shown = render(
        model.chat_template or "",
        [{"role": "user", "content": question}],
        bos_token=words.bos_name or "",
        eos_token=words.eos_name or "",
    )
    return make_example(shown, [], words, model.config)


def open_work(model: Model, prompt: Example, rows: int, most: int) -> Callable[[], tuple]:
    """What writes the answer once more: the seconds after its first token, tokens and steps."""
    ends = (model.config.vocabulary.eos, *model.ends)
    stops = find_stops(model.tokenizer, ends, model.chat_template or "")
    length = len(prompt) + most
    engine = make_engine(model.sharded_weights(), model.config, [length] * rows, rows)

    def write() -> tuple[float, int, int]:
        answer = engine.submit(Request(prompt=prompt, max_new_tokens=most, stops=stops))
        while not answer.ids:
            engine.step()
        begun, known, steps = time.perf_counter(), len(answer.ids), 0
        while not answer.finished:
            engine.step()
            steps += 1
        return time.perf_counter() - begun, len(answer.ids) - known, steps

    return write


def main() -> None:
    """Measure, print, and write the table into a page where one is named."""
    bench, console = tyro.cli(Bench, prog="bench-drafts"), Console(stderr=True)
    if bench.rows[:1] != (1,) or bench.tokens < 8 or bench.repeats < 1:
        print("bench-drafts: use rows that begin with 1, 8 tokens or more, and repeats of 1 up")
        sys.exit(2)
    model = load_model(fetch("smollm2-135m"))
    cells = []
    for kind, question in QUESTIONS.items():
        prompt = ask(model, question)
        works = {rows: open_work(model, prompt, rows, bench.tokens) for rows in bench.rows}
        for rows, work in works.items():
            console.print(f"{kind}: compiling for {rows}")
            work()
        found = [{rows: work() for rows, work in works.items()} for _ in range(bench.repeats)]
        rates = {}
        for rows in bench.rows:
            seconds, tokens, steps = min(each[rows] for each in found)
            rates[rows] = tokens / seconds
            ratio = f"{rates[rows] / rates[1]:.2f}"
            cells.append((kind, str(rows), str(tokens), str(steps), f"{rates[rows]:.1f}", ratio))
    publish([("Guessed tokens", HEAD, cells)], bench.repeats, NAME, bench.page)


if __name__ == "__main__":
    widen_vectors()
    with jax.set_mesh(make_mesh()):
        main()
