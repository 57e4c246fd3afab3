"""Several processes that compute as one: found, joined, and ended together.

JAX finds the processes that Slurm, Open MPI, Kubernetes or a TPU pod started; elsewhere three
numbers say who is there. Process 0 runs JAX's coordinator. Through it the others learn within
seconds that a process has failed or is gone, so that none waits for it in vain.

What is exchanged here are short texts between hosts, not arrays. Every process must make these
calls in the same order. A single process makes them too: they return at once.
"""

import io
import itertools
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from ringworld.coordinator import apart, ended_by_signals, find_coordinator
from ringworld.errors import InputError
from ringworld.settings import Processes

T = TypeVar("T")
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# A process that has sent no heartbeat for so long is gone; JAX's own 100 s are long to wait.
HEARTBEAT_S = 10
LOOK_S = 3  # between two looks at who is there
# The longest that process 0 may keep the others waiting, such as for the tokens of a corpus.
PATIENCE_MS = 24 * 3600 * 1000
# How long a process waits for its own sentence when it hears of that of another.
FAREWELL_S = 1.0
FAILED_KEY = "ringworld/failed"
UNAVAILABLE = 2  # the exit code of the command line for a wrong world
AGAIN = "start all processes again, and they go on from the newest checkpoint"
# Clocks that are kept by NTP are milliseconds apart, and one that is not is minutes off.
CLOCKS_APART_S = 60.0
ENDING, LONE = threading.Event(), threading.Event()
CALLS: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that compute together."""

    address: str
    count: int
    index: int
    devices: Sequence[int] | None


def join_processes(asked: Processes, tell: Callable[[str], None]) -> int:
    """Join the processes that this one was started with; returns how many there are.

    Call it before JAX is first used, and end the program with `leave` where there are others. Where
    nothing says that there are, nothing is done.
    `tell` gets the sentence when another process ends this one, or does not come. Raises InputError
    when what is said of the processes does not fit together, and UnavailableError when process 0
    cannot be reached.
    """
    place = find_place(asked)
    if place is None:
        return 1
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from the training loop, which agrees on a step by itself.
    jax.config.update("jax_enable_preemption_service", False)
    if place.index:
        find_coordinator(place.address, asked.join_timeout)
    with apart(HEARTBEAT_S), _deadline(asked.join_timeout, place, tell), ended_by_signals():
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            place.devices,
            # Never reached: JAX would end the process without a way to say why.
            initialization_timeout=asked.join_timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    _watch(tell)
    check_same({"version of JAX": jax.__version__})
    check_clocks()
    return place.count


def find_place(asked: Processes) -> Place | None:
    """What the options, the environment or the launcher say; None for a single process.

    Raises InputError when it does not fit together.
    """
    if asked.processes == 1:
        return None
    address = asked.coordinator or os.environ.get(ADDRESS)
    # Open MPI 5 does not say where process 0 is, but it numbers the processes.
    open_mpi = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK") if address else (COUNT, INDEX)
    count = _whole(asked.processes, COUNT, open_mpi[0])
    index = _whole(asked.process, INDEX, open_mpi[1])
    devices = None
    if None in (address, count, index) and _is_launched():
        from jax._src.clusters import ClusterEnv

        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            address, count, index, None, None, asked.join_timeout
        )
    if count == 1 or (address, count, index) == (None, None, None):
        return None
    if address is None or count is None or index is None:
        names = {"coordinator": address, "processes": count, "process": index}
        missing = " and ".join(name for name, value in names.items() if value is None)
        raise InputError(
            f"the {missing} of several processes is not known: give all three, as {ADDRESS}, "
            f"{COUNT} and {INDEX} or as options",
            setting="coordinator",
        )
    if not 0 <= index < count:
        raise InputError(
            f"the process is {index} of {count}: number them from 0 to {count - 1}",
            setting="process",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            f"the coordinator is {address}: give the host and a free port of process 0, such as "
            "10.0.0.1:1234",
            setting="coordinator",
        )
    return Place(address, count, index, devices)


def process_count() -> int:
    """How many processes compute together. Starts no devices."""
    return int(_state().num_processes or 1) if "jax" in sys.modules else 1


def index() -> int:
    """The number of this process, from 0 up. Starts no devices."""
    return int(_state().process_id) if "jax" in sys.modules else 0


def is_first() -> bool:
    """Whether this is process 0, which alone prints and writes what there is one of."""
    return index() == 0


def exchange_texts(said: str, channel: str = "main") -> list[str]:
    """What each process says, in the order of their numbers. Waits for all of them.

    Threads that call it at the same time use channels of their own.
    """
    client = _state().client
    if client is None or LONE.is_set():
        return [said]
    call = next(CALLS[channel])
    folder = f"ringworld/{channel}/{call}/"
    client.key_value_set(f"{folder}{index():08d}", said)
    client.wait_at_barrier(folder, PATIENCE_MS)
    told = sorted(client.key_value_dir_get(folder))
    if is_first() and call > 1:  # all have read what was said two calls ago
        client.key_value_delete(f"ringworld/{channel}/{call - 2}/")
    return [text for _, text in told]


def barrier() -> None:
    """Wait until every process is here."""
    exchange_texts("")


def first_says(value: T) -> T:
    """The value of process 0, which JSON can hold; for what others may not yet see of a disk."""
    own = json.dumps(value)
    return json.loads(own if LONE.is_set() else exchange_texts(own if is_first() else "")[0])


def own_part(items: Sequence[T]) -> Sequence[T]:
    """Every count-th of the items, from this process's number on: its part of the work."""
    return items[index() :: process_count()]


@contextmanager
def first_goes_first() -> Generator[None, None, None]:
    """Have process 0 do what is within before the others, who find what it has kept.

    Within it each process is alone: nothing is exchanged.
    """
    if not is_first():
        barrier()
    LONE.set()
    try:
        yield
    finally:
        LONE.clear()
    if is_first():
        barrier()


def check_same(said: Mapping[str, object]) -> None:
    """Raise InputError, on every process, when one of them says something else of a name.

    The values are what JSON can hold.
    """
    # Values are compared as text: what is not a number does not even equal itself.
    own = {name: json.dumps(value, default=str) for name, value in said.items()}
    first, *others = [json.loads(text) for text in exchange_texts(json.dumps(own))]
    for other, theirs in enumerate(others, start=1):
        if differs := [name for name in first | theirs if first.get(name) != theirs.get(name)]:
            raise InputError(
                f"process {other} has another {differs[0]} than process 0: start all with the same "
                "program, command and data"
            )


def check_alone(what: str) -> None:
    """Raise InputError when several processes were started for what one process does."""
    if process_count() > 1:
        raise InputError(
            f"{what} is trained by one process and {process_count()} are here: start one"
        )


def check_clocks() -> None:
    """Raise InputError, on every process, when the clocks of two machines are far apart."""
    barrier()
    times = [float(text) for text in exchange_texts(repr(time.time()))]
    late, early = (times.index(extreme(times)) for extreme in (max, min))
    if (apart := times[late] - times[early]) > CLOCKS_APART_S:
        raise InputError(
            f"the clock of process {late} is {apart:,.0f} s ahead of that of process {early}: set "
            "the clocks of their machines"
        )


def fail(sentence: str, code: int) -> bool:
    """Have the other processes end too, with this exit code; process 0 prints the sentence.

    Returns whether another process prints it.
    """
    if process_count() == 1:
        return False
    ENDING.set()
    client, told = _state().client, True
    try:
        client.key_value_set(FAILED_KEY, json.dumps([index(), sentence, code]))
    except Exception:  # of no type that JAX names: another one failed first, or nobody listens
        told = _try_get(client, FAILED_KEY) is not None
    return told and not is_first()


def wait_for_verdict() -> None:
    """After an error of a computation: wait as long as it takes to learn that a process is gone.

    Then this process ends with that sentence. Returns when all are there: the error is another.
    """
    if process_count() > 1:
        time.sleep(HEARTBEAT_S + 3 * LOOK_S)


def keep_output() -> None:
    """Keep standard output for this program: gloo writes to it with whom it is connected."""
    if sys.stdout is not None:
        sys.stdout.flush()
        own, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        sys.stdout = io.TextIOWrapper(
            io.FileIO(own, "w"),
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            write_through=True,
        )


def _watch(tell: Callable[[str], None]) -> None:
    """End this process, from threads, when another one has failed or is gone."""
    client, own = _state().client, index()

    def end(who: int, sentence: str, code: int, heard: bool) -> None:
        time.sleep(FAREWELL_S)  # what this process finds itself is told first
        if not ENDING.is_set():
            if heard:
                tell(f"process {who}{sentence}")
            os._exit(code)

    def listen() -> None:
        who, sentence, code = json.loads(client.blocking_key_value_get(FAILED_KEY, PATIENCE_MS))
        if who != own:
            end(who, f": {sentence or 'stopped'}", code, is_first())

    def look() -> None:
        everyone = range(process_count())
        while not (gone := set(everyone) - set(client.get_live_nodes(list(everyone)))):
            time.sleep(LOOK_S)
        # Of those that are left the first one speaks.
        end(min(gone), f" is gone: {AGAIN}", 1, own == min(set(everyone) - gone))

    def quietly(act: Callable[[], None]) -> None:
        with suppress(Exception):  # of no type that JAX names: this process has left
            act()

    for act in (listen, look):
        threading.Thread(target=quietly, args=(act,), name=act.__name__, daemon=True).start()


def leave(code: int) -> NoReturn:
    """Wait for the others, and end this process with the exit code.

    The interpreter is not taken apart: threads of JAX's coordinator would end that with an abort.
    """
    ENDING.set()
    barrier()
    _state().shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _whole(given: int | None, *names: str) -> int | None:
    """A whole number, as it is given or else as the first of these variables has it."""
    if given is not None:
        return given
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise InputError(
                    f"{name} is {os.environ[name]}: set it to a whole number"
                ) from None
    return None


def _is_launched() -> bool:
    """Whether a launcher that JAX knows has started more processes than this one."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    sizes = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    # Kubernetes sets the second in the pods of an indexed job, which a JobSet is made of.
    return running_in_cloud_tpu_vm or "JOB_COMPLETION_INDEX" in os.environ or sizes != ["1", "1"]


@contextmanager
def _deadline(
    seconds: int, place: Place, tell: Callable[[str], None]
) -> Generator[None, None, None]:
    """End this process when the others have not come after so many seconds."""

    def give_up() -> None:
        tell(
            f"{place.count} processes did not meet at {place.address} within {seconds} s: start "
            "all of them, with the same address and number"
        )
        os._exit(UNAVAILABLE)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _state() -> Any:
    """What JAX knows of the processes."""
    from jax._src.distributed import global_state

    return global_state


def _try_get(client: Any, key: str) -> str | None:
    with suppress(Exception):  # of no type that JAX names
        return client.key_value_try_get(key)
    return None
