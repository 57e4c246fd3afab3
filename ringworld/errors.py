"""The one error that users meet."""


class InputError(Exception):
    """One sentence that says what was wrong and what to change; the command line exits with 2.

    A name that it quotes may come from a broken file: what cannot be printed is shown as "?".
    """

    def __str__(self) -> str:
        """The sentence, on one line."""
        return "".join(c if c.isprintable() else "?" for c in super().__str__())
