"""One engine and one server for all tests of the room, and one of each with actions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ringworld.serve.config import ServeConfig
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from ringworld.serve.server import start_engine
from ringworld.weights.shipped import NANO_PLAY
from tests.serving import CONFIG, Running, listening

Started = tuple[Served, EngineThread]
PLAYED = replace(CONFIG, model=NANO_PLAY)


@contextmanager
def started(config: ServeConfig) -> Iterator[Started]:
    """A model and its engine, which is closed at the end."""
    served, thread = start_engine(config)
    yield served, thread
    thread.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Started]:
    with started(CONFIG) as found:
        yield found


@pytest.fixture(scope="session")
def server(engine: Started) -> Iterator[Running]:
    with listening(CONFIG, *engine) as running:
        yield running


@pytest.fixture(scope="session")
def dreaming() -> Iterator[Started]:
    """The engine of a model with actions."""
    with started(PLAYED) as found:
        yield found


@pytest.fixture(scope="session")
def world(dreaming: Started) -> Iterator[Running]:
    with listening(PLAYED, *dreaming) as running:
        yield running
