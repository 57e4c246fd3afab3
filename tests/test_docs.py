"""The site of the documentation builds."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_pages_and_the_api_reference_build_without_a_warning(tmp_path: Path) -> None:
    for name in ("docs", "examples", "ringworld"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("api"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "ringworld.attention.html").read_text(encoding="utf-8")
    assert 'id="ringworld.attention.attend"' in page
    assert "'B T N H'" in html.unescape(re.sub(r"<[^>]+>", "", page))
