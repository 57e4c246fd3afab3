"""Where the metrics of a run go besides its `metrics.jsonl`: TensorBoard, Weights & Biases.

Both are optional packages, imported when a run asks for them. After a restart the steps that are
repeated take the place of those that were reported before.
"""

import hashlib
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ringworld.errors import UnavailableError

SinkName = Literal["tensorboard", "wandb"]
PROJECT = "ringworld"  # of Weights & Biases; its variable WANDB_PROJECT names another


class TensorBoard:
    """Event files in `folder`, which `tensorboard --logdir` reads."""

    def __init__(self, folder: Path, start: int) -> None:
        files = _import("tensorboard.summary.writer.event_file_writer", "tensorboard")
        protos = [f"tensorboard.compat.proto.{name}_pb2" for name in ("event", "summary")]
        self._event, self._summary = (_import(name, "tensorboard") for name in protos)
        self._file = files.EventFileWriter(str(folder / "tensorboard"))
        # Tells TensorBoard to drop what an earlier attempt reported from this step on.
        began = self._event.SessionLog(status=self._event.SessionLog.START)
        self._file.add_event(self._event.Event(step=start, session_log=began))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        scalars = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        summary = self._summary.Summary(value=scalars)
        self._file.add_event(self._event.Event(step=step, summary=summary))

    def close(self) -> None:
        """Put all on the disk."""
        self._file.close()


class WandB:
    """A run of Weights & Biases, gone on with by every attempt in the same folder."""

    def __init__(self, folder: Path, start: int) -> None:
        wandb = _import("wandb", "wandb")
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=PROJECT, name=folder.name, id=name, dir=str(folder), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


Sink = TensorBoard | WandB
SINKS: dict[SinkName, type[Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


def open_sinks(names: Sequence[SinkName], folder: Path, start: int) -> list[Sink]:
    """The sinks of these names, for a run in `folder` that reports from step `start` on.

    Raises UnavailableError when a package is missing.
    """
    return [SINKS[name](folder, start) for name in names]


def select_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of the record but for its step."""
    numbers = {name: value for name, value in row.items() if isinstance(value, float | int)}
    return {name: float(x) for name, x in numbers.items() if name != "step" and math.isfinite(x)}


def _import(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"{extra} is not installed: pip install 'ringworld[{extra}]', or take {extra} out of "
            "the sinks",
            setting="sinks",
        ) from error
