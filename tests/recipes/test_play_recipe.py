"""The recipes of the small world: what they learn from, and that a short run learns to play."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.evals.playing import measure_episodes
from ringworld.mesh import local_mesh
from ringworld.recipes.play import (
    CONTEXT,
    FRAMES,
    PLAY_SIZES,
    PLAY_VQGAN,
    PlayEpisodes,
    PlayPictures,
    check_codec,
    merge_codes,
    nano_play,
)
from ringworld.tasks.play_form import action_ids, episode_tokens
from ringworld.tasks.play_policies import draw_episodes
from ringworld.tasks.play_world import (
    TILES,
    draw_level,
    is_held_out,
    read_level,
    sample_level,
)
from ringworld.text.load import load_tokenizer
from ringworld.train.model_stage import ModelStage
from ringworld.weights.codecs import load_codec
from ringworld.weights.model import load_model
from ringworld.weights.open import open_model
from ringworld.weights.shipped import NANO, NANO_PLAY


def silent(_: str) -> None:
    """Say nothing."""


def stage() -> ModelStage:
    """The stage of nano-play that trains."""
    found = nano_play().stages[1]
    assert isinstance(found, ModelStage)
    return found


def test_the_shipped_model_is_that_of_its_recipe() -> None:
    assert open_model(NANO_PLAY).config == PLAY_SIZES
    assert load_codec(NANO_PLAY / "codec").config == PLAY_VQGAN
    assert episode_tokens(FRAMES, PLAY_SIZES.vocabulary) <= CONTEXT + 1


def test_the_codec_has_one_code_for_each_tile_and_keeps_every_cell() -> None:
    codec, rng = load_codec(NANO_PLAY / "codec"), np.random.default_rng(8)
    levels = [sample_level(rng) for _ in range(100)]
    codes = codec.encode(np.stack([draw_level(level) for level in levels]))
    assert np.array_equal(codes.reshape(-1, 8, 8), levels)
    frames = codec.decode(codes)
    for frame, level in zip(frames, levels, strict=True):
        assert np.array_equal(read_level(frame), level)


def test_codes_of_one_tile_become_their_mean() -> None:
    codec, rng = load_codec(NANO_PLAY / "codec"), np.random.default_rng(8)
    levels = np.stack([sample_level(rng) for _ in range(64)])
    book = np.asarray(codec.weights.codebook)
    # The codes in another order, the first one twice, a little apart, and one that is far away.
    order = [3, 1, 0, 6, 2, 5, 4, 0]
    more = np.concatenate([book[order], 100 + book[:1]]).astype(np.float32)
    more[2] += 1e-3
    more[7] -= 1e-3
    config = replace(codec.config, codebook=len(more))
    split = replace(codec, config=config, weights=replace(codec.weights, codebook=more))
    merged = merge_codes(split, levels)
    assert merged.config == PLAY_VQGAN
    assert np.allclose(merged.weights.codebook, book, atol=2e-3)
    with pytest.raises(InputError, match="no code of its own"):
        merge_codes(codec, np.zeros((4, 8, 8), np.uint8))


def test_pictures_come_from_the_seed_and_show_every_tile(tmp_path: Path) -> None:
    pictures = PlayPictures(batch=8, seed=3, scattered=0.9)
    opened = pictures.open(64, tmp_path, silent)
    assert opened.batches(2).shape == (8, 64, 64, 3)
    assert np.array_equal(opened.batches(2), opened.batches(2))
    shown = np.rint((opened.batches(0) + 1) * 127.5).astype(np.uint8)
    levels = np.stack([read_level(picture) for picture in shown])
    assert set(np.unique(levels)) == set(range(len(TILES)))
    (unseen,) = opened.held_out.values()
    assert all(is_held_out(read_level(frame)) for frame in unseen)
    with pytest.raises(InputError, match="64"):
        pictures.check(32, tmp_path)
    with pytest.raises(InputError, match="scattered"):
        PlayPictures(batch=8, seed=3, scattered=2.0)


def test_episodes_are_played_once_and_begin_with_levels_that_are_not_held_out(
    tmp_path: Path,
) -> None:
    data = PlayEpisodes(episodes=5, frames=4, seed=9)
    told: list[str] = []
    made = data.open(stage(), NANO_PLAY, tmp_path, told.append)
    again = data.open(stage(), NANO_PLAY, tmp_path, told.append)
    assert told == ["playing 5 episodes of 4 frames"]
    played, ids = draw_episodes(5, 3, 9, held_out=False), action_ids(load_tokenizer(NANO_PLAY))
    codec, words = load_codec(NANO_PLAY / "codec"), PLAY_SIZES.vocabulary
    for example, same, episode in zip(made, again, played, strict=True):
        assert np.array_equal(example.tokens, same.tokens)
        assert len(example) == episode_tokens(4, words)
        vision = example.tokens[example.vision]
        codes = vision[vision < words.codes].reshape(4, 64)
        shown = [read_level(frame) for frame in codec.decode(codes)]
        assert np.array_equal(shown, episode.levels)
        acted = [ids[action] for action in episode.actions]
        assert example.tokens[~example.vision].tolist()[2:-2] == acted
        assert not is_held_out(episode.levels[0])


def test_a_codec_whose_codes_are_not_the_tiles_is_refused() -> None:
    levels = np.stack([each.levels for each in draw_episodes(2, 3, 9, held_out=False)])
    codec = load_codec(NANO_PLAY / "codec")
    check_codec(codec, levels)
    book = np.asarray(codec.weights.codebook)
    other = replace(codec, weights=replace(codec.weights, codebook=book[::-1].copy()))
    for wrong in (other, load_codec(NANO / "codec")):
        with pytest.raises(InputError, match="not the numbers of the tiles"):
            check_codec(wrong, levels)


def test_what_cannot_be_trained_is_refused() -> None:
    data = PlayEpisodes(episodes=5, frames=40, seed=9)
    with pytest.raises(InputError, match="an episode has 2643 tokens and a row"):
        data.check(stage(), NANO_PLAY)
    with pytest.raises(InputError, match="no source"):
        data.check(replace(stage(), shares={"clips": 1.0}), NANO)
    with pytest.raises(InputError, match="1 frames"):
        PlayEpisodes(episodes=5, frames=1, seed=9)


@pytest.mark.slow
def test_a_short_run_learns_what_actions_do(tmp_path: Path) -> None:
    recipe, whole = nano_play(), stage()
    short = replace(whole, loop=replace(whole.loop, steps=120))
    recipe = replace(
        recipe,
        stages=(recipe.stages[0], short),
        data=PlayEpisodes(episodes=1200, frames=FRAMES, seed=31),
    )
    made = recipe.run(tmp_path, silent)
    played = draw_episodes(6, 8, 1, held_out=True)
    with jax.set_mesh(local_mesh()):
        fresh = measure_episodes(load_model(tmp_path / "fresh" / "model"), played)
        after = measure_episodes(load_model(made), played)
    assert fresh.one_step.right == 0
    # It has learned by then to repeat frames, and most of the moves.
    assert after.one_step.share > after.one_step.chance
