"""What a run's folder is the run of: the resolved recipe, written before anything else."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ringworld.errors import InputError
from ringworld.train.disk import writing_to


def record_run(recipe: Any, folder: Path) -> None:
    """Save the resolved recipe, a dataclass, as `run.json` beside its checkpoints.

    Raises InputError when the folder holds a run of something else.
    """
    resolved = json.dumps(asdict(recipe), indent=1, default=str) + "\n"
    record = folder / "run.json"
    if record.exists() and record.read_text() != resolved:
        raise InputError(
            f"{folder} holds the run of another recipe or of other settings: use another folder, "
            "or remove it to start anew"
        )
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = record.with_suffix(".part")
        draft.write_text(resolved)
        os.replace(draft, record)
