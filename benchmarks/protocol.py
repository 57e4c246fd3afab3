"""How the benchmark and its workers talk: one line of JSON asks, one answers.

    {"do": "prepare", ...}    makes the inputs, compiles and runs once   -> {"sample": [...]}
    {"do": "repeat"}          does the work once                         -> {"seconds": 1.25}
    end of input              ends the worker

Every answer also tells the process's peak memory, and how much processor time passed while nothing
was asked of it: a peer that spins when it is idle would slow down the others. A worker that cannot
do the work here answers {"refused": why}.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Threads that wait must sleep: OpenMP's would spin, on a core that another peer is being timed on.
# Fresh memory comes in pages of 2 MB where the system has them, for every peer.
SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "JAX_PLATFORMS": "cpu",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# What a user has set for another program is not meant for a peer.
DROPPED = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "VIRTUAL_ENV")


class Refused(Exception):
    """The worker cannot do this work here, in a few words that say why."""


class PeerFailed(Exception):
    """A worker ended or answered nonsense, in one sentence."""


@dataclass(frozen=True)
class Prepared:
    """Work that is ready: `run` does it once and waits for the end, `sample` is of its results."""

    run: Callable[[], Any]
    sample: list[float]


def serve(prepare: Callable[[dict[str, Any]], Prepared]) -> None:
    """Answer on standard output until standard input ends; `prepare` is given the request."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work, rest, busy = None, time.perf_counter(), time.process_time()
    for line in sys.stdin:
        idle = {"idle": time.perf_counter() - rest, "idle_busy": time.process_time() - busy}
        request = json.loads(line)
        try:
            if request.pop("do") == "prepare":
                work = prepare(request)
                answer: dict[str, Any] = {"sample": work.sample}
            elif work is None:
                answer = {"refused": "nothing was prepared"}
            else:
                start = time.perf_counter()
                work.run()
                answer = {"seconds": time.perf_counter() - start}
        except Refused as why:
            answer = {"refused": str(why)}
        print(json.dumps({**answer, **idle, "peak": peak_memory()}), file=answers, flush=True)
        rest, busy = time.perf_counter(), time.process_time()


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def python_command(python: Path, module: str) -> list[str]:
    """What starts a worker that is a module, without the user's own packages."""
    return [str(python), "-s", "-m", module]


class Worker:
    """A worker's process, seen from the benchmark. What it says on standard error goes to `log`."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path):
        inherited = {key: value for key, value in os.environ.items() if key not in DROPPED}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, log
        self.idle = self.idle_busy = 0.0
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, **SETTINGS, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, do: str, **rest: Any) -> dict[str, Any]:
        """The answer to one request. Raises PeerFailed when there is none."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"do": do, **rest}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise PeerFailed(f"{self.name} ended and said: {said[-1]} ({self.log})")
        answer = json.loads(line)
        self.idle += answer["idle"]
        self.idle_busy += answer["idle_busy"]
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
