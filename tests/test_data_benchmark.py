"""The data benchmark tabulates rightly, and gives both sides the same work."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import Found, make_rows, tell_waits
from benchmarks.peers.data_alone import fit, watch
from benchmarks.peers.data_work import SAMPLED, SIZE, sample_frames
from ringworld.media.clip import read_clip, read_image, write_animation
from ringworld.media.sampling import FrameSampling
from ringworld.train.metrics import METRICS_NAME


def test_a_row_tells_the_rate_and_the_share_of_the_peers() -> None:
    alone = Found(work="books", peer="tokenizers", count=1000.0, seconds=0.5)
    ours = Found(work="books", peer="ringworld", count=1000.0, seconds=0.625)
    assert make_rows([(alone, ours)]) == [
        ("books", "tokenizers", "0.50", "2,000", "tokens", "1.00"),
        ("books", "ringworld", "0.62", "1,600", "tokens", "0.800"),
    ]


def test_waiting_is_told_of_every_stage_of_a_run(tmp_path: Path) -> None:
    for stage, wait in (("1k", 0.02), ("4k", 0.0)):
        (tmp_path / "demo" / stage).mkdir(parents=True)
        line = {"step": 0, "seconds": 2.0, "wait_s": wait}
        (tmp_path / "demo" / stage / METRICS_NAME).write_text(json.dumps(line) + "\n")
    assert tell_waits([tmp_path / "demo"]) == [
        ("demo/1k", "1", "2.00", "1.000%"),
        ("demo/4k", "1", "2.00", "0.000%"),
    ]


def test_frames_are_sampled_by_their_number_and_their_sums() -> None:
    frames = [np.full((2, 2, 3), n, np.uint8) for n in range(SAMPLED + 3)]
    found = sample_frames(frames)
    assert found == [SAMPLED + 3.0, *(12.0 * n for n in range(SAMPLED))]


@pytest.mark.parametrize("rate", [None, 2.0])
def test_the_peers_see_the_pixels_that_the_door_gives(tmp_path: Path, rate: float | None) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
    write_animation(tmp_path / "film.mp4", noise, 4.0)
    ours = read_clip(tmp_path / "film.mp4", FrameSampling(fps=rate, video_end=2.0), size=SIZE)
    theirs = list(watch(tmp_path / "film.mp4", rate, 2.0))
    assert np.array_equal(ours.frames, np.stack(theirs))
    Image.fromarray(noise[0]).save(tmp_path / "still.png")
    with Image.open(tmp_path / "still.png") as still:
        assert np.array_equal(read_image(tmp_path / "still.png", size=SIZE), fit(still))
