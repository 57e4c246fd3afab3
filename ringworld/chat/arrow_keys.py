"""The keys of a terminal, one at a time, and the terminal as it was before when they are done."""

import os
import select
import sys
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager

# What terminals send for keys of several bytes, in both of their modes.
SEQUENCES = {
    f"\x1b{mode}{letter}": name
    for mode in "[O"
    for letter, name in zip("ABCD", ("up", "down", "right", "left"), strict=True)
}
ESCAPE = "\x1b"
# The rest of a sequence comes this soon after its first byte, in seconds.
REST = 0.05


@contextmanager
def single_keys() -> Generator[None, None, None]:
    """Within it standard input gives each key at once and shows none; Ctrl-C still interrupts.

    However it ends, the terminal is as before.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_key() -> str:
    """The next key: "up", "down", "left", "right", or its own letter; "" at the end of input."""
    descriptor = sys.stdin.fileno()
    key = os.read(descriptor, 1).decode(errors="replace")
    if key != ESCAPE:
        return key
    while key not in SEQUENCES and len(key) < 3 and select.select([descriptor], [], [], REST)[0]:
        key += os.read(descriptor, 1).decode(errors="replace")
    return SEQUENCES.get(key, key)
