"""The time that the parts of a run took, and the machine it ran on."""

import json
import os
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import jax

from ringworld.evals.story import Machine
from ringworld.files import whole_once


class Clock:
    """Seconds that each part of a run took, over all attempts; kept in `clock.json` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock.json"
        self.seconds: dict[str, float] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )

    @contextmanager
    def timed(self, part: str) -> Generator[None, None, None]:
        """Count the time of this block to `part`, even when it is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begin
            with whole_once(self.path) as draft:
                draft.write_text(json.dumps(self.seconds, indent=1))


def describe_machine(clock: Clock) -> Machine:
    """This machine, the time each part took, and the most memory that this process held."""
    return Machine(
        cores=os.cpu_count() or 1,
        devices=f"{jax.device_count()} {jax.devices()[0].platform} devices",
        jax=jax.__version__,
        seconds=clock.seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
