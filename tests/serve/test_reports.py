"""The reports of a model, and clips that are sent frame by frame, over real connections."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringworld.chat.ask import draw_captions, draw_pictures
from ringworld.media.clip import read_clip
from ringworld.media.sampling import FrameSampling
from ringworld.serve.drawing import FrameCutter
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.reports import choose_reports, find_reports
from ringworld.serve.served import Served
from ringworld.settings import DRAWING, GUIDANCE
from ringworld.vocab import Vocabulary
from tests.serving import CONFIG, Running, listening

TRIAL = {"length": 64, "depth": 0.5, "round": 0, "city": "Oslo", "number": 7, "found": True}


def write_run(folder: Path) -> Path:
    """A run folder with reports, what is none beside them, and a model folder; returns the last."""
    model = folder / "reach" / "model"
    model.mkdir(parents=True)
    (folder / "needle-before.json").write_text(json.dumps([TRIAL]))
    (folder / "report.html").write_text("<script>alert(1)</script>")
    (folder / "reach" / "perplexity.json").write_text("[]")
    (folder / "secrets.json").write_text("{}")
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def server(run: Path, engine: tuple[Served, EngineThread]) -> Iterator[Running]:
    with listening(replace(CONFIG, reports=run), *engine) as running:
        yield running


def test_reports_are_listed_and_sent_as_they_are(server: Running, run: Path) -> None:
    listed = json.loads(server.ask("GET", "/reports")[2])
    assert listed["about"].startswith("This model was trained on")
    assert [(each["name"], each["kind"]) for each in listed["reports"]] == [
        ("needle-before.json", "needle"),
        ("reach/perplexity.json", "perplexity"),
        ("report.html", "report"),
    ]
    status, headers, content = server.ask("GET", "/reports/needle-before.json")
    assert status == 200 and headers["content-type"] == "application/json"
    assert json.loads(content) == [TRIAL]


def test_a_report_runs_nothing_in_the_name_of_the_server(server: Running) -> None:
    _, headers, content = server.ask("GET", "/reports/report.html")
    assert content == b"<script>alert(1)</script>"
    assert headers["content-type"].startswith("text/plain")
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    ["secrets.json", "../report.html", "..%2freport.html", "%2e%2e/%2e%2e/etc/passwd", "link.json"],
)
def test_nothing_but_a_listed_report_is_sent(server: Running, run: Path, name: str) -> None:
    link = run / "needle-link.json"
    if not link.is_symlink():
        link.symlink_to(run / "secrets.json")
    assert server.ask("GET", f"/reports/{name}")[0] == 404
    assert server.ask("GET", "/reports/needle-link.json")[0] == 404


def test_a_model_in_a_run_has_the_reports_of_the_run_only(tmp_path: Path) -> None:
    model = write_run(tmp_path)
    assert choose_reports(model, None) == (tmp_path / "reach", 0)
    (tmp_path / "reach" / "perplexity.json").unlink()
    chosen = choose_reports(model, None)
    assert chosen == (tmp_path, 0)
    names = [report.name for report in find_reports(*chosen)]
    assert names == ["needle-before.json", "report.html"]
    (tmp_path / "weights.gguf").touch()
    assert choose_reports(tmp_path / "weights.gguf", None) is None


def test_a_clip_comes_frame_by_frame_and_whole_at_the_end(server: Running) -> None:
    asked = dict(prompt="a red circle moves left", frames=3, seed=5)
    events = [json.loads(event) for event in server.events("/draw", **asked)[:-1]]
    *frames, clip = events
    assert [(each["frame"], each["frames"]) for each in frames] == [(1, 3), (2, 3), (3, 3)]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each["b64_json"])))) for each in frames
    ]
    wanted = dict(frames=3, guidance=GUIDANCE, sampling=DRAWING, seed=5)
    drawn = server.thread.call(
        lambda: draw_captions(server.served.model, [asked["prompt"]], **wanted)
    )
    np.testing.assert_array_equal(np.stack(pixels), drawn.result()[0])
    film = read_clip(base64.b64decode(clip["b64_mp4"]), FrameSampling(fps=clip["fps"]), size=64)
    assert len(film.frames) == 3
    error = np.abs(film.frames[0].astype(int) - pixels[0]).mean()
    assert error < 12, "what is left is H.264's loss, and that of its colours at half the size"


def test_a_picture_of_the_server_is_what_generate_image_draws(server: Running) -> None:
    asked = dict(prompt="a red circle at the left", seed=5)
    _, picture = server.post("/v1/images/generations", **asked)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["data"][0]["b64_json"]))))
    drawn = server.thread.call(
        lambda: draw_pictures(
            server.served.model,
            [asked["prompt"]],
            guidance=GUIDANCE,
            sampling=DRAWING,
            seed=5,
        )
    )
    np.testing.assert_array_equal(pixels, drawn.result()[0])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11])
def test_frames_are_cut_right_whatever_pieces_they_come_in(size: int) -> None:
    vocabulary = Vocabulary(text=10, bos=1, eos=2, codes=8, codes_per_frame=3, vision_rows=10)
    ids = [0, 1, 2, 8, 3, 4, 5, 8, 6, 7, 0]
    cutter = FrameCutter(vocabulary)
    pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
    cut = [codes.tolist() for piece in pieces for codes in cutter.add(piece)]
    assert cut == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 0]]]


def test_a_clip_that_does_not_fit_is_refused_before_it_begins(server: Running) -> None:
    status, answer = server.post("/draw", prompt="a circle", frames=1000)
    assert status == 400 and "1,024" in answer["error"]["message"]
