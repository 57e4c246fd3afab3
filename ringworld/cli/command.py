"""From the words of a command line to what they ask for: a verb with its options, help, or a list.

The words of a verb are looked up in `VERBS`, and tyro reads the rest into the verb's dataclass.
What does the work is imported last, when the options are known to be right: help costs no JAX.
"""

from collections.abc import Callable

from ringworld import __version__
from ringworld.cli.options import find_flag, parse
from ringworld.cli.recipes import SUMMARIES, prepare_recipe
from ringworld.cli.verbs import VERBS, Verb
from ringworld.errors import InputError, did_you_mean

# The first words of verbs that have two, and what `--help` says of them together.
GROUPS = {
    "data": "Token shards: made of your files, looked into, asked about.",
    "train": "Train a model by a recipe: one stage, or a chain of them.",
    "eval": "Measure a model.",
    "generate": "Draw with a world model.",
}
HELP, VERSION = ("-h", "--help"), ("-V", "--version")
WIDTH = 44  # of the column of verbs in a list of them


class Command:
    """What the words of a command line ask for."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._options: object = None  # the type, or the defaults, that an error may be about

    def prepare(self, announce: Callable[[str], None]) -> Callable[[], None]:
        """Import what the words ask for, and return the function that does it.

        Raises InputError for a verb, a recipe, an option or a value that does not exist, and
        SystemExit after the help of a verb.
        """
        words = self._words
        if not words or words[0] in HELP:
            return lambda: print(usage())
        if words[0] in VERSION:
            return lambda: print(f"ringworld {__version__}")
        if words[0] in GROUPS and (len(words) == 1 or words[1] in HELP):
            return lambda: print(list_group(words[0]))
        if words[0] == "train":
            self._options, work = prepare_recipe(words[1], words[2:], announce)
            return work
        length = next((n for n in (1, 2) if " ".join(words[:n]) in VERBS), 0)
        if not length:
            raise InputError(_unknown_verb(words))
        verb = " ".join(words[:length])
        self._options = VERBS[verb].options
        asked = parse(VERBS[verb].options, words[length:], f"ringworld {verb}")
        assert isinstance(asked, Verb)
        work = asked.load()
        return lambda: work(announce)

    def explain(self, error: InputError) -> str:
        """The sentence of an error, with the option to change where this verb has one."""
        flag = find_flag(self._options, error.setting) if error.setting else None
        return f"{error} ({flag})" if flag else str(error)


def usage() -> str:
    """Every verb, a line each."""
    return "\n".join(
        [
            "usage: ringworld VERB ...",
            "",
            *_rows(list(VERBS)),
            _row("train RECIPE [--a.b VALUE]", GROUPS["train"].rstrip(".")),
            "",
            "  ringworld VERB --help    the options of a verb",
            "  ringworld --version      the version",
            "",
        ]
    )


def list_group(group: str) -> str:
    """The verbs that begin with the same word, or the recipes of `train`, a line each."""
    if group == "train":
        rows = [_row(f"train {name}", said) for name, said in SUMMARIES.items()]
        called, more = "train RECIPE [--folder F] [--a.b VALUE]", "train RECIPE"
    else:
        rows = _rows([verb for verb in VERBS if verb.split()[0] == group])
        called, more = f"{group} VERB ...", f"{group} VERB"
    head = [f"usage: ringworld {called}", "", GROUPS[group], ""]
    return "\n".join([*head, *rows, "", f"  ringworld {more} --help    its options", ""])


def _rows(verbs: list[str]) -> list[str]:
    return [_row(f"{verb} {VERBS[verb].usage}", VERBS[verb].summary) for verb in verbs]


def _row(verb: str, said: str) -> str:
    return f"  {verb.strip():<{WIDTH}}{said}"


def _unknown_verb(words: list[str]) -> str:
    """The sentence about a verb that there is not, with the nearest one or those of its group."""
    known = [verb.split() for verb in [*VERBS, "train"]]
    if words[0] in GROUPS:
        choices = [verb[1] for verb in known if verb[0] == words[0]]
        near = did_you_mean(words[1], choices)
        return f"{words[0]} has no verb {words[1]}{near or ':'} use one of {', '.join(choices)}"
    choices = list(dict.fromkeys(verb[0] for verb in known))
    near = did_you_mean(words[0], choices)
    return f"there is no verb {words[0]}{near or ':'} use one of {', '.join(choices)}"
