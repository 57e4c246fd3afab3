"""One engine and one server for all tests of the room."""

from collections.abc import Iterator

import pytest

from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.served import Served
from ringworld.serve.server import start_engine
from tests.serving import CONFIG, Running, listening


@pytest.fixture(scope="session")
def engine() -> Iterator[tuple[Served, EngineThread]]:
    served, thread = start_engine(CONFIG)
    yield served, thread
    thread.close()


@pytest.fixture(scope="session")
def server(engine: tuple[Served, EngineThread]) -> Iterator[Running]:
    with listening(CONFIG, *engine) as running:
        yield running
