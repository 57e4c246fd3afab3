"""What a long task reports on the way: lines of text, and a bar in a terminal."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TimeRemainingColumn

from ringworld.distributed import is_first

Announce = Callable[[str], None]
"""Takes one line of text for the person who started the task."""


def make_progress(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """A progress bar on standard error with the time left in its last column.

    It shows nothing where standard error is no terminal, and in all processes but the first. A
    `transient` bar is erased at its end.
    """
    console = Console(stderr=True)
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not (console.is_terminal and is_first()),
    )


def name_length(tokens: int) -> str:
    """1024 as "1K", 1048576 as "1M", and other numbers as they are."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{letter}"
    return str(tokens)
