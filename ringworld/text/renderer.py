"""The program that renders foreign chat templates, alone in a process that can harm nobody.

`template` starts it by its path as `python -I renderer.py`, writes one JSON object to its standard
input, {"limits", "template", "context"}, and reads one from its standard output:

    {"text": ...}    or    {"fault": WORD, "said": ...}    or nothing, if it had to be ended

A template is a program in Jinja's language. It runs in Jinja's immutable sandbox, which refuses
attributes that lead to Python, and under limits of memory, processor time, files and output that
this process sets for itself before it parses the first foreign character.
"""

import json
import os
import resource
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What Python loads when it is first needed, an error's machinery too, is loaded by these, because
# no file can be opened later.
WARM_UP = (
    "{% set a = namespace(b='\\n' ~ 1.5) %}{{ [a.b, strftime_now('%B')] | tojson | trim }}",
    "{{ 1 / 0 }}",
)
WARM_UP_CHARACTERS = 1000


class Refusal(TemplateError):
    """The template itself calls `raise_exception`: it does not take these messages."""


class TooLong(Exception):
    """More text than is allowed."""


class Generation(Extension):
    """`{% generation %}` marks what a model is trained on; what stands in it is simply shown."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def set_limits(limits: dict[str, int]) -> None:
    """Lower this process's limits for good: memory in bytes, processor seconds, no file writes."""
    for name, most in {
        "RLIMIT_AS": limits["memory"],
        "RLIMIT_CPU": limits["seconds"],
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_CORE": 0,
    }.items():
        resource.setrlimit(getattr(resource, name), (most, most))


def refuse(message: object) -> None:
    """What a template calls to refuse its messages."""
    raise Refusal(str(message))


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` as chat templates expect it: plain, not escaped for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def now(form: str) -> str:
    """The date and time of now in the form asked for."""
    return datetime.now().strftime(form)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The language of chat templates: the options and filters that they are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    return environment


def render_template(template: str, context: dict[str, Any], most: int) -> str:
    """The text of the template; raises TooLong at the first piece beyond `most` characters."""
    pieces, length = [], 0
    names = {"raise_exception": refuse, "strftime_now": now}
    for piece in make_environment().from_string(template, names).generate(context):
        length += len(piece)
        if length > most:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def respond(limits: dict[str, int], request: dict[str, Any]) -> dict[str, str]:
    """The text, or the fault word and what was said of it."""
    try:
        text = render_template(request["template"], request["context"], limits["characters"])
        text.encode()  # half of a surrogate pair is no text, and no tokenizer reads it
        return {"text": text}
    except Refusal as refusal:
        return {"fault": "refused", "said": str(refusal)}
    except SecurityError:
        return {"fault": "unsafe", "said": ""}
    except TemplateSyntaxError as error:
        return {"fault": "syntax", "said": f"line {error.lineno}"}
    except TooLong:
        return {"fault": "long", "said": ""}
    except MemoryError:
        return {"fault": "memory", "said": ""}
    except (RecursionError, OverflowError):
        return {"fault": "time", "said": ""}
    except Exception as error:
        return {"fault": "failed", "said": type(error).__name__}


def main() -> None:
    """Be ready, read the request, limit the process, render, and report."""
    out = os.fdopen(os.dup(1), "wb")
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)
    os.dup2(void, 2)
    os.close(void)
    for template in WARM_UP:
        respond({"characters": WARM_UP_CHARACTERS}, {"template": template, "context": {}})
    asked = sys.stdin.buffer.read()
    if not asked:
        return
    request = json.loads(asked)
    set_limits(request["limits"])
    out.write(json.dumps(respond(request["limits"], request)).encode("utf-8", "surrogatepass"))
    out.flush()


if __name__ == "__main__":
    main()
