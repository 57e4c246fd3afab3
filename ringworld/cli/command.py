"""From the words of a command line to what they ask for: a verb with its options, help, or a list.

The words of a verb are looked up in `VERBS`, and tyro reads the rest into the verb's dataclass.
What does the work is imported last, when the options are known to be right: help costs no JAX.
"""

from collections.abc import Callable
from dataclasses import asdict

from ringworld import __version__
from ringworld.cli.options import find_flag, parse_options
from ringworld.cli.recipes import SUMMARIES, prepare_recipe
from ringworld.cli.verbs import VERBS, Computes, Verb, prepare_jax
from ringworld.config import flatten
from ringworld.distributed import check_same
from ringworld.errors import InputError, did_you_mean

# The first words of verbs that have two, and what `--help` says of them together.
GROUPS = {
    "data": "Token shards: made of your files, looked into, asked about.",
    "train": "Train a model by a recipe: one stage, or a chain of them.",
    "eval": "Measure a model.",
    "generate": "Draw with a world model.",
}
HELP, VERSION = ("-h", "--help"), ("-V", "--version")


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
        asked = parse_options(VERBS[verb].options, words[length:], f"ringworld {verb}")
        assert isinstance(asked, Verb)
        if isinstance(asked, Computes):
            prepare_jax(asked.world)
            options = {name: value for name, value in asdict(asked).items() if name != "world"}
            check_same(flatten({"version": __version__, **options}))
        work = asked.load()
        return lambda: work(announce)

    def explain(self, error: InputError) -> str:
        """The sentence of an error, with the option to change where this verb has one."""
        flag = find_flag(self._options, error.setting) if error.setting else None
        return f"{error} ({flag})" if flag else str(error)


def usage() -> str:
    """Every verb, a line each."""
    rows = {f"{verb} {entry.usage}": entry.summary for verb, entry in VERBS.items()}
    rows["train RECIPE [--a.b VALUE]"] = "one stage or a chain of stages, by a recipe"
    more = {"VERB --help": "the options of a verb", "--version": "the version"}
    return f"usage: ringworld VERB ...\n\n{_table(rows)}\n\n{_table(more, 'ringworld ')}\n"


def list_group(group: str) -> str:
    """The verbs that begin with the same word, or the recipes of `train`, a line each."""
    if group == "train":
        called, more = "train RECIPE [--folder F] [--dry-run] [--a.b VALUE]", "train RECIPE"
        rows = {f"train {name}": said for name, said in SUMMARIES.items()}
    else:
        called, more = f"{group} VERB ...", f"{group} VERB"
        own = {verb: entry for verb, entry in VERBS.items() if verb.split()[0] == group}
        rows = {f"{verb} {entry.usage}": entry.summary for verb, entry in own.items()}
    head = f"usage: ringworld {called}\n\n{GROUPS[group]}\n\n"
    hints = {f"{more} --help": "its options"}
    if group == "train":
        hints |= {f"{more} --stages.0.X VALUE": "an option of its first stage"}
        hints |= {f"{more} --stages.all.X VALUE": "of every stage that has it"}
    return f"{head}{_table(rows)}\n\n{_table(hints, 'ringworld ')}\n"


def _table(rows: dict[str, str], before: str = "") -> str:
    """Rows of two columns, the first as wide as it must be."""
    width = max(map(len, rows)) + 2
    return "\n".join(f"  {before}{left:<{width}}{right}" for left, right in rows.items())


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
