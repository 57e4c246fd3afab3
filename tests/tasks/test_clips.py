"""Clips with words: how often each form is, and clips from their end to their beginning."""

from collections import Counter

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.recipes.samples import Samples
from ringworld.tasks.clips import (
    CLIP_FORMS,
    FRAMES_A_CLIP,
    CodedClip,
    clip_example,
    reverse_clip,
    text_to_video,
    video_alone,
)
from ringworld.tasks.shape_language import caption
from ringworld.tasks.shapes import draw, reverse_scene, sample_scene
from ringworld.text.load import load_tokenizer
from ringworld.weights.codecs import load_codec
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO


def coded(seed: int) -> CodedClip:
    """A scene with codes that say nothing about it."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 512, (FRAMES_A_CLIP, 64)).astype(np.int32)
    return CodedClip(sample_scene(rng), codes)


def test_each_form_of_a_clip_is_as_often_as_asked() -> None:
    tokenizer, words, clip = load_tokenizer(NANO), open_model(NANO).config.vocabulary, coded(1)
    told = text_to_video(caption(clip.scene), clip.codes, tokenizer, words).tokens.tolist()
    bare = video_alone(clip.codes, tokenizer, words).tokens.tolist()

    def count(forms: tuple[float, float, float]) -> Counter[str]:
        rng = np.random.default_rng(2)
        names = {tuple(told): "told", tuple(bare): "bare"}
        made = [clip_example(rng, clip, tokenizer, words, forms).tokens for _ in range(300)]
        return Counter(names.get(tuple(ids.tolist()), "asked") for ids in made)

    assert count((1.0, 0.0, 0.0)) == {"told": 300}
    assert count((0.0, 0.0, 1.0)) == {"bare": 300}
    for name, share in zip(("told", "asked", "bare"), CLIP_FORMS, strict=True):
        # Three standard deviations of 300 draws are at most 0.087.
        assert count(CLIP_FORMS)[name] / 300 == pytest.approx(share, abs=0.09)
    with pytest.raises(InputError, match="forms"):
        Samples(clips=1, seed=0, forms=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match="reversed"):
        Samples(clips=1, seed=0, reversed=2.0)


def test_no_question_is_asked_where_its_clip_has_not_fit() -> None:
    tokenizer, words, asked = (
        load_tokenizer(NANO),
        open_model(NANO).config.vocabulary,
        (0.0, 1.0, 0.0),
    )
    for seed in range(40):
        rng = (np.random.default_rng(seed) for _ in range(3))
        whole, short, least = (
            clip_example(next(rng), coded(seed), tokenizer, words, asked, longest)
            for longest in (None, 480, 1)
        )
        for part in (short, least):
            assert part.tokens.tolist() == whole.tokens[: len(part)].tolist()
            assert part.tokens[-1] == tokenizer.eos, "it ends with an answer"
        assert least.weights.any() and len(least) <= len(short) <= max(480, len(least))
        assert len(whole) - len(short) < 40 or len(short) > 440, "what fits is asked"


def test_the_codes_of_a_clip_in_reverse_are_those_of_its_frames() -> None:
    codec, scene = load_codec(NANO / "codec"), sample_scene(np.random.default_rng(4))
    ahead, back = (draw(each, frames=FRAMES_A_CLIP) for each in (scene, reverse_scene(scene)))
    found = reverse_clip(CodedClip(scene, codec.encode(ahead)))
    assert found.scene == reverse_scene(scene)
    # A pixel may round the other way, which rarely moves a code.
    assert np.mean(found.codes == codec.encode(back)) > 0.98
