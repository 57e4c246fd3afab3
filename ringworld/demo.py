"""The whole program on a laptop: a film and a shelf of books become a world model.

    fetch            the film and the books, verified
    video            frames to codes, and back
    text             books to ids
    needles before   the needle test of the shipped model
    training         1K, 4K, 16K tokens over a ring of eight
    needles after    the same needles
    examples         answer questions and continue a scene
    family           draw clips with nano-world, play a level in nano-play
    report           one page with everything

Every step keeps its result, so a stopped demo continues where it was. The report comes last.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from ringworld.chat.ask import answer_questions, continue_clips, draw_captions
from ringworld.chat.dream import Dream
from ringworld.data.samples import (
    HELD_MINUTES,
    SampleFilm,
    Shelf,
    read_sample_film,
    read_shelf,
)
from ringworld.distributed import first_goes_first, first_says
from ringworld.evals.config import Grid
from ringworld.evals.heatmap import draw_heatmaps
from ringworld.evals.needle import Trial, run_needle
from ringworld.evals.report import write_report
from ringworld.evals.story import (
    Answer,
    BookTokens,
    Continuation,
    Drawing,
    FilmReconstruction,
    Number,
    PlayedLevel,
    StageRecord,
    Story,
    count_found,
)
from ringworld.evals.timing import Clock, describe_machine
from ringworld.fetch import fetch
from ringworld.files import whole_once, writing_to
from ringworld.mesh import make_mesh, on_one_device
from ringworld.progress import Announce
from ringworld.recipes.nano import demo
from ringworld.recipes.recipe import Recipe
from ringworld.settings import DRAWING, GUIDANCE
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.play_policies import Episode, draw_episodes
from ringworld.tasks.play_world import draw_level, read_level
from ringworld.tasks.shape_judge import chance_of_exact, score_clip
from ringworld.tasks.shape_language import caption, possible_answers, questions
from ringworld.tasks.shapes import draw, sample_scene
from ringworld.train.metrics import METRICS_NAME as METRICS
from ringworld.train.model_stage import ModelStage
from ringworld.train.stage import MODEL
from ringworld.weights.model import Model, load_model
from ringworld.weights.open import hash_model, open_model
from ringworld.weights.shipped import NANO, NANO_PLAY, NANO_WORLD

RING = 8
NEEDLE_GRID = Grid(lengths=(1024, 4096, 8192, 16384), depths=(0.0, 0.25, 0.5, 0.75, 1.0), rounds=2)
# Scenes for questions and drawings come from a seed that no recipe draws its clips from.
UNSEEN = 990_000
ASKED_CLIPS, DRAWN_CLIPS = 16, 8
PLAYED_LEVELS, PLAYED_STEPS = 4, 30
# Where `make serve` answers.
SERVED = "http://127.0.0.1:8000/"
# A held-out place of the film: the seconds that are given, and how many more are drawn.
SCENE_START, SCENE_GIVEN, SCENE_MORE = 310, 6, 4


def run_demo(folder: Path, announce: Announce) -> Path:
    """Run the steps that `folder` does not hold yet; returns the path of the report.

    Raises InputError when something cannot be fetched, read or written.
    """
    page = folder / "report.html"
    if first_says(page.exists()):
        announce(f"{page} is finished: remove {folder} to run the demo again")
        return page
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    recipe, clock = demo(), Clock(folder)
    with clock.timed("fetch"):
        film_file = fetch("film")
        fetch("shakespeare")
        fetch("kjv")
    with jax.set_mesh(make_mesh(seq=RING)):
        base = load_model(NANO)
    with clock.timed("video"), first_goes_first():
        film = read_sample_film(film_file, base.codec, folder / "data", announce)
        reconstruction = reconstruct_film(film, base)
    with clock.timed("text"), first_goes_first():
        shelf = read_shelf(base.tokenizer, folder / "data", announce)
    with clock.timed("needles before"):
        config = base.config.at(NEEDLE_GRID.lengths[-1], base.config.llama.rope_theta)
        untrained = replace(base, config=config)
        before = find_needles(untrained, NANO, shelf, folder / "needle-before.json", announce)
    with clock.timed("training"):
        trained = recipe.run(folder, announce)
    with jax.set_mesh(make_mesh(seq=RING)):
        model = load_model(trained)
    with clock.timed("needles after"):
        after = find_needles(model, trained, shelf, folder / "needle-after.json", announce)
    with clock.timed("examples"), jax.set_mesh(make_mesh(seq=RING)):
        announce("answering questions about clips and continuing a scene")
        answers = answer_about_clips(model)
        continuation = continue_film(model, film)
    with clock.timed("family"):
        announce("drawing clips with nano-world and playing levels in nano-play")
        drawings, games = draw_from_captions(), play_levels()
    story = Story(
        title="A film and a shelf of books become a world model",
        summary=summarise(after, base, recipe),
        machine=describe_machine(clock),
        reconstruction=reconstruction,
        books=list_books(shelf),
        stages=read_stages(recipe, folder),
        before=before,
        after=after,
        drawing_model=NANO_WORLD.name,
        drawings=drawings,
        game_model=NANO_PLAY.name,
        games=games,
        answers=answers,
        continuation=continuation,
        notes=NOTES,
        talk=SERVED,
    )
    with whole_once(folder / "needles.png") as draft:
        draft.write_bytes(draw_heatmaps({"before": before, "after": after}))
    write_report(page, replace(story, numbers=list_numbers(story)))
    return page


def list_books(shelf: Shelf) -> list[BookTokens]:
    """The books that were trained on, and those that were held out for haystacks."""
    return [
        BookTokens(title=title, tokens=sum(len(book) for book in books), use=use)
        for title, books, use in (
            ("Shakespeare, Milton and the Bible", shelf.books, "training"),
            ("books held out", shelf.held_out, "haystacks only"),
        )
    ]


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


def find_needles(
    model: Model, place: Path, shelf: Shelf, results: Path, announce: Announce
) -> list[Trial]:
    """The needle test of a model, which lies at `place`, over the ring; kept in `results`."""
    with jax.set_mesh(make_mesh(seq=RING)):
        return run_needle(
            model.sharded_weights(),
            model.config,
            model.tokenizer,
            shelf.held_out,
            NEEDLE_GRID,
            results,
            announce,
            identity={"model": hash_model(place)},
        )


def answer_about_clips(model: Model) -> list[Answer]:
    """One question about each of `ASKED_CLIPS` clips that were not trained on, with its answer."""
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


@on_one_device
def draw_from_captions() -> list[Drawing]:
    """Clips of one or two things that nano-world draws from captions, and how they are judged.

    They are of `DRAWN_CLIPS` scenes that no training saw.
    """
    rngs = [np.random.default_rng((UNSEEN + 1, i)) for i in range(DRAWN_CLIPS)]
    scenes = [sample_scene(rng, max_things=1 + i % 2) for i, rng in enumerate(rngs)]
    wishes = [caption(scene) for scene in scenes]
    clips = draw_captions(
        load_model(NANO_WORLD),
        wishes,
        frames=FRAMES_A_CLIP,
        guidance=GUIDANCE,
        sampling=DRAWING,
        seed=0,
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


@on_one_device
def play_levels() -> list[PlayedLevel]:
    """`PLAYED_LEVELS` levels that no training saw, in nano-play and in the simulator.

    Each has `PLAYED_STEPS` actions.
    """
    dream = Dream(load_model(NANO_PLAY))
    played = draw_episodes(PLAYED_LEVELS, PLAYED_STEPS, UNSEEN, held_out=True)
    return [play_level(dream, each) for each in played]


def play_level(dream: Dream, played: Episode) -> PlayedLevel:
    """The frames that the actions of an episode make in a dream, and the true ones."""
    drawn = [dream.reset(played.levels[0]), *(dream.step(action) for action in played.actions)]
    shown = [read_level(frame) for frame in drawn]
    right = [np.array_equal(a, b) for a, b in zip(shown, played.levels, strict=True)]
    return PlayedLevel(
        actions=played.actions,
        drawn=np.stack(drawn),
        truth=np.stack([draw_level(level) for level in played.levels]),
        right=right[1:],
    )


def continue_film(model: Model, film: SampleFilm) -> Continuation:
    """A held-out scene of the film, of which some seconds are given and the next ones drawn."""
    start = int(np.searchsorted(film.seconds, SCENE_START))
    given = slice(start, start + SCENE_GIVEN)
    after = slice(given.stop, given.stop + SCENE_MORE)
    (drawn,) = continue_clips(
        model, [film.codes[given]], frames_more=SCENE_MORE, sampling=DRAWING, seed=0
    )
    return Continuation(
        start=float(film.seconds[start]),
        given=film.frames[given],
        drawn=drawn,
        truth=film.frames[after],
    )


def read_stages(recipe: Recipe, folder: Path) -> list[StageRecord]:
    """The records in the `metrics.jsonl` of each stage."""
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


def summarise(after: list[Trial], base: Model, recipe: Recipe) -> str:
    """The result in one sentence, with its number."""
    longest = NEEDLE_GRID.lengths[-1]
    return (
        f"In {len(recipe.stages)} stages a model of text and image codes grew from "
        f"{base.config.llama.context} to {longest} tokens of context on a ring of {RING} devices, "
        f"and finds {count_found(after, longest).share:.0%} of the needles there."
    )


def list_numbers(story: Story) -> list[Number]:
    """The figures of the report with their intervals and how each was measured."""
    numbers = [
        Number(
            what=f"needles found at {length} tokens, {when}",
            value=str(count_found(trials, length)),
            how=f"prompts over {len(NEEDLE_GRID.depths)} depths, held-out books, random numbers, "
            "greedy answers that contain the number",
        )
        for length in NEEDLE_GRID.lengths
        for when, trials in (("before", story.before), ("after", story.after))
    ]
    if film := story.reconstruction:
        how = f"mean PSNR of all frames of {film.held_out}, which were not trained on"
        what = "reconstruction of the film"
        numbers.append(Number(what=what, value=f"{film.psnr:.1f} dB", how=how))
    return [
        *numbers,
        Number(
            what="questions about unseen clips",
            value=str(story.answered),
            how="greedy answers equal to the truth, one question a clip",
        ),
        Number(
            what=f"clips of one or two things drawn as asked by {story.drawing_model}",
            value=str(story.drawn),
            how="colour, shape and motion of every thing found by a rule, and nothing else found",
        ),
        *([count_games(story)] if story.games else []),
    ]


def count_games(story: Story) -> Number:
    """How many levels were right to the end."""
    return Number(
        what=f"levels of {PLAYED_STEPS} actions played right to the end in {story.game_model}",
        value=str(story.played),
        how="every frame right in every cell, each drawn from the frames that the model drew "
        "before it (`ringworld eval play` has 100 levels)",
    )


NOTES = (
    "The model is small and was trained for an hour or two. Its prose is not worth reading; the "
    "figures for answers and drawings say how often they are right.",
    "The needle test asks in words that training has seen, with other numbers and other books, as "
    "in LWM's chat stages. It is not a hard test of understanding.",
    "Intervals are Wilson's at 95 %. A guess is a random answer of the same kind.",
)
