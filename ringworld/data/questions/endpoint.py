"""A model behind an OpenAI-compatible endpoint: asked patiently, within a budget, key kept hidden.

One call asks for one chat completion. What may pass (429, 5xx, time-outs, replies that are no JSON)
is tried again after a pause that doubles and is drawn at random (Brooker, "Exponential backoff and
jitter", 2015), or that the endpoint names in Retry-After and that then holds for every thread. What
does not pass (a refused key, an unknown model, an empty account) ends the run in one sentence.
"""

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ringworld.data.questions.completion import Reply, error_code, read_reply, retry_after
from ringworld.data.questions.transport import Response, Transport, TransportError, is_loopback
from ringworld.errors import InputError

# The first pause, doubled at each try, and the longest: seven tries last two minutes, about what
# a server takes to restart.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# An endpoint that asks for more than this has a quota of the day, not of the minute.
LONGEST_ASKED_S = 600.0
# So many chunks without an answer, one after another, are an endpoint that is down.
GIVE_UP_AFTER = 16
# So many tries of an address where nobody ever answered: a mistyped one is said at once, and a
# server that was there and restarts gets all its tries.
FIRST_TRIES = 3
PASSING = {408, 409, 425, 429}  # and every 5xx
ACCOUNT_IS_EMPTY = {"insufficient_quota", "billing_hard_limit_reached"}
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Which model is asked, where, and how patiently."""

    base_url: str
    """up to the version, as in https://HOST/v1"""
    model: str
    """its name there"""
    key_variable: str = ""
    """NAME of the environment variable that holds the key; none is sent without"""
    concurrency: int = 8
    """requests under way at a time"""
    retries: int = 6
    """further tries of a request that failed in passing"""
    timeout: float = 120.0
    """seconds for one exchange, whole"""
    temperature: float | None = None
    """of the replies; without it the endpoint's own"""
    answer_tokens: int = 512
    """the most tokens of a reply, thoughts included"""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """what the endpoint calls that limit"""
    json_mode: bool = True
    """ask for JSON with response_format; turn it off where the endpoint refuses it"""
    plain_http: bool = False
    """let a key travel unencrypted to another machine"""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.answer_tokens < 1:
            raise InputError(
                "concurrency, timeout and answer_tokens are above 0 and retries is 0 or more: "
                "correct the endpoint"
            )
        _check_address(self.base_url)

    def key(self) -> str:
        """The key, from the environment; "" when none is named. Raises InputError without it."""
        if not self.key_variable:
            return ""
        if not VARIABLE.fullmatch(self.key_variable):
            raise InputError(
                "key_variable is the NAME of an environment variable, in capitals, and never the "
                "key itself: export the key under a name and give that"
            )
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise InputError(f"{self.key_variable} is not set: export the key under that name")
        if not re.fullmatch(r"[!-~]+", key):
            raise InputError(f"{self.key_variable} holds signs that no key has: set it again")
        url = urlsplit(self.base_url)
        if url.scheme == "http" and not self.plain_http and not is_loopback(url.hostname or ""):
            raise InputError(
                "the key would travel unencrypted to another machine: use https, or allow it with "
                "plain_http"
            )
        return key


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one run may spend; without a value there is no limit. Cached answers are free."""

    requests: int | None = None
    """tries included"""
    tokens: int | None = None
    """of prompts and replies, as the endpoint counts them"""


class Unanswered(Exception):
    """A request that no try brought an answer to; its text is one word that says why."""


class BudgetSpent(Exception):
    """The budget does not allow another request; its text says which part of it is spent."""


class RunStopped(Exception):
    """The run is being stopped, and the request was not sent."""


@dataclass
class Usage:
    """What was sent and spent so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0
    retried: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """Tokens of every reply that arrived, with its prompt."""
        return self.prompt_tokens + self.completion_tokens


class Client:
    """Asks one endpoint, from any number of threads.

    `wait` pauses for so many seconds and returns whether the run was stopped meanwhile; `now` is
    the time in seconds. Tests replace both.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        budget: Budget,
        *,
        now: Callable[[], float] = time.time,
        wait: Callable[[float], bool] | None = None,
        seed: int | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.budget = budget
        self.tally = Usage()
        self.transport = Transport(
            f"{endpoint.base_url.rstrip('/')}/chat/completions", endpoint.timeout
        )
        self._key = endpoint.key()
        self._stop = threading.Event()
        self._now, self._wait = now, wait or self._stop.wait
        self._random = random.Random(seed)
        self._lock = threading.Condition()
        self._not_before = 0.0
        self._reserved = 0
        self._in_a_row = 0
        self._reached = False
        self._spent = ""

    def stop(self) -> None:
        """Send nothing more; what is under way may finish."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to send nothing more."""
        return self._stop.is_set()

    def ask(self, body: bytes, estimate: int) -> Reply:
        """The answer to one request, which takes `estimate` tokens at most by our count.

        Raises Unanswered, BudgetSpent, RunStopped, and InputError for what no further try mends.
        """
        failure = RetryableError("")
        for attempt in range(self.endpoint.retries + 1):
            if attempt and self._pause(attempt - 1, failure):
                raise RunStopped
            self._hold()
            self._reserve(estimate)
            reply = None
            try:
                reply = self._exchange(body, estimate)
                return reply
            except RetryableError as passing:
                failure = passing
                self._check_reached(attempt + 1, passing)
            except RequestRefused as refused:
                raise self._lost(str(refused), refused.hint) from None
            finally:
                self._settle(estimate, reply)
        raise self._lost(failure.word)

    def _check_reached(self, tries: int, failure: "RetryableError") -> None:
        """Raise InputError when nobody was ever reached, after some tries or all."""
        if failure.word != "unreachable":
            self._reached = True
        elif not self._reached and tries >= min(FIRST_TRIES, self.endpoint.retries + 1):
            raise InputError(
                f"nobody answers at {self.transport.origin}: start the server or correct "
                "endpoint.base_url, then run the same command to go on"
            )

    def _lost(self, word: str, hint: str = "") -> Exception:
        """What to raise for a request that got no answer: too many in a row end the run."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row < GIVE_UP_AFTER:
                return Unanswered(word)
        last = f"{word}, {hint}" if hint else word
        return InputError(
            f"{GIVE_UP_AFTER} chunks in a row got no answer (the last: {last}): see that "
            f"{self.transport.origin} serves {self.endpoint.model} and takes such requests, then "
            "run the same command to go on"
        )

    def _pause(self, tried: int, failure: "RetryableError") -> bool:
        """Wait before the next try: half the doubled pause, and up to the other half by chance."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tried)
        with self._lock:
            self.tally.retried[failure.word] += 1
            jitter = self._random.uniform(0.5, 1.0) * pause
        return self._wait(jitter if failure.after is None else failure.after + jitter)

    def _hold(self) -> None:
        """Wait for the time that the endpoint named to any thread."""
        left = min(self._not_before - self._now(), LONGEST_ASKED_S)
        if (left > 0 and self._wait(left)) or self._stop.is_set():
            raise RunStopped

    def _reserve(self, estimate: int) -> None:
        """Count a request before it is sent, so that those under way cannot pass the budget."""
        most = self.budget
        with self._lock:
            if most.tokens is not None:
                while self._reserved and self._promised + estimate > most.tokens:
                    self._lock.wait()
                if self._promised + estimate > most.tokens:
                    self._spent = self._spent or f"the budget of {most.tokens:,} tokens is spent"
            if most.requests is not None and self.tally.requests >= most.requests:
                self._spent = self._spent or f"the budget of {most.requests:,} requests is spent"
            if self._spent:
                raise BudgetSpent(self._spent)
            if self._stop.is_set():
                raise RunStopped
            self.tally.requests += 1
            self._reserved += estimate

    @property
    def _promised(self) -> int:
        return self.tally.tokens + self._reserved

    def _settle(self, estimate: int, reply: Reply | None) -> None:
        with self._lock:
            self._reserved -= estimate
            self._lock.notify_all()
            if reply is not None:
                self._in_a_row, self._reached = 0, True
                self.tally.prompt_tokens += reply.prompt_tokens
                self.tally.completion_tokens += reply.completion_tokens
                if not reply.counted:
                    self.tally.estimated_tokens += estimate

    def _exchange(self, body: bytes, estimate: int) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Accept-Encoding": "identity", "User-Agent": "ringworld"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            response = self.transport.post(body, headers)
        except TransportError as broken:
            raise RetryableError(str(broken)) from None
        if response.status != 200:
            raise self._refusal(response)
        reply = read_reply(response.body, estimate)
        if reply is None:
            raise RetryableError("garbage")
        if self._key and (self._key in reply.content or self._key in reply.finish):
            raise RetryableError(
                "garbage"
            )  # an endpoint that repeats the key: it must not reach a file
        return reply

    def _refusal(self, response: Response) -> Exception:
        """What a status other than 200 means; of the endpoint's words only a code is passed on."""
        status, origin = response.status, self.transport.origin
        code = error_code(response.body)
        if status in (401, 403):
            named = self.endpoint.key_variable or "key_variable, which names none"
            return InputError(f"{origin} refused the key (status {status}): correct {named}")
        if status == 402 or code in ACCOUNT_IS_EMPTY:
            return InputError(
                f"the account at {origin} has no credit left: top it up, then run the same command "
                "to go on"
            )
        if status == 404:
            return InputError(
                f"{origin} has no model {self.endpoint.model} at {self.transport.url.path}: "
                "correct endpoint.model or endpoint.base_url"
            )
        if status in PASSING or status >= 500:
            after = retry_after(response.headers.get("retry-after", ""), self._now())
            if after is not None and after > LONGEST_ASKED_S:
                return InputError(
                    f"{origin} asks to wait {after:,.0f} seconds: run the same command then to "
                    "go on"
                )
            if after is not None:
                with self._lock:
                    self._not_before = max(self._not_before, self._now() + after)
            return RetryableError(f"status {status}", after)
        return RequestRefused(f"status {status}", "" if self._key and self._key in code else code)


class RetryableError(Exception):
    """A failure that may pass: one word for it, and the seconds that the endpoint asked for."""

    def __init__(self, word: str, after: float | None = None) -> None:
        super().__init__(word)
        self.word, self.after = word, after


class RequestRefused(Exception):
    """The endpoint read this request and will not have it, as when it is too long."""

    def __init__(self, word: str, hint: str) -> None:
        super().__init__(word)
        self.hint = hint


def _check_address(base_url: str) -> None:
    """Raise InputError when this is no address to put a path behind. Never repeats a password."""
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    else:
        if "@" in url.netloc:
            raise InputError(
                "base_url holds a user or a password, which would reach the record: name the key's "
                "variable in key_variable instead"
            )
        usable = usable and not url.query and not url.fragment
        usable = usable and bool(re.fullmatch(r"[!-~]+", base_url))
    if not usable:
        raise InputError("base_url is no plain address: give one as in https://HOST/v1")
