"""The world to play with in a real browser: before a script, and before the shipped model."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from ringworld.evals.page import png
from ringworld.tasks.play_world import ACTIONS, draw_level, draw_start, step
from tests.page_browser import (
    MODEL,
    NARROW,
    PATIENCE,
    WIDE,
    ScriptedServer,
    find_violations,
    needs_chromium,
    open_browser,
    open_page,
    read_axe,
)
from tests.serving import Running

pytestmark = [pytest.mark.slow, needs_chromium]

PLAYS = {**MODEL, "actions": list(ACTIONS)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


class ScriptedWorld:
    """Games whose dream is the truth, but for each third frame; an answer of "" never comes."""

    def __init__(self, error: str | None = None) -> None:
        self.level, self.told, self.error = (
            draw_start(np.random.default_rng(0), held_out=True),
            {},
            error,
        )

    def answer(self, body: dict[str, Any]) -> str:
        if self.error is not None:
            return json.dumps({"error": {"message": self.error}})
        action = body.get("action")
        if action is None:
            self.level = draw_start(np.random.default_rng(body["seed"]), held_out=True)
            self.told = {"id": "game_1", "seed": body["seed"], "step": 0, "agreed": 0, "goals": 2}
        else:
            self.level = step(self.level, action)
            self.told["step"] += 1
        agrees = self.told["step"] % 3 != 2
        self.told["agreed"] += agrees and action is not None
        frame = url_of(draw_level(self.level))
        more = {"action": action, "frame": frame, "truth": frame, "agrees": agrees}
        return json.dumps({**self.told, **more, "boxes_on_goals": 1, "passes": 3})


def url_of(frame: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(frame)).decode()}"


def open_world(browser: Browser, server: ScriptedServer, **options: Any) -> Page:
    """The page with the world open, on the level 5."""
    shown = open_page(browser, server, **options)
    shown.locator("#level-seed").evaluate("(e) => { e.value = 5; }")
    shown.locator("#tab-play").click()
    expect(shown.locator("#play-status")).to_have_text("level 5 begins")
    return shown


def counts_of(shown: Page) -> dict[str, str]:
    names = shown.locator("#play-counts dt").all_inner_texts()
    return dict(zip(names, shown.locator("#play-counts dd").all_inner_texts(), strict=True))


def actions_of(server: ScriptedServer) -> list[str]:
    return [body["action"] for _, body in server.asked if "action" in body]


def test_a_world_is_played_by_keys_and_buttons(browser: Browser) -> None:
    server = ScriptedServer(model=PLAYS, draws=ScriptedWorld().answer)
    shown = open_world(browser, server)
    assert server.asked == [("/v1/play", {"model": "nano", "seed": 5})]
    expect(shown.locator("#world")).to_be_focused()
    shown.keyboard.press("ArrowUp")
    status = shown.locator("#play-status")
    expect(status).to_have_text("step 1, up: agrees with the truth")
    shown.get_by_role("button", name="Right", exact=True).click()
    expect(status).to_have_text("step 2, right: differs from the truth")
    shown.get_by_role("button", name="Stay").press("Enter")
    expect(status).to_have_text("step 3, stay: agrees with the truth")
    shown.locator("#world").press(" ")
    expect(status).to_have_text("step 4, stay: agrees with the truth")
    expect(shown.locator("#dream")).to_have_attribute("alt", "The dream after 4 steps")
    assert actions_of(server) == ["up", "right", "stay", "stay"]
    assert server.asked[-1][0] == "/v1/play/game_1"
    assert counts_of(shown) == {
        "Level": "5",
        "Steps": "4",
        "Frames that agree": "3 of 4",
        "Boxes on goals": "1 of 2",
        "Passes for this frame": "3",
    }
    assert shown.locator("#truth").evaluate("(e) => e.naturalWidth") == 64
    shown.get_by_label("Show the truth").uncheck()
    expect(shown.locator("#truth")).to_be_hidden()
    shown.get_by_label("Level").fill("6")
    shown.keyboard.press("Enter")
    expect(status).to_have_text("level 6 begins")
    expect(shown.locator("#world")).to_be_focused()
    shown.locator("#tab-talk").click()
    shown.locator("#tab-play").click()
    assert counts_of(shown)["Level"] == "6", "the game is still there"
    shown.context.close()


def test_arrow_keys_are_left_to_fields_tabs_and_the_browser(browser: Browser) -> None:
    server = ScriptedServer(model=PLAYS, draws=ScriptedWorld().answer)
    shown = open_world(browser, server, size={"width": 400, "height": 420})
    view = "document.querySelector('#view-play').scrollTop"
    shown.keyboard.press("ArrowDown")
    expect(shown.locator("#play-status")).to_have_text("step 1, down: agrees with the truth")
    shown.keyboard.press(" ")
    expect(shown.locator("#play-status")).to_have_text("step 2, stay: differs from the truth")
    assert shown.evaluate(view) == 0, "the keys of the world do not scroll the page"
    asked = len(server.asked)
    shown.get_by_label("Level").focus()
    shown.keyboard.press("ArrowUp")
    expect(shown.get_by_label("Level")).to_have_value("6")
    shown.locator("#world").press("Alt+ArrowUp")
    shown.locator("#open-settings").click()
    shown.keyboard.press("ArrowUp")
    shown.keyboard.press("Escape")
    shown.locator("#tab-play").press("ArrowLeft")
    expect(shown.locator("#tab-draw")).to_be_focused()
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#view-play")).to_be_visible()
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#view-reports")).to_be_visible()
    shown.locator("#tab-talk").click()
    shown.locator("#question").press("ArrowUp")
    shown.locator("#talk").press("ArrowUp")
    assert len(server.asked) == asked
    shown.context.close()


def test_actions_are_sent_one_at_a_time_and_a_key_held_down_adds_none(browser: Browser) -> None:
    server = ScriptedServer(model=PLAYS, draws=ScriptedWorld().answer)
    shown = open_world(browser, server)
    shown.evaluate("""() => {
      const send = window.fetch;
      const opened = new Promise((open) => Object.assign(window, { open, now: 0, most: 0 }));
      window.fetch = async (...asked) => {
        window.most = Math.max(window.most, ++window.now);
        await opened;
        const answer = await send(...asked);
        window.now--;
        return answer;
      };
    }""")
    for _ in range(3):
        shown.keyboard.press("ArrowUp")
    for _ in range(9):
        shown.keyboard.down("ArrowLeft")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        shown.keyboard.press(key)
    assert server.asked[1:] == []
    shown.evaluate("window.open()")
    expect(shown.locator("#play-status")).to_contain_text("step 5, right")
    assert actions_of(server) == ["up", "up", "up", "left", "right"], "more than four do not wait"
    assert shown.evaluate("window.most") == 1
    shown.context.close()


def test_a_game_that_is_gone_is_told_and_a_new_level_begins(browser: Browser) -> None:
    world = ScriptedWorld()
    server = ScriptedServer(model=PLAYS, draws=world.answer)
    shown = open_world(browser, server)
    world.error = "there is no such game: begin another"
    for _ in range(2):
        shown.keyboard.press("ArrowUp")
        expect(shown.locator("#play-status.failed")).to_have_text(world.error)
    world.error = None
    shown.get_by_role("button", name="New level").click()
    expect(shown.locator("#play-status")).to_have_text("level 5 begins")
    shown.keyboard.press("ArrowUp")
    expect(shown.locator("#play-status")).to_have_text("step 1, up: agrees with the truth")
    shown.context.close()


def test_only_a_model_with_actions_offers_a_world(browser: Browser) -> None:
    shown = open_page(browser, ScriptedServer())
    expect(shown.locator("#tab-play")).to_be_hidden()
    shown.locator("#tab-draw").press("ArrowRight")
    expect(shown.locator("#view-reports")).to_be_visible()
    shown.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1600", "400"])
def test_axe_finds_nothing_on_the_world_and_nothing_is_cut_off(
    browser: Browser, scheme: str, size: Any
) -> None:
    server = ScriptedServer(model=PLAYS, draws=ScriptedWorld().answer)
    shown = open_world(browser, server, size=size, scheme=scheme)
    axe = read_axe()
    for said in ("level 5 begins", "agrees", "differs"):
        expect(shown.locator("#play-status")).to_contain_text(said)
        assert find_violations(shown, axe) == []
        wide = shown.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], "the page can be moved sideways"
        shown.keyboard.press("ArrowUp")
    smallest = shown.locator("#pad button").evaluate_all(
        "(all) => Math.min(...all.map((e) => Math.min(e.offsetWidth, e.offsetHeight)))"
    )
    assert smallest >= 44, "a finger does not meet them"
    shown.context.close()


def test_the_shipped_model_is_played_in_a_browser(browser: Browser, world: Running) -> None:
    context = browser.new_context(viewport=WIDE)
    expect.set_options(timeout=PATIENCE)
    shown = context.new_page()
    shown.goto(f"http://127.0.0.1:{world.port}/")
    shown.locator("#level-seed").evaluate("(e) => { e.value = 3; }")
    shown.locator("#tab-play").click()
    expect(shown.locator("#play-status")).to_have_text("level 3 begins")
    for action in ("Up", "Left", "Down"):
        shown.keyboard.press(f"Arrow{action}")
        expect(shown.locator("#play-status")).to_contain_text(f"{action.lower()}: ")
    told = counts_of(shown)
    assert (told["Level"], told["Steps"]) == ("3", "3")
    assert told["Frames that agree"] in ("2 of 3", "3 of 3")
    for name in ("#dream", "#truth"):
        assert shown.locator(name).evaluate("(e) => e.naturalWidth") == 64
    context.close()
