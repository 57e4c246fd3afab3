"""A real browser for the tests of the page, and a page whose server is a script.

The page's own files and headers are those of the package. What the server would answer is said by
the test, so that a model's answer can be anything.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from ringworld.serve.app import PAGE_FOLDER, PAGE_TYPES
from ringworld.serve.guard import HEADERS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
# The browser asks nobody anything but this machine.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
BASE = "http://localhost:8000"
WIDE, NARROW = {"width": 1600, "height": 1000}, {"width": 400, "height": 860}
# Milliseconds that a busy machine may take for what happens at once on one that is not.
PATIENCE = 120_000
AXE = "axe-core-4.14.1"
AXE_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
MODEL = {
    "id": "nano",
    "max_model_len": 1000,
    "vision": True,
    "actions": [],
    "drawing": {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 0, "min_p": 0.05},
}
ABOUT = 'It knows "Describe the video." and "how many shapes are there?"; the rest is nonsense.'


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def read_axe() -> str:
    """The accessibility rules of axe-core, from npm, kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "ringworld")
    kept = cache / f"{AXE}.tgz"
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("axe-core is fetched by npm, and there is none here")
        cache.mkdir(parents=True, exist_ok=True)
        name = AXE.replace("axe-core-", "axe-core@")
        done = subprocess.run(["npm", "pack", "--silent", name], cwd=cache, capture_output=True)
        if done.returncode:
            pytest.skip("npm does not reach axe-core")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == AXE_SHA256
    with tarfile.open(kept) as package:
        held = package.extractfile("package/axe.min.js")
        assert held is not None
        return held.read().decode()


def find_violations(page: Page, axe: str) -> list[str]:
    """What axe-core finds wrong with the page as it stands."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def answer_events(*pieces: str, tokens: int = 100, media: Any = None) -> str:
    """An answer in pieces, as the server streams it."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant"}}]}]
    if media is not None:
        events[0]["media"] = media
    events += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events.append({"choices": [], "usage": {"total_tokens": tokens}})
    return stream_events(events)


def stream_events(events: list[dict[str, Any]]) -> str:
    """Events as they stand in a stream."""
    lines = [json.dumps(event) for event in events]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


Answers = Callable[[dict[str, Any]], str]


@dataclass
class ScriptedServer:
    """What the page asks, and what it is answered; an answer of "" never comes.

    An answer that is an error in OpenAI's form has the status 400.
    """

    answers: Answers = lambda body: answer_events("Yes.")
    draws: Answers = lambda body: stream_events([])
    reports: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    key: str | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def questions(self) -> list[list[dict[str, Any]]]:
        """The messages of each chat request."""
        return [body["messages"] for path, body in self.asked if path.endswith("completions")]

    def take(self, context: BrowserContext) -> None:
        """Answer all that the pages of a context ask for."""
        context.route(re.compile("^https?:"), self._handle)

    def _handle(self, route: Route) -> None:
        request = route.request
        if not request.url.startswith(f"{BASE}/"):
            self.elsewhere.append(request.url)
            route.abort()
            return
        path = urlsplit(request.url).path
        name = "index.html" if path == "/" else path.removeprefix("/page/")
        if path == "/" or path.startswith("/page/"):
            kind = PAGE_TYPES[Path(name).suffix]
            body = (PAGE_FOLDER / name).read_text(encoding="utf-8")
            route.fulfill(body=body, headers={**HEADERS, "Content-Type": kind})
            return
        given = request.headers.get("authorization")
        if self.key is not None and given != f"Bearer {self.key}":
            route.fulfill(status=401, json={"error": {"message": "no"}})
            return
        self._answer(route, path)

    def _answer(self, route: Route, path: str) -> None:
        if path == "/v1/models":
            route.fulfill(json={"data": [self.model]})
        elif path == "/reports":
            kinds = {name: _kind(name) for name in self.reports}
            listed = [
                {"name": name, "kind": kind, "modified": 1_780_000_000}
                for name, kind in kinds.items()
            ]
            route.fulfill(json={"about": ABOUT, "reports": listed})
        elif path.startswith("/reports/"):
            route.fulfill(body=self.reports[path.removeprefix("/reports/")])
        else:
            body = json.loads(route.request.post_data or "{}")
            self.asked.append((path, body))
            told = (self.answers if path.endswith("completions") else self.draws)(body)
            if told:
                kind = "application/json" if told.startswith("{") else "text/event-stream"
                status = 400 if told.startswith('{"error"') else 200
                route.fulfill(status=status, body=told, content_type=kind)


def _kind(name: str) -> str:
    return name.partition(".")[0].partition("-")[0]


def open_page(
    browser: Browser,
    server: ScriptedServer,
    *,
    size: Any = None,
    scheme: Any = "light",
    query: str = "",
) -> Page:
    """The page of a scripted server, in a browser that knows nothing; errors in it are raised."""
    context = browser.new_context(
        viewport=size or WIDE, color_scheme=scheme, reduced_motion="reduce", locale="en"
    )
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    server.take(context)
    page = context.new_page()
    page.on("pageerror", _raise)
    page.goto(f"{BASE}/{query}")
    if server.key is None:
        page.locator("#model", has_text=server.model["id"]).wait_for(state="attached")
    return page


def _raise(error: Any) -> None:
    raise AssertionError(f"the page failed: {error}")


def ask(page: Page, words: str) -> None:
    """Send a question, and wait until its answer has ended."""
    page.locator("#question").fill(words)
    page.keyboard.press("Enter")
    page.locator("#send").wait_for()
