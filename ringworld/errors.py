"""The one error that users meet."""


class InputError(Exception):
    """One sentence that says what was wrong and what to change; the command line exits with 2."""
