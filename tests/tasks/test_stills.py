"""Still pictures with words: frames of clips, their sentences, their forms, and their judge."""

from collections import Counter

import numpy as np
import pytest

from ringworld.tasks.clips import FRAMES_A_CLIP, CodedClip, video_alone
from ringworld.tasks.shape_language import caption, caption_still, name_place
from ringworld.tasks.shapes import Scene, Thing, draw, freeze_scene, sample_scene
from ringworld.tasks.still_judge import score_still
from ringworld.tasks.stills import PLACED, still_example, text_to_image
from ringworld.text.load import load_tokenizer
from ringworld.text.template import FORMS, render
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO

TOLD, ASKED, BARE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def sample_still(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    return freeze_scene(sample_scene(rng), seed % FRAMES_A_CLIP, frames=FRAMES_A_CLIP)


def thing(colour: str, shape: str, x: float, y: float) -> Thing:
    return Thing(colour=colour, shape=shape, motion="still", x=x, y=y, radius=0.15, travel=0.0)


def test_a_still_of_a_scene_is_its_frame() -> None:
    for seed in range(8):
        scene = sample_scene(np.random.default_rng(seed))
        film = draw(scene, frames=FRAMES_A_CLIP)
        for z in range(FRAMES_A_CLIP):
            still = draw(freeze_scene(scene, z, frames=FRAMES_A_CLIP), frames=1)[0]
            # A place that is a sum of two numbers may be rounded otherwise: one level of 255.
            assert np.abs(still.astype(int) - film[z]).max() <= 1


def test_a_still_says_where_each_thing_is() -> None:
    things = (thing("blue", "square", 0.5, 0.5), thing("red", "circle", 0.2, 0.3))
    scene = Scene(things=things, ground=40)
    assert caption_still(scene) == "a red circle at the top left and a blue square in the middle"
    named = {name_place(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)}
    assert len(named) == 9 and {"at the left", "at the top", "at the bottom right"} <= named


def test_a_picture_is_learned_behind_lwms_words_and_ends_as_the_last_frame_does() -> None:
    tokenizer, words = load_tokenizer(NANO), open_model(NANO).config.vocabulary
    codes = np.arange(64, dtype=np.int32)[None]
    made = text_to_image("a red circle at the left", codes, tokenizer, words)
    message = {"role": "user", "content": "a red circle at the left"}
    asked = render(FORMS["image"], [message], bos_token="").removeprefix("<s>")
    start, stop = tokenizer.vision_start, tokenizer.vision_end
    assert made.tokens.tolist() == [
        *tokenizer.bos_ids,
        *tokenizer.encode(asked),
        start,
        *range(64),
        words.eov,
        stop,
        tokenizer.eos,
    ]
    assert made.weights.tolist() == made.vision.astype(np.float32).tolist()
    assert made.vision.sum() == 65


def test_each_form_of_a_picture_has_the_frame_and_the_words_of_one_moment() -> None:
    tokenizer, words = load_tokenizer(NANO), open_model(NANO).config.vocabulary
    scene = sample_scene(np.random.default_rng(3))
    codes = np.repeat(np.arange(FRAMES_A_CLIP, dtype=np.int32)[:, None], 64, axis=1)
    clip, rng = CodedClip(scene, codes), np.random.default_rng(4)
    seen, placed = Counter[int](), 0
    for _ in range(200):
        made = still_example(rng, clip, tokenizer, words, TOLD)
        z = int(made.tokens[made.vision][0])
        still = freeze_scene(scene, z, frames=FRAMES_A_CLIP)
        told = [
            text_to_image(wish, codes[z : z + 1], tokenizer, words).tokens.tolist()
            for wish in (caption_still(still), caption(still, motion=False))
        ]
        assert made.tokens.tolist() in told
        placed += made.tokens.tolist() == told[0]
        seen[z] += 1
    assert len(seen) == FRAMES_A_CLIP
    assert placed / 200 == pytest.approx(PLACED, abs=0.1)  # three deviations of 200 draws: 0.09
    bare = still_example(rng, clip, tokenizer, words, BARE).tokens.tolist()
    assert bare in [video_alone(codes[z : z + 1], tokenizer, words).tokens.tolist() for z in seen]
    asked = still_example(rng, clip, tokenizer, words, ASKED)
    assert asked.vision.sum() == 65 and asked.weights[asked.vision].sum() == 0
    assert asked.weights.sum() > 0


def test_true_pictures_are_right_and_wrong_ones_are_told_by_what_is_wrong() -> None:
    for seed in range(60):
        still = sample_still(seed)
        assert score_still(draw(still, frames=1)[0], still).exact
    red, blue = thing("red", "circle", 0.2, 0.2), thing("blue", "square", 0.8, 0.8)
    wanted = Scene(things=(red, blue), ground=40)

    def score(*things: Thing) -> tuple[list[tuple[bool, bool, bool]], int]:
        score = score_still(draw(Scene(things=things, ground=40), frames=1)[0], wanted)
        assert score.exact == (set(things) == {red, blue})
        return [(each.colour, each.shape, each.place) for each in score.things], score.extra

    right = (True, True, True)
    assert score(red, blue) == ([right, right], 0)
    assert score(thing("red", "square", 0.2, 0.2), blue) == ([(True, False, True), right], 0)
    assert score(thing("red", "circle", 0.8, 0.2), blue) == ([(True, True, False), right], 0)
    assert score(red) == ([right, (False, False, False)], 0)
    assert score(red, blue, thing("white", "circle", 0.8, 0.2)) == ([right, right], 1)


def test_a_place_is_right_a_little_beyond_its_edge() -> None:
    asked = Scene(things=(thing("red", "circle", 0.3, 0.5),), ground=40)
    for x, right in ((0.38, True), (0.44, True), (0.5, False)):
        drawn = draw(Scene(things=(thing("red", "circle", x, 0.5),), ground=40), frames=1)[0]
        assert score_still(drawn, asked).exact == right
