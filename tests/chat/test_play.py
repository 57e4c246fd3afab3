"""`ringworld play`: scripted, by keys in a pseudo-terminal, and what it refuses."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ringworld.chat import play as play_module
from ringworld.chat.arrow_keys import read_key, single_keys
from ringworld.chat.dream import Dream
from ringworld.chat.play import HalfBlocks, ShownGame, parse_actions, play, play_keys, thin_out
from ringworld.chat.play_config import PlayRequest
from ringworld.errors import BadFileError, InputError
from ringworld.tasks.play_world import draw_level, draw_start, read_level, step
from ringworld.weights.model import load_model
from ringworld.weights.shipped import NANO, NANO_PLAY

ACTED = "up left left down stay right right up down down"


@pytest.fixture(scope="module")
def dream() -> Dream:
    return Dream(load_model(NANO_PLAY))


def test_a_dream_begins_with_its_level_and_mostly_goes_on_as_the_world_would(dream: Dream) -> None:
    right = 0
    for seed in range(8):
        level = draw_start(np.random.default_rng(seed), held_out=True)
        assert np.array_equal(read_level(dream.reset(level)), level)
        for action in ACTED.split()[:2]:
            level = step(level, action)
            assert np.array_equal(read_level(dream.step(action)), dream.level)
            right += np.array_equal(dream.level, level)
    assert right >= 14  # of 16: the shipped model has 99.2 % right after a true frame
    with pytest.raises(InputError, match="no action 'jump'"):
        dream.step("jump")


def test_given_actions_are_played_counted_and_recorded(tmp_path: Path) -> None:
    told: list[str] = []
    film = tmp_path / "game.gif"
    play(PlayRequest(actions=ACTED, level=3, truth=True, record=film, scale=2), told.append)
    assert told[-1].startswith("10 frames, ")
    assert re.search(r" a second; \d+ of 10 frames differ from the truth$", told[-1])
    with Image.open(film) as opened:
        assert opened.size == (2 * (64 + 4 + 64), 128)
        assert 2 <= opened.n_frames <= 11  # frames that are alike are one
        first = np.asarray(opened.convert("RGB"))
    truth = draw_level(draw_start(np.random.default_rng(3), held_out=True))
    assert np.abs(first[::2, 136::2].astype(int) - truth).max() < 40  # a GIF has 256 colours
    with pytest.raises(BadFileError, match="exists already"):
        play(PlayRequest(actions="up", record=film), told.append)


def test_what_cannot_be_played_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, said in (
        (PlayRequest(), "not a terminal"),
        (PlayRequest(actions="up jump"), "no action jump"),
        (PlayRequest(model=NANO, actions="up"), "this model has no actions"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(InputError, match=said):
            play(wanted, print)
    with pytest.raises(InputError, match="scale is 0"):
        PlayRequest(scale=0)
    assert parse_actions(" up, stay right ") == ["up", "stay", "right"]


# ---- what is drawn


def test_a_picture_is_drawn_as_half_blocks_of_its_colours() -> None:
    picture = np.array([[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]], np.uint8)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=20)
    console.print(HalfBlocks(picture))
    assert console.file.getvalue() == (
        "\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[0m\n\x1b[38;2;7;8;9;48;2;7;8;9m▀\x1b[0m\n"
    )


def test_a_picture_is_thinned_until_it_fits_the_terminal() -> None:
    picture = np.zeros((64, 132, 3), np.uint8)
    assert thin_out(picture, 140, 70).shape == (64, 132, 3)
    assert thin_out(picture, 80, 44).shape == (32, 66, 3)
    assert thin_out(picture, 50, 200).shape[1] <= 50


# ---- keys


@dataclass
class PseudoTerminal:
    """Both ends of a pseudo-terminal, and its settings before anything was changed."""

    person: int
    program: int
    before: list

    @property
    def is_as_before(self) -> bool:
        """Whether its settings are as they were."""
        return termios.tcgetattr(self.program) == self.before


@contextmanager
def open_terminal() -> Generator[PseudoTerminal, None, None]:
    """A pseudo-terminal."""
    person, program = pty.openpty()
    try:
        yield PseudoTerminal(person, program, termios.tcgetattr(program))
    finally:
        os.close(person)
        os.close(program)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Generator[PseudoTerminal, None, None]:
    """A pseudo-terminal that standard input comes from."""
    with open_terminal() as opened, os.fdopen(os.dup(opened.program)) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield opened


def test_arrow_keys_of_both_modes_and_letters_are_read_one_by_one(
    terminal: PseudoTerminal,
) -> None:
    with single_keys():
        os.write(terminal.person, b"\x1b[A\x1bOBq\x1b[D\x1b[C n")
        assert [read_key() for _ in range(7)] == ["up", "down", "q", "left", "right", " ", "n"]
        os.write(terminal.person, b"\x1b")
        assert read_key() == "\x1b"
    assert terminal.is_as_before


def test_keys_move_the_dream_and_the_terminal_is_as_before(
    terminal: PseudoTerminal, dream: Dream
) -> None:
    game = ShownGame(dream=dream, with_truth=True)
    game.begin(0)
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40)
    keys = iter(["up", " ", "?", "left", "n", "down", "q"])
    play_keys(game, console, lambda: next(keys))
    assert (game.compared, game.seed) == (4, 1)
    assert len(game.shown) == 6
    written = console.file.getvalue()
    assert " of 4 frames differ from the truth" in written and "▀" in written
    assert written.index("\x1b[?1049h") < written.rindex("\x1b[?1049l")
    assert terminal.is_as_before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_leaves_the_terminal_as_before(
    terminal: PseudoTerminal, dream: Dream, error: type[BaseException]
) -> None:
    game = ShownGame(dream=dream, with_truth=False)
    game.begin(0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30)

    def fail() -> str:
        assert not terminal.is_as_before
        raise error

    with pytest.raises(error):
        play_keys(game, console, fail)
    assert terminal.is_as_before
    assert console.file.getvalue().rindex("\x1b[?1049l") > 0


def read_until(terminal: PseudoTerminal, wanted: bytes, process: subprocess.Popen) -> bytes:
    """What the program writes up to some words."""
    seen, end = b"", time.monotonic() + 300
    while wanted not in seen:
        assert process.poll() is None or seen, "the program ended"
        assert time.monotonic() < end, seen[-2000:]
        seen += os.read(terminal.person, 65536)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("leave", "code"), [("q", 0), ("interrupt", 130)])
def test_the_program_is_played_in_a_terminal_and_leaves_it_as_it_was(leave: str, code: int) -> None:
    with open_terminal() as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "ringworld", "play", "--truth", "--level", "2"],
            stdin=terminal.program,
            stdout=terminal.program,
            stderr=terminal.program,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"},
        )
        read_until(terminal, b"0 of 0 frames differ", process)
        os.write(terminal.person, b"\x1b[A")
        read_until(terminal, b" of 1 frames differ", process)
        if leave == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            os.write(terminal.person, b"q")
        read_until(terminal, b"\x1b[?1049l", process)
        assert process.wait(timeout=120) == code
        assert terminal.is_as_before


def test_a_game_without_a_terminal_needs_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play_module, "is_interactive", lambda: False)
    with pytest.raises(InputError) as refused:
        play(PlayRequest(), print)
    assert refused.value.setting == "actions"
