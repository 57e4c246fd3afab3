"""The figures of captions, from true captions and from wrong ones."""

import numpy as np
import pytest

from ringworld.evals.answers import judge_captions
from ringworld.evals.config import Shapes
from ringworld.evals.drawings import draw_scenes
from ringworld.tasks.shape_language import caption, describe


def test_true_captions_are_right_in_any_order_and_parts_of_them_count_as_parts() -> None:
    scenes = draw_scenes(2, Shapes(scenes=8, seed=5))
    true = judge_captions([caption(scene) for scene in scenes], scenes, max_things=3)
    assert (true.whole.right, true.precision, true.recall, true.f1) == (8, 1.0, 1.0, 1.0)
    assert str(true).startswith("2: whole 8 of 8 (95 %: 68 to 100 %, a guess: < 1 %)")
    # One to three things; fifteen pairs of colours; fifteen of shape and motion for each thing.
    assert true.whole.chance == pytest.approx(1 / (3 * 15 * 15**2))
    turned = [" and ".join(describe(thing) for thing in scene.things[::-1]) for scene in scenes]
    assert judge_captions(turned, scenes, max_things=3) == true
    first = judge_captions([describe(scene.things[0]) for scene in scenes], scenes, max_things=3)
    assert (first.whole.right, first.precision, first.recall) == (0, 1.0, 0.5)
    assert first.f1 == pytest.approx(2 / 3)
    more = [f"{caption(scene)}, a red line and a grey circle moves up" for scene in scenes]
    assert judge_captions(more, scenes, max_things=3).f1 == 1.0, "neither is a thing of this world"
    none = judge_captions(["", "nothing"] * 4, scenes, max_things=3)
    assert (none.precision, none.recall, none.f1) == (0.0, 0.0, 0.0)
    still = judge_captions([caption(s, motion=False) for s in scenes], scenes, max_things=3)
    assert still.f1 == 0.0 and np.isfinite(still.precision), "a motion not told is a fact not told"
