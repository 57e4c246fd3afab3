"""Peers that take turns at the same work: A B C A B C ..., so that other load hits all alike."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import cache_folder, make_environment
from benchmarks.protocol import PeerFailed, Worker, python_command
from benchmarks.table import Measurement
from benchmarks.work import GEMM_FLOPS, GEMM_SIDE
from ringworld.progress import Announce

# Float32 sums in another order differ by 1e-6 here; another mask differs by 0.1.
AGREEMENT = 1e-4
# Of the time that a peer has nothing to do: one that spins would take 1 or more.
MOST_IDLE_WORK = 0.05


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who does the work: a module of `peers`, its environment's pins, and how many devices.

    Without an environment it is this one. `request` goes to the worker with the work, and `flops`
    is what this peer computes where that is not the work.
    """

    name: str
    module: str
    environment: str | None = None
    devices: int = 1
    request: dict[str, Any] = field(default_factory=dict)
    flops: float | None = None

    def start(self, python: Path) -> Worker:
        """The worker, whose `prepare` comes next."""
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}"}
        log = cache_folder() / "logs" / f"{self.name.replace(' ', '-')}.log"
        command = python_command(python, f"benchmarks.peers.{self.module}")
        return Worker(self.name, command, flags, log)


# The yardstick of every table: what this machine's cores can do.
GEMM = Peer(name=f"GEMM of {GEMM_SIDE:,}", module="gemm", flops=GEMM_FLOPS)


def make_pythons(peers: Iterable[Peer], announce: Announce) -> dict[str | None, Path]:
    """The Python of each environment; one that cannot be made is announced and left out."""
    pythons: dict[str | None, Path] = {None: Path(sys.executable)}
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        try:
            path = Path(__file__).parent / "peers" / name
            pythons[name] = make_environment(path, announce)
        except PeerFailed as failure:
            announce(f"left out: {failure}")
    return pythons


def take_turns(
    work: str,
    request: Mapping[str, Any],
    flops: float,
    peers: Sequence[Peer],
    pythons: Mapping[str | None, Path],
    repeats: int,
    announce: Announce,
) -> list[Measurement]:
    """Every peer that has a Python at one work: all are prepared, then they take turns.

    A peer whose results differ from those of the first is not timed.
    """
    workers: dict[str, Worker] = {}
    refused: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    agreed: list[float] = []
    peers = [peer for peer in peers if peer.environment in pythons]
    try:
        for peer in peers:
            announce(f"{work}: preparing {peer.name}")
            workers[peer.name] = worker = peer.start(pythons[peer.environment])
            answer = ask(worker, "prepare", **request, **peer.request)
            agreed = agreed or answer.get("sample", [])
            refused[peer.name] = answer.get("refused") or _differs(answer["sample"], agreed)
            seconds[peer.name] = []
        able = [name for name in workers if not refused[name]]
        for turn in range(repeats):
            announce(f"{work}: turn {turn + 1} of {repeats}")
            for name in [name for name in able if not refused[name]]:
                answer = ask(workers[name], "repeat")
                refused[name] = answer.get("refused", "")
                seconds[name].append(answer.get("seconds", math.nan))
                peaks[name] = answer.get("peak", 0)
        for worker in workers.values():
            if worker.idle_busy > MOST_IDLE_WORK * max(worker.idle, 1.0):
                announce(f"{worker.name} was busy for {worker.idle_busy:.1f} s of its idle time")
    finally:
        for worker in workers.values():
            worker.close()
    return [
        Measurement(
            work=work,
            peer=peer.name,
            flops=peer.flops or flops,
            seconds=tuple(seconds[peer.name]),
            peak=peaks.get(peer.name, 0),
            refused=refused[peer.name],
        )
        for peer in peers
    ]


def ask(worker: Worker, do: str, **rest: Any) -> dict[str, Any]:
    """The worker's answer; one that ends instead has refused."""
    try:
        return worker.ask(do, **rest)
    except PeerFailed as failure:
        return {"refused": str(failure)}


def _differs(sample: Sequence[float], agreed: Sequence[float]) -> str:
    """Empty when a worker's results are those of the first; else how far they are apart."""
    apart = max((abs(a - b) for a, b in zip(sample, agreed, strict=False)), default=0.0)
    return "" if apart <= AGREEMENT else f"differs by {apart:.1e}"


def fastest(found: Sequence[Measurement], family: str) -> float:
    """Seconds of the fastest peer whose name begins so; NaN when there is none."""
    times = [m.best for m in found if m.peer.startswith(family) and not m.refused]
    return min(times, default=math.nan)
