"""The person's side of a chat: what asks for messages, and shows answers and progress."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ringworld.chat.keyboard import ask_person, is_interactive
from ringworld.chat.session import Tick
from ringworld.distributed import first_says, is_first
from ringworld.progress import Announce, make_progress

# Reading that takes about this many tokens is done before anyone wonders, even on two cores.
SOON = 512


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """The person's side of a chat: asks for a message, shows pieces of an answer, announces.

    `reading()` gives, for as long as it is entered, a function from the tokens to prefill to what
    shows progress. With `counters` tokens and times are shown; a pipe wants none.
    """

    ask: Callable[[str], str]
    show: Callable[[str], None]
    announce: Announce
    reading: Callable[[], AbstractContextManager[Callable[[int], Tick]]]
    counters: bool


def make_terminal(announce: Announce) -> Terminal:
    """The terminal that this process runs in; without counters where it is a pipe.

    Where several processes compute together the person talks with the first one.
    """

    def show(piece: str) -> None:
        if is_first():
            print(piece, end="", flush=True)

    return Terminal(
        ask=_ask_first,
        show=show,
        announce=announce,
        reading=lambda: _reading(announce),
        counters=is_first() and is_interactive(),
    )


def _ask_first(prompt: str) -> str:
    """A message for every process, from the person at the first one; raises as `ask_person`."""
    message, end = "", ""
    if is_first():
        try:
            message = ask_person(prompt)
        except (EOFError, KeyboardInterrupt) as error:
            end = type(error).__name__
    message, end = first_says((message, end))
    if end:
        raise EOFError if end == EOFError.__name__ else KeyboardInterrupt
    return message


@contextmanager
def _reading(announce: Announce) -> Generator[Callable[[int], Tick], None, None]:
    """Progress drawn on standard error until all is read, or one plain line of it elsewhere."""
    bar = make_progress(TextColumn("reading"), BarColumn(), MofNCompleteColumn(), transient=True)

    def progress(total: int) -> Tick:
        if total < SOON:
            return lambda done: None
        if bar.disable:
            announce(f"reading {total:,} tokens")
        bar.start()
        task = bar.add_task("reading", total=total)

        def tick(done: int) -> None:
            bar.update(task, completed=done)
            if done >= total:
                bar.stop()

        return tick

    try:
        yield progress
    finally:
        bar.stop()
