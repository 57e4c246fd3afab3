"""The ledger: which batch each step was given, so that data cannot change under a run unseen.

`ledger.jsonl` has one line a step, `{"step": 7, "sha256": "..."}`, beside the metrics. A run that
goes on makes some batches again, the one before its first step at least, and they must be the same
to the last bit.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from ringworld.batch import Batch
from ringworld.errors import InputError
from ringworld.files import whole, writing_to

LEDGER_FILE = "ledger.jsonl"


def digest(batch: Batch) -> str:
    """The sha256 of a batch on the host: of each array's name, dtype, shape and bytes."""
    found = hashlib.sha256()
    for name, array in vars(batch).items():
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


class Ledger:
    """The record at `path`, which one process at a time writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._compared = False

    @cached_property
    def _known(self) -> dict[int, str]:
        """What the file says; a last line that a kill cut short is taken out of it."""
        if not self.path.exists():
            return {}
        text = self.path.read_text()
        kept = text[: text.rfind("\n") + 1]
        if kept != text:
            with whole(self.path) as draft:
                draft.write_text(kept)
        try:
            lines = [json.loads(line) for line in kept.splitlines()]
            return {int(line["step"]): str(line["sha256"]) for line in lines}
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.path} is damaged: remove it to go on without the record of earlier batches"
            ) from None

    def doubted(self, step: int) -> int | None:
        """The step before, if it is on record and nothing was compared with the record yet."""
        return step - 1 if not self._compared and step - 1 in self._known else None

    def record(self, step: int, batch: Batch) -> None:
        """Write down the batch of a step, as it is before it is dealt and placed.

        Raises InputError when the step was given another batch before.
        """
        found, known = digest(batch), self._known.get(step)
        self._compared = True
        if known == found:
            return
        if known is not None:
            raise InputError(
                f"the batch of step {step} is not the one in {self.path}: the data changed since, "
                "so put back what was there, or train in another folder"
            )
        with writing_to(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "sha256": found}) + "\n")
        self._known[step] = found
