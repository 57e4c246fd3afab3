"""The demo in miniature: every step of the story with the shipped model, and then again."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ringworld import demo
from ringworld.data import samples as corpus
from ringworld.errors import InputError
from ringworld.evals.config import Grid
from ringworld.media.clip import write_animation
from ringworld.recipes import nano as recipes
from ringworld.recipes import samples as sampled
from ringworld.recipes.recipe import Recipe
from ringworld.serve.config import ServeConfig
from ringworld.train.loop import Loop

# What is set when a program starts: the demo sets its own meshes.
NO_MESH = Mesh(np.empty((), object), ())
PAGE = "It was a bright cold day in April. The clocks were striking thirteen, and nobody slept. "


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of eight minutes at one frame a second, and a few short books."""
    folder = tmp_path_factory.mktemp("samples")
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (16, 4, 4, 3), np.uint8)
    frames = np.repeat(scenes, 31, axis=0).repeat(16, axis=1).repeat(16, axis=2)
    write_animation(folder / "film.mp4", frames, 1.0)
    (folder / "plays").mkdir()
    for name in ("hamlet_gut", "macbeth_gut", "lear_gut"):
        (folder / "plays" / f"{name}.txt").write_text(PAGE * 60)
    verse = {"book": "Genesis", "chapter": 1, "verse": 1, "text": PAGE * 20}
    (folder / "kjv.jsonl").write_text(json.dumps(verse) + "\n")
    return folder


def tiny() -> Recipe:
    """The demo's recipe with two short stages of two steps."""
    whole = recipes.demo()
    short = [
        replace(stage, context=context, batch=1, loop=Loop(steps=2))
        for stage, context in zip(whole.stages, (512, 1024), strict=False)
    ]
    slow = [replace(s, optimizer=replace(s.optimizer, warmup_steps=1)) for s in short]
    return replace(whole, stages=tuple(slow), data=replace(whole.data, clips=8))


@pytest.fixture
def story(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[Path, list[str]]]:
    """Run the small demo; gives the report's path and what was announced."""
    files = {"film": "film.mp4", "shakespeare": "plays", "kjv": "kjv.jsonl"}
    for module in (demo, sampled, corpus):
        monkeypatch.setattr(module, "fetch", lambda name: samples / files[name])
    monkeypatch.setattr(demo, "demo", tiny)
    monkeypatch.setattr(demo, "NEEDLE_GRID", Grid(lengths=(256,), depths=(0.0, 1.0), rounds=1))
    monkeypatch.setattr(demo, "ASKED_CLIPS", 2)
    monkeypatch.setattr(demo, "DRAWN_CLIPS", 1)
    monkeypatch.setattr(demo, "PLAYED_LEVELS", 2)
    monkeypatch.setattr(demo, "PLAYED_STEPS", 3)
    monkeypatch.setattr(demo, "SCENE_GIVEN", 2)
    monkeypatch.setattr(demo, "SCENE_MORE", 1)

    def run() -> tuple[Path, list[str]]:
        said: list[str] = []
        with jax.set_mesh(NO_MESH):
            return demo.run_demo(tmp_path / "demo", said.append), said

    return run


def test_the_demo_tells_its_whole_story_and_a_second_run_repeats_nothing(
    story: Callable[[], tuple[Path, list[str]]],
) -> None:
    page, said = story()
    written = page.read_text()
    for word in ("Big Buck Bunny", "needle", "held out", "questions", "Drawn by nano-world"):
        assert word in written
    assert f'href="http://127.0.0.1:{ServeConfig(model=page).port}/"' in written
    assert re.search(r"[012] of 2 \(95 %: \d+ to \d+ %, a guess: (&lt; )?\d+ %\)", written)
    assert len(re.findall(r"[23] of 3 frames right", written)) == 2
    assert re.search(r"Levels right to the end: [012] of 2 \(95 %: ", written)
    assert len([line for line in said if re.match(r"stage \w+: \d+ tokens at", line)]) == 2
    metrics = (page.parent / "1k" / "metrics.jsonl").read_text()
    page.unlink()
    _, again = story()
    assert not any(line.startswith(("stage ", "decoding", "needle:")) for line in again)
    assert (page.parent / "1k" / "metrics.jsonl").read_text() == metrics
    _, third = story()
    assert len(third) == 1 and "is finished: remove" in third[0]


def test_a_folder_of_another_run_is_refused(
    story: Callable[[], tuple[Path, list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "demo" / "1k" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="another recipe"):
        tiny().run(tmp_path / "demo", lambda said: None)
