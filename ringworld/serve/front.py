"""The one internal request: what every route asks the engine through.

limits -> media in the sandbox -> template and tokens -> room in the context -> the engine
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial

from ringworld.data.example import Example, text
from ringworld.errors import InputError, TooLargeError
from ringworld.inference.request import Request
from ringworld.serve.answers import TokenSpeller
from ringworld.serve.config import ServeConfig
from ringworld.serve.conversation import (
    Prompt,
    find_shown_media,
    make_prompt,
    render_messages,
)
from ringworld.serve.engine_thread import EngineThread, Ticket, Update
from ringworld.serve.film_codes import FilmCodes, MediaReader, ShownMedium
from ringworld.serve.media_sources import MediaSources
from ringworld.serve.metrics import ServerMetrics
from ringworld.serve.protocol import ChatBody, CompletionBody, SamplingBody
from ringworld.serve.refusals import BusyError, UnknownModelError
from ringworld.serve.served import Served
from ringworld.settings import SEEDS

# The longest answer of a completion that does not say, as OpenAI has it.
COMPLETION_TOKENS = 16


@dataclass
class RequestProgress:
    """A request on its way: whose it is, what it is doing, for a person, and since when.

    `begun` is in monotonic seconds.
    """

    tenant: str = ""
    note: str = "waiting"
    begun: float = field(default_factory=time.monotonic)

    def film_progress(self, moment: float, length: float) -> None:
        """Note how far a film was read; called by the thread that reads it."""
        of = "" if math.isnan(length) else f" of {length:.0f}"
        self.note = f"reading the film: {moment:.0f}{of} s"


@dataclass(frozen=True)
class Asked:
    """A job that the engine has accepted."""

    job: RequestProgress
    ticket: Ticket
    prompts: tuple[Prompt, ...]

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return self.ticket.tokens


class Front:
    """Requests in, tickets out; counts what comes and goes."""

    def __init__(self, config: ServeConfig, served: Served, thread: EngineThread) -> None:
        self.config, self.served, self.thread = config, served, thread
        self.speller = TokenSpeller(served.words)
        codec = served.model.codec_or_none if served.config.vocabulary.codes else None
        sources = MediaSources(config.allowed_local_media_path, config.allowed_media_domains)
        self.media = MediaReader(thread, codec, served.context, sources, config.code_bytes)
        self.metrics = ServerMetrics(thread, self.media.kept, config.name)
        self._preparing = 0

    def check(self, model: str | None) -> None:
        """Raise UnknownModelError or BusyError before any work is done for a request."""
        if model is not None and model != self.config.name:
            raise UnknownModelError
        if self.full:
            raise BusyError

    @property
    def full(self) -> bool:
        """Whether as much waits or is made ready as the server lets wait."""
        waiting, tokens = self.thread.queued
        too_many = waiting + self._preparing >= self.config.max_queued_requests
        return too_many or tokens >= self.config.max_queued_tokens

    async def ask_chat(self, body: ChatBody, job: RequestProgress) -> Asked:
        """Submit a conversation. Raises InputError for what cannot be answered."""
        stops = self._stops(body)
        prompt = await self.read_chat(body, job)
        room = self.served.context - len(prompt.example)
        longest = min(self.config.max_new_tokens, max(room, 1))
        if body.longest is not None:
            longest = body.longest
        request = await self._prepare(body, prompt, longest, stops, job)
        return await self.submit(job, [request(logprobs=body.alternatives)], [prompt])

    async def read_chat(self, body: ChatBody, job: RequestProgress) -> Prompt:
        """The prompt of a conversation, its media read. Raises InputError for what cannot be."""
        self._preparing += 1
        try:
            wanted = await asyncio.to_thread(find_shown_media, body, self.config.fps)
            reading = asyncio.ensure_future(self._read_media(wanted, job))
            try:
                rendering = asyncio.to_thread(render_messages, body.messages, self.served)
                rendered, films = await asyncio.gather(rendering, reading)
            finally:
                reading.cancel()
            job.note = "reading the prompt"
            return await asyncio.to_thread(make_prompt, rendered, films, self.served)
        finally:
            self._preparing -= 1

    async def _read_media(
        self, wanted: Sequence[ShownMedium], job: RequestProgress
    ) -> list[FilmCodes]:
        films = []
        for number, medium in enumerate(wanted, 1):
            try:
                films.append(await self.media.read(medium, job.tenant, job.film_progress))
            except InputError as error:
                if len(wanted) == 1:
                    raise
                where = f"medium {number} of {len(wanted)}"
                raise type(error)(f"{where}: {error}", setting=error.setting) from None
        return films

    async def ask_completion(self, body: CompletionBody, job: RequestProgress) -> Asked:
        """Submit prompts. Raises InputError for what cannot be completed."""
        self._preparing += 1
        try:
            prompts = await asyncio.to_thread(self._read_prompts, body)
        finally:
            self._preparing -= 1
        longest = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        stops = self._stops(body)
        scored = body.echo and body.logprobs is not None
        if scored and longest <= 1:  # who scores a prompt counts on one token behind it
            stops = ()
        requests = [
            (await self._prepare(body, prompt, longest, stops, job))(
                logprobs=body.logprobs, prompt_logprobs=scored
            )
            for prompt in prompts
        ]
        return await self.submit(job, requests, prompts)

    async def submit(
        self, job: RequestProgress, requests: Sequence[Request], prompts: Sequence[Prompt]
    ) -> Asked:
        """Hand requests to the engine. Raises InputError when they do not fit."""
        for request in requests:
            self.check_room(len(request.prompt), request.max_new_tokens)
        ticket = self.thread.submit(requests)
        try:
            await ticket.admitted()
        except BaseException:
            ticket.cancel()
            raise
        self.metrics.prompt_tokens.inc(ticket.tokens)
        self.metrics.prompt_lengths.observe(ticket.tokens)
        return Asked(job, ticket, tuple(prompts))

    async def follow(self, asked: Asked) -> AsyncGenerator[Update, None]:
        """The updates of a ticket, which is cancelled when this is closed before its end."""
        begun = asked.job.begun
        came: dict[tuple[int, int], tuple[int, float]] = {}
        try:
            async for update in asked.ticket.follow():
                asked.job.note = f"read {update.read:,} of {asked.prompt_tokens:,} tokens"
                now = time.monotonic()
                if update.pieces and not came:
                    self.metrics.first_token.observe(now - begun)
                for piece in update.pieces:
                    place = (piece.prompt, piece.sample)
                    count, before = came.get(place, (0, now))
                    came[place] = (count + len(piece.ids), now)
                    self.metrics.generation_tokens.inc(len(piece.ids))
                    for _ in piece.ids if count else ():
                        self.metrics.between_tokens.observe((now - before) / len(piece.ids))
                    if piece.finish is not None:
                        self.metrics.count_end(piece.finish)
                        self.metrics.answer_lengths.observe(came[place][0])
                yield update
            self.metrics.whole.observe(time.monotonic() - begun)
        finally:
            asked.ticket.cancel()

    async def _prepare(
        self,
        body: SamplingBody,
        prompt: Prompt,
        longest: int,
        stops: tuple[int, ...],
        job: RequestProgress,
    ) -> partial[Request]:
        """All of a request but its log-probabilities. Raises InputError for a broken schema."""
        schema = body.response_format.schema_wanted if body.response_format else None
        allow = None
        if schema is not None:
            allow = await asyncio.to_thread(lambda: self.served.schemas.follow(schema))
            stops = tuple(sorted({*stops, *self.served.stops}))
        bias = body.biases
        self.check_ids([token for token, _ in bias])
        seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
        return partial(
            Request,
            prompt=prompt.example,
            max_new_tokens=longest,
            sampling=body.choose_sampling(self.served.sampling),
            seed=seed,
            samples=body.n,
            bias=bias,
            stops=stops,
            stop_strings=body.stops,
            spell=self.served.words.decode,
            allow=allow,
            tenant=f"{job.tenant} {body.cache_salt or ''}",
            content=prompt.content,
        )

    def _stops(self, body: SamplingBody) -> tuple[int, ...]:
        own = () if body.ignore_eos else self.served.stops
        asked = body.stop_token_ids or []
        self.check_ids(asked)
        return tuple(sorted({*own, *asked}))

    def _read_prompts(self, body: CompletionBody) -> list[Prompt]:
        return [Prompt(self._read_prompt(prompt)) for prompt in body.prompts]

    def _read_prompt(self, prompt: str | list[int]) -> Example:
        words = self.served.words
        if isinstance(prompt, str):
            prompt = [*words.opening, *words.encode(prompt)]
        if not prompt:
            raise InputError("the prompt is empty: give at least one token", setting="prompt")
        self.check_ids(prompt)
        return text(prompt, 0.0)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise InputError for an id that is none of the model's text ids."""
        rows = self.served.config.vocabulary.text
        if any(i >= rows for i in ids):
            raise InputError(f"the id {max(ids)} is none of this model's {rows:,} text ids")

    def check_room(self, prompt: int, longest: int) -> None:
        """Raise TooLargeError when so many tokens and an answer do not fit the context."""
        if prompt + longest > self.served.context:
            raise TooLargeError(
                f"the prompt has {prompt:,} tokens and its answer may have {longest:,}, and the "
                f"model's context is {self.served.context:,}: shorten the prompt or lower "
                "max_tokens"
            )
