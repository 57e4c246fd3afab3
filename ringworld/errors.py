"""The errors that a user can cause, by meaning, so that each program can treat them in its own way.

    InputError          what was asked for is wrong: a value, a combination, an empty question
    BadFileError        a file or folder is missing, damaged, or cannot be written
    TooLargeError       what was asked for does not fit: the context, the memory, the disk
    UnavailableError    something is needed first: a network, an optional package

Each is one sentence that says what was wrong and what to change. It names settings in words; a
program that has its own names for them, such as options of a command line, finds the setting in
`setting` and adds its hint.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """One sentence that says what was wrong and what to change; the command line exits with 2.

    `setting` is the name of the configuration field to change, where there is one. A name that the
    sentence quotes may come from a broken file: what cannot be printed is shown as "?".
    """

    def __init__(self, sentence: str, *, setting: str | None = None) -> None:
        super().__init__(sentence)
        self.setting = setting

    def __str__(self) -> str:
        """The sentence, on one line."""
        return "".join(c if c.isprintable() else "?" for c in super().__str__())


class BadFileError(InputError):
    """A file or a folder is missing, damaged, of another kind, or cannot be read or written."""


class TooLargeError(InputError):
    """What was asked for does not fit the model's context, the memory or the disk."""


class UnavailableError(InputError):
    """Something outside is needed first: the network, an optional package, a folder in use."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to add behind a mistyped name: the nearest known one as a question, or nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""
