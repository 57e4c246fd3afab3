"""The small world: its rules by cases written out, frames that are read exactly, its levels."""

import numpy as np
import pytest

from ringworld.tasks.play_policies import draw_episodes, play_episode
from ringworld.tasks.play_world import (
    ACTIONS,
    BOX,
    CELLS,
    FLOOR,
    PLAYER,
    TILES,
    PlayLevel,
    count_goals,
    draw_level,
    draw_start,
    find_path,
    find_player,
    is_held_out,
    is_level,
    possible_actions,
    read_level,
    sample_level,
    step,
)

LETTERS = " #.@$+*"  # of the tiles, as the levels of Sokoban are written


def level(*inside: str) -> PlayLevel:
    """A level of three rows of six cells at the top, the rest of it empty."""
    rows = [f"#{row}#" for row in (*inside, *[" " * 6] * (CELLS - 2 - len(inside)))]
    written = ["#" * CELLS, *rows, "#" * CELLS]
    return np.array([[LETTERS.index(letter) for letter in row] for row in written], np.uint8)


# Before, action, after: the top rows of the inside.
CASES = {
    "a step over the floor": ([" @    "], "right", ["  @   "]),
    "a step down": ([" @    ", "      "], "down", ["      ", " @    "]),
    "a step up": (["      ", " @    "], "up", [" @    ", "      "]),
    "a step left onto a goal": ([" .@   "], "left", [" +    "]),
    "a step off a goal": ([" +    "], "right", [" .@   "]),
    "from goal to goal": ([" +.   "], "right", [" .+   "]),
    "into the rim": (["@     "], "left", ["@     "]),
    "into a wall inside": ([" @#   "], "right", [" @#   "]),
    "staying": ([" @$   "], "stay", [" @$   "]),
    "a push": ([" @$   "], "right", ["  @$  "]),
    "a push up": (["      ", "  $   ", "  @   "], "up", ["  $   ", "  @   ", "      "]),
    "a push onto a goal": ([" @$.  "], "right", ["  @*  "]),
    "a push off a goal": ([" @*   "], "right", ["  +$  "]),
    "a push from goal to goal": ([" +*.  "], "right", [" .+*  "]),
    "a push into a wall": ([" @$#  "], "right", [" @$#  "]),
    "a push into the rim": (["    @$"], "right", ["    @$"]),
    "a push into another box": ([" @$$  "], "right", [" @$$  "]),
    "a push into a box on a goal": ([" @$*  "], "right", [" @$*  "]),
    "a push of a stuck box on a goal": (["   @*#"], "right", ["   @*#"]),
    "away from a box, which stays": ([" @$   "], "left", ["@ $   "]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_what_the_rules_say(name: str) -> None:
    before, action, after = CASES[name]
    start = level(*before)
    kept = start.copy()
    np.testing.assert_array_equal(step(start, action), level(*after))
    assert np.array_equal(start, kept)
    assert action in possible_actions(start, level(*after))


def test_a_frame_shows_each_cell_where_it_is() -> None:
    frame = draw_level(level("@ $   "))
    assert frame.shape == (64, 64, 3)
    assert np.array_equal(frame[8:16, 8:16], TILES[LETTERS.index("@")])
    assert np.array_equal(frame[8:16, 24:32], TILES[LETTERS.index("$")])
    assert np.array_equal(frame[:8, 56:], TILES[LETTERS.index("#")])


def test_levels_are_read_off_their_frames_also_when_these_are_blurred() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        true = rng.integers(0, len(LETTERS), (CELLS, CELLS)).astype(np.uint8)
        frame = draw_level(true)
        assert np.array_equal(read_level(frame), true)
        # Half of each pixel from its neighbour below, and noise: what a codec may do at worst.
        soft = (frame.astype(np.float64) + np.roll(frame, 1, axis=0)) / 2
        noisy = np.clip(soft + rng.normal(0, 12, soft.shape), 0, 255).astype(np.uint8)
        assert np.array_equal(read_level(noisy), true)


def test_actions_are_read_off_two_levels() -> None:
    before = level(" @$#  ")
    assert possible_actions(before, level("@ $#  ")) == ("left",)
    # Up is the rim, right a box that a wall holds: nothing moves, as with staying.
    assert possible_actions(before, before) == ("up", "right", "stay")
    assert possible_actions(before, level("    @$")) == ()
    two = before.copy()
    two[5, 5] = before[1, 2]
    assert possible_actions(two, two) == ()


def test_levels_have_a_rim_one_player_and_boxes_and_goals_that_vary() -> None:
    rng = np.random.default_rng(1)
    levels = [sample_level(rng) for _ in range(300)]
    assert all(is_level(one) for one in levels)
    boxes = [int(np.isin(one, (BOX, 6)).sum()) for one in levels]
    assert set(boxes) == {1, 2}
    assert {count_goals(one)[1] for one in levels} == {1, 2}
    assert len({one.tobytes() for one in levels}) == 300
    assert 0 < sum(count_goals(one)[0] > 0 for one in levels) < 300


def test_held_out_levels_are_apart_from_the_others() -> None:
    rng = np.random.default_rng(2)
    assert all(is_held_out(draw_start(rng, held_out=True)) for _ in range(20))
    assert not any(is_held_out(draw_start(rng, held_out=False)) for _ in range(20))
    share = np.mean([is_held_out(sample_level(rng)) for _ in range(1000)])
    assert share == pytest.approx(1 / 8, abs=0.04)  # four standard deviations


def test_a_path_is_the_shortest_and_pushes_nothing() -> None:
    start = level("@#    ", " # $  ", "      ")
    way = find_path(start, (1, 3))
    assert len(way) == 6
    after = start
    for action in way:
        after = step(after, action)
    assert find_player(after) == (1, 3)
    assert after[2, 4] == BOX
    assert find_path(level("@#    ", "##    "), (3, 3)) == []


def test_episodes_come_from_their_seed_and_obey_the_rules() -> None:
    episodes = draw_episodes(60, 9, 3, held_out=False)
    again = draw_episodes(2, 9, 3, held_out=False)
    assert np.array_equal(episodes[1].levels, again[1].levels)
    assert episodes[1].actions == again[1].actions
    for episode in episodes:
        pairs = zip(episode.levels, episode.actions, episode.levels[1:], strict=False)
        assert all(np.array_equal(step(before, action), after) for before, action, after in pairs)
    pairs = [(e.levels[i], e.levels[i + 1]) for e in episodes for i in range(9)]
    still = np.mean([np.array_equal(before, after) for before, after in pairs])
    pushed = np.mean([(np.isin(a, (4, 6)) != np.isin(b, (4, 6))).any() for a, b in pairs])
    assert {action for episode in episodes for action in episode.actions} == set(ACTIONS)
    assert 0.15 < still < 0.5
    assert pushed > 0.08


def test_an_episode_goes_on_where_no_box_can_be_pushed() -> None:
    stuck = level("$    @")
    episode = play_episode(np.random.default_rng(4), stuck, 20)
    assert len(episode.actions) == 20
    assert all((one[1, 1] == BOX) for one in episode.levels)


def test_a_level_has_one_player_and_walls_all_round() -> None:
    whole = level("@     ")
    assert is_level(whole)
    for cell, tile in (((1, 1), FLOOR), ((1, 2), PLAYER), ((CELLS - 1, 3), FLOOR)):
        broken = whole.copy()
        broken[cell] = tile
        assert not is_level(broken)
