"""The figures of drawn clips, by a codec that keeps everything and by the shipped model."""

from dataclasses import replace

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals.config import Shapes
from ringworld.evals.drawings import draw_scenes, judge_clips
from ringworld.evals.stills import draw_true, freeze_scenes, judge_stills
from ringworld.tasks.clips import FRAMES_A_CLIP
from ringworld.tasks.shapes import draw


def test_scenes_have_the_things_that_were_asked_for_and_come_from_the_seed() -> None:
    wanted = Shapes(scenes=5, seed=3)
    for things in (1, 2, 3):
        scenes = draw_scenes(things, wanted)
        assert [len(scene.things) for scene in scenes] == [things] * 5
        assert scenes == draw_scenes(things, wanted)
    assert draw_scenes(1, wanted) != draw_scenes(1, replace(wanted, seed=4))
    with pytest.raises(InputError, match="scenes"):
        Shapes(scenes=0)


def test_true_clips_are_right_and_clips_of_other_scenes_are_not() -> None:
    scenes = draw_scenes(2, Shapes(scenes=8, seed=5))
    clips = [draw(scene, frames=FRAMES_A_CLIP) for scene in scenes]
    true = judge_clips(clips, scenes)
    assert (true.things, true.whole.right, true.whole.tried) == (2, 8, 8)
    assert (true.colour, true.shape, true.motion) == (1.0, 1.0, 1.0)
    assert str(true).startswith("2: whole 8 of 8 (95 %: 68 to 100 %, a guess: < 1 %)")
    back = judge_clips([clip[::-1] for clip in clips], scenes)
    still = np.mean([thing.motion == "still" for scene in scenes for thing in scene.things])
    assert (back.colour, back.motion) == (1.0, pytest.approx(still))
    assert judge_clips(np.zeros((8, FRAMES_A_CLIP, 64, 64, 3), np.uint8), scenes).whole.right == 0


def test_true_pictures_are_right_and_pictures_of_other_scenes_are_not() -> None:
    stills = freeze_scenes(draw_scenes(2, Shapes(scenes=8, seed=5)))
    pictures = draw_true(stills, 64)
    true = judge_stills(pictures, stills, max_things=3)
    assert (true.things, true.whole.right, true.whole.tried) == (2, 8, 8)
    assert (true.colour, true.shape, true.place) == (1.0, 1.0, 1.0)
    assert str(true).endswith("colour 1.00, shape 1.00, place 1.00")
    over = judge_stills(pictures[:, ::-1], stills, max_things=3)
    assert (over.colour, over.whole.right) == (1.0, 0)
