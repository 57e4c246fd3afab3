"""`ringworld play`: arrow keys move through a level that a world model dreams, frame by frame.

The dream is drawn on standard error in half blocks, two pixels in a letter; with the truth, the
simulator stands beside it. What is told at the end goes there too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import UInt8
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from ringworld.chat.arrow_keys import read_key, single_keys
from ringworld.chat.ask import check_output
from ringworld.chat.dream import Dream
from ringworld.chat.game import Game
from ringworld.chat.keyboard import is_interactive
from ringworld.chat.play_config import PlayRequest
from ringworld.errors import InputError
from ringworld.media.clip import ANIMATIONS, write_animation
from ringworld.mesh import local_mesh
from ringworld.progress import Announce
from ringworld.tasks.play_world import ACTIONS, count_goals, draw_level
from ringworld.weights.model import load_model

UPPER_HALF = "\u2580"
TRUTH_GAP = 4  # pixels between the dream and the truth
GROUND = 16  # the grey of the gap
KEYS = "arrows move, space stays, n is the next level, q leaves"
STAY, NEXT, LEAVE = " ", "n", ("q", "", "\x1b", "\x04")

Screen = UInt8[np.ndarray, "Y X 3"]


@dataclass(kw_only=True)
class ShownGame(Game):
    """A game that is shown: how long its frames took, and in `shown` all that there was to see."""

    with_truth: bool
    seconds: float = 0.0
    shown: list[Screen] = field(default_factory=list)

    def begin(self, seed: int) -> None:
        """Begin the level of a seed, and show it."""
        super().begin(seed)
        self.shown.append(self.picture())

    def move(self, action: str) -> None:
        """Do an action, and show what comes of it. Raises InputError for an unknown one."""
        started = time.perf_counter()
        super().move(action)
        self.seconds += time.perf_counter() - started
        self.shown.append(self.picture())

    def picture(self) -> Screen:
        """The dream, and the truth to its right if that is asked for."""
        if not self.with_truth:
            return self.dream.frame
        gap = np.full((len(self.dream.frame), TRUTH_GAP, 3), GROUND, np.uint8)
        return np.concatenate([self.dream.frame, gap, draw_level(self.truth)], axis=1)

    def status(self) -> str:
        """A line below the picture."""
        on, goals = count_goals(self.dream.level)
        said = f"level {self.seed}, boxes on goals: {on} of {goals}"
        return f"{said}; {self.verdict()}" if self.with_truth else said

    def verdict(self) -> str:
        """How many frames were wrong."""
        return f"{self.wrong} of {self.compared} frames differ from the truth"


def play(wanted: PlayRequest, announce: Announce) -> None:
    """Play until the person leaves or the given actions are done; then write the film.

    Raises InputError when the model has no actions, the film cannot be written, or there are
    neither actions nor a terminal.
    """
    if wanted.actions is None and not is_interactive():
        raise InputError(
            "this is not a terminal that keys come from: give the actions", setting="actions"
        )
    given = None if wanted.actions is None else parse_actions(wanted.actions)
    if wanted.record is not None:
        check_output(wanted.record, ANIMATIONS, wanted.overwrite)
    with jax.set_mesh(local_mesh()):
        model = load_model(wanted.model, wanted.weights.dtype, wanted.weights.adapter)
        game = ShownGame(dream=Dream(model), with_truth=wanted.truth)
        game.begin(wanted.level)
        try:
            if given is None:
                play_keys(game, Console(stderr=True), read_key)
            else:
                for action in given:
                    game.move(action)
        finally:
            if wanted.record is not None:
                film = np.stack(game.shown).repeat(wanted.scale, 1).repeat(wanted.scale, 2)
                write_animation(wanted.record, film, wanted.fps)
    announce(tell(game))


def tell(game: ShownGame) -> str:
    """What came of a game, in a line."""
    said = f"{game.compared} frames"
    if game.seconds:
        said += f", {game.compared / game.seconds:.1f} a second"
    return f"{said}; {game.verdict()}" if game.with_truth else said


def parse_actions(written: str) -> list[str]:
    """The actions of a line of words. Raises InputError when one is none."""
    words = written.replace(",", " ").split()
    if wrong := [word for word in words if word not in ACTIONS]:
        raise InputError(
            f"there is no action {wrong[0]}: use {', '.join(ACTIONS)}", setting="actions"
        )
    return words


def play_keys(game: ShownGame, console: Console, next_key: Callable[[], str]) -> None:
    """Play by keys until one leaves. Whatever ends it, the terminal is as it was before."""
    with ExitStack() as held:
        held.enter_context(single_keys())
        view = held.enter_context(Live(console=console, screen=True, auto_refresh=False))
        while True:
            picture = thin_out(game.picture(), console.size.width, 2 * (console.size.height - 2))
            view.update(Group(HalfBlocks(picture), Text(game.status()), Text(KEYS)), refresh=True)
            key = next_key()
            if key in LEAVE:
                return
            if key == NEXT:
                game.begin(game.seed + 1)
            elif key in ACTIONS or key == STAY:
                game.move("stay" if key == STAY else key)


def thin_out(picture: Screen, columns: int, rows: int) -> UInt8[np.ndarray, "y x 3"]:
    """The picture, or every second, third, ... pixel of it, as many as columns and rows show."""
    high, wide, _ = picture.shape
    every = max(1, -(-wide // columns), -(-high // rows))
    return picture[every // 2 :: every, every // 2 :: every]


@dataclass(frozen=True)
class HalfBlocks:
    """A picture as letters, each of two pixels one above the other, for rich to print."""

    picture: Screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """The rows of letters."""
        picture = np.pad(self.picture, ((0, len(self.picture) % 2), (0, 0), (0, 0)), mode="edge")
        for above, below in zip(picture[::2].tolist(), picture[1::2].tolist(), strict=True):
            for upper, lower in zip(above, below, strict=True):
                colour, ground = Color.from_rgb(*upper), Color.from_rgb(*lower)
                yield Segment(UPPER_HALF, Style(color=colour, bgcolor=ground))
            yield Segment.line()
