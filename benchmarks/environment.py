"""An environment for each peer, made once from pinned versions and kept in the user's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.protocol import PeerFailed
from ringworld.progress import Announce

# The oldest peer has packages for these, and for no newer Python.
PYTHONS = ((3, 11), (3, 12))


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/ringworld/bench`, or the same in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ringworld" / "bench"


def find_python() -> str:
    """A Python that every peer can be installed for. Raises PeerFailed when there is none."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    found = [shutil.which(f"python{major}.{minor}") for major, minor in PYTHONS]
    for python in filter(None, found):
        return python
    raise PeerFailed("python3.11 or python3.12 was not found: install one for the peers")


def make_environment(requirements: Path, announce: Announce) -> Path:
    """The Python of an environment with what the file pins; another file is another environment.

    It is made beside its place and renamed at the end, so one that is there is whole. Raises
    PeerFailed when it cannot be made.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"{requirements.stem}-{digest}"
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.part")
        announce(f"making the environment of {requirements.stem}: {folder}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        _run(find_python(), "-m", "venv", str(draft))
        python = str(draft / "bin" / "python")
        _run(python, "-m", "pip", "install", "--no-input", "-r", str(requirements))
        draft.rename(folder)
    return folder / "bin" / "python"


def _run(*command: str) -> None:
    """Run a command, its progress to be seen. Raises PeerFailed."""
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise PeerFailed(f"`{' '.join(command)}` failed: see what it said above")
