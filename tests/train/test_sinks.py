"""TensorBoard and Weights & Biases get the metrics of a run as its record has them."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_run import train

from ringworld.errors import UnavailableError
from ringworld.train.loop import Loop
from ringworld.train.metrics import METRICS_NAME
from ringworld.train.sinks import SINKS, SinkName, select_numbers

PROTOS = "tensorboard.compat.proto"


def module(name: str, **content: Any) -> ModuleType:
    """A module with this content."""
    made = ModuleType(name)
    vars(made).update(content)
    return made


class Events:
    """A writer of event files that keeps the events of every folder."""

    written: list[tuple[str, Any]] = []

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def add_event(self, event: Any) -> None:
        """Keep it."""
        Events.written.append((self.folder, event))

    def close(self) -> None:
        """Note the end."""
        Events.written.append((self.folder, None))


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A TensorBoard that is not installed: what it is given."""
    log = type("SessionLog", (SimpleNamespace,), {"START": 1})
    summary = type("Summary", (SimpleNamespace,), {"Value": SimpleNamespace})
    monkeypatch.setattr(Events, "written", [])
    for made in (
        module("tensorboard.summary.writer.event_file_writer", EventFileWriter=Events),
        module(f"{PROTOS}.event_pb2", SessionLog=log, Event=SimpleNamespace),
        module(f"{PROTOS}.summary_pb2", Summary=summary),
    ):
        parts = made.__name__.split(".")
        for n in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), module(".".join(parts[:n])))
        monkeypatch.setitem(sys.modules, made.__name__, made)
    return Events.written


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A Weights & Biases that is not installed: how it was started, and what it is given."""
    given: list[Any] = []

    def init(**how: Any) -> SimpleNamespace:
        given.append(how)
        return SimpleNamespace(
            log=lambda values, step: given.append((step, values)), finish=lambda: given.append(None)
        )

    monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=init))
    return given


def train_to(folder: Path, steps: int, *sinks: SinkName) -> list[dict[str, Any]]:
    """Train to this step; returns the rows of the record."""
    train(folder, steps, 2, loop=Loop(steps=steps, save_every=2, log_every=100, sinks=sinks))
    return [json.loads(line) for line in (folder / METRICS_NAME).read_text().splitlines()]


def test_tensorboard_gets_every_number_and_drops_what_is_repeated(
    tmp_path: Path, tensorboard: list[tuple[str, Any]]
) -> None:
    train_to(tmp_path, 3, "tensorboard")
    rows = train_to(tmp_path, 5, "tensorboard")
    assert {folder for folder, _ in tensorboard} == {str(tmp_path / "tensorboard")}
    events = [event for _, event in tensorboard]
    begun = [n for n, event in enumerate(events) if hasattr(event, "session_log")]
    assert [events[n].step for n in begun] == [0, 3] and events[-1] is None
    told = {
        event.step: {value.tag: value.simple_value for value in event.summary.value}
        for event in events
        if hasattr(event, "summary")
    }
    assert told == {row["step"]: select_numbers(row) for row in rows}
    assert told[4]["loss"] == rows[4]["loss"] and "tokens_per_s" in told[4]


def test_weights_and_biases_go_on_with_the_run_of_the_folder(
    tmp_path: Path, wandb: list[Any]
) -> None:
    train_to(tmp_path, 2, "wandb")
    rows = train_to(tmp_path, 4, "wandb")
    (first, second) = [how for how in wandb if isinstance(how, dict)]
    assert first == second and first["resume"] == "allow" and first["project"] == "ringworld"
    steps = [given for given in wandb if isinstance(given, tuple)]
    assert steps == [(row["step"], select_numbers(row)) for row in rows]
    assert wandb.count(None) == 2


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: SinkName
) -> None:
    for known in (name, "tensorboard.summary.writer.event_file_writer"):
        monkeypatch.setitem(sys.modules, known, None)
    with pytest.raises(UnavailableError, match=rf"{name} is not installed: pip install 'ringworld"):
        train_to(tmp_path, 2, name)


def test_only_finite_numbers_are_sent() -> None:
    row = {"step": 3, "loss": 1.5, "vision_loss": None, "text_targets": 7, "mfu": float("nan")}
    assert select_numbers(row) == {"loss": 1.5, "text_targets": 7.0}


def test_tensorboards_own_reader_finds_the_steps_of_the_last_attempt(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_to(tmp_path, 3, "tensorboard")
    rows = train_to(tmp_path, 5, "tensorboard")
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(row["step"], row["loss"]) for row in rows]
