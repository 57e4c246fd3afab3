"""What a run's folder is the run of: the resolved recipe, written before anything else."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ringworld.errors import InputError
from ringworld.files import whole


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
    with whole(record) as draft:
        draft.write_text(resolved)
