"""Options from a dataclass, by tyro, with every mistake as one sentence.

A whole number may be written `64k` or `1m`, in units of 1,024 and 1,024 x 1,024.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from itertools import takewhile
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors as tyro_errors
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ringworld.errors import InputError, did_you_mean

T = TypeVar("T")
COUNT = re.compile(r"(-?\d[\d_]*)([kKmM]?)")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
# What help shows for an option that has no value until it is given one.
UNSET = "unset"
# How alike, from 0 to 1, a mistyped option and the one that is proposed have to be.
NEAR = 0.75
REGISTRY = ConstructorRegistry()
MARKERS = (
    tyro.conf.AvoidSubcommands,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.HelptextFromCommentsOff,
    tyro.conf.PositionalMetavarFromFieldName,
)


def parse_options(cls: type[T], words: list[str], prog: str, default: T | None = None) -> T:
    """The dataclass `cls` as the words say; what they do not say is its default.

    Raises InputError for a word that cannot be used. Prints the help and exits when asked to.
    """
    known = list(list_flags(cls if default is None else default))

    def refuse(event: tyro_errors.ParseErrorEvent) -> NoReturn:
        said = explain(event, words, known)
        raise InputError(said if said.endswith("?") else f"{said}: see {prog} --help")

    read = partial(tyro.cli, cls, args=words, prog=prog, config=MARKERS, registry=REGISTRY)
    with tyro_errors.on_parse_error(refuse):
        return read() if default is None else read(default=default)


def parse_count(written: str) -> int:
    """A whole number: 4096, 64k (65,536) or 1m (1,048,576). Raises ValueError for anything else."""
    found = COUNT.fullmatch(written)
    if found is None:
        raise ValueError(written)
    return int(found[1]) * UNITS[found[2].lower()]


@REGISTRY.primitive_rule
def _count_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """Whole numbers with units."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: parse_count(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def parse_number(written: str) -> float:
    """A number, or infinity. Raises ValueError for anything else, NaN too."""
    if math.isnan(number := float(written)):
        raise ValueError(written)
    return number


@REGISTRY.primitive_rule
def _number_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    """Numbers, of which NaN is none."""
    if info.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: parse_number(words[0]),
        is_instance=lambda value: isinstance(value, float | int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _optional_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value that may be left out: None can be a default, and nobody has to write it."""
    inner = _without_none(info.type)
    if inner is info.type or is_dataclass(inner) or get_origin(inner) in (Union, UnionType):
        return None
    found = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner, info.markers))
    if not isinstance(found, PrimitiveConstructorSpec) or found.nargs != 1:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=found.metavar,
        instance_from_str=found.instance_from_str,
        is_instance=lambda value: value is None or found.is_instance(value),
        str_from_instance=lambda value: (
            [UNSET] if value is None else found.str_from_instance(value)
        ),
        choices=found.choices,
    )


def explain(event: tyro_errors.ParseErrorEvent, words: list[str], known: list[str]) -> str:
    """What is wrong with the words, as the beginning of a sentence or as a whole question."""
    flags = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in known]
    if isinstance(event, tyro_errors.InstantiationFailure) and event.argument is not None:
        flag, wanted = _name(event.argument), _describe(event.argument.field.type_stripped)
        return f"{flag} is {_find_value(flag, words)} and has to be {wanted}"
    if isinstance(event, tyro_errors.InvalidChoice):
        near = did_you_mean(event.value, event.choices)
        choices = ", ".join(event.choices)
        return f"{_name(event.argument)} is {event.value}{near or ':'} use one of {choices}"
    if unknown:
        return _explain_unknown(unknown[0], known)
    if isinstance(event, tyro_errors.MissingArgs):
        names = [_name(given.arg) for given in event.missing_arguments]
        return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if isinstance(event, tyro_errors.BadValue):
        return f"{_name(event.argument)} needs a value"
    if isinstance(event, tyro_errors.UnrecognizedArgs) and event.tokens[0].startswith("-"):
        return f"there is no option {event.tokens[0]}"
    if isinstance(event, tyro_errors.UnrecognizedArgs):
        return f"the word {event.tokens[0]} is one too many; quote words that belong together"
    return "these words do not fit together"


def _explain_unknown(flag: str, known: list[str]) -> str:
    """The sentence about an option that there is not, with the nearest one.

    People leave out the first parts of `--sampling.temperature`, so its last part counts too.
    """
    last = {name.rpartition(".")[2].lstrip("-"): name for name in known}
    near = get_close_matches(flag, known, n=1, cutoff=NEAR)
    parts = get_close_matches(flag.rpartition(".")[2].lstrip("-"), last, n=1, cutoff=NEAR)
    near = near or [last[part] for part in parts]
    return f"there is no option {flag}" + (f": did you mean {near[0]}?" if near else "")


def _name(argument: Any) -> str:
    """How a person writes an argument: its flag, or the place it stands in."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return argument.lowered.name_or_flags[-1]


def _find_value(flag: str, words: list[str]) -> str:
    """What was written behind a flag; "what was given" for a word without one."""
    for i, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name.replace("_", "-") == flag:
            rest = takewhile(lambda word: not word.startswith("--"), words[i + 1 :])
            return value if is_joined else " ".join(rest)
    return "what was given"


def _describe(hint: Any) -> str:
    """A type in words."""
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return f"{_describe(get_args(hint)[0])}, or several with spaces between them"
    names = {int: "a whole number, such as 4096 or 64k", float: "a number", bool: "True or False"}
    return names.get(hint, "of another form")


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`; other types as they are."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    rest = [part for part in get_args(hint) if part is not NoneType]
    return rest[0] if len(rest) == 1 and len(get_args(hint)) == 2 else hint


def find_flag(options: Any, setting: str) -> str | None:
    """The flag whose last part is `setting`, among the options of a type or of default values."""
    if options is None:
        return None
    wanted = setting.replace("_", "-")
    return next((f for f in list_flags(options) if re.split(r"[.]|^--", f)[-1] == wanted), None)


def list_flags(options: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag of a dataclass, or of an instance of one, as `--a.b-c`."""
    if isinstance(options, tuple):
        for i, part in enumerate(options):
            yield from list_flags(part, f"{prefix}{i}.")
    if not is_dataclass(options):
        return
    hints = get_type_hints(
        type(options) if not isinstance(options, type) else options, None, None, True
    )
    for field in fields(options):
        markers = getattr(hints[field.name], "__metadata__", ())
        value = _default(options, field)
        if tyro.conf.Positional[int].__metadata__[0] in markers:
            continue
        name = field.name.replace("_", "-")
        nested = is_dataclass(value) or (isinstance(value, tuple) and any(map(is_dataclass, value)))
        if not nested:
            yield f"{prefix}{name}"
            continue
        omitted = any(getattr(marker, "name", None) == "" for marker in markers)
        yield from list_flags(value, prefix if omitted else f"{prefix}{name}.")


def _default(options: Any, field: Any) -> Any:
    """The value of a field in an instance; in a type its default, or the type of the field."""
    if not isinstance(options, type):
        return getattr(options, field.name)
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.type
