"""The house rules: what keeps the package readable, as rules over its source text.

A rule takes the modules of a tree (never imports them) and yields one line for each place that
breaks it, `file:line: what is wrong and what to do`. Every rule has a test that the package keeps
it, and an example in `BROKEN` that shows that it can fail.
"""

import ast
import builtins
import dis
import inspect
import io
import keyword
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ringworld"

MODULE_LINES = 400
FUNCTION_LINES = 80
README_LINES = 110
SAME_LINES = 6  # as many lines, alike to the letter, are said twice
SAME_SHAPES = 12  # as many lines, alike but for names and values, are the same logic twice ...
DISTINCT_SHAPES = 8  # ... if so many of them differ; else it is a table, whose rows are alike

# A name may import the names below it. Names on one line do not know each other.
RANKS = {
    name: rank
    for rank, names in enumerate(
        [
            ["errors"],
            ["settings", "config"],
            ["coordinator", "coordinator_server"],
            ["distributed"],
            ["files", "progress"],
            ["fetch", "vocab", "mesh", "cpu", "rope_scaling"],
            ["params"],
            ["layers", "attention", "rope"],
            ["batch"],  # holds attention's `Where`
            ["models"],
            ["text", "media"],
            ["weights"],
            ["data"],
            ["tasks"],
            ["train"],
            ["inference"],
            ["chat"],
            ["serve"],
            ["plan"],
            ["evals"],
            ["recipes"],
            ["demo"],
            [PACKAGE],  # the public names
            ["cli"],
            ["__main__"],  # `python -m ringworld`
        ]
    )
    for name in names
}
# The exceptions among names of one rank: the left may import the right.
SIDEWAYS: set[tuple[str, str]] = set()
# The rooms of `ringworld/data`, in the order of the data's way: a room may import those before it.
ROOMS = ("example", "books", "samples", "packing", "corpora", "questions")
MAKERS = {"__init__", "__post_init__", "__new__"}
DRAWERS = {"util", "utils", "common", "helper", "helpers", "misc", "base"}
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SILENCERS = re.compile(r"#\s*(type:\s*ignore|noqa|pyrefly:\s*ignore|pyright:|mypy:|fmt:\s*off)")


@dataclass(frozen=True)
class Module:
    """One source file: its path below the root, and its text."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The file, parsed."""
        return ast.parse(self.text, str(self.path))

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        """The file, cut into tokens, comments included."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @property
    def name(self) -> str:
        """The dotted name that imports it."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def door(self) -> str:
        """Its name in RANKS: the first below the package, or the package itself."""
        return door(self.name)

    def at(self, line: int, message: str) -> str:
        """One complaint."""
        return f"{self.path}:{line}: {message}"


Modules = Sequence[Module]
Rule = Callable[[Modules], Iterator[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def door(name: str) -> str:
    """`ringworld.attention.ring` -> `attention`."""
    return (name.split(".") + [name])[1] if "." in name else name


def room(name: str) -> str | None:
    """`ringworld.text.template` -> `words`; None outside `ringworld.data`."""
    parts = name.split(".")
    return parts[2] if parts[:2] == [PACKAGE, "data"] and len(parts) > 2 else None


def read(root: Path = ROOT, pattern: str = f"{PACKAGE}/**/*.py") -> list[Module]:
    """The files of the tree, in order."""
    return [
        Module(PurePosixPath(path.relative_to(root).as_posix()), path.read_text(encoding="utf-8"))
        for path in sorted(root.glob(pattern))
    ]


def functions(module: Module) -> Iterator[Function]:
    """Every function of a module, however deep."""
    return (node for node in ast.walk(module.tree) if isinstance(node, Function))


def imports(module: Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import from the package, at any depth.

    `names` are all module names: `from ringworld import mesh` is an import of `ringworld.mesh`,
    `from ringworld import attend` one of `ringworld`.
    """
    here = module.name.split(".")
    package = here if module.path.name == "__init__.py" else here[:-1]
    for node in ast.walk(module.tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{source}.{alias.name}" for alias in node.names]
            found = [name if name in names else source for name in inner]
        for name in dict.fromkeys(found):
            if name.split(".")[0] == PACKAGE:
                yield node.lineno, name


# --- size and names --------------------------------------------------------------------------


def modules_are_short(modules: Modules) -> Iterator[str]:
    """A module fits in a few screens."""
    for module in modules:
        lines = len(module.text.splitlines())
        if lines > MODULE_LINES:
            yield module.at(lines, f"{lines} lines, the budget is {MODULE_LINES}: give it rooms")


def functions_are_short(modules: Modules) -> Iterator[str]:
    """A function fits on a screen or two."""
    for module in modules:
        for node in functions(module):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                message = f"{node.name} has {lines} lines, the budget is {FUNCTION_LINES}"
                yield module.at(node.lineno, message)


def modules_say_what_they_hold(modules: Modules) -> Iterator[str]:
    """No module or package is a drawer for what has no place."""
    for module in modules:
        for part in module.path.with_suffix("").parts:
            if part.strip("_") in DRAWERS:
                yield module.at(1, f"`{part}` names a drawer, not an idea: name what it holds")


# What a program calls its entry; every program has one.
SHARED_NAMES = {"main"}


def named(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines, but for type variables of one letter."""
    if isinstance(node, ast.ClassDef | Function):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [t.id for t in targets if isinstance(t, ast.Name) and len(t.id) > 1]


def public_names_have_one_home(modules: Modules) -> Iterator[str]:
    """A public name is defined in one module, so that the name alone says what it is."""
    first: dict[str, Module] = {}
    for module in modules:
        for node in module.tree.body:
            for name in named(node):
                home = first.setdefault(name, module)
                if home is not module and name not in SHARED_NAMES and not name.startswith("_"):
                    yield module.at(node.lineno, f"{name} has a home in {home.path}: rename one")


# --- imports ---------------------------------------------------------------------------------


def imports_point_down(modules: Modules) -> Iterator[str]:
    """Imports follow RANKS and SIDEWAYS."""
    names = {module.name for module in modules}
    for module in modules:
        if module.door not in RANKS:
            yield module.at(1, f"`{module.door}` has no rank: give it one in tests/test_house.py")
            continue
        for line, name in imports(module, names):
            target = door(name)
            if target not in RANKS:
                yield module.at(line, f"`{target}` has no rank in tests/test_house.py")
            elif target == module.door or (module.door, target) in SIDEWAYS:
                continue
            elif RANKS[target] >= RANKS[module.door]:
                yield module.at(line, f"`{module.door}` may not import `{target}`: not below it")


def rooms_point_up(modules: Modules) -> Iterator[str]:
    """Within `ringworld/data`, imports follow ROOMS."""
    names = {module.name for module in modules}
    for module in modules:
        here = room(module.name)
        if here is None:
            continue
        if here not in ROOMS:
            yield module.at(1, f"`{here}` is no room of data: put the file into one of {ROOMS}")
            continue
        for line, name in imports(module, names):
            target = room(name)
            if target in ROOMS and ROOMS.index(target) > ROOMS.index(here):
                yield module.at(line, f"`{here}` may not import `{target}`: it comes later")


def imports_form_no_cycle(modules: Modules) -> Iterator[str]:
    """Modules, those of one package too, can be read in an order that needs no look ahead."""
    names = {module.name for module in modules}
    edges = {m.name: {name for _, name in imports(m, names)} - {m.name} for m in modules}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]  # from the importer to what it imports
        first = next(module for module in modules if module.name == cycle[0])
        line = next(line for line, name in imports(first, names) if name == cycle[1])
        yield first.at(line, "these import each other: " + " -> ".join(cycle))


# --- what is said of the code ----------------------------------------------------------------


def public_names_have_docstrings(modules: Modules) -> Iterator[str]:
    """Every module, public class, function, method and property has a docstring.

    So has every special method but those that make an instance, which the class describes. A
    signature of an overload needs none.
    """

    def is_public(name: str) -> bool:
        special = name.startswith("__") and name.endswith("__")
        return special and name not in MAKERS or not name.startswith("_")

    def is_overload(node: ast.ClassDef | Function) -> bool:
        return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)

    def visit(module: Module, body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                yield from visit(module, node.body)
            if isinstance(node, ast.ClassDef | Function) and is_public(node.name):
                if not ast.get_docstring(node) and not is_overload(node):
                    yield module.at(node.lineno, f"{node.name} has no docstring")
                if isinstance(node, ast.ClassDef):
                    yield from visit(module, node.body)

    for module in modules:
        if not ast.get_docstring(module.tree):
            yield module.at(1, "no docstring: say which idea lives here")
        yield from visit(module, module.tree.body)


def functions_say_what_they_return(modules: Modules) -> Iterator[str]:
    """Every function, private and inner ones too, has a return annotation."""
    for module in modules:
        for node in functions(module):
            if node.returns is None:
                yield module.at(node.lineno, f"{node.name} has no return annotation")


def annotations_are_values(modules: Modules) -> Iterator[str]:
    """No `from __future__ import annotations`: the shape checker reads annotations."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                for alias in node.names:
                    if alias.name == "annotations":
                        yield module.at(node.lineno, "annotations must be values, not text")


def names_are_defined(modules: Modules) -> Iterator[str]:
    """A function reads no global name that its module does not have: shapes hide that from ruff."""
    for module in modules:
        known, read = {"__file__", "__doc__", *vars(builtins)}, list[tuple[int, str]]()
        codes = [compile(module.text, str(module.path), "exec", dont_inherit=True)]
        while codes:
            code = codes.pop()
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
            line = code.co_firstlineno
            for step in dis.get_instructions(code):
                line = step.starts_line or line
                if step.opname == "STORE_GLOBAL" or (
                    step.opname == "STORE_NAME" and code.co_name == "<module>"
                ):
                    known.add(step.argval)
                elif step.opname == "LOAD_GLOBAL":
                    read.append((line, step.argval))
        for line, name in sorted(set(read)):
            if name not in known:
                yield module.at(line, f"`{name}` is not defined: import it")


def checkers_are_never_silenced(modules: Modules) -> Iterator[str]:
    """What a checker says is put right, not hidden."""
    for module in modules:
        for token in module.tokens:
            if token.type == tokenize.COMMENT and SILENCERS.search(token.string):
                yield module.at(token.start[0], f"`{token.string}` silences a checker")


def nothing_is_left_to_do(modules: Modules) -> Iterator[str]:
    """No notes of unfinished work, and no functions that are only promised."""
    for module in modules:
        for line, text in enumerate(module.text.splitlines(), 1):
            if found := re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text):
                yield module.at(line, f"{found[0]}: finish it or leave it out")


def nothing_read_can_run(modules: Modules) -> Iterator[str]:
    """No `eval`, no `exec`, no pickle: a file from elsewhere is data, never a program."""
    for module in modules:
        for node in ast.walk(module.tree):
            bad: list[str] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                bad = [node.func.id] if node.func.id in {"eval", "exec", "__import__"} else []
            elif isinstance(node, ast.Import):
                bad = [a.name for a in node.names if a.name.split(".")[0] in RUNS_WHAT_IT_READS]
            elif isinstance(node, ast.ImportFrom) and node.module:
                root = node.module.split(".")[0]
                bad = [root] if root in RUNS_WHAT_IT_READS and not node.level else []
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                constant = isinstance(node.value, ast.Constant) and node.value.value is False
                bad = [] if constant else ["allow_pickle"]
            for name in bad:
                yield module.at(node.lineno, f"`{name}` can run what it reads")


# --- repetition ------------------------------------------------------------------------------

Line = tuple[Module, int, str]  # where it stands, and what is compared
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SKIPPED |= {tokenize.ENDMARKER}


def lines(module: Module, shape: bool) -> list[Line]:
    """The lines that say something: no comments, blanks, imports or lone punctuation.

    White space is folded. With `shape`, names, numbers and strings are placeholders and a string
    is one token; without it, the lines of a long string count one by one.
    """
    skip: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skip.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    rows: dict[int, list[str]] = {}
    for token in module.tokens:
        if token.type in SKIPPED or token.start[0] in skip:
            continue
        text = token.string
        if shape and token.type == tokenize.NUMBER:
            text = "0"
        elif shape and token.type == tokenize.NAME and not keyword.iskeyword(text):
            text = "N"
        elif shape and token.type not in (tokenize.OP, tokenize.NAME):
            text = "S"
        for row, part in enumerate(text.splitlines(), token.start[0]):
            rows.setdefault(row, []).append(" ".join(part.split()))
    said = ((row, " ".join(parts).strip()) for row, parts in sorted(rows.items()))
    return [(module, row, text) for row, text in said if re.search(r"\w", text)]


def repeats(modules: Modules, shape: bool, length: int, distinct: int) -> Iterator[str]:
    """The longest runs of `length` or more lines that stand in two places.

    A later place is compared with the first place that its first lines stood in.
    """
    first: dict[tuple[str, ...], tuple[Sequence[Line], int]] = {}
    for module in modules:
        here = lines(module, shape)
        end = 0  # lines before it are in a run already told
        for i in range(len(here) - length + 1):
            window = tuple(text for _, _, text in here[i : i + length])
            if len(set(window)) < distinct:
                continue
            there, j = first.setdefault(window, (here, i))
            if i < end or (there is here and i < j + length):
                continue
            run = length
            while (
                i + run < len(here)
                and j + run < (i if there is here else len(there))
                and here[i + run][2] == there[j + run][2]
            ):
                run += 1
            end = i + run
            other = f"{there[j][0].path}:{there[j][1]}"
            kind = "of the same shape as" if shape else "the same as"
            yield module.at(here[i][1], f"{run} lines {kind} at {other}: say it once")


def nothing_is_said_twice(modules: Modules) -> Iterator[str]:
    """No run of SAME_LINES lines stands in two places to the letter."""
    yield from repeats(modules, shape=False, length=SAME_LINES, distinct=2)


def no_logic_is_written_twice(modules: Modules) -> Iterator[str]:
    """No run of SAME_SHAPES lines stands in two places with other names and values."""
    yield from repeats(modules, shape=True, length=SAME_SHAPES, distinct=DISTINCT_SHAPES)


# --- prose -----------------------------------------------------------------------------------


def prose(root: Path = ROOT) -> list[tuple[str, str]]:
    """Path and text of the README and of every page of the documentation."""
    paths = [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/**/*.md"))]
    return [(str(p.relative_to(root)), p.read_text("utf-8")) for p in paths if p.exists()]


def missing_tests(pages: list[tuple[str, str]], tests: Modules) -> Iterator[str]:
    """Every `test_...` that a page names is a test function, or a file of tests."""
    known = {node.name for module in tests for node in functions(module)}
    known |= {module.path.stem for module in tests}
    for path, text in pages:
        for line, words in enumerate(text.splitlines(), 1):
            for name in re.findall(r"\btest_\w+", words):
                if name not in known:
                    yield f"{path}:{line}: no test is called {name}"


def long_readmes(pages: list[tuple[str, str]]) -> Iterator[str]:
    """The README is a door, not a manual."""
    for path, text in pages:
        if path == "README.md" and (count := len(text.splitlines())) > README_LINES:
            yield f"{path}:{count}: {count} lines, the budget is {README_LINES}"


# --- the tests -------------------------------------------------------------------------------


def kept(complaints: Iterator[str]) -> None:
    """Fail with every complaint, one a line."""
    found = list(complaints)
    if found:
        pytest.fail("\n" + "\n".join(found), pytrace=False)


@pytest.fixture(scope="module")
def package() -> list[Module]:
    """The package as it is."""
    modules = read()
    assert modules, f"no modules below {ROOT / PACKAGE}"
    return modules


def test_modules_are_short(package: Modules) -> None:
    kept(modules_are_short(package))


def test_functions_are_short(package: Modules) -> None:
    kept(functions_are_short(package))


def test_modules_say_what_they_hold(package: Modules) -> None:
    kept(modules_say_what_they_hold(package))


def test_public_names_have_one_home(package: Modules) -> None:
    kept(public_names_have_one_home(package))


def test_imports_point_down(package: Modules) -> None:
    kept(imports_point_down(package))


def test_rooms_point_up(package: Modules) -> None:
    kept(rooms_point_up(package))


def test_imports_form_no_cycle(package: Modules) -> None:
    kept(imports_form_no_cycle(package))


def test_public_names_have_docstrings(package: Modules) -> None:
    kept(public_names_have_docstrings(package))


def test_functions_say_what_they_return(package: Modules) -> None:
    kept(functions_say_what_they_return(package))


def test_annotations_are_values(package: Modules) -> None:
    kept(annotations_are_values(package))


def test_names_are_defined() -> None:
    folders = ("ringworld", "tests", "benchmarks")
    kept(names_are_defined([m for folder in folders for m in read(pattern=f"{folder}/**/*.py")]))


def test_checkers_are_never_silenced(package: Modules) -> None:
    kept(checkers_are_never_silenced(package))


def test_nothing_is_left_to_do(package: Modules) -> None:
    kept(nothing_is_left_to_do(package))


def test_nothing_read_can_run(package: Modules) -> None:
    kept(nothing_read_can_run(package))


def test_nothing_is_said_twice(package: Modules) -> None:
    kept(nothing_is_said_twice(package))


def test_no_logic_is_written_twice(package: Modules) -> None:
    kept(no_logic_is_written_twice(package))


def test_every_test_that_the_documentation_names_exists() -> None:
    kept(missing_tests(prose(), read(pattern="tests/**/*.py")))


def test_readme_is_short() -> None:
    kept(long_readmes(prose()))


# --- every rule can fail ---------------------------------------------------------------------

GOOD = '"""One idea."""\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n    return 2 * x\n'
LONG = "".join(f"    x{i} = {i} * y\n" for i in range(FUNCTION_LINES))
LOOP = "for row in rows:\n    {a} = row.{b}()\n    if {a} > {n}:\n        {a} -= {n}\n"
LOOP += "    elif not {a}:\n        continue\n    else:\n        total += {a} ** {n}\n"
LOOP += "    while {a}:\n        {a} = step({a}, {n})\n    print({a}, total)\ntotal = {n}\n"
FIRST = LOOP.format(a="a", b="read", n=2)
OTHER = LOOP.format(a="size", b="weight", n=30)

# rule, files of the tree, and where and what it must complain of
BROKEN: list[tuple[Rule, dict[str, str], list[str]]] = [
    (modules_are_short, {"mesh.py": "x = 1\n" * 401}, ["mesh.py:401: 401 lines"]),
    (functions_are_short, {"mesh.py": f"\ndef f():\n{LONG}"}, ["mesh.py:2: f has 81 lines"]),
    (
        modules_say_what_they_hold,
        {"utils.py": "", "data/_helpers.py": "", "misc/x.py": ""},
        ["_helpers.py:1: ", "x.py:1: `misc`", "utils.py:1: `utils`"],
    ),
    (
        public_names_have_one_home,
        {
            "mesh.py": "class Plan: pass\ndef _own(): pass\nSIZE = 1\nT = 1\ndef main(): ...",
            "data/plan.py": "def Plan(): pass\ndef _own(): pass\nSIZE = 2\nT = 2\ndef main(): ...",
        },
        ["mesh.py:1: Plan has a home in", "mesh.py:3: SIZE has a home in"],
    ),
    (
        imports_point_down,
        {
            "mesh.py": "\nfrom ringworld.models.llama import f",
            "models/llama.py": "def f():\n    import ringworld.train.loop",
            "attention/ring.py": "from ringworld import layers, mesh\nfrom ..params import Param",
            "train/loop.py": "from ringworld.data import x\nfrom ringworld.inference import y",
            "data/books.py": "from ..train import loop",
            "layers.py": "from ringworld import attend",
            "errors.py": "import ringworld",
            "batch.py": "import ringworld.novel",
            "attic.py": "",
        },
        [
            "attic.py:1: `attic` has no rank",
            "ring.py:1: `attention` may not import `layers`",
            "batch.py:1: `novel` has no rank",
            "books.py:1: `data` may not import `train`",
            "errors.py:1: `errors` may not import `ringworld`",
            "layers.py:1: `layers` may not import `ringworld`",
            "mesh.py:2: `mesh` may not import `models`",
            "llama.py:2: `models` may not import `train`",
            "loop.py:2: `train` may not import `inference`",
        ],
    ),
    (
        rooms_point_up,
        {
            "data/packing/pack.py": "from ringworld.data.corpora import shards",
            "data/corpora/shards.py": "from ringworld.data.example import Example",
            "data/mix.py": "",
        },
        ["mix.py:1: `mix` is no room", "pack.py:1: `packing` may not import `corpora`"],
    ),
    (
        imports_form_no_cycle,
        {
            "attention/ring.py": "\nfrom ringworld.attention.block import f",
            "attention/block.py": "import jax\nfrom . import ring",
        },
        [":2: these import each other"],
    ),
    (
        public_names_have_docstrings,
        {
            "mesh.py": 'class C:\n    "A."\n\n    def f(self): ...\n    def _g(self): ...\n'
            "    def __len__(self): ...\n    def __init__(self): ...\n"
            "    @overload\n    def i(self): ...\nif X:\n    def h():\n        def inner(): ..."
        },
        ["mesh.py:1: no docstring", "mesh.py:4: f has", "mesh.py:6: __len__", "mesh.py:11: h has"],
    ),
    (
        functions_say_what_they_return,
        {"mesh.py": "class C:\n    def _f(self): ...\ndef h() -> None:\n    def i(): ..."},
        ["mesh.py:2: _f has", "mesh.py:4: i has"],
    ),
    (
        annotations_are_values,
        {"mesh.py": "\nfrom __future__ import annotations"},
        ["mesh.py:2: "],
    ),
    (
        names_are_defined,
        {"mesh.py": "import os\ndef f():\n    global x\n    x = os.sep\n    time.sleep(x)"},
        ["mesh.py:5: `time` is not defined"],
    ),
    (
        checkers_are_never_silenced,
        {"mesh.py": "x = 1  # type: ignore\ny = 2  # noqa\nz = '# noqa'\n# pyrefly: ignore"},
        ["mesh.py:1: ", "mesh.py:2: ", "mesh.py:4: "],
    ),
    (
        nothing_is_left_to_do,
        {"mesh.py": "# TODO\n\nraise NotImplementedError\ntodos = 1"},
        ["mesh.py:1: TODO", "mesh.py:3: NotImplementedError"],
    ),
    (
        nothing_read_can_run,
        {
            "mesh.py": "import pickle\nfrom marshal import loads\neval('1')\nmodel.eval()\n"
            "load(p, allow_pickle=True)\nload(p, allow_pickle=False)\nexec('1')"
        },
        ["mesh.py:1: ", "mesh.py:2: ", "mesh.py:3: ", "mesh.py:5: ", "mesh.py:7: "],
    ),
    (
        nothing_is_said_twice,
        {"a.py": f"import os\n{FIRST}", "b.py": FIRST.replace("\n", "  # other\n\n")},
        ["b.py:1: 12 lines the same as at ringworld/a.py:2"],
    ),
    (
        nothing_is_said_twice,
        {"a.py": f"{FIRST}\nx = 1\n{FIRST}"},
        ["a.py:15: 12 lines the same as at ringworld/a.py:1"],
    ),
    (
        no_logic_is_written_twice,
        {"a.py": FIRST, "b.py": f"x = 1\n{OTHER}"},
        ["b.py:2: 12 lines of the same shape as at ringworld/a.py:1"],
    ),
]


def tree(files: dict[str, str]) -> list[Module]:
    """A package made of these files."""
    return [Module(PurePosixPath(PACKAGE, path), files[path]) for path in sorted(files)]


@pytest.mark.parametrize(
    ("rule", "files", "expected"), BROKEN, ids=[r.__name__ for r, *_ in BROKEN]
)
def test_every_rule_can_fail(rule: Rule, files: dict[str, str], expected: list[str]) -> None:
    found = list(rule(tree(files)))
    assert len(found) == len(expected), found
    for part in expected:
        assert any(complaint.startswith(PACKAGE) and part in complaint for complaint in found), part


@pytest.mark.parametrize("rule", list(dict.fromkeys(rule for rule, *_ in BROKEN)))
def test_every_rule_passes_good_code(rule: Rule) -> None:
    assert (
        list(rule(tree({"mesh.py": GOOD, "models/llama.py": GOOD.replace("double", "twice")})))
        == []
    )


def test_every_rule_has_an_example_that_breaks_it() -> None:
    signature = inspect.get_annotations(modules_are_short)
    named = {f for f in globals().values() if inspect.isfunction(f)}
    rules = {f for f in named if inspect.get_annotations(f) == signature}
    assert rules == {rule for rule, *_ in BROKEN}


def test_tables_are_not_repetition() -> None:
    rows = "".join(f"    row({i}, name_{i}, {i} + 1),\n" for i in range(40))
    modules = tree({"a.py": f"A = (\n{rows})\n", "b.py": f"B = [\n{rows.replace('na', 'b')}]\n"})
    assert list(no_logic_is_written_twice(modules)) == []


def test_missing_tests_and_long_readmes_are_found() -> None:
    tests = [Module(PurePosixPath("tests/test_ring.py"), "def test_ring_equals_dense(): ...")]
    text = "`test_ring_equals_dense` in tests/test_ring.py\n| faster | test_ring_is_fast | 2x |\n"
    assert list(missing_tests([("docs/a.md", text)], tests)) == [
        "docs/a.md:2: no test is called test_ring_is_fast"
    ]
    assert list(long_readmes([("README.md", "x\n" * 111), ("docs/a.md", "x\n" * 999)])) == [
        "README.md:111: 111 lines, the budget is 110"
    ]
