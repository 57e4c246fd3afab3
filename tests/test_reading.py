"""The three paths of docs/reading.md are the files that run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
TEXT, RING, QUESTION = "A text to its loss", "A key round the ring", "A question to its answer"
GROUND = "The ground"
MOST = {TEXT: 22, RING: 7, QUESTION: 20, GROUND: 8}
DOOR = "attention/__init__.py"


def listed(heading: str) -> list[str]:
    """The files of a list of the page, in order."""
    section = PAGE.split(f"### {heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\d+\. `(\S+)`: ", section, re.M)


@pytest.fixture(scope="module")
def run() -> dict[str, set[str]]:
    """The files that run on each path."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.paths"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {path: set(files) for path, files in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("path", [TEXT, RING, QUESTION])
def test_the_paths_of_the_reading_page_are_the_files_that_run(
    run: dict[str, set[str]], path: str
) -> None:
    elsewhere = set(listed(GROUND))
    if path != RING:
        elsewhere |= set(listed(RING)) - {DOOR}
    assert set(listed(path)) == run[path] - elsewhere


def test_the_ground_of_the_reading_page_runs_and_lies_outside_the_rooms(
    run: dict[str, set[str]],
) -> None:
    ground = listed(GROUND)
    assert set(ground) <= set().union(*run.values())
    assert not [file for file in ground if "/" in file]


@pytest.mark.parametrize(("path", "most"), MOST.items())
def test_a_path_of_the_reading_page_is_short_and_names_no_file_twice(path: str, most: int) -> None:
    files = listed(path)
    assert len(files) == len(set(files)) <= most
