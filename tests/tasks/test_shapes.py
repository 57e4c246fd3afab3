"""Moving shapes are drawn as told, and told as drawn."""

from itertools import combinations

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.tasks.shape_judge import score_caption
from ringworld.tasks.shape_language import (
    caption,
    facts,
    parse_caption,
    possible_answers,
    questions,
)
from ringworld.tasks.shapes import (
    MOTIONS,
    SHAPE_COLOURS,
    SHAPES,
    Scene,
    Thing,
    draw,
    overlap,
    path,
    reverse_scene,
    sample_scene,
)

FRAMES = 6
RED_LEFT = Thing(
    colour="red", shape="circle", motion="left", x=0.7, y=0.25, radius=0.15, travel=0.4
)
BLUE_STILL = Thing(
    colour="blue", shape="square", motion="still", x=0.3, y=0.7, radius=0.15, travel=0.0
)
SCENE = Scene(things=(BLUE_STILL, RED_LEFT), ground=40)


def scenes(count: int, *, max_things: int = 3) -> list[Scene]:
    """Some scenes, always the same."""
    rng = np.random.default_rng(7)
    return [sample_scene(rng, max_things=max_things) for _ in range(count)]


def test_captions_are_exact_and_read_back():
    assert caption(SCENE) == "a red circle moves left and a blue square stays still"
    assert caption(SCENE, motion=False) == "a red circle and a blue square"
    for scene in scenes(100):
        assert parse_caption(caption(scene)) == facts(scene)
        assert score_caption(caption(scene), scene) == 1.0
        assert score_caption(caption(scene, motion=False), scene, motion=False) == 1.0


def test_answers_are_true():
    answers = dict(questions(SCENE))
    assert answers["how many shapes are there?"] == "two"
    assert answers["how many triangles are there?"] == "zero"
    assert answers["what colour is the circle?"] == "red"
    assert answers["what shape is the blue one?"] == "square"
    assert answers["how does the red circle move?"] == "left"
    assert answers["how does the square move?"] == "still"
    assert answers["is there a red circle?"] == "yes"
    assert answers["is there a red square?"] == "no"
    assert not any("move" in question for question, _ in questions(SCENE, motion=False))


def test_every_answer_is_one_of_the_possible_ones():
    seen: dict[str, set[str]] = {}
    for scene in scenes(200):
        for question, answer in questions(scene):
            assert answer in possible_answers(question)
            seen.setdefault(question, set()).add(answer)
    for question in ("how many shapes are there?", "how does the red circle move?"):
        assert seen[question] == set(possible_answers(question))


def test_no_question_has_two_answers():
    for scene in scenes(50):
        asked = [question for question, _ in questions(scene)]
        assert len(asked) == len(set(asked))
        said = [answer for _, answer in questions(scene)]
        assert said.count("yes") == said.count("no")


def test_scenes_and_pixels_depend_on_the_seed_alone():
    assert scenes(5) == scenes(5)
    assert np.array_equal(draw(scenes(1)[0], frames=3), draw(scenes(1)[0], frames=3))


def test_things_stay_in_the_picture_and_seldom_meet():
    cases = scenes(100)
    for scene in cases:
        assert len({thing.colour for thing in scene.things}) == len(scene.things)
        for thing in scene.things:
            centres = path(thing, FRAMES)
            assert centres.min() >= thing.radius - 1e-9
            assert centres.max() <= 1 - thing.radius + 1e-9
    meets = [any(overlap(a, b) > 0 for a, b in combinations(s.things, 2)) for s in cases]
    assert np.mean(meets) < 0.1


def test_every_word_is_used():
    things = [thing for scene in scenes(200) for thing in scene.things]
    assert {thing.colour for thing in things} == set(SHAPE_COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.motion for thing in things} == set(MOTIONS)


def test_motion_is_where_it_says():
    frames = draw(SCENE, frames=FRAMES).astype(int)
    red = frames[..., 0] - frames[..., 2] > 90
    columns = [np.argwhere(mask)[:, 1].mean() for mask in red]
    assert np.all(np.diff(columns) < -2)
    assert frames.shape == (FRAMES, 64, 64, 3)
    corner = frames[:, 0, 0]
    assert (corner == 40).all()


def test_a_film_frame_can_lie_behind():
    film = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    scene = Scene(things=(RED_LEFT,), ground=0, film=film)
    frames = draw(scene, frames=2)
    assert np.array_equal(frames[0, 40:], film[40:])
    assert frames[0, 16, 44].tolist() == list(SHAPE_COLOURS["red"])
    with pytest.raises(InputError, match="must be 32 x 32 pixels"):
        draw(scene, frames=2, size=32)


def test_impossible_scenes_are_refused():
    with pytest.raises(InputError, match="one thing of each colour"):
        Scene(things=(RED_LEFT, RED_LEFT), ground=0)
    with pytest.raises(InputError, match="'pink' is none of red, green"):
        Thing(colour="pink", shape="circle", motion="up", x=0.5, y=0.5, radius=0.1, travel=0.1)
    with pytest.raises(InputError, match="from 1 to 6 things, not 7"):
        sample_scene(np.random.default_rng(0), max_things=7)
    with pytest.raises(InputError, match="at least one frame"):
        draw(SCENE, frames=0)


def test_a_scene_in_reverse_has_the_frames_in_the_other_order() -> None:
    for scene in scenes(12):
        ahead, back = draw(scene, frames=FRAMES), draw(reverse_scene(scene), frames=FRAMES)
        # Centres are the same but for rounding, so a pixel of an edge may be one step off.
        assert np.abs(ahead[::-1].astype(int) - back).max() <= 1
    assert facts(reverse_scene(SCENE)) == {("red", "circle", "right"), ("blue", "square", "still")}
