"""A world to play with: games in the dream of a model with actions, the truth beside each frame.

A game is begun with a level and goes on by actions. It is kept for its tenant until it was left for
a while, or newer ones need its room. One frame at a time is dreamed, between two steps of the
engine.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import FastAPI
from jaxtyping import UInt8
from numpy import ndarray
from pydantic import Field
from starlette.requests import Request

from ringworld.chat.game import Game
from ringworld.errors import InputError
from ringworld.serve.answers import JSON
from ringworld.serve.drawing import write_png
from ringworld.serve.events import while_connected
from ringworld.serve.front import Front
from ringworld.serve.protocol import Body
from ringworld.serve.refusals import BusyError, NotFoundError
from ringworld.settings import SEEDS
from ringworld.tasks.play_world import count_goals, draw_level

T = TypeVar("T")
# Games that are kept, and how many of them are one tenant's; seconds that one is kept unused.
MOST_GAMES, MOST_OF_A_TENANT, KEPT_SECONDS = 16, 8, 900.0

PlayAction = Literal["up", "down", "left", "right", "stay"]


class LevelBody(Body):
    """The body of /v1/play: the seed of a level, any where none is given."""

    model: str | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)


class ActionBody(Body):
    """The body of /v1/play/{id}."""

    action: PlayAction


@dataclass
class KeptGame:
    """A game, whose it is, and when it was used last, in monotonic seconds."""

    game: Game
    tenant: str
    name: str = field(default_factory=lambda: f"game_{secrets.token_hex(12)}")
    used: float = field(default_factory=time.monotonic)

    def begin(self, seed: int) -> JSON:
        """Begin the level of a seed; returns what a client is told of it."""
        self.game.begin(seed)
        return self._tell(None, 0)

    def move(self, action: str) -> JSON:
        """Do an action; returns what a client is told of the frame."""
        before = self.game.dream.passes
        self.game.move(action)
        return self._tell(action, self.game.dream.passes - before)

    def _tell(self, action: str | None, passes: int) -> JSON:
        game = self.game
        filled, goals = count_goals(game.dream.level)
        return {
            "id": self.name,
            "object": "game",
            "seed": game.seed,
            "step": game.compared,
            "action": action,
            "frame": _write_url(game.dream.frame),
            "truth": _write_url(draw_level(game.truth)),
            "agrees": game.agrees,
            "agreed": game.compared - game.wrong,
            "boxes_on_goals": filled,
            "goals": goals,
            "passes": passes,
        }


def _write_url(frame: UInt8[ndarray, "Y X 3"]) -> str:
    return f"data:image/png;base64,{write_png(frame)}"


class PlayGames:
    """The games of a server: a bounded number, of which one at a time is computed."""

    def __init__(self, front: Front) -> None:
        self._front, self._games = front, OrderedDict[str, KeptGame]()
        self._turn, self._waiting = asyncio.Lock(), 0

    async def begin(self, seed: int, tenant: str) -> JSON:
        """Begin a game.

        Raises InputError when the model has no actions, and BusyError when there is no room.
        """
        dream = self._front.served.dream
        if dream is None:
            raise InputError("this model has no actions: serve nano-play, or one of its recipe")

        def open_game() -> tuple[KeptGame, JSON]:
            kept = KeptGame(Game(dream.another()), tenant)
            return kept, kept.begin(seed)

        async with self._take_turn():
            self._make_room(tenant)
            kept, told = await self._compute(open_game)
            self._games[kept.name] = kept
        return told

    async def move(self, name: str, tenant: str, action: str) -> JSON:
        """Do an action in a game of a tenant. Raises NotFoundError when there is none."""
        async with self._take_turn():
            kept = self._find(name, tenant)
            kept.used = time.monotonic()
            self._games.move_to_end(name)
            try:
                return await self._compute(partial(kept.move, action))
            except Exception:  # a dream that failed half-way cannot go on
                del self._games[name]
                raise

    async def end(self, name: str, tenant: str) -> None:
        """Forget a game of a tenant. Raises NotFoundError when there is none."""
        async with self._take_turn():
            del self._games[self._find(name, tenant).name]

    def _find(self, name: str, tenant: str) -> KeptGame:
        self._forget_left()
        kept = self._games.get(name)
        if kept is None or kept.tenant != tenant:
            raise NotFoundError("there is no such game, or it was left too long: begin another")
        return kept

    @asynccontextmanager
    async def _take_turn(self) -> AsyncGenerator[None, None]:
        """Wait until nothing else is computed. Raises BusyError when too many wait already."""
        if self._waiting >= self._front.config.max_queued_requests:
            raise BusyError
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def _compute(self, work: Callable[[], T]) -> T:
        """What a frame's work returns, done in the thread that owns JAX."""
        done = await asyncio.wrap_future(self._front.thread.call(work))
        self._front.metrics.dreamed_frames.inc()
        return done

    def _make_room(self, tenant: str) -> None:
        """Forget the tenant's game that was left longest ago where there is no room for another."""
        self._forget_left()
        own = [name for name, kept in self._games.items() if kept.tenant == tenant]
        if own and (len(own) >= MOST_OF_A_TENANT or len(self._games) >= MOST_GAMES):
            del self._games[own[0]]
        if len(self._games) >= MOST_GAMES:
            raise BusyError("as many games are played as the server keeps: try again later")

    def _forget_left(self) -> None:
        over = time.monotonic() - KEPT_SECONDS
        for name in [name for name, kept in self._games.items() if kept.used < over]:
            del self._games[name]


def add_play(app: FastAPI, front: Front) -> None:
    """Add the routes."""
    games = PlayGames(front)

    @app.post("/v1/play")
    async def begin(body: LevelBody, request: Request) -> dict[str, Any]:
        """Begin a level of the world that the model dreams, and the truth beside it."""
        front.check(body.model)
        seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
        return await while_connected(request, games.begin(seed, request.state.tenant))

    @app.post("/v1/play/{name}")
    async def move(name: str, body: ActionBody, request: Request) -> dict[str, Any]:
        """Do an action; the frame that the model dreams of it, and the truth beside it."""
        return await while_connected(request, games.move(name, request.state.tenant, body.action))

    @app.delete("/v1/play/{name}")
    async def end(name: str, request: Request) -> dict[str, Any]:
        """End a game and forget it."""
        await games.end(name, request.state.tenant)
        return {"id": name, "object": "game.deleted", "deleted": True}
