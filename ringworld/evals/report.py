"""The story of a run as one self-contained page: see, read, train, prove, use, and the numbers.

Every figure says how it was measured, and what a run has no value for is left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ringworld.evals.heatmap import draw_heatmaps, name_length
from ringworld.evals.loss_curve import LOSSES, draw_losses, span
from ringworld.evals.needle import Trial
from ringworld.evals.page import (
    Html,
    animation,
    bar,
    element,
    figure,
    filmstrip,
    join,
    page,
    picture,
    section,
    table,
)
from ringworld.evals.story import Answer, Continuation, Drawing, Machine, StageRecord, Story
from ringworld.files import whole

FPS = 4.0  # of the animations, whatever the rate of the frames


def write_report(path: Path, story: Story) -> None:
    """Write the page of `story`, whole or not at all. Raises InputError when the disk is full."""
    chapters = [part for part in (tell(story) for tell in CHAPTERS) if part]
    header = [element("h1", story.title), element("p", story.summary, class_="summary")]
    content = page(story.title, join([*header, _key_figures(story)]), join(chapters))
    with whole(path) as draft:
        draft.write_text(content, encoding="utf-8")


def clock(seconds: float) -> str:
    """Seconds of a film as mm:ss."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def duration(seconds: float) -> str:
    """How long something took, such as "7 min 05 s"."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"


def _key_figures(story: Story) -> Html:
    """The few numbers that a reader in a hurry should see."""
    found: list[tuple[str, str]] = []
    if stages := story.stages:
        reach = f"{name_length(stages[0].context)} → {name_length(stages[-1].context)}"
        found.append((reach, f"tokens of context, in {_count(len(stages), 'stage')}"))
    if story.after:
        longest = max(trial.length for trial in story.after)
        shares = [_found(trials, longest) for trials in (story.before, story.after)]
        percent = " → ".join(f"{right / tried:.0%}" for right, tried in shares if tried)
        when = "before and after" if "→" in percent else "after the stages"
        found.append((percent, f"of needles found at {name_length(longest)}, {when}"))
    if film := story.reconstruction:
        found.append((f"{film.psnr:.1f} dB", f"PSNR of held-out frames from {film.codes} codes"))
    if story.answers:
        right = sum(answer.right for answer in story.answers)
        found.append((f"{right} of {len(story.answers)}", "questions about new clips answered"))
    if story.drawings:
        right = sum(drawing.score.exact for drawing in story.drawings)
        found.append((f"{right} of {len(story.drawings)}", "clips drawn just as asked"))
    cores = f"from film to page on {_count(story.machine.cores, 'core')}"
    found.append((duration(story.machine.total), cores))
    pairs = [element("div", element("dt", label), element("dd", value)) for value, label in found]
    return element("dl", *pairs, class_="key")


def _see(story: Story) -> str:
    if (film := story.reconstruction) is None:
        return ""
    rows = {"film": film.original, "from its codes": film.rebuilt}
    strip = filmstrip(rows, [clock(moment) for moment in film.seconds])
    return section(
        "See",
        f"Each frame of the film becomes {film.codes} codes, whole numbers from a codebook. Above, "
        "the film; below, what the codes give back.",
        figure(
            strip,
            f"{film.film}. Times are the container's own timestamps. Over {film.held_out}, which "
            f"the codec was not trained on, the PSNR is {film.psnr:.1f} dB.",
            "wide",
        ),
    )


def _read(story: Story) -> str:
    if not story.books:
        return ""
    rows = [(book.title, f"{book.tokens:,}", book.use) for book in story.books]
    return section(
        "Read",
        f"Books become tokens of the same model: {sum(book.tokens for book in story.books):,}.",
        figure(
            table(("Book", "Tokens", "Used for"), rows),
            "Counted in the model's own tokens.",
            "words",
        ),
    )


def _train(story: Story) -> str:
    if not story.stages:
        return ""
    legend = [element("span", word, class_=f"key-{word}") for word in LOSSES.values()]
    tokens = sum(stage.tokens for stage in story.stages)
    return section(
        "Train",
        "The same program goes on with longer rows, stage after stage; the base of the rotary "
        "positions is what their law gives for the longest, and the ring divides each row.",
        figure(
            join([element("p", *legend, class_="legend"), draw_losses(story.stages)]),
            f"Loss a token against tokens trained, {tokens:,} in all (M: millions). "
            "Thin: every step. Bold: the mean over a tenth of the stage's steps. A longer context "
            "brings other rows, so lines may jump between stages.",
        ),
        figure(
            table(
                ("Stage", "Context", "RoPE base", "Steps", "Tokens", "Time", "Tokens/s")
                + tuple(f"{word.capitalize()} loss" for word in LOSSES.values()),
                map(_stage_row, story.stages),
            ),
            "Losses are the ends of the bold lines; tokens/s counts the whole "
            "time of the stage, compiling and saving included.",
        ),
    )


def _stage_row(stage: StageRecord) -> tuple[str, ...]:
    counts = (stage.context, stage.rope_theta, stage.steps, stage.tokens)
    speed = f"{stage.tokens / max(stage.seconds, 1e-9):,.0f}"
    losses = [span(stage, name) for name in LOSSES]
    return (stage.name, *(f"{n:,.0f}" for n in counts), duration(stage.seconds), speed, *losses)


def _prove(story: Story) -> str:
    if not story.after:
        return ""
    maps = [
        element("div", picture(draw_heatmaps({title: trials}), _map_in_words(trials, title), "map"))
        for trials, title in ((story.before, "Before"), (story.after, "After"))
        if trials
    ]
    lengths = sorted({trial.length for trial in story.after})
    rows = [
        (name_length(n), _share(story.before, n), _share(story.after, n, "after")) for n in lengths
    ]
    example = next(trial for trial in story.after if trial.length == lengths[-1])
    return section(
        "Prove",
        "A random number is hidden in a book, and the model is asked for it: over context lengths, "
        "and over depths from the first page to the last.",
        figure(
            element("div", *maps, class_="maps"),
            "Share of needles found, before and after the stages. The answer is drawn greedily and "
            "counts when it contains the number. Lengths are in the model's own tokens, answer "
            "included; the books around the needle were not trained on.",
        ),
        figure(
            table(("Context", "Before", "After"), rows),
            f"All depths together. For example, {_trial_in_words(example)}",
            "words",
        ),
    )


def _found(trials: Sequence[Trial], length: int) -> tuple[int, int]:
    """How many needles of this length were found, and how many were tried."""
    tried = [trial.found for trial in trials if trial.length == length]
    return sum(tried), len(tried)


def _share(trials: Sequence[Trial], length: int, class_: str = "") -> str:
    right, tried = _found(trials, length)
    if not tried:
        return "–"
    words = element("span", f"{right / tried:.0%} ", element("small", f"{right} of {tried}"))
    return join([bar(right / tried, class_), words])


def _map_in_words(trials: Sequence[Trial], title: str) -> str:
    told = []
    for length in sorted({trial.length for trial in trials}):
        right, tried = _found(trials, length)
        told.append(f"{right} of {tried} at {name_length(length)}")
    return f"Heat map, {title.lower()} the stages. Needles found: {', '.join(told)}."


def _trial_in_words(trial: Trial) -> str:
    place = f"{name_length(trial.length)} and depth {trial.depth:.0%}"
    return (
        f"at {place} the magic number of {trial.city} was {trial.number}, and the model wrote "
        f"“{trial.response.strip()}”."
    )


def _use(story: Story) -> str:
    parts: list[Html] = []
    if story.drawings:
        parts += (element("h3", "Draw a clip from a caption"), _drawings(story.drawings))
    if story.answers:
        parts += (element("h3", "Answer a question about a clip"), _answers(story.answers))
    if story.continuation:
        parts += (element("h3", "Continue a scene of the film"), _continue(story.continuation))
    lede = "One model, one sequence: words and frames are read and written by the same weights."
    return section("Use", lede, *parts) if parts else ""


def _drawings(drawings: Sequence[Drawing]) -> Html:
    shown = []
    for drawing in drawings:
        clip = animation(drawing.frames, FPS, f"Drawn clip: {drawing.caption}")
        strip = filmstrip(
            {"drawn": drawing.frames}, [f"{i + 1}" for i in range(len(drawing.frames))]
        )
        words = element("div", element("blockquote", drawing.caption), _verdict(drawing), strip)
        shown.append(element("div", clip, words, class_="beside"))
    return figure(
        join(shown),
        f"Played at {FPS:g} frames a second. The judge is a rule that finds each colour in the "
        "pixels, compares its outline with the three shapes and follows its centre.",
    )


def _verdict(drawing: Drawing) -> Html:
    """What the judge found, and the guidance that the clip was drawn with."""
    score, asked = drawing.score, len(drawing.score.things)
    shares = {"colour": score.colour, "shape": score.shape, "motion": score.motion}
    marks = [
        _mark(f"{word} {round(share * asked)} of {asked}", share == 1)
        for word, share in shares.items()
    ]
    if score.extra:
        marks.append(_mark(f"{_count(score.extra, 'colour')} not asked for", False))
    marks.append(element("small", f"guidance {drawing.guidance:g}"))
    return element("p", *marks, class_="marks")


def _answers(answers: Sequence[Answer]) -> Html:
    cards = []
    for answer in answers:
        clip = animation(answer.frames, FPS, f"The clip asked about: {answer.question}")
        told = element(
            "div",
            element("blockquote", answer.question),
            element("p", element("b", answer.written.strip() or "(nothing)"), class_="said"),
            element("p", _mark(f"truth: {answer.truth}", answer.right), class_="marks"),
        )
        cards.append(element("div", clip, told, class_="card"))
    return figure(
        element("div", *cards, class_="cards"),
        "None of these clips was trained on, and their truths are known exactly. Answers are "
        "shown as the model wrote them.",
    )


def _continue(scene: Continuation) -> Html:
    steps = range(len(scene.given) + len(scene.drawn))
    moments = [clock(scene.start + step) for step in steps]
    seen = len(scene.given)
    rows = []
    for word, frames, first in (
        ("given", scene.given, 0),
        ("drawn", scene.drawn, seen),
        ("film", scene.truth, seen),
    ):
        strip = filmstrip({word: frames}, moments[first : first + len(frames)])
        rows.append(element("div", element("h4", word), strip, class_=f"row {word}"))
    clips = [
        element("div", animation(np.concatenate([scene.given, frames]), FPS, alt), word)
        for word, frames, alt in (
            ("given, then drawn", scene.drawn, "The scene as the model goes on with it"),
            ("given, then film", scene.truth, "The scene as the film goes on"),
        )
    ]
    return figure(
        element(
            "div", element("div", *clips, class_="clips"), element("div", *rows), class_="beside"
        ),
        f"From {moments[0]}, one frame a second: {_count(seen, 'frame')} given, "
        f"{_count(len(scene.drawn), 'frame')} drawn, and the film's own. Animations play at "
        f"{FPS:g} frames a second.",
    )


def _numbers(story: Story) -> str:
    parts = [_times(story.machine)]
    if story.numbers:
        rows = [(n.what, element("b", n.value), n.how) for n in story.numbers]
        parts.insert(0, figure(table(("What", "Value", "How it was measured"), rows), "", "words"))
    if story.notes:
        notes = [element("li", note) for note in story.notes]
        parts += [element("h3", "What to keep in mind"), element("ul", *notes, class_="notes")]
    return section("Numbers", "Every value, and where it comes from.", *parts)


def _times(machine: Machine) -> Html:
    longest = max(machine.seconds.values(), default=0) or 1
    rows = [
        (name, join([bar(seconds / longest), element("span", duration(seconds))]))
        for name, seconds in machine.seconds.items()
    ]
    return figure(
        table(("Step", "Time"), [*rows, ("total", element("b", duration(machine.total)))]),
        f"Wall clock of each step on {_count(machine.cores, 'core')} as {machine.devices}, JAX "
        f"{machine.jax}. Peak memory of the program: {machine.peak_bytes / 1e9:.2f} GB.",
        "words",
    )


def _mark(words: str, good: bool) -> Html:
    sign = element(
        "span", "✓" if good else "✗", aria_label="right" if good else "wrong", role="img"
    )
    return element("span", sign, f" {words}", class_="mark good" if good else "mark bad")


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


CHAPTERS = (_see, _read, _train, _prove, _use, _numbers)
