"""The command line: bad input is one sentence, exit code 2, and nothing left behind."""

import sys
from pathlib import Path

import pytest

from ringworld import cli
from ringworld.cli.recipes import prepare_recipe
from ringworld.cli.verbs import VERBS
from ringworld.recipes.nano import demo
from ringworld.recipes.recipe import Recipe

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


def test_a_sequence_that_does_not_reach_round_the_ring_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ["--stages.0.context", "6", "--folder", str(folder)]
    code, text = run(capsys, "train", "demo", *words)
    assert code == 2 and "do not reach round a ring of 8" in text and not folder.exists()
