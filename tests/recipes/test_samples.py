"""The data of the nano recipes: what a stage reads, and what it does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld.data.samples import SampleFilm, Shelf
from ringworld.recipes import samples as sampled
from ringworld.recipes.nano import nano_world
from ringworld.recipes.samples import Samples
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.train.model_stage import ModelStage
from ringworld.weights.shipped import NANO_WORLD


def test_a_stage_reads_no_film_and_no_books_that_it_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, read = np.arange(3, 900, dtype=np.int32), list[str]()

    def read_books(*_: object) -> Shelf:
        read.append("books")
        return Shelf([book], [book])

    def read_film(*_: object) -> SampleFilm:
        read.append("film")
        frames, seconds = np.full((9, 64, 64, 3), 128, np.uint8), np.arange(9.0)
        return SampleFilm(frames, seconds, np.zeros((9, 64), np.int32))

    monkeypatch.setattr(sampled, "fetch", Path)
    monkeypatch.setattr(sampled, "read_shelf", read_books)
    monkeypatch.setattr(sampled, "read_sample_film", read_film)
    whole = nano_world().stages[-1]
    assert isinstance(whole, ModelStage)
    stage = replace(whole, batch=2, loop=replace(whole.loop, steps=2))

    def open_stage(data: Samples, stage: ModelStage) -> list[str]:
        """What was read for it."""
        read.clear()
        assert data.open(stage, NANO_WORLD, tmp_path, lambda said: None)
        return list(read)

    plain = Samples(clips=4, seed=1, over_film=0.0)
    assert open_stage(plain, stage) == []
    assert open_stage(replace(plain, over_film=0.5), stage) == ["film"]
    assert open_stage(plain, replace(stage, shares={"clips": 0.5, "film": 0.5})) == ["film"]
    assert open_stage(plain, replace(stage, shares={"books": 1.0})) == ["books"]


def test_a_share_of_questions_shows_clips_and_pictures_that_only_answers_are_learned_of(
    tmp_path: Path,
) -> None:
    whole = nano_world().stages[-1]
    assert isinstance(whole, ModelStage)
    stage = replace(
        whole, batch=8, loop=replace(whole.loop, steps=4), shares={"questions": 1.0}, context=512
    )
    data = Samples(clips=6, seed=1, over_film=0.0)
    examples = data.open(stage, NANO_WORLD, tmp_path, lambda said: None)
    frames = [np.count_nonzero(example.vision) // 65 for example in examples]
    assert set(frames) == {1, FRAMES_A_CLIP}
    assert 0.3 < np.mean(np.array(frames) == 1) < 0.7, "as many pictures as clips"
    assert not any(example.weights[example.vision].any() for example in examples)
    assert all(example.weights.any() for example in examples)
