"""Reports of the model, read-only: what `ringworld eval` and `ringworld demo` leave in a folder.

A name is served only if a look at the folder finds it now: a file of one of the known names, a few
folders deep, and no link. The report of a run is sent as plain text, which no browser runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

KINDS = {
    "needle": re.compile(r"needle(-[\w-]+)?\.json"),
    "perplexity": re.compile(r"perplexity\.json"),
    "report": re.compile(r"report\.html"),
}
TYPES = {".json": "application/json", ".html": "text/plain; charset=utf-8"}
LARGEST_BYTES = 32 << 20
# Folders below the one that is named, and files in all.
DEEPEST, MOST_FILES = 3, 200
# A run has the report, and in it the stages, and in those the models.
RUN_DEPTH = 3


@dataclass(frozen=True)
class ReportFile:
    """A file with results: its path, its path below the folder, and what is in it."""

    path: Path
    name: str
    kind: str

    def tell(self) -> dict[str, Any]:
        """What a client is told: `modified` is in seconds since 1970."""
        modified = int(self.path.stat().st_mtime)
        return {"name": self.name, "kind": self.kind, "modified": modified}


def find_reports(folder: Path, deepest: int = DEEPEST) -> list[ReportFile]:
    """The reports in a folder and in those below it, by name. A folder that is missing has none."""
    found = []
    for path in _walk(folder, deepest):
        kinds = [kind for kind, name in KINDS.items() if name.fullmatch(path.name)]
        if kinds and path.stat().st_size <= LARGEST_BYTES:
            found.append(ReportFile(path, path.relative_to(folder).as_posix(), kinds[0]))
        if len(found) == MOST_FILES:
            break
    return sorted(found, key=lambda report: report.name)


def _walk(folder: Path, deepest: int) -> Iterator[Path]:
    """The files of a folder, those of its own first; links and what cannot be read are left out."""
    try:
        held = sorted(path for path in folder.iterdir() if not path.is_symlink())
    except OSError:
        return
    yield from (path for path in held if path.is_file())
    if deepest > 0:
        for path in held:
            if path.is_dir() and not path.name.startswith("."):
                yield from _walk(path, deepest - 1)


def choose_reports(model: Path, asked: Path | None) -> tuple[Path, int] | None:
    """The folder of reports, and how deep it is searched; None when there is none.

    Without one that is asked for, it is the run that a model folder lies in: the nearest folder
    above that holds a report itself.
    """
    if asked is not None:
        return asked, DEEPEST
    if not model.is_dir():
        return None
    above = [model.resolve(), *model.resolve().parents][:RUN_DEPTH]
    return next(((folder, 0) for folder in above if find_reports(folder, 0)), None)


def add_reports(app: FastAPI, model: Path, asked: Path | None, about: str | None) -> None:
    """Add the routes that list reports and send them; `about` are the model's own words."""

    def find() -> list[ReportFile]:
        chosen = choose_reports(model, asked)
        return [] if chosen is None else find_reports(*chosen)

    @app.get("/reports")
    def reports() -> dict[str, Any]:
        """What the model says of itself, and the names of its reports."""
        return {"about": about or None, "reports": [report.tell() for report in find()]}

    @app.get("/reports/{name:path}")
    def report(name: str) -> Response:
        """One report as it lies on the disk."""
        for each in find():
            if each.name == name:
                kind = TYPES[each.path.suffix]
                return FileResponse(
                    each.path, media_type=kind, headers={"Cache-Control": "no-cache"}
                )
        raise HTTPException(404, "there is no such report: GET /reports lists them")
