"""The command line: bad input is one sentence, exit code 2, and nothing left behind."""

import ast
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tyro._docstrings import get_field_docstring

import ringworld
from ringworld import cli
from ringworld.cli import verbs
from ringworld.cli.command import GROUPS, Command
from ringworld.cli.options import MARKERS, _default, parse_count, parse_options
from ringworld.cli.recipes import SUMMARIES, prepare_recipe
from ringworld.cli.verbs import SERVE_PACKAGES, SHIPPED, VERBS
from ringworld.errors import InputError
from ringworld.recipes.nano import demo
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.registry import RECIPES, TEMPLATES, find_recipe
from ringworld.recipes.shards import shards
from ringworld.train.optimizer import Muon
from ringworld.weights.shipped import NANO

ROOT = Path(__file__).resolve().parent.parent
ONE_SENTENCE = 400


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code and what was said on stderr."""
    before, sys.argv = sys.argv, ["ringworld", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return code, said.err + said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fly",), "no verb fly"),
        (("train", "gpt-9"), "no recipe gpt-9"),
        (("fetch", "moon"), "moon"),
        (("eval", "needle", "/nowhere"), "/nowhere"),
        (("generate", "video", "/nowhere", "a red circle", "-o", "x.gif"), "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, text = run(capsys, *words)
    assert code == 2
    assert said in text and "Traceback" not in text and len(text) < ONE_SENTENCE


@pytest.mark.parametrize(
    "words",
    [
        ("train", "nano-base", "--folder"),
        ("demo", "--folder"),
        ("eval", "needle", "--folder"),
        ("convert", "nowhere"),
        ("data", "build", "spec.toml", "--out"),
    ],
    ids=" ".join,
)
def test_a_file_where_a_folder_goes_is_one_sentence_and_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    code, text = run(capsys, *words, str(file / "within"))
    assert code == 2 and "Traceback" not in text and len(text) < ONE_SENTENCE
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "needle"),
        ("eval", "perplexity", "nano", "--text", "book.txt"),
        ("eval", "shapes"),
        ("eval", "play"),
    ],
    ids=" ".join,
)
def test_an_evaluation_whose_folder_cannot_be_written_ends_before_it_reads_anything(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a model or a text is opened first")

    for name in ("evals.perplexity", "evals.drawings", "evals.playing", "weights.model"):
        monkeypatch.setattr(f"ringworld.{name}.load_model", opened)
    monkeypatch.setattr("ringworld.evals.perplexity.read_text", opened)
    (tmp_path / "file").write_text("kept")
    code, text = run(capsys, *words, "--folder", str(tmp_path / "file" / "within"))
    assert code == 2 and str(tmp_path / "file") in text and len(text) < ONE_SENTENCE


@pytest.mark.parametrize(
    "words",
    [("demo", "--fast"), ("train", "demo", "--wings", "2"), ("eval", "needle", "--mesh.seq", "x")],
)
def test_an_unknown_option_or_value_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, text = run(capsys, *words)
    named = [word for word in words if word.startswith("--")]
    assert code == 2 and named[0] in text and "Traceback" not in text


def test_a_mesh_that_does_not_fit_the_devices_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    code, text = run(
        capsys, "eval", "needle", "--mesh.seq", "64", "--folder", str(tmp_path / "out")
    )
    assert code == 2 and "64 devices" in text


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "--help")
    assert code == 0
    for verb in ("train", *VERBS):
        assert f"  {verb} " in text


def test_recipe_options_reach_every_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append((recipe, folder)))
    words = [f"--folder={tmp_path}", "--stages.1.loop.steps", "7"]
    prepare_recipe("demo", words, lambda said: None)[1]()
    ((recipe, folder),) = seen
    assert folder == tmp_path
    assert recipe.stages[1].loop.steps == 7
    assert recipe.stages[0] == demo().stages[0]


def test_the_optimizer_of_a_stage_is_chosen_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    words = ["--stages.0.optimizer", "muon", "--stages.0.optimizer.momentum", "0.9"]
    prepare_recipe("shards", words, lambda said: None)[1]()
    ((stage,),) = (recipe.stages for recipe in seen)
    assert stage.optimizer == Muon(**vars(shards().stages[0].optimizer), momentum=0.9)
    with pytest.raises(InputError, match="--stages.0.optimizer is mun, did you mean muon.*adamw"):
        prepare_recipe("shards", ["--stages.0.optimizer=mun"], lambda said: None)


def test_an_option_of_all_stages_is_one_of_every_stage_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    words = ["--stages.2.optimizer.peak-lr", "2e-3", "--stages.all.optimizer.peak_lr", "1e-3"]
    words += ["--stages.all.mesh.seq=4", "--data.seed", "3"]
    prepare_recipe("nano-base", words, lambda said: None)[1]()
    stages = seen[0].stages[1:]  # the first one has no optimizer
    assert [stage.optimizer.peak_lr for stage in stages] == [1e-3, 2e-3, 1e-3, 1e-3]
    assert all(stage.mesh.seq == 4 for stage in stages) and seen[0].data.seed == 3
    code, text = run(capsys, "train", "demo", "--stages.all.wings", "2")
    assert code == 2 and "there is no option --stages.all.wings" in text


def test_a_sequence_that_does_not_reach_round_the_ring_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["--stages.0.context", "6", "--folder", str(folder)]
    code, text = run(capsys, "train", "demo", *words)
    assert code == 2 and "do not reach round a ring of 8" in text and not folder.exists()


# ---- words


def test_a_list_of_verbs_or_recipes_is_shown_where_a_word_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for group in GROUPS:
        for words in ((group,), (group, "--help")):
            code, text = run(capsys, *words)
            own = [verb for verb in VERBS if verb.startswith(f"{group} ")]
            listed = own or [f"train {name}" for name in SUMMARIES]
            assert code == 0 and all(f"  {verb} " in text for verb in listed), words
    assert run(capsys)[0] == 0


def test_every_recipe_has_its_line_in_the_list() -> None:
    assert list(SUMMARIES) == [*RECIPES, *TEMPLATES] and all(SUMMARIES.values())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"ringworld {ringworld.__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+", ringworld.__version__)


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("chta model", "chat"),
        ("data bild spec", "build"),
        ("train dmo", "demo"),
        ("fetch shakespear", "shakespeare"),
        ("chat model --tempreature 1", "--temperature"),
        ("chat --tempreature 1", "--temperature"),
        ("eval needle --msh.seq 2", "--mesh.seq"),
        ("eval needle --lenghts 64", "--grid.lengths"),
        ("train demo --stages.0.contxt=64", "--stages.0.context"),
        ("chat model --rope yran", "yarn"),
    ],
)
def test_the_nearest_word_is_proposed_for_a_mistyped_one(
    capsys: pytest.CaptureFixture[str], words: str, proposed: str
) -> None:
    code, text = run(capsys, *words.split())
    assert code == 2 and f"did you mean {proposed}?" in text
    assert text.count("\n") == 1 and not re.search(r"[│╭─]", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data build", "SPEC and --out are missing"),
        ("chat", "MODEL is missing"),
        ("chat model --doc", "--doc needs a value"),
        ("chat model --context 100x", "--context is 100x and has to be a whole number"),
        ("chat model --temperature=hot", "--temperature is hot and has to be a number"),
        ("chat model --top-p nan", "--top-p is nan and has to be a number"),
        ("chat nano --seed -1 words", "the seed is -1: use 0 to 4,294,967,295"),
        ("eval needle --grid.lengths 1k q", "--grid.lengths is 1k q and has to be"),
        ("data build spec --out f --engine moon", "use one of local, ray"),
        ("chat model who is late", "the word is is one too many"),
        ("generate video model words -o x.gif --frames 0", "(--frames)"),
        ("generate image model words -o x.png --scale 0", "(--scale)"),
        ("generate image nano words -o x.gif", "x.gif must end in .png"),
        ("generate image model words", "--output is missing"),
        ("demo -x", "there is no option -x"),
    ],
)
def test_a_wrong_word_is_told_in_one_sentence_without_a_box(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    code, text = run(capsys, *words.split())
    assert code == 2 and said in text
    assert text.count("\n") == 1 and not re.search(r"[│╭─]", text) and len(text) < ONE_SENTENCE


def test_numbers_of_tokens_have_units() -> None:
    written = {"64k": 65_536, "1m": 1_048_576, "1M": 1_048_576, "4096": 4096, "100_000": 100_000}
    assert {word: parse_count(word) for word in written} == written
    assert parse_count("-1") == -1
    for word in ("", "k", "1.5k", "64kb", "1 k", "0x10"):
        with pytest.raises(ValueError):
            parse_count(word)


def test_units_reach_the_options_of_a_verb_and_of_a_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talk = parse_options(VERBS["chat"].options, ["model", "--context", "64k"], "chat")
    assert talk.context == 65_536
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda recipe, folder, say: seen.append(recipe))
    prepare_recipe("demo", ["--stages.2.context=1m"], lambda said: None)[1]()
    assert seen[0].stages[2].context == 1 << 20


def test_an_error_about_a_setting_names_its_option() -> None:
    command = Command(["chat", "model"])
    command._options = VERBS["chat"].options
    said = command.explain(InputError("use a longer context", setting="context"))
    assert said == "use a longer context (--context)"
    assert command.explain(InputError("use more", setting="wings")) == "use more"
    command._options = demo()
    assert command.explain(InputError("x", setting="clips")) == "x (--data.clips)"


@pytest.mark.parametrize("name", SERVE_PACKAGES)
def test_a_server_without_a_package_that_it_needs_names_it_and_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Among them llguidance, by which answers follow a schema: no server is without it."""
    monkeypatch.setattr(verbs, "find_spec", lambda asked: None if asked == name else object())
    code, said = run(capsys, "serve")
    assert code == 2 and said == (
        f"ringworld: serving needs {name}: pip install 'ringworld[serve]'\n"
    )


def test_the_library_names_no_option_of_the_command_line() -> None:
    """In string literals; comments of XLA's flags, pip's options and styles of pages are none."""
    allowed = re.compile(r"--(xla_|only-binary|no-|require-hashes|hash=)|var\(--")
    found = []
    for file in sorted((ROOT / "ringworld").rglob("*.py")):
        if "cli" in file.relative_to(ROOT).parts:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        found += [
            f"{file.name}:{part.lineno}: {part.value}"
            for part in (part for node in raised for part in ast.walk(node))
            if isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and re.search(r"(?<!-)--[a-z]", allowed.sub("", part.value))
        ]
    assert found == []


# ---- help

HEAVY = ("jax", "numpy", "av", "tokenizers", "matplotlib", "pyarrow", "orbax", "PIL")
HELP = """
import contextlib, io, sys
from ringworld import cli
from ringworld.cli import verbs
for words in {words}:
    sys.argv = ["ringworld", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main()
print([name for name in {heavy} if name in sys.modules])
"""


def test_help_imports_nothing_heavy() -> None:
    words = [["--help"], ["--version"], *([group] for group in GROUPS), ["train", "--help"]]
    words += [[*verb.split(), "--help"] for verb in VERBS]
    done = program("-c", HELP.format(words=words, heavy=HEAVY))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_a_help_line_and_shows_no_sentinel(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, text = run(capsys, *verb.split(), "--help")
    assert code == 0 and not re.search(r"None|MISSING|NONPROP", text)
    assert list(undocumented(VERBS[verb].options)) == []


@pytest.mark.parametrize("name", [*RECIPES, *TEMPLATES])
def test_every_option_of_a_recipe_has_a_help_line_and_shows_no_sentinel(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, text = run(capsys, "train", name, "--help")
    assert code == 0 and not re.search(r"None|MISSING|NONPROP", text)
    assert list(undocumented(find_recipe(name))) == []


def test_a_field_without_a_docstring_is_found() -> None:
    @dataclass(frozen=True)
    class Inner:
        told: int = 0
        """told"""
        untold: int = 0

    @dataclass(frozen=True)
    class Outer:
        inner: tuple[Inner, ...] = (Inner(), Inner())
        other: int = 0
        """told"""

    assert list(undocumented(Outer())) == ["inner.untold", "inner.untold"]


def undocumented(options: Any, where: str = "") -> Iterator[str]:
    """The fields below a dataclass, or an instance of one, that have no docstring."""
    cls = options if isinstance(options, type) else type(options)
    hints = get_type_hints(cls)
    for field in fields(cls):
        value = _default(options, field)
        parts = value if isinstance(value, tuple) else (value,)
        inner = [part for part in parts if is_dataclass(part)]
        inner = inner or [hints[field.name]] * is_dataclass(hints[field.name])
        for part in inner:
            yield from undocumented(part, f"{where}{field.name}.")
        if not inner and not get_field_docstring(cls, field.name, MARKERS):
            yield f"{where}{field.name}"


# ---- the terminal


def program(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Python with these words, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *words], text=True, env=env, timeout=300, **given)


def test_a_reader_that_left_ends_the_program_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program("-m", "ringworld", "--help", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, "")


def test_a_full_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = program("-m", "ringworld", "--help", stdout=full)
        silent = program("-m", "ringworld", "fly", stderr=full)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the output could not be written: No space left on device" in done.stderr
    assert silent.returncode == 2


@pytest.mark.parametrize("closed", ["<&-", "2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_end_with_the_right_code(closed: str) -> None:
    line = f'"$0" -m ringworld chat /nowhere {closed}'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", line, sys.executable], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    if closed == "<&-":
        assert "standard input is closed: give a question" in done.stderr


def test_an_ascii_terminal_shows_a_question_mark_for_other_letters() -> None:
    done = program("-m", "ringworld", "fetch", "né", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and "named 'n?'" in done.stderr


def test_an_argument_that_is_no_utf8_is_one_sentence() -> None:
    for words in (["fetch", b"n\xe9"], ["chat", "/nowhere", b"n\xe9"], [b"\xe9"]):
        done = subprocess.run(
            [sys.executable, "-m", "ringworld", *words],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
        said = done.stderr.decode()
        assert done.returncode == 2 and said.count("\n") == 1, said


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Interrupt())
sys.argv = ["ringworld", "train", "demo", "--folder", {folder!r}]
from ringworld.cli import main
main()
"""


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("tyro", signal.SIGINT, 130),
        ("jax", signal.SIGINT, 130),
        ("jax.numpy", signal.SIGINT, 130),
        ("optax", signal.SIGTERM, 143),
    ],
)
def test_a_signal_during_the_imports_ends_the_program_quietly(
    tmp_path: Path, name: str, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    done = program("-c", INTERRUPTED.format(name=name, number=int(number), folder=str(folder)))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert not folder.exists()


BUSY = """
import os, signal, sys
from ringworld import cli
from ringworld.cli import verbs
from ringworld.cli.command import Command

class Thread:  # as one of XLA's, which calls into an interpreter that is no more
    def __del__(self, abort=os.abort):
        abort()

def work():
    print("half a line", end="")
    os.kill(os.getpid(), {number})

busy = Thread()
Command.prepare = lambda self, announce: work
sys.argv = ["ringworld", "demo"]
cli.program()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_a_computation_ends_the_program_quietly(number: int, code: int) -> None:
    done = program("-c", BUSY.format(number=int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (code, "half a line", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (KeyboardInterrupt("stopped at step 7"), 130, "stopped at step 7\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "ringworld: the output could not"),
        (InputError("give more"), 2, "ringworld: give more\n"),
    ],
)
def test_what_ends_the_work_has_its_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def work() -> None:
        raise error

    monkeypatch.setattr(Command, "prepare", lambda self, announce: work)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = run(capsys, "demo")
    assert found[0] == code and found[1].startswith(said) and bool(found[1]) == bool(said)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_an_unforeseen_error_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise OSError(errno.ENOENT, "no such file", "a.txt")

    monkeypatch.setattr(Command, "prepare", lambda self, announce: work)
    monkeypatch.setattr(sys, "argv", ["ringworld", "demo"])
    with pytest.raises(OSError, match="a.txt"):
        cli.main()


def test_the_shipped_model_is_the_default_of_the_needle_test() -> None:
    assert SHIPPED == NANO
