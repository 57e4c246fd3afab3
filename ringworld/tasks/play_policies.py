"""What a player does in the small world: episodes of random and purposeful actions.

Random steps meet walls and free floor. Purposeful ones walk to a box by the shortest way and push
it on. Some steps go, on purpose, where nothing can move.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ringworld.tasks.play_world import (
    ACTIONS,
    BOXES,
    FLOOR,
    GOAL,
    WALL,
    PlayLevel,
    draw_start,
    find_path,
    find_player,
    step,
)

# How often a step is for another push, how often it goes where nothing can move, and the most that
# are random in an episode.
NEW_AIM = 0.05
BLOCKED = 0.15
WILDEST = 0.3


@dataclass(frozen=True)
class Episode:
    """Levels `[Z, 8, 8]` and the actions between them: `actions[i]` makes level i + 1."""

    levels: UInt8[np.ndarray, "Z 8 8"]
    actions: tuple[str, ...]


def play_episode(rng: np.random.Generator, start: PlayLevel, steps: int) -> Episode:
    """The start and what so many actions make of it."""
    levels, actions, wild = [start], list[str](), float(rng.uniform(0.0, WILDEST))
    aim: Push | None = None
    for _ in range(steps):
        level = levels[-1]
        if aim is None or not aim.works(level) or rng.random() < NEW_AIM:
            aim = _choose_push(rng, level)
        draw, names = rng.random(), list(ACTIONS)
        if draw < BLOCKED:
            names = [name for name in names if np.array_equal(step(level, name), level)]
        elif draw > BLOCKED + wild and aim is not None:
            names = (find_path(level, aim.stand) or [aim.action])[:1]
        actions.append(names[int(rng.integers(len(names)))])
        levels.append(step(level, actions[-1]))
        if aim is not None and find_player(levels[-1]) == aim.box:
            aim = Push(aim.box, aim.action)
    return Episode(np.stack(levels), tuple(actions))


@dataclass(frozen=True)
class Push:
    """To push a box from the cell `stand` by an action."""

    stand: tuple[int, int]
    action: str

    @property
    def box(self) -> tuple[int, int]:
        """Where the box is."""
        return self._ahead(1)

    def _ahead(self, cells: int) -> tuple[int, int]:
        down, right = ACTIONS[self.action]
        return self.stand[0] + cells * down, self.stand[1] + cells * right

    def works(self, level: PlayLevel) -> bool:
        """Whether the box is there, can move, and the player can come to push it."""
        there = level[self.stand] not in (WALL, *BOXES) and level[self.box] in BOXES
        if not there or level[self._ahead(2)] not in (FLOOR, GOAL):
            return False
        return find_player(level) == self.stand or bool(find_path(level, self.stand))


def _choose_push(rng: np.random.Generator, level: PlayLevel) -> Push | None:
    """One of the pushes that work, None where none does."""
    found = []
    for row, column in np.argwhere(np.isin(level, BOXES)).tolist():
        for action, (down, right) in ACTIONS.items():
            push = Push((row - down, column - right), action)
            if (down or right) and push.works(level):
                found.append(push)
    return found[int(rng.integers(len(found)))] if found else None


def draw_episodes(count: int, steps: int, seed: int, *, held_out: bool) -> list[Episode]:
    """So many episodes; number i comes from (seed, i), and begins with a level held out or not."""
    episodes = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        episodes.append(play_episode(rng, draw_start(rng, held_out=held_out), steps))
    return episodes
