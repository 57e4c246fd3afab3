"""One engine and one server for all tests of the room."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from ringworld.serve.server import start_engine
from ringworld.weights.shipped import NANO_PLAY
from tests.serving import CONFIG, Running, listening

PLAYED = replace(CONFIG, model=NANO_PLAY)


@pytest.fixture(scope="session")
def engine() -> Iterator[tuple[Served, EngineThread]]:
    served, thread = start_engine(CONFIG)
    yield served, thread
    thread.close()


@pytest.fixture(scope="session")
def server(engine: tuple[Served, EngineThread]) -> Iterator[Running]:
    with listening(CONFIG, *engine) as running:
        yield running


@pytest.fixture(scope="session")
def dreaming() -> Iterator[tuple[Served, EngineThread]]:
    """The engine of a model with actions."""
    served, thread = start_engine(PLAYED)
    yield served, thread
    thread.close()


@pytest.fixture(scope="session")
def world(dreaming: tuple[Served, EngineThread]) -> Iterator[Running]:
    with listening(PLAYED, *dreaming) as running:
        yield running
