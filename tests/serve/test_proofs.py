"""A server process under what the world does to it. Each proof prints its figures: pytest -s."""

import base64
import http.client
import json
import os
import random
import re
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fuzz import change
from hostile import samples, suspects

from ringworld.fetch import fetch
from tests.serving import Address, Process, film, picture, serving, user

pytestmark = pytest.mark.slow

LEAKS = re.compile(
    r"0x[0-9a-f]|Traceback|/tmp|/home|/root|/work|site-packages|\\.py\\b|Errno|127\\.0"
)
MEASURED = ("VmRSS", "Threads")
LONG = {"max_tokens": 300, "ignore_eos": True}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def wait_until_idle(server: Process) -> float:
    """The seconds until nothing runs, waits or is read; fails after 60."""
    begun = time.monotonic()
    while server.busy():
        assert time.monotonic() < begun + 60, "what clients have left is never freed"
        time.sleep(0.05)
    return time.monotonic() - begun


class Pulse:
    """Asks /health all the time, and keeps how long each answer took."""

    def __init__(self, server: Address) -> None:
        self._server, self.seconds, self._over = server, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.05):
            begun = time.monotonic()
            assert self._server.ask("GET", "/health")[0] == 200
            self.seconds.append(time.monotonic() - begun)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def stream_text(server: Address, asked: dict[str, Any], gaps: list[float]) -> str:
    """The text of a stream, its waits between events appended to `gaps`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    body = json.dumps({**asked, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer, text, before = connection.getresponse(), "", None
    assert answer.status == 200, answer.read()
    for line in answer:
        if line.startswith(b"data: {"):
            now = time.monotonic()
            if before is not None:
                gaps.append(now - before)
            before = now
            text += json.loads(line[6:])["choices"][0]["text"]
    connection.close()
    return text


def test_two_thousand_clients_that_go_away_leave_nothing_behind(tmp_path: Path) -> None:
    url = film(tmp_path, 8)
    shown = user(
        {"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}
    )
    bodies = [
        ("/v1/completions", {"prompt": "It was " * 100, **LONG}),
        ("/v1/completions", {"prompt": "It was", "stream": True, "n": 2, **LONG}),
        ("/v1/chat/completions", {"messages": shown, "stream": True, **LONG}),
        ("/v1/messages", {"model": "nano", "messages": user("Hi"), "max_tokens": 300}),
        ("/v1/responses", {"input": "Hi", "stream": True, "max_output_tokens": 300}),
        ("/v1/videos/sync", {"prompt": "a red circle", "num_frames": 8}),
    ]

    def leave(seed: int) -> None:
        rng = random.Random(seed)
        path, asked = rng.choice(bodies)
        data = json.dumps(asked).encode()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        connection.send(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        time.sleep(rng.random() * 0.4)
        connection.close()

    with serving("--max-queued-requests", "16") as server:
        plain = dict(prompt="It was the best of", max_tokens=8, ignore_eos=True)
        expected = server.post("/v1/completions", **plain)[1]["choices"]
        with ThreadPoolExecutor(16) as clients, Pulse(server) as pulse:
            list(clients.map(leave, range(2000)))
        seconds = wait_until_idle(server)
        assert server.post("/v1/completions", **plain)[1]["choices"] == expected
        print(
            f"S2: 2,000 clients left; idle after {seconds:.2f} s; /health p99 "
            f"{percentile(pulse.seconds, 0.99) * 1000:.0f} ms"
        )


class Clients:
    """Many clients in one thread, so that it is the server that is measured and not they."""

    def __init__(self, server: Address) -> None:
        self._port, self._waiting = server.port, selectors.DefaultSelector()
        self._said: dict[socket.socket, tuple[int, float, bytearray]] = {}

    def ask(self, name: int, body: dict[str, Any]) -> None:
        """Send a completion over a connection of its own, which the answer ends."""
        data, place = json.dumps(body).encode(), socket.create_connection(("127.0.0.1", self._port))
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._said[place] = (name, time.monotonic(), bytearray())
        place.sendall(f"{head}{kind}".encode() + data)
        self._waiting.register(place, selectors.EVENT_READ)

    def answers(self) -> Iterator[tuple[int, float, bytes, bytes]]:
        """Name, seconds until its first byte, head and body of each answer, as they end."""
        first: dict[socket.socket, float] = {}
        while self._said:
            for key, _ in self._waiting.select():
                place = key.fileobj
                assert isinstance(place, socket.socket)
                name, begun, said = self._said[place]
                first.setdefault(place, time.monotonic() - begun)
                part = place.recv(1 << 16)
                said += part
                if part:
                    continue
                self._waiting.unregister(place)
                place.close()
                del self._said[place]
                head, _, answer = bytes(said).partition(b"\r\n\r\n")
                if b"transfer-encoding: chunked" in head.lower():
                    answer = join_chunks(answer)
                yield name, first.pop(place), head, answer


def join_chunks(body: bytes) -> bytes:
    """What a body in chunks says (RFC 9112, section 7.1); the last, empty one has to be there."""
    parts = list[bytes]()
    while not body.startswith(b"0\r\n\r\n"):
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


def test_an_overload_is_refused_at_once_and_what_was_accepted_ends() -> None:
    refused: list[float] = []
    bodies = [dict(prompt="It was", max_tokens=30, ignore_eos=True, seed=i) for i in range(200)]
    with serving("--rows", "4", "--max-queued-requests", "16") as server:
        server.post("/v1/completions", prompt="Hi", max_tokens=2)
        clients = Clients(server)
        for i, body in enumerate(bodies):
            clients.ask(i, body)
        for _, seconds, head, answer in clients.answers():
            status = int(head.split()[1])
            if status == 503:
                assert re.search(rb"(?i)retry-after: [1-9]", head)
                refused.append(seconds)
            else:
                assert status == 200
                assert json.loads(answer)["usage"]["completion_tokens"] == 30
        assert 16 <= 200 - len(refused) <= 32
        wait_until_idle(server)
        paced = offer_in_turn(server, bodies)
        assert paced
        for name, seconds in (("at once", refused), ("one every 10 ms", paced)):
            print(
                f"S4: 200 offered {name}, {200 - len(seconds)} answered, {len(seconds)} refused, "
                f"half of them within {percentile(seconds, 0.5) * 1000:.0f} ms, 95 % within "
                f"{percentile(seconds, 0.95) * 1000:.0f} ms"
            )


def offer_in_turn(server: Process, bodies: list[dict[str, Any]]) -> list[float]:
    """Seconds until each refusal when a completion is asked for every 10 ms; all others end."""

    def offer(body: dict[str, Any]) -> float | None:
        begun = time.monotonic()
        status, headers, answer = server.ask("POST", "/v1/completions", body)
        if status == 503:
            assert int(headers["retry-after"]) > 0
            return time.monotonic() - begun
        assert status == 200 and json.loads(answer)["usage"]["completion_tokens"] == 30
        return None

    with ThreadPoolExecutor(len(bodies)) as clients:
        offered = []
        for body in bodies:
            offered.append(clients.submit(offer, body))
            time.sleep(0.01)
        return [seconds for each in offered if (seconds := each.result()) is not None]


def children(process: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(word) for each in lists for word in each.split()]


def find_fork_server(server: Process) -> int:
    """The one child that forks decoders; renderers of templates come and go beside it."""

    def forks(pid: int) -> bool:
        with suppress(OSError):
            return b"forkserver.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    (found,) = filter(forks, children(server.process.pid))
    return found


def test_a_hundred_killed_decoders_end_only_their_own_requests() -> None:
    """Each tenth time it is the program that forks them."""
    path, told = fetch("film"), Counter[int]()
    film_part = {"type": "video_url", "video_url": {"url": path.as_uri()}}
    streamed = dict(prompt="It was", max_tokens=60, ignore_eos=True)
    over, said = threading.Event(), list[str]()

    def talk() -> None:
        while not over.is_set():
            said.append(stream_text(server, streamed, []))

    def ask(part: dict[str, Any]) -> int:
        status, answer = server.post("/v1/chat/completions", messages=user(part), max_tokens=1)
        assert not LEAKS.search(json.dumps(answer)), answer
        return status

    def ask_of_picture(shade: int) -> int:
        """Of a picture that was not read before."""
        return ask({"type": "image_url", "image_url": {"url": picture(shade)}})

    with serving("--rows", "8", "--allowed-local-media-path", str(path.parent)) as server:
        alone = stream_text(server, streamed, [])
        assert ask_of_picture(200) == 200
        forks = find_fork_server(server)
        with ThreadPoolExecutor(5) as clients, Pulse(server) as pulse:
            talkers = [clients.submit(talk) for _ in range(4)]
            for place in range(100):
                asked = clients.submit(ask, film_part)
                while not (decoders := children(forks)) and not asked.done():
                    time.sleep(0.002)
                os.kill(forks if place % 10 == 9 else decoders[0], signal.SIGKILL)
                told[asked.result()] += 1
                assert ask_of_picture(place) == 200
                forks = find_fork_server(server)
            over.set()
            for each in talkers:
                each.result()
        assert set(said) == {alone} and sum(told.values()) == 100 and set(told) <= {400, 500}
        wait_until_idle(server)
        print(
            f"S6: 100 decoders killed, answers {dict(told)}; {len(said)} streams beside them as "
            f"alone; /health p99 {percentile(pulse.seconds, 0.99) * 1000:.0f} ms"
        )


def measure(process: int) -> tuple[float, int, int]:
    """The MiB of memory, the open descriptors and the threads of a process."""
    stated = Path(f"/proc/{process}/status").read_text()
    pages, threads = (int(re.findall(rf"{name}:\s+(\d+)", stated)[0]) for name in MEASURED)
    return pages / 1024, len(os.listdir(f"/proc/{process}/fd")), threads


@pytest.mark.parametrize(("at_once", "seconds"), [(32, 120), (500, 1800)])
def test_streams_lose_and_repeat_nothing_for_minutes(at_once: int, seconds: float) -> None:
    asked = [
        dict(prompt=f"{word} was", max_tokens=24 + i, ignore_eos=True, temperature=1.2, seed=i)
        for i, word in enumerate(("It", "He", "She", "There", "What", "This", "All", "Nothing"))
    ]
    with serving("--rows", "8", "--max-queued-requests", "500") as server:
        alone = [stream_text(server, each, []) for each in asked]
        until, streams, clients = time.monotonic() + seconds, 0, Clients(server)
        sizes = list[tuple[float, int, int]]()
        with Pulse(server) as pulse:
            for i in range(at_once):
                clients.ask(i, asked[i % len(asked)] | {"stream": True})
            for name, _, head, answer in clients.answers():
                assert head.split()[1] == b"200", head
                lines = [line for line in answer.split(b"\n") if line.startswith(b"data: {")]
                said = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)
                assert said == alone[name % len(asked)] and answer.endswith(b"data: [DONE]\n\n")
                streams += 1
                if streams % at_once == 0:
                    sizes.append(measure(server.process.pid))
                if time.monotonic() < until:
                    clients.ask(name + 1, asked[(name + 1) % len(asked)] | {"stream": True})
        wait_until_idle(server)
        sizes.append(measure(server.process.pid))
        print(
            f"S1: {streams} streams, {at_once} at one time, in {seconds} s, every text as alone; "
            f"/health p99 {percentile(pulse.seconds, 0.99) * 1000:.0f} ms, at most "
            f"{max(pulse.seconds):.2f} s; MiB, descriptors and threads after each round: "
            f"{[(round(size), *rest) for size, *rest in sizes]}"
        )


def test_others_go_on_while_a_giant_is_refused() -> None:
    gaps: dict[bool, list[float]] = {False: [], True: []}
    giant = json.dumps({"prompt": "All happy families are alike.\n" * 900_000}).encode()
    ids = json.dumps({"prompt": [7] * 4_000_000}).encode()
    with serving("--rows", "8") as server:
        streamed = dict(prompt="It was", max_tokens=400, ignore_eos=True)
        for heavy in (False, True):
            with ThreadPoolExecutor(8) as clients, Pulse(server) as pulse:
                jobs = [
                    clients.submit(stream_text, server, streamed, gaps[heavy]) for _ in range(8)
                ]
                if heavy:
                    for body in (giant, ids):
                        assert server.send("POST", "/v1/completions", body)[0] == 400
                texts = {job.result() for job in jobs}
            assert len(texts) == 1
        print(
            f"S3: two bodies of {len(giant) >> 20} and {len(ids) >> 20} MB refused; p99 between "
            f"events {percentile(gaps[False], 0.99):.2f} s without, "
            f"{percentile(gaps[True], 0.99):.2f} s with; /health p99 "
            f"{percentile(pulse.seconds, 0.99) * 1000:.0f} ms, at most {max(pulse.seconds):.2f} s"
        )


def test_six_hundred_bad_media_are_refused_or_read_and_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good = [*samples(tmp_path / "good").values()]
    paths = [suspect.path for suspect in suspects(tmp_path / "bad")]
    files = [p.read_bytes() for p in paths if os.path.isfile(p) and p.stat().st_size < 1 << 22]
    rng = random.Random(7)
    while len(files) < 600:
        files.append(change(rng.choice(good), good, [b"moov", b"mdat", b"IHDR", b"\xff\xd8"], rng))
    slowest: list[float] = []

    def ask(place: int) -> int:
        kind = ("video_url", "image_url")[place % 2]
        content = base64.b64encode(files[place]).decode()
        part = {"type": kind, kind: {"url": f"data:video/mp4;base64,{content}"}}
        begun = time.monotonic()
        status, answer = server.post(
            "/v1/chat/completions",
            messages=user(part),
            max_tokens=1,
            media_io_kwargs={"video": {"num_frames": 2}},
        )
        slowest.append(time.monotonic() - begun)
        said = json.dumps(answer)
        assert status == 200 or (status == 400 and not LEAKS.search(said)), (place, said)
        return status

    with serving() as server:
        with ThreadPoolExecutor(4) as clients:
            told = Counter(clients.map(ask, range(len(files))))
        assert server.post("/v1/completions", prompt="Hi", max_tokens=1)[0] == 200
        print(
            f"S8: {len(files)} files, {told[400]} refused, {told[200]} read, the slowest in "
            f"{max(slowest):.1f} s with 4 at one time"
        )


def test_a_second_question_about_ten_minutes_of_film_costs_a_hundredth() -> None:
    """The film comes before the question, and 600 frames of it are taken.

    A question costs the seconds from the first byte sent to the last received.
    """
    content = base64.b64encode(fetch("film").read_bytes()).decode()

    def ask(server: Process, question: str, **more: Any) -> tuple[float, int, int]:
        part = {"type": "video_url", **more}
        asked = user(part, {"type": "text", "text": question})
        body = json.dumps({"messages": asked, "max_tokens": 1}).encode()
        begun, kind = time.monotonic(), {"Content-Type": "application/json"}
        status, _, answer = server.send("POST", "/v1/chat/completions", body, **kind)
        assert status == 200, answer
        usage = json.loads(answer)["usage"]
        read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        return time.monotonic() - begun, usage["prompt_tokens"], read

    with serving("--context", "49152", "--rope", "theta") as server:
        whole: dict[str, Any] = {"video_url": {"url": f"data:video/mp4;base64,{content}"}}
        server.post("/v1/completions", prompt="Hi", max_tokens=1)
        first, tokens, read = ask(server, "What happens?", uuid="film", **whole)
        assert read == tokens > 35_000
        for name, question, more in (
            ("with its bytes", "Who is there?", whole),
            ("by its uuid", "Where is it?", {"uuid": "film"}),
        ):
            second, again, read = ask(server, question, **more)
            assert read <= again / 100, "all but the last page is found again"
            print(
                f"film: {tokens:,} tokens in {first:.1f} s; {name} {read} tokens in "
                f"{second:.2f} s, {100 * second / first:.2f} %"
            )
