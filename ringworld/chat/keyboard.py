"""What a person types or pastes, as whole messages."""

import select
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

# Begins a message of several lines, and ends it.
QUOTES = '"""'
CONTINUED = "... "
# Lines that arrive this soon after one, in seconds, were pasted with it.
PASTED = 0.05


def read_message(
    prompt: str, read_line: Callable[[str], str], more_waits: Callable[[], bool]
) -> str:
    """One message: a line, the lines that were pasted with it, or all between triple quotes.

    `read_line` shows its argument and gives a line, which a terminal may have filled with several.
    Raises EOFError when the input is at its end.
    """
    lines = [read_line(prompt)]
    opening = lines[0].lstrip()
    if not opening.startswith(QUOTES):
        while more_waits():
            lines.append(read_line(CONTINUED))
        return "\n".join(lines)
    lines[0] = opening.removeprefix(QUOTES)
    with suppress(EOFError):
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(read_line(CONTINUED))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")


def is_interactive() -> bool:
    """Whether a person types at a terminal and sees what is written to both outputs."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams)


def ask_person(prompt: str) -> str:
    """A message from standard input. Only a terminal is shown the prompt."""
    if sys.stdin is None:
        raise EOFError
    if not sys.stdin.isatty():
        return read_message(prompt, lambda _: input(), lambda: False)
    with suppress(ImportError):  # with it `input` edits its line and remembers the lines before
        readline = import_module("readline")
        # Python turns this off; with it a pasted text of several lines is one input.
        readline.parse_and_bind("set enable-bracketed-paste on")
    return read_message(prompt, _read_line, _more_waits)


def _read_line(prompt: str) -> str:
    """A line of input. Where answers go into a file, the prompt does not."""
    if sys.stdout is not None and sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _more_waits() -> bool:
    """Whether another line of a paste is there to be read already."""
    return bool(select.select([sys.stdin], [], [], PASTED)[0])
