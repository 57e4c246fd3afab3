"""A level that is played in a dream, and beside it the truth: frames that agree are counted."""

from dataclasses import dataclass, field

import numpy as np

from ringworld.chat.dream import Dream
from ringworld.tasks.play_world import PlayLevel, draw_start, step


@dataclass
class Game:
    """A dream and the truth beside it.

    `compared` are the frames that were, and `wrong` those that differ from the truth in any cell.
    """

    dream: Dream
    seed: int = 0
    truth: PlayLevel = field(init=False)
    compared: int = 0
    wrong: int = 0

    def begin(self, seed: int) -> None:
        """Begin the level of a seed, one that no training saw."""
        self.seed = seed
        self.truth = draw_start(np.random.default_rng(seed), held_out=True)
        self.dream.reset(self.truth)

    def move(self, action: str) -> None:
        """Do an action in the dream, and in truth. Raises InputError for an unknown one."""
        self.dream.step(action)
        self.truth = step(self.truth, action)
        self.compared += 1
        self.wrong += not self.agrees

    @property
    def agrees(self) -> bool:
        """Whether the dream's frame shows the truth in every cell."""
        return np.array_equal(self.dream.level, self.truth)
