"""The report tells the whole story, asks no other place for anything, and trusts no text."""

import errno
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals.loss_curve import draw_losses, shorten, smooth, span
from ringworld.evals.needle import Trial
from ringworld.evals.page import VOID, element, join_html
from ringworld.evals.report import clock, duration, write_report
from ringworld.evals.story import (
    Answer,
    BookTokens,
    Continuation,
    Drawing,
    FilmReconstruction,
    Machine,
    Number,
    PlayedLevel,
    StageRecord,
    Story,
)
from ringworld.tasks.shape_judge import score_clip
from ringworld.tasks.shape_language import caption, questions
from ringworld.tasks.shapes import Scene, draw, sample_scene

LENGTHS = (1024, 2048, 4096, 8192, 16384)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LARGEST = 3_000_000
CHAPTERS = ["Video", "Text", "Training", "Needle test", "Examples", "Numbers"]
# What makes a browser ask another place for something, or run a program.
FOREIGN = re.compile(
    r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe|\bon[a-z]+=", re.IGNORECASE
)


def film(rng: np.random.Generator, frames: int, size: int = 64) -> np.ndarray:
    """A meadow below a sky, with a sun that wanders: `frames` pictures [Z, Y, X, 3]."""
    y, x = np.mgrid[:size, :size] / size
    hills = 0.62 + 0.08 * np.sin(7 * x + 1) + 0.03 * np.sin(19 * x)
    sky = np.stack([0.35 + 0.5 * y, 0.6 + 0.25 * y, 0.95 - 0.1 * y], -1)
    grass = np.stack([0.2 + 0.2 * y, 0.65 - 0.35 * (y - 0.5), 0.15 + 0 * y], -1)
    picture = np.where((y > hills)[..., None], grass, sky)
    pictures = []
    for share in np.linspace(0.15, 0.85, frames):
        glow = np.exp(-((x - share) ** 2 + (y - 0.3) ** 2) * 60)[..., None]
        pictures.append(picture + glow * [0.9, 0.6, 0.1] + rng.normal(0, 0.02, picture.shape))
    return np.rint(255 * np.clip(pictures, 0, 1)).astype(np.uint8)


def blur(frames: np.ndarray) -> np.ndarray:
    """Frames with less in them, as codes give them back."""
    small = frames.reshape(len(frames), 32, 2, 32, 2, 3).mean((2, 4))
    soft = (small + np.roll(small, 1, 1) + np.roll(small, 1, 2)) / 3
    return np.rint(soft.repeat(2, 1).repeat(2, 2)).astype(np.uint8)


def stage(rng: np.random.Generator, context: int, level: float, steps: int) -> StageRecord:
    """A stage whose losses fall, with steps that saw no text."""
    rows = []
    for step in range(steps):
        fall = level + 0.7 * np.exp(-6 * step / steps)
        text, vision = fall + rng.normal(0, 0.07), 1.4 + fall + rng.normal(0, 0.12)
        seen = None if step % 17 == 3 else float(text)
        rows.append({"step": step, "loss": fall, "text_loss": seen, "vision_loss": float(vision)})
    return StageRecord(
        name=f"context-{context // 1024}k",
        context=context,
        rope_theta=1e4 * (context / 1024) ** 1.5,
        steps=steps,
        tokens=steps * 16384,
        seconds=1.1 * steps,
        rows=rows,
    )


def trials(rng: np.random.Generator, reach: float) -> list[Trial]:
    """Needles that are found less often beyond `reach` tokens."""
    found = []
    for length in LENGTHS:
        for depth in DEPTHS:
            for turn in range(4):
                number = int(rng.integers(1_000_000, 10_000_000))
                right = bool(rng.random() < min(1.0, (reach / length) ** 2))
                said = f" {number if right else number // 3}"
                found.append(Trial(length, depth, turn, "Lisbon", number, said, right))
    return found


def drawing(rng: np.random.Generator, asked: Scene, drawn: Scene) -> Drawing:
    """A clip of one scene, judged as the drawing of another."""
    clip = draw(drawn, frames=8)
    noisy = np.clip(clip + rng.normal(0, 6, clip.shape), 0, 255).astype(np.uint8)
    return Drawing(
        caption=caption(asked),
        frames=noisy,
        guidance=4.0,
        score=score_clip(noisy, asked),
        chance=0.001,
    )


def answer(scene: Scene, written: str | None = None) -> Answer:
    """The last question about a scene, answered rightly unless something else was `written`."""
    question, truth = questions(scene)[-1]
    said = truth if written is None else written
    clip = draw(scene, frames=8)
    right = said == truth
    return Answer(
        question=question, truth=truth, written=said, right=right, chance=0.2, frames=clip
    )


@pytest.fixture(scope="module")
def story() -> Story:
    """A whole story with made-up numbers."""
    rng = np.random.default_rng(1)
    pictures, scenes = film(rng, 16), [sample_scene(rng) for _ in range(6)]
    return Story(
        title="A film and a shelf of books become a world model",
        summary="Three stages of training took a small model from 1K to 16K tokens of context on "
        "a ring of 8 virtual devices.",
        machine=Machine(
            cores=2,
            devices="8 virtual CPU devices in a ring",
            jax="0.10.2",
            seconds={"fetch": 3.1, "see": 61.0, "read": 8.4, "train": 402.0, "prove": 190.0},
            peak_bytes=3_140_000_000,
        ),
        reconstruction=FilmReconstruction(
            film="A Meadow, by Nobody",
            original=pictures[:10],
            rebuilt=blur(pictures[:10]),
            seconds=480.25 + 12.0 * np.arange(10),
            codes=64,
            psnr=24.13,
            held_out="minutes 8 and 9",
        ),
        books=[
            BookTokens(title="King Lear", tokens=51_234, use="training"),
            BookTokens(title="The Tempest", tokens=30_111, use="haystacks only"),
        ],
        stages=[stage(rng, 1024, 3.1, 60), stage(rng, 4096, 2.9, 90), stage(rng, 16384, 2.7, 120)],
        before=trials(rng, 900),
        after=trials(rng, 15_000),
        drawing_model="nano-world",
        drawings=[drawing(rng, scenes[0], scenes[0]), drawing(rng, scenes[1], scenes[2])],
        game_model="nano-play",
        games=[
            PlayedLevel(actions=("up", "left"), drawn=pictures[:3], truth=pictures[:3], right=right)
            for right in ((True, False), (True, True), (True, True))
        ],
        answers=[answer(scenes[3]), answer(scenes[4]), answer(scenes[5], "a cow")],
        continuation=Continuation(
            start=512.0, given=pictures[:4], drawn=blur(pictures[4:12]), truth=pictures[4:12]
        ),
        numbers=[
            Number(what="Parameters", value="3,912,448", how="counted over the spec tables"),
            Number(what="Frames", value="597", how="one a second, by container timestamps"),
        ],
        notes=["With 20 trials a length, 95 % may be anything from 76 % to 99 %."],
    )


@pytest.fixture(scope="module")
def html(story: Story, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the whole story."""
    path = tmp_path_factory.mktemp("report") / "demo" / "report.html"
    write_report(path, story)
    assert path.stat().st_size < LARGEST
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Reads a page strictly: what is opened must be closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.labels: list[str] = []
        self.heads: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.pictures.append(attributes)
        if attributes.get("role") == "img":
            self.labels.append(attributes["aria-label"] or "")
        if tag == "td":
            self.heads.append(attributes["data-head"] or "")
        if tag not in VOID | {"meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        """What a person reads, white space folded."""
        return " ".join(" ".join(self.words).split())


def test_the_page_is_well_formed_and_tells_the_story_in_order(html: str) -> None:
    assert Reader(html).headings == CHAPTERS


def test_everything_in_the_story_is_on_the_page(html: str, story: Story) -> None:
    text = Reader(html).text
    for words in (
        *(story.title, story.summary, "24.1 dB", "minutes 8 and 9", "A Meadow, by Nobody"),
        *("08:00", "08:12", "09:48"),  # when the frames were on the screen
        *("King Lear", "51,234", "haystacks only"),
        *("1K → 16K", "θ 10K", "θ 640K", "10,000", "640,000", "4,423,680 in all"),
        *("13 of 20, 43 to 82 %", "20 of 20, 84 to 100 %", "Lisbon", "a guess: < 1 %"),
        *(d.caption for d in story.drawings),
        *("guidance 4", "not asked for"),
        *(a.question for a in story.answers),
        *("Drawn by nano-world", "nano-play saw", "up ✓", "left ✗", "1 of 2 frames right"),
        "right to the end: 2 of 3 (95 %: ",
        *("a cow", "2 of 3 (95 %: 21 to 94 %, a guess: 20 %)", "08:32", "4 frames given"),
        *(part for n in story.numbers for part in (n.what, n.value, n.how)),
        *("11 min 04 s", "8 virtual CPU devices in a ring", "0.10.2", "3.14 GB"),
        *story.notes,
    ):
        assert words in text, words


def test_the_page_asks_no_other_place_for_anything(html: str) -> None:
    assert not FOREIGN.search(re.sub(r"base64,[\w+/=]+", "", html))
    addresses = Reader(html).addresses
    assert addresses
    assert all(re.match(r"data:image/(png|gif);base64,|#", address) for address in addresses)
    assert "default-src 'none'; img-src data:;" in html  # the browser is told so too


def test_every_picture_has_an_alternative_text(html: str) -> None:
    pictures = Reader(html).pictures
    assert all(picture.get("alt") is not None for picture in pictures)
    told = [picture["alt"] for picture in pictures if picture["class"] != "frame"]
    assert all(told)
    labels = Reader(html).labels
    assert all(labels) and sum("Needles found:" in label for label in labels) == 2
    moving = [p for p in pictures if (p["src"] or "").startswith("data:image/gif")]
    assert len(moving) == 2 + 3 + 2 + 3


def test_words_of_the_model_are_never_markup(story: Story, tmp_path: Path) -> None:
    evil = '</p><script>alert("1")</script>&amp;<img src=x onerror="a">'
    scene = sample_scene(np.random.default_rng(2))
    told = replace(
        story,
        title=evil,
        drawings=[replace(drawing(np.random.default_rng(3), scene, scene), caption=evil)],
        answers=[replace(answer(scene), question=evil, written=evil, truth=evil)],
        after=[Trial(1024, 0.5, 0, evil, 1234567, evil, False)],
        notes=[evil],
    )
    write_report(tmp_path / "report.html", told)
    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert reader.text.count(evil) == 9
    assert "x" not in reader.addresses


def test_what_a_run_has_not_is_left_out(story: Story, tmp_path: Path) -> None:
    bare = Story(title="Nothing yet", summary="Only a machine.", machine=story.machine)
    write_report(tmp_path / "bare.html", bare)
    assert Reader((tmp_path / "bare.html").read_text()).headings == ["Numbers"]
    part = replace(story, drawings=(), continuation=None, before=(), reconstruction=None)
    write_report(tmp_path / "part.html", part)
    reader = Reader((tmp_path / "part.html").read_text())
    assert reader.headings == CHAPTERS[1:]
    assert "Answer a question" in reader.text and "Draw a clip" not in reader.text


def test_a_report_is_replaced_whole_or_not_at_all(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Story(title="First", summary="", machine=story.machine)
    path = tmp_path / "report.html"
    write_report(path, bare)
    before = path.read_bytes()

    def fill(draft: Path, *_: object, **__: object) -> None:
        draft.write_bytes(b"<!doctype")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", fill)
        with pytest.raises(InputError, match="free some space"):
            write_report(path, replace(bare, title="Second"))
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == before


def test_the_same_story_gives_the_same_page(story: Story, html: str, tmp_path: Path) -> None:
    write_report(tmp_path / "again.html", story)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_the_bold_line_is_the_mean_of_the_steps_that_were_measured() -> None:
    line = np.array([1.0, np.nan, 3.0, *[5.0] * 17])
    np.testing.assert_allclose(smooth(line, np.ones(20))[:4], [1.0, 2.0, 4.0, 13 / 3])
    assert np.isnan(smooth(np.full(4, np.nan), np.ones(4))).all()


def test_a_step_counts_in_the_bold_line_by_its_targets() -> None:
    line, counts = np.array([1.0, 3.0, *[5.0] * 18]), np.array([1.0, 3.0, *[2.0] * 18])
    np.testing.assert_allclose(smooth(line, counts)[:2], [(1 + 9) / 4, (1 + 9 + 10) / 6])


def test_steps_without_a_loss_are_a_gap_in_its_curve() -> None:
    rows = [{"step": n, "text_loss": None if n in (3, 4) else 1.0 + n} for n in range(9)]
    record = StageRecord(
        name="s", context=64, rope_theta=1e4, steps=9, tokens=9 * 64, seconds=1.0, rows=rows
    )
    lines = re.findall(r'<polyline points="([^"]*)" class="text thin"', draw_losses([record]))
    assert [len(points.split()) for points in lines] == [3, 4]


def test_a_stage_that_saw_no_words_has_no_text_loss(story: Story) -> None:
    rows = [{**row, "text_loss": None} for row in story.stages[0].rows]
    silent = replace(story.stages[0], rows=rows)
    assert span(silent, "text_loss") == "–"
    drawn = draw_losses([silent])
    assert "NaN" not in drawn and "nan" not in drawn


def test_the_needle_map_has_a_cell_for_every_length_and_depth(html: str, story: Story) -> None:
    shares = re.findall(r'<b style="--share:(\d+)%">([\d.]+)</b>', html)
    assert len(shares) == 2 * len(LENGTHS) * len(DEPTHS)
    assert all(float(share) == pytest.approx(100 * float(words)) for share, words in shares)
    assert "data:image/png" in html and 'class="map"' in html


def test_every_cell_of_a_table_knows_its_head(html: str) -> None:
    heads = Reader(html).heads
    assert {"Context", "RoPE base", "Text loss", "Before", "How it was measured"} <= set(heads)
    assert "content: attr(data-head)" in html  # shown beside the cell where columns do not fit


@pytest.mark.parametrize(
    ("number", "short"),
    [(1e4, "10K"), (6.4e5, "640K"), (6_238_000.0, "6.24M"), (2.5e9, "2.5B"), (500.0, "500")],
)
def test_a_rope_base_is_three_digits_beside_the_curve(number: float, short: str) -> None:
    assert shorten(number) == short


def test_times_are_told_as_people_do() -> None:
    assert [clock(s) for s in (0.0, 59.9, 60.0, 3725.0)] == ["00:00", "00:59", "01:00", "62:05"]
    assert [duration(s) for s in (0.04, 59.5, 125.0)] == ["0.0 s", "1 min 00 s", "2 min 05 s"]


def test_markup_is_only_what_element_made() -> None:
    assert element("p", "1 < 2", aria_label='"') == '<p aria-label="&quot;">1 &lt; 2</p>'
    assert element("div", join_html(["<b>", element("b", "x")])) == "<div>&lt;b&gt;<b>x</b></div>"
