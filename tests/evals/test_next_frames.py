"""The frames after the first of a clip: true ones are right, and others only by chance."""

from dataclasses import replace

import numpy as np
import pytest

from ringworld.evals.config import Shapes
from ringworld.evals.drawings import draw_scenes
from ringworld.evals.next_frames import GIVEN, judge_next_frames
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shapes import draw

SCENES = draw_scenes(2, Shapes(scenes=12, seed=5))
TRUE = [draw(scene, frames=FRAMES_A_CLIP) for scene in SCENES]


def test_true_frames_are_right_and_have_no_error() -> None:
    found = judge_next_frames([clip[GIVEN:] for clip in TRUE], TRUE, SCENES)
    assert (found.things, found.whole.right, found.whole.tried, found.error) == (2, 12, 12, 0.0)
    assert 0 < found.repeated_error < 1 and found.whole.chance < 1
    assert str(found).startswith("2: whole 12 of 12")


def test_one_wrong_frame_makes_a_clip_wrong_and_errors_are_mean_squares() -> None:
    drawn = [clip[GIVEN:].copy() for clip in TRUE]
    drawn[3][-1] = 0  # the last of three frames is black
    found = judge_next_frames(drawn, TRUE, SCENES)
    assert found.whole.right == 11
    wanted = (TRUE[3][-1] / 255.0) ** 2
    assert found.error == pytest.approx(wanted.mean() / (12 * (FRAMES_A_CLIP - GIVEN)))


def test_the_chance_is_that_of_the_last_frame_repeated() -> None:
    repeated = [np.repeat(clip[GIVEN - 1 : GIVEN], FRAMES_A_CLIP - GIVEN, axis=0) for clip in TRUE]
    found = judge_next_frames(repeated, TRUE, SCENES)
    assert found.whole.right / 12 == found.whole.chance and found.error == found.repeated_error
    resting = [
        replace(scene, things=tuple(replace(thing, motion="still") for thing in scene.things))
        for scene in SCENES
    ]
    clips = [draw(scene, frames=FRAMES_A_CLIP) for scene in resting]
    still = judge_next_frames([clip[GIVEN:] for clip in clips], clips, resting)
    assert (still.whole.chance, still.repeated_error) == (1.0, 0.0)
