"""The report of a run as one self-contained page, from the video to the numbers.

Every figure says how it was measured. Shares stand beside their 95 % interval and the chance of a
guess. What a run has no value for is left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ringworld.evals.loss_curve import LOSSES, draw_losses, span
from ringworld.evals.needle import Trial, accuracy
from ringworld.evals.page import (
    Html,
    animation,
    bar,
    element,
    figure,
    filmstrip,
    join_html,
    page,
    section,
    table,
)
from ringworld.evals.proportion import Proportion, percent
from ringworld.evals.story import (
    Continuation,
    Drawing,
    Machine,
    StageRecord,
    Story,
    count_found,
)
from ringworld.files import whole_once
from ringworld.progress import name_length
from ringworld.tasks.needle import NUMBER_COUNT

FPS = 4.0  # of the animations, whatever the rate of the frames


def write_report(path: Path, story: Story) -> None:
    """Write the page of `story`, whole or not at all. Raises InputError when the disk is full."""
    chapters = [part for part in (write(story) for write in CHAPTERS) if part]
    header = [element("h1", story.title), element("p", story.summary, class_="summary")]
    if story.talk is not None:
        place = element("a", story.talk, href=story.talk)
        header.append(element("p", "To talk to it: make serve, then ", place, class_="summary"))
    content = page(story.title, join_html([*header, _key_figures(story)]), join_html(chapters))
    with whole_once(path) as draft:
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
        counts = [count_found(trials, longest) for trials in (story.before, story.after)]
        shares = " → ".join(f"{count.share:.0%}" for count in counts if count.tried)
        when = "before and after" if "→" in shares else "after the stages"
        found.append(
            (shares, f"of needles found at {name_length(longest)}, {when} ({counts[-1].bounds})")
        )
    if film := story.reconstruction:
        found.append((f"{film.psnr:.1f} dB", f"PSNR of held-out frames from {film.codes} codes"))
    if story.answers:
        found.append(_counted(story.answered, "questions about new clips answered"))
    if story.drawings:
        found.append(_counted(story.drawn, "clips drawn exactly as asked"))
    cores = f"from film to page on {_count(story.machine.cores, 'core')}"
    found.append((duration(story.machine.total), cores))
    pairs = [element("div", element("dt", label), element("dd", value)) for value, label in found]
    return element("dl", *pairs, class_="key")


def _counted(count: Proportion, what: str) -> tuple[str, str]:
    return f"{count.right} of {count.tried}", f"{what} ({count.bounds})"


def _video(story: Story) -> str:
    if (film := story.reconstruction) is None:
        return ""
    rows = {"film": film.original, "from its codes": film.rebuilt}
    strip = filmstrip(rows, [clock(moment) for moment in film.seconds])
    return section(
        "Video",
        f"Each frame of the film becomes {film.codes} codes of a codebook. The film is above, the "
        "frames decoded from the codes are below.",
        figure(
            strip,
            f"{film.film}. Times are the container's own timestamps. Over {film.held_out}, which "
            f"the codec was not trained on, the PSNR is {film.psnr:.1f} dB.",
            "wide",
        ),
    )


def _text(story: Story) -> str:
    if not story.books:
        return ""
    rows = [(book.title, f"{book.tokens:,}", book.use) for book in story.books]
    return section(
        "Text",
        f"The books are {sum(book.tokens for book in story.books):,} tokens of the same model.",
        figure(
            table(("Book", "Tokens", "Used for"), rows),
            "Counted in the model's own tokens.",
            "words",
        ),
    )


def _training(story: Story) -> str:
    if not story.stages:
        return ""
    legend = [element("span", word, class_=f"key-{word}") for word in LOSSES.values()]
    tokens = sum(stage.tokens for stage in story.stages)
    return section(
        "Training",
        "Each stage trains the model of the one before on longer rows, which the ring divides. The "
        "RoPE base is that of the longest stage.",
        figure(
            join_html([element("p", *legend, class_="legend"), draw_losses(story.stages)]),
            f"Loss a token against tokens trained, {tokens:,} in all (M: millions). "
            "Thin: every step. Bold: the mean over a tenth of the stage's steps. A gap: steps "
            "without targets. A longer context brings other rows: lines may jump between stages.",
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


def _needles(story: Story) -> str:
    if not story.after:
        return ""
    maps = [
        _heat_map(trials, title)
        for trials, title in ((story.before, "Before"), (story.after, "After"))
        if trials
    ]
    lengths = sorted({trial.length for trial in story.after})
    rows = [
        (name_length(n), _share(story.before, n), _share(story.after, n, "after")) for n in lengths
    ]
    example = next(trial for trial in story.after if trial.length == lengths[-1])
    return section(
        "Needle test",
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
            "All depths together, each with its 95 % interval (Wilson). A guess finds "
            f"{percent(1 / NUMBER_COUNT)}: the numbers have seven digits. For example, "
            f"{_trial_in_words(example)}",
            "words",
        ),
    )


def _heat_map(trials: Sequence[Trial], title: str) -> Html:
    """The share found at each length and depth, as cells of the page's own colours."""
    lengths, depths, share = accuracy(trials)
    cells = [element("span", ""), *(element("span", name_length(n)) for n in lengths)]
    for depth, row in zip(depths, share, strict=True):
        cells.append(element("span", f"{depth:.0%}"))
        cells += [
            element("span", "–")
            if np.isnan(found)
            else element("b", f"{found:.2f}", style=f"--share:{100 * found:.0f}%")
            for found in row
        ]
    grid = element(
        "div",
        *cells,
        class_="map",
        style=f"--columns:{len(lengths)}",
        role="img",
        aria_label=_map_in_words(trials, title),
    )
    return element("div", element("h3", f"{title}: depth of the needle by context"), grid)


def _share(trials: Sequence[Trial], length: int, class_: str = "") -> str:
    count = count_found(trials, length)
    if not count.tried:
        return "–"
    low, high = count.interval
    bounds = f"{count.right} of {count.tried}, {100 * low:.0f} to {100 * high:.0f} %"
    words = element("span", f"{count.share:.0%} ", element("small", bounds))
    return join_html([bar(count.share, class_), words])


def _map_in_words(trials: Sequence[Trial], title: str) -> str:
    told = []
    for length in sorted({trial.length for trial in trials}):
        count = count_found(trials, length)
        told.append(f"{count.right} of {count.tried} at {name_length(length)}")
    return f"Heat map, {title.lower()} the stages. Needles found: {', '.join(told)}."


def _trial_in_words(trial: Trial) -> str:
    place = f"{name_length(trial.length)} and depth {trial.depth:.0%}"
    return (
        f"at {place} the magic number of {trial.city} was {trial.number}, and the model wrote "
        f"“{trial.response.strip()}”."
    )


def _examples(story: Story) -> str:
    parts: list[Html] = []
    if story.drawings:
        parts += (element("h3", "Draw a clip from a caption"), _drawings(story))
    if story.answers:
        parts += (element("h3", "Answer a question about a clip"), _answers(story))
    if story.continuation:
        parts += (element("h3", "Continue a scene of the film"), _continue(story.continuation))
    if story.games:
        parts += (element("h3", "Play in a small world"), _games(story))
    lede = "A model reads and writes words and frames in one sequence."
    return section("Examples", lede, *parts) if parts else ""


def _drawings(story: Story) -> Html:
    shown = []
    for drawing in story.drawings:
        clip = animation(drawing.frames, FPS, f"Drawn clip: {drawing.caption}")
        strip = filmstrip(
            {"drawn": drawing.frames}, [f"{i + 1}" for i in range(len(drawing.frames))]
        )
        words = element("div", element("blockquote", drawing.caption), _verdict(drawing), strip)
        shown.append(element("div", clip, words, class_="beside"))
    return figure(
        join_html(shown),
        f"Drawn by {story.drawing_model}. Exactly as asked: {story.drawn}. A guess is a clip of "
        "random things. The judge is a rule: it finds each colour in the pixels, fits the three "
        f"shapes to it and follows its centre. Played at {FPS:g} frames a second.",
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


def _answers(story: Story) -> Html:
    cards = []
    for answer in story.answers:
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
        f"Right: {story.answered}. A guess is a random answer of the kind that is asked for. None "
        "of these clips was trained on. Answers are shown as the model wrote them.",
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


def _games(story: Story) -> Html:
    first, clips = story.games[0], []
    for game in story.games:
        clip = animation(game.drawn, FPS, f"A level as {story.game_model} draws it")
        told = _mark(f"{sum(game.right)} of {len(game.right)} frames right", all(game.right))
        clips.append(element("div", clip, element("p", told, class_="marks"), class_="card"))
    marks = [
        f"{action} {'✓' if right else '✗'}"
        for action, right in zip(first.actions, first.right, strict=True)
    ]
    strip = filmstrip({"the model's": first.drawn[1:], "the truth": first.truth[1:]}, marks)
    return figure(
        join_html([element("div", *clips, class_="cards"), strip]),
        f"{story.game_model} saw the first frame of each level, which no training saw, and then "
        "only its own frames and the actions. A frame is right when every cell is. Levels right to "
        f"the end: {story.played}. Below, the first of them and the simulator's frames.",
    )


def _numbers(story: Story) -> str:
    parts = [_times(story.machine)]
    if story.numbers:
        rows = [(n.what, element("b", n.value), n.how) for n in story.numbers]
        parts.insert(0, figure(table(("What", "Value", "How it was measured"), rows), "", "words"))
    if story.notes:
        notes = [element("li", note) for note in story.notes]
        parts += [element("h3", "What to keep in mind"), element("ul", *notes, class_="notes")]
    return section("Numbers", "Every value, and how it was measured.", *parts)


def _times(machine: Machine) -> Html:
    longest = max(machine.seconds.values(), default=0) or 1
    rows = [
        (name, join_html([bar(seconds / longest), element("span", duration(seconds))]))
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


CHAPTERS = (_video, _text, _training, _needles, _examples, _numbers)
