"""An endpoint is asked patiently, in bounded time and memory, within a budget, its key hidden."""

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import (
    Behaviour,
    Endpointlike,
    Handler,
    completion,
    cut_without_length,
    drip,
    drip_headers,
    flood,
    garble,
    refuse_with_key,
    repeat_key,
    reset,
    say,
    serving,
    stall,
    status,
    truncate,
)

from ringworld.data.questions.completion import read_reply, retry_after
from ringworld.data.questions.endpoint import (
    FIRST_PAUSE_S,
    FIRST_TRIES,
    GIVE_UP_AFTER,
    LONGEST_PAUSE_S,
    Budget,
    BudgetSpent,
    Client,
    Endpoint,
    Unanswered,
)
from ringworld.data.questions.transport import LARGEST_REPLY
from ringworld.errors import InputError

BODY = json.dumps({"messages": [{"role": "user", "content": "Say something."}]}).encode()
KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture
def server() -> Iterator[Endpointlike]:
    """A local endpoint."""
    with serving() as state:
        yield state


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.waits: list[float] = []
        self.while_waiting: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.time += seconds
        self.while_waiting()
        return False


def client(
    server: Endpointlike,
    clock: Clock | None = None,
    requests: int | None = None,
    tokens: int | None = None,
    **options: Any,
) -> Client:
    """A client of the local endpoint whose waits take no time."""
    clock = clock or Clock()
    endpoint = Endpoint(**({"base_url": server.url, "model": "m", "timeout": 20.0} | options))
    budget = Budget(requests=requests, tokens=tokens)
    return Client(endpoint, budget, now=clock.now, wait=clock.wait, seed=0)


HTML = b"<html><body>502 Bad Gateway</body></html>"
DEEP = b"[" * 100_000
FAILURES: dict[str, tuple[Behaviour, str]] = {
    "too many requests": (status(429), "status 429"),
    "an error of the server": (status(500), "status 500"),
    "an overloaded server": (status(529, HTML, Content_Type="text/html"), "status 529"),
    "no answer": (stall, "timeout"),
    "a slow drip": (drip, "timeout"),
    "a slow drip of headers": (drip_headers, "timeout"),
    "a truncated body": (truncate, "truncated"),
    "a body that just ends": (cut_without_length, "garbage"),
    "an endless body": (flood, "oversized"),
    "a body that says it is huge": (status(200, b"", Content_Length=str(10**12)), "oversized"),
    "a connection reset": (reset, "reset"),
    "no HTTP at all": (garble, "garbage"),
    "an HTML page": (status(200, HTML, Content_Type="text/html"), "garbage"),
    "garbage for JSON": (status(200, b'{"choices": [{"mess'), "garbage"),
    "JSON of another shape": (status(200, b'{"choices": []}'), "garbage"),
    "a list for JSON": (status(200, b"[1, 2]"), "garbage"),
    "JSON without a bottom": (status(200, DEEP), "garbage"),
    "text that is no text": (status(200, completion("x").replace(b'"x"', b"7")), "garbage"),
    "compressed bytes": (status(200, b"\x1f\x8b\x08", Content_Encoding="gzip"), "garbage"),
}


@pytest.mark.parametrize(("behaviour", "word"), FAILURES.values(), ids=FAILURES)
def test_what_may_pass_is_tried_again(
    server: Endpointlike, behaviour: Behaviour, word: str
) -> None:
    server.plan.extend([behaviour, say("at last")])
    clock = Clock()
    asking = client(server, clock)
    if word == "timeout":  # a short deadline for what hangs, and a long one for the second try
        asking.transport.seconds = 0.3
        clock.while_waiting = lambda: setattr(asking.transport, "seconds", 20.0)
    assert asking.ask(BODY, 10).content == "at last"
    assert asking.tally.retried == {word: 1}
    assert asking.tally.requests == len(server.asked) == 2


def test_json_is_taken_whatever_its_content_type(server: Endpointlike) -> None:
    server.plan.append(status(200, completion("fine"), Content_Type="text/plain"))
    assert client(server).ask(BODY, 10).content == "fine"


def test_pauses_double_up_to_a_longest_and_half_of_each_is_chance(server: Endpointlike) -> None:
    server.always = status(503)
    clock = Clock()
    with pytest.raises(Unanswered, match="status 503"):
        client(server, clock, retries=9).ask(BODY, 10)
    full = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(9)]
    assert full[-1] == LONGEST_PAUSE_S
    assert all(f / 2 <= w <= f for w, f in zip(clock.waits, full, strict=True))
    assert len({w / f for w, f in zip(clock.waits, full, strict=True)}) == 9
    assert len(server.asked) == 10


def test_retry_after_is_honoured_and_holds_every_thread(server: Endpointlike) -> None:
    server.plan.append(status(429, Retry_After="30"))
    clock = Clock()
    asking = client(server, clock, retries=0)
    with pytest.raises(Unanswered):
        asking.ask(BODY, 10)
    asking.ask(BODY, 10)  # as another thread would
    assert clock.waits == [30.0]

    server.plan.append(status(429, Retry_After="30"))
    asking = client(server, clock := Clock())
    asking.ask(BODY, 10)
    assert 30.0 + FIRST_PAUSE_S / 2 <= clock.waits[0] <= 30.0 + FIRST_PAUSE_S


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0.0),
        ("12", 12.0),
        ("1.5", 1.5),
        (formatdate(1_000_090, usegmt=True), 90.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("inf", None),
        ("9" * 400, None),
        ("\u0663", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str, seconds: float | None) -> None:
    assert retry_after(said, 1_000_000.0) == seconds


QUOTA = b'{"error": {"code": "insufficient_quota", "message": "no"}}'
FATAL: dict[str, tuple[Behaviour, str]] = {
    "a refused key": (status(401), "refused the key"),
    "a forbidden model": (status(403), "refused the key"),
    "no credit": (status(402), "no credit"),
    "a used quota": (status(429, QUOTA), "no credit"),
    "an unknown model": (status(404), "no model m"),
    "a wait of a day": (status(429, Retry_After="86400"), "asks to wait 86,400 seconds"),
    "a redirect": (status(307, b"", Location="http://127.0.0.1:9/v1"), "redirects elsewhere"),
}


@pytest.mark.parametrize(("behaviour", "sentence"), FATAL.values(), ids=FATAL)
def test_what_does_not_pass_is_one_sentence_at_once(
    server: Endpointlike, behaviour: Behaviour, sentence: str
) -> None:
    server.plan.append(behaviour)
    with pytest.raises(InputError, match=sentence):
        client(server).ask(BODY, 10)
    assert len(server.asked) == 1


def test_a_request_that_is_refused_is_not_sent_again(server: Endpointlike) -> None:
    server.plan.append(status(400))
    with pytest.raises(Unanswered, match="status 400"):
        client(server).ask(BODY, 10)
    assert len(server.asked) == 1


def test_an_endpoint_that_is_down_ends_the_run(server: Endpointlike) -> None:
    server.always = status(400, b'{"error": {"code": null, "param": "response_format"}}')
    asking = client(server)
    for _ in range(GIVE_UP_AFTER - 1):
        with pytest.raises(Unanswered):
            asking.ask(BODY, 10)
    with pytest.raises(InputError, match="in a row .*status 400, response_format"):
        asking.ask(BODY, 10)


def test_nobody_at_the_address_is_unreachable(server: Endpointlike) -> None:
    with serving() as gone:
        url = gone.url
    for retries, tries in ((0, 1), (1, 2), (6, FIRST_TRIES)):
        asking = client(server, base_url=url, retries=retries)
        with pytest.raises(InputError, match="nobody answers at http://127"):
            asking.ask(BODY, 10)
        assert asking.tally.requests == tries


def test_a_server_that_was_there_gets_all_its_tries() -> None:
    with serving() as state:
        asking = client(state, retries=FIRST_TRIES + 1)
        asking.ask(BODY, 10)
    with pytest.raises(Unanswered, match="unreachable"):
        asking.ask(BODY, 10)
    assert asking.tally.requests == 1 + FIRST_TRIES + 2


def test_a_redirect_is_not_followed(server: Endpointlike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QA_KEY", KEY)
    with serving() as other:
        for number in (301, 302, 303, 307, 308):
            server.plan.append(status(number, b"", Location=f"{other.url}/chat/completions"))
            with pytest.raises(InputError, match="redirects") as error:
                client(server, key_variable="QA_KEY").ask(BODY, 10)
            assert KEY not in str(error.value)
        assert other.asked == []


def test_the_key_goes_into_one_header_and_nowhere_else(
    server: Endpointlike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QA_KEY", f" {KEY}\n")
    asking = client(server, key_variable="QA_KEY")
    asking.ask(BODY, 10)
    (headers,) = server.headers
    assert headers.pop("Authorization") == f"Bearer {KEY}"
    assert KEY not in json.dumps([headers, server.asked, server.paths])
    assert KEY not in repr(asking.endpoint) + repr(asking)


@pytest.mark.parametrize("behaviour", [repeat_key, refuse_with_key])
def test_an_endpoint_cannot_bring_the_key_back(
    server: Endpointlike, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QA_KEY", KEY)
    server.always = behaviour
    asking = client(server, key_variable="QA_KEY", retries=0)
    for _ in range(GIVE_UP_AFTER):
        with pytest.raises((Unanswered, InputError)) as error:
            asking.ask(BODY, 10)
        assert KEY not in str(error.value)
    assert error.type is InputError


@pytest.mark.parametrize(
    ("options", "value", "sentence"),
    [
        ({"key_variable": "QA_KEY"}, None, "QA_KEY is not set"),
        ({"key_variable": "QA_KEY"}, "  ", "QA_KEY is not set"),
        ({"key_variable": "QA_KEY"}, "two words", "no key has"),
        ({"key_variable": "QA_KEY"}, "line\r\nX-Evil: 1", "no key has"),
        ({"key_variable": KEY}, None, "NAME of an environment variable"),
        ({"base_url": "http://8.8.8.8/v1", "key_variable": "QA_KEY"}, KEY, "unencrypted"),
        ({"base_url": "https://me:secret@host/v1"}, None, "a user or a password"),
        ({"base_url": "ftp://host/v1"}, None, "no plain address"),
        ({"base_url": "host/v1"}, None, "no plain address"),
        ({"base_url": "https://host:port/v1"}, None, "no plain address"),
        ({"base_url": "https://host/v1?x=1"}, None, "no plain address"),
        ({"base_url": "https://host/v1\r\nX: 1"}, None, "no plain address"),
        ({"concurrency": 0}, None, "above 0"),
    ],
)
def test_a_wrong_endpoint_is_refused_before_anything_is_sent(
    server: Endpointlike,
    options: dict[str, Any],
    value: str | None,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QA_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("QA_KEY", value)
    with pytest.raises(InputError, match=sentence) as error:
        client(server, **options)
    assert not {KEY, "secret", "X-Evil"} & set(str(error.value).split())
    assert server.asked == []


def test_requests_under_way_cannot_pass_the_budget_of_tokens(server: Endpointlike) -> None:
    asking = client(server, tokens=12_000)

    def ask(_: int) -> bool:
        try:
            asking.ask(BODY, 1200)
        except BudgetSpent as spent:
            assert str(spent) == "the budget of 12,000 tokens is spent"
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        answered = sum(pool.map(ask, range(30)))
    # Each is estimated at 1,200 and costs 1,140: after ten 600 are left, in which an eleventh
    # would not fit for certain.
    assert answered == len(server.asked) == 10
    assert asking.tally.tokens == 10 * 1140


def test_tries_count_in_the_budget_of_requests(server: Endpointlike) -> None:
    server.plan.extend([status(500)] * 2)
    asking = client(server, requests=4)
    asking.ask(BODY, 10)
    asking.ask(BODY, 10)
    with pytest.raises(BudgetSpent, match="budget of 4 requests"):
        asking.ask(BODY, 10)
    assert len(server.asked) == 4


@pytest.mark.parametrize("usage", [None, {}, [], {"prompt_tokens": -1, "completion_tokens": 1e99}])
def test_tokens_that_were_not_counted_are_estimated(server: Endpointlike, usage: Any) -> None:
    server.plan.append(say("x", usage=usage))
    asking = client(server)
    asking.ask(BODY, 77)
    assert (asking.tally.tokens, asking.tally.estimated_tokens) == (77, 77)


@settings(max_examples=200, deadline=None)
@given(harm=st.binary(max_size=6), at=st.integers(0, 300), drop=st.integers(0, 40))
def test_a_harmed_body_is_a_reply_or_none(harm: bytes, at: int, drop: int) -> None:
    body = completion("told", usage={"prompt_tokens": 3, "completion_tokens": 4})
    reply = read_reply(body[:at] + harm + body[at + drop :], 10)
    assert reply is None or reply.prompt_tokens >= 0


def test_a_reply_without_text_is_a_reply() -> None:
    reply = read_reply(completion(None, "content_filter"), 10)
    assert reply is not None and (reply.content, reply.finish) == ("", "content_filter")


def test_the_largest_reply_is_read_whole(server: Endpointlike) -> None:
    body = completion("x" * (LARGEST_REPLY - len(completion(""))))
    assert len(body) == LARGEST_REPLY
    server.plan.extend([status(200, body), status(200, body + b" ")])
    asking = client(server, retries=0)
    assert len(asking.ask(BODY, 10).content) > LARGEST_REPLY - 1000
    with pytest.raises(Unanswered, match="oversized"):
        asking.ask(BODY, 10)


def test_cutting_ends_an_exchange_under_way(server: Endpointlike) -> None:
    asking = client(server, retries=0)
    begun = threading.Event()

    def hang(handler: Handler) -> None:
        begun.set()
        stall(handler)

    server.plan.append(hang)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(asking.ask, BODY, 10)
        assert begun.wait(20)
        asking.transport.abort()
        with pytest.raises(Unanswered):
            reply.result(20)


# --- proxies and TLS -------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used_except_on_this_machine(
    server: Endpointlike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    address = urlsplit(server.url).netloc
    monkeypatch.setenv("http_proxy", f"http://me:pass@{address}")
    client(server, base_url="http://endpoint.invalid/v1").ask(BODY, 10)
    assert server.paths == ["http://endpoint.invalid/v1/chat/completions"]
    assert server.headers[0]["Proxy-Authorization"] == "Basic bWU6cGFzcw=="
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client(server).ask(BODY, 10)
    assert server.paths[1] == "/v1/chat/completions"
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(InputError, match="the proxy in http_proxy"):
        client(server, base_url="http://endpoint.invalid/v1")


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_a_certificate_must_hold(
    server: Endpointlike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, secret = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        + ["-keyout", str(secret), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    safe = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": server}))
    safe.socket = context.wrap_socket(safe.socket, server_side=True)
    thread = threading.Thread(target=safe.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"https://localhost:{safe.server_port}/v1"
    try:
        with pytest.raises(InputError, match="the certificate of the endpoint does not hold"):
            client(server, base_url=url).ask(BODY, 10)
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.plan.append(say("safe"))
        assert client(server, base_url=url).ask(BODY, 10).content == "safe"
        server.plan.append(stall)
        hanging = client(server, base_url=url, retries=0, timeout=1.0)
        with pytest.raises(Unanswered):
            hanging.ask(BODY, 10)
    finally:
        server.released.set()
        safe.shutdown()
        safe.server_close()
        thread.join()
