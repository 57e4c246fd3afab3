"""The thread that owns JAX: it loads the model, steps the engine, and tells what is new.

Everything that computes runs here, one thing at a time: steps of the engine, and between them calls
such as a batch of a film through the codec. An event loop submits requests and gets updates back
through `Ticket`; nothing else is shared.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

import jax

from ringworld.errors import InputError
from ringworld.inference.engine import Counters, Engine
from ringworld.inference.request import Finish, Output, Request, TokenScore
from ringworld.mesh import make_mesh
from ringworld.serve.refusals import EngineFailedError
from ringworld.settings import MeshShape

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerPiece:
    """What one sample of one prompt has gained; `finish` and `text` as in `Completion`."""

    prompt: int
    sample: int
    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...]
    finish: Finish | None
    text: str | None


@dataclass(frozen=True)
class Update:
    """What is new of a ticket, and the prompts' tokens that were read or reused so far.

    `prompt_scores` has those of each prompt, in the last update only.
    """

    pieces: tuple[AnswerPiece, ...]
    read: int
    reused: int
    finished: bool
    prompt_scores: tuple[tuple[TokenScore, ...], ...] = ()


class Ticket:
    """Requests that were submitted together, followed from the event loop that submitted them."""

    def __init__(self, owner: "EngineThread", requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.tokens = sum(len(request.prompt) for request in requests)
        self.started = False
        self.outputs: list[Output] = []
        self._owner, self._loop = owner, asyncio.get_running_loop()
        self._updates: asyncio.Queue[Update | Exception] = asyncio.Queue()
        self._admitted: asyncio.Future[None] = self._loop.create_future()
        self._told = [[0] * request.samples for request in requests]
        self._ended: set[tuple[int, int]] = set()
        self._read = 0

    async def admitted(self) -> None:
        """Wait until the engine has accepted all. Raises InputError for what can never run."""
        await self._admitted

    async def follow(self) -> AsyncIterator[Update]:
        """All updates, up to the one that is finished. Raises EngineFailedError."""
        while True:
            update = await self._updates.get()
            if isinstance(update, Exception):
                raise update
            yield update
            if update.finished:
                return

    def cancel(self) -> None:
        """End the requests where they stand; nothing when they have ended."""
        self._owner.cancel(self)

    def admit(self, error: InputError | None) -> None:
        """Tell the event loop that the engine has accepted all, or why it has not."""
        self._tell(lambda: self._settle(error))

    def send(self, update: Update | Exception) -> None:
        """Hand an update to the event loop; called by the engine's thread."""
        self._tell(lambda: self._receive(update))

    def _tell(self, said: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(said)

    def _settle(self, error: InputError | None) -> None:
        if self._admitted.done():
            return
        if error is None:
            self._admitted.set_result(None)
        else:
            self._admitted.set_exception(error)

    def _receive(self, update: Update | Exception) -> None:
        self.started = True
        self._updates.put_nowait(update)

    def collect(self) -> Update | None:
        """What is new since the last call, None when nothing is; called by the engine's thread."""
        pieces = []
        for i, output in enumerate(self.outputs):
            for j, sample in enumerate(output.samples):
                told = self._told[i][j]
                ends = sample.finish is not None and (i, j) not in self._ended
                if len(sample.ids) > told or ends:
                    ids, scores = tuple(sample.ids[told:]), tuple(sample.scores[told:])
                    pieces.append(AnswerPiece(i, j, ids, scores, sample.finish, sample.text))
                    self._told[i][j] = len(sample.ids)
                    if sample.finish is not None:
                        self._ended.add((i, j))
        reused = sum(output.reused for output in self.outputs)
        read = reused + sum(output.computed for output in self.outputs)
        finished = all(output.finished for output in self.outputs)
        if not (pieces or finished or read > self._read):
            return None
        self._read = read
        scores = tuple(tuple(output.prompt_scores) for output in self.outputs) if finished else ()
        return Update(tuple(pieces), read, reused, finished, scores)


class EngineThread:
    """A thread with an engine in it, on a mesh of its own.

    `open_engine` is called in the thread, first at the start, and again after a step has failed.
    The requests that ran begin again then, one at a time: a failure ends only the one that makes a
    step fail when it is alone. Answers are the same again, so what was told of them stays true.
    """

    def __init__(self, mesh: MeshShape, open_engine: Callable[[], Engine]) -> None:
        self._mesh, self._open = mesh, open_engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._live: list[Ticket] = []
        self._suspects: deque[Ticket] = deque()
        self._held: list[Ticket] = []
        self._alone = False
        self._queued: set[Ticket] = set()
        self._closed = False
        self._counters: Counters | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, and wait until the engine is open. Raises what `open_engine` raises."""
        opened: Future[None] = Future()
        self._opened = opened
        self._thread.start()
        opened.result()

    def close(self) -> None:
        """End the thread when what it does is done; requests that run are ended."""
        self._inbox.put(self._end)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._closed

    @property
    def counters(self) -> Counters | None:
        """What the engine held after its last step."""
        return self._counters

    @property
    def queued(self) -> tuple[int, int]:
        """The submitted tickets of which nothing was read yet, and their prompts' tokens."""
        waiting = [ticket for ticket in self._queued if not ticket.started]
        self._queued = {*waiting}
        return len(waiting), sum(ticket.tokens for ticket in waiting)

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """A ticket for requests, from the running event loop."""
        ticket = Ticket(self, requests)
        self._queued.add(ticket)
        self._inbox.put(lambda: self._admit(ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a ticket's requests."""
        self._queued.discard(ticket)
        self._inbox.put(lambda: self._drop(ticket))

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run a function in the thread, between two steps."""
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        self._inbox.put(run)
        return result

    # ---- in the thread

    def _run(self) -> None:
        with jax.set_mesh(make_mesh(**asdict(self._mesh))):
            try:
                self._engine = self._open()
            except BaseException as error:
                self._opened.set_exception(error)
                return
            self._counters = self._engine.counters
            self._opened.set_result(None)
            while not self._closed:
                self._obey()
                self._go_on()
                if self._live:
                    self._step()

    def _obey(self) -> None:
        """Do what was asked for; wait for it when there is nothing else to do."""
        if not (self._live or self._suspects or self._held):
            self._inbox.get()()
        with suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _go_on(self) -> None:
        """After a failure: begin the next suspect alone, and behind the last what was held back."""
        if self._live or not self._alone:
            return
        if self._suspects:
            self._begin(self._suspects.popleft())
            return
        self._alone = False
        held, self._held = self._held, []
        for ticket in held:
            self._begin(ticket)

    def _admit(self, ticket: Ticket) -> None:
        if self._alone:
            self._held.append(ticket)
        else:
            self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        ticket.outputs = []
        try:
            for request in ticket.requests:
                ticket.outputs.append(self._engine.submit(request))
        except InputError as error:
            self._drop(ticket)
            ticket.admit(error)
        else:
            self._live.append(ticket)
            ticket.admit(None)

    def _drop(self, ticket: Ticket) -> None:
        for output in ticket.outputs:
            self._engine.cancel(output)
        self._live = [other for other in self._live if other is not ticket]
        self._held = [other for other in self._held if other is not ticket]
        self._suspects = deque(other for other in self._suspects if other is not ticket)
        self._counters = self._engine.counters

    def _step(self) -> None:
        try:
            self._engine.step()
        except Exception as error:
            _LOG.error("a step of the engine failed: %s", type(error).__name__)
            failed, self._live = self._live, []
            if len(failed) == 1:
                failed[0].send(EngineFailedError())
            else:  # which of them it was shows when each is alone; what was told is not told again
                self._suspects.extend(failed)
            self._alone = True
            self._engine = self._open()
        for ticket in self._live:
            update = ticket.collect()
            if update is not None:
                ticket.send(update)
        self._live = [
            ticket for ticket in self._live if not all(o.finished for o in ticket.outputs)
        ]
        self._counters = self._engine.counters

    def _end(self) -> None:
        self._closed = True
        for ticket in (*self._live, *self._suspects, *self._held):
            ticket.send(EngineFailedError())
