"""The page in a real browser, before the real server with the shipped model and the sample film."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from ringworld.evals.needle import Trial, write_trials
from ringworld.fetch import fetch
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from tests.page_browser import PATIENCE, WIDE, needs_chromium, open_browser
from tests.serve.test_reports import TRIAL
from tests.serving import CONFIG, Running, listening

pytestmark = [pytest.mark.slow, needs_chromium]

# The model's context of 1,024 tokens holds twelve frames.
FRAMES_A_SECOND, SECONDS, FRAMES = 0.4, 30, 12


@pytest.fixture
def server(tmp_path: Path, engine: tuple[Served, EngineThread]) -> Iterator[Running]:
    write_trials(tmp_path / "needle.json", [Trial(**TRIAL, response="7")], {"model": "nano"})
    with listening(replace(CONFIG, reports=tmp_path), *engine) as running:
        yield running


def ask(shown: Page, words: str) -> str:
    """The whole answer to a question."""
    shown.locator("#question").fill(words)
    shown.locator("#send").click()
    expect(shown.locator("#stop")).to_be_visible()
    expect(shown.locator("#send")).to_be_visible(timeout=PATIENCE)
    assert shown.locator("article.failed").count() == 0, shown.locator("#status").inner_text()
    return shown.locator("article.assistant .text").last.inner_text()


def set_answers(shown: Page) -> None:
    """Short greedy answers, from the film's first half minute."""
    shown.locator("#open-settings").click()
    for name, value in {"Temperature": "0", "Longest answer": "24"}.items():
        shown.locator("#settings").get_by_label(name).fill(value)
    shown.locator("#fps").fill(str(FRAMES_A_SECOND))
    shown.locator("#film-end").fill(str(SECONDS))
    shown.get_by_role("button", name="Done").click()


def test_the_sample_film_is_asked_drawn_saved_and_found_again(
    server: Running, tmp_path: Path
) -> None:
    film, base = fetch("film"), f"http://127.0.0.1:{server.port}/"
    with open_browser() as browser:
        context = browser.new_context(viewport=WIDE)
        places: list[str] = []
        films: list[int] = []
        context.on("request", lambda request: places.append(request.url))
        context.on("request", lambda request: films.append(count_films(request)))
        shown = context.new_page()
        shown.goto(base)
        expect(shown.locator("#model")).to_have_text("nano")
        expect(shown.locator("#about-talk .sentence").first).to_have_text("Describe the video.")
        set_answers(shown)
        shown.locator("#files").set_input_files(film)
        expect(shown.locator("#attached li")).to_have_count(1)
        shown.locator("#about-talk .sentence").first.click()
        first = ask(shown, shown.locator("#question").input_value())
        expect(shown.locator("#about-film")).to_contain_text(
            f"{FRAMES} frames, {FRAMES_A_SECOND} a second"
        )
        expect(shown.locator("#used")).to_have_text(re.compile(r"of 1,024 tokens"))
        shown.get_by_role("button", name="Frame at 00:20").click()
        moment = shown.evaluate("document.querySelector('#player').currentTime")
        assert moment == pytest.approx(20, abs=1)
        assert sum(films) == 1
        second = ask(shown, "how many shapes are there?")
        shown.locator("#fork-film").click()
        assert ask(shown, "how many shapes are there?") == second, "it has the same prefix"
        assert sum(films) == 1, "the film itself was sent once"
        expect(shown.locator("#conversations li")).to_have_count(2)
        draw(shown)
        shown.locator("#tab-reports").click()
        expect(shown.locator(".map caption")).to_contain_text("1 of 1 needles found")
        shown.locator("#tab-talk").click()
        with shown.expect_download() as saved:
            shown.locator("#export").click()
        saved.value.save_as(tmp_path / "saved.json")
        set_again = shown.locator("article.assistant .text")
        shown.reload()
        expect(set_again).to_have_text([first, second])
        expect(shown.locator("#frames li")).to_have_count(FRAMES)
        shown.locator("#imported").set_input_files(tmp_path / "saved.json")
        expect(shown.locator("#conversations li")).to_have_count(3, timeout=60_000)
        expect(set_again).to_have_text([first, second])
        assert all(place.startswith((base, "data:", f"blob:{base}")) for place in places)


def count_films(request: Request) -> int:
    """How many films a request holds the bytes of."""
    return (request.post_data_buffer or b"").count(b"data:video/mp4;base64,")


def draw(shown: Page) -> None:
    """A clip and a picture; its frames come one by one."""
    shown.locator("#tab-draw").click()
    shown.locator("#wish").fill("a red circle moves left")
    shown.locator("#seed").fill("3")
    shown.locator("#wish").press("Enter")
    expect(shown.locator(".strip img")).to_have_count(6, timeout=PATIENCE)
    expect(shown.locator(".stage video")).to_be_visible(timeout=PATIENCE)
    shown.locator("#kind-picture").check(force=True)
    shown.locator("#wish").press("Enter")
    expect(shown.locator("#drawings > li")).to_have_count(2)
    picture = shown.locator("#drawings > li").first.locator("img")
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert picture.evaluate("(e) => e.naturalWidth") == 64
