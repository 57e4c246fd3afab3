"""What is typed or pasted becomes whole messages."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringworld.chat.keyboard import read_message

ROOT = Path(__file__).resolve().parents[2]
ASK = "from ringworld.chat.keyboard import ask_person; print('\\nheard', repr(ask_person('> ')))"


def person(*lines: str) -> tuple[Callable[[str], str], Callable[[], bool], list[str]]:
    """Someone who says these lines at once; how to read one, whether more waits, the prompts."""
    said, prompts = list(lines), []

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        if not said:
            raise EOFError
        return said.pop(0)

    return read_line, lambda: bool(said), prompts


def test_lines_that_are_pasted_together_are_one_message() -> None:
    read_line, more_waits, prompts = person("one", "two", "", "three")
    assert read_message("> ", read_line, more_waits) == "one\ntwo\n\nthree"
    assert prompts == ["> ", "... ", "... ", "... "]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one', "two", 'three"""', "next"], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""', "next"], "one\n\ntwo"),
        (['  """one"""', "next"], "one"),
        (['"""one', "two"], "one\ntwo"),
        (['say """', "next"], 'say """'),
    ],
)
def test_triple_quotes_begin_and_end_a_message_of_several_lines(
    lines: list[str], message: str
) -> None:
    read_line, _, _ = person(*lines)
    assert read_message("> ", read_line, lambda: False) == message


def test_the_end_of_the_input_is_no_message() -> None:
    with pytest.raises(EOFError):
        read_message("> ", person()[0], lambda: False)


@pytest.mark.parametrize("pasted", ["\x1b[200~one\ntwo\nthree\x1b[201~\r", "one\ntwo\nthree\n"])
def test_three_lines_pasted_into_a_terminal_are_one_message(pasted: str) -> None:
    """With the marks that terminals put around a paste, and without them."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ASK],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)},
        close_fds=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while b"> " not in seen:
            seen += os.read(ours, 1024)
        os.write(ours, pasted.encode())
        while b"heard" not in seen or not seen.rstrip().endswith(b"'"):
            seen += os.read(ours, 1024)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert repr("one\ntwo\nthree").encode() in seen
