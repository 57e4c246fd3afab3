"""The server: the official client and plain HTTP, over real connections."""

import base64
import gzip
import http.client
import io
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from PIL import Image

from ringworld.errors import InputError
from ringworld.inference.engine import Engine
from ringworld.inference.generate import PAGE, score_texts
from ringworld.inference.pool import count_page_bytes
from ringworld.media.sampling import FrameSampling
from ringworld.serve import events, front, replies
from ringworld.serve.answers import TextWriter
from ringworld.serve.app import PAGE_FOLDER
from ringworld.serve.config import ServeConfig
from ringworld.serve.engine_thread import AnswerPiece, EngineThread
from ringworld.serve.film_codes import FilmCodes, KeptCodes, choose_frames
from ringworld.serve.media_sources import MediaSources, parse_data_url
from ringworld.serve.served import Served
from ringworld.text.load import load_tokenizer
from ringworld.weights.shipped import NANO
from tests.serving import (
    BOOK,
    CONFIG,
    Address,
    Running,
    data_url,
    film,
    listening,
    picture,
    serving,
    user,
    wait_until_idle,
)


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


# --- answers -------------------------------------------------------------------------------------


def test_the_official_client_lists_asks_streams_and_counts(server: Running) -> None:
    client = server.client
    model = client.models.list().data[0]
    assert model.id == "nano" and model.model_dump()["max_model_len"] == 1024
    assert model.model_dump()["drawing"] == {
        "guidance_scale": 2.0,
        "temperature": 1.0,
        "top_k": 0,
        "min_p": 0.05,
    }
    asked = dict(model=model.id, messages=user("What is a city?"), max_tokens=12, seed=1)
    whole = client.chat.completions.create(**asked)
    pieces, usage = "", None
    for chunk in client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        pieces += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert pieces == whole.choices[0].message.content != ""
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert usage.completion_tokens == whole.usage.completion_tokens <= 12
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 5


def test_an_answer_is_what_the_engine_gives_the_same_ids(server: Running) -> None:
    ids = server.served.words.encode("It was the best of")
    _, answer = server.post("/v1/completions", prompt=ids, max_tokens=6, ignore_eos=True)
    scores = server.post(
        "/v1/completions", prompt=ids, max_tokens=6, ignore_eos=True, logprobs=2, n=2
    )[1]
    assert answer["choices"][0]["text"] == scores["choices"][0]["text"]
    assert scores["choices"][0] | {"index": 1} == scores["choices"][1]
    for top, logprob in zip(
        scores["choices"][0]["logprobs"]["top_logprobs"],
        scores["choices"][0]["logprobs"]["token_logprobs"],
        strict=True,
    ):
        assert max(top.values()) == pytest.approx(logprob, abs=1e-6)


def test_echoed_prompts_have_the_scores_of_our_own_scoring(server: Running) -> None:
    rows = np.asarray([server.served.words.encode(BOOK)[i : i + 40] for i in (0, 17)], np.int32)
    model = server.served.model
    expected = score_texts(model.sharded_weights(), rows, model.config)
    _, answer = server.post(
        "/v1/completions", prompt=rows.tolist(), echo=True, max_tokens=1, logprobs=1
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, own in zip(answer["choices"], expected, strict=True):
        said = choice["logprobs"]
        assert len(said["tokens"]) == 41, "one token follows the prompt"
        assert said["token_logprobs"][0] is None
        np.testing.assert_allclose(said["token_logprobs"][1:-1], own, atol=1e-5)
        for token, logprob, top in list(
            zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True)
        )[1:]:
            assert top[token] == pytest.approx(logprob, abs=1e-6)


def test_a_stop_string_ends_an_answer_and_is_not_shown_in_a_stream(server: Running) -> None:
    asked = dict(prompt="It was the", max_tokens=24, ignore_eos=True)
    text = server.post("/v1/completions", **asked)[1]["choices"][0]["text"]
    stop = text[7:10]
    whole = server.post("/v1/completions", **asked, stop=stop)[1]["choices"][0]
    events = server.events("/v1/completions", **asked, stop=[stop])
    assert events.pop() == "[DONE]"
    streamed = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert streamed == whole["text"] == text[: text.index(stop)]
    assert whole["finish_reason"] == "stop"


def test_text_is_never_sent_that_a_stop_string_may_begin_with() -> None:
    words = load_tokenizer(NANO)
    ids = words.encode("one two three four")
    writer = TextWriter(words, ("two four",))
    sent = ""
    for i, token in enumerate(ids):
        sent += writer.add(
            AnswerPiece(0, 0, (token,), (), "stop" if i == len(ids) - 1 else None, None)
        )
        assert not any(sent.endswith("two four"[:n]) for n in range(1, 8)) or i == len(ids) - 1
    assert sent == "one two three four"


def test_samples_with_a_seed_are_the_same_again_and_differ_from_each_other(
    server: Running,
) -> None:
    asked = dict(messages=user("Say something."), n=3, temperature=1.5, seed=5, max_tokens=12)
    first, again = (server.post("/v1/chat/completions", **asked)[1] for _ in range(2))
    said = [choice["message"]["content"] for choice in first["choices"]]
    assert said == [choice["message"]["content"] for choice in again["choices"]]
    assert len({*said}) > 1


def test_a_bias_and_a_frequency_penalty_change_what_is_written(server: Running) -> None:
    asked: Any = dict(prompt="It was the", max_tokens=8, ignore_eos=True)
    [word] = server.served.words.encode(" a")
    biased = server.post("/v1/completions", **asked, logit_bias={str(word): 100})[1]
    assert biased["choices"][0]["text"] == " a" * 8
    mixed = server.post("/v1/completions", **asked, logit_bias={str(word): 9}, frequency_penalty=2)[
        1
    ]
    assert 0 < mixed["choices"][0]["text"].count(" a") < 8
    for bad in ({"x": 1}, {"9999999": 1}, {"5": 101}):
        assert server.post("/v1/completions", **asked, logit_bias=bad)[0] == 400


def test_a_silent_stream_is_kept_alive_by_comments(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    monkeypatch.setattr(events, "KEEP_ALIVE", 0.02)
    monkeypatch.setattr(replies, "PATIENCE", 0.01)
    held = threading.Event()
    blocked = server.thread.call(lambda: held.wait(30))  # the engine stands still
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({"prompt": "Hi", "max_tokens": 1, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    comments = [answer.readline() + answer.readline() for _ in range(3)]
    held.set()
    blocked.result()
    assert all(comment.startswith(b": ") and comment.endswith(b"\n\n") for comment in comments)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_chat_log_probabilities_name_the_chosen_token_and_its_rivals(server: Running) -> None:
    _, answer = server.post(
        "/v1/chat/completions",
        messages=user("What is a city?"),
        max_tokens=4,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
    )
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]  # greedy


CITY = {
    "type": "object",
    "properties": {"on": {"type": "array", "items": {"enum": [1, "x"]}, "maxItems": 2}},
    "required": ["on"],
    "additionalProperties": False,
}


def test_answers_follow_a_schema_and_are_the_same_in_company(server: Running) -> None:
    """Chat and completions, greedy and drawn, together and beside an answer of any form."""
    free = dict(messages=user("What is a city?"), max_tokens=8, temperature=1, seed=1)
    shaped = dict(response_format=json_schema(CITY), max_tokens=120)
    asked = [
        ("/v1/chat/completions", free),
        ("/v1/chat/completions", free | shaped | {"n": 2, "temperature": 1.5}),
        ("/v1/completions", dict(prompt="A city is", ignore_eos=True) | shaped),
    ]

    def say(place: tuple[str, dict[str, Any]]) -> list[str]:
        status, answer = server.post(place[0], **place[1])
        assert status == 200, answer
        return [
            choice["message"]["content"] if "message" in choice else choice["text"]
            for choice in answer["choices"]
        ]

    alone = [say(place) for place in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert [*pool.map(say, asked)] == alone
    for said in alone[1:]:
        for text in said:
            jsonschema.validate(json.loads(text), CITY)
    assert alone[1][0] != alone[1][1]


def test_a_json_object_begins_as_one(server: Running) -> None:
    asked = dict(response_format={"type": "json_object"}, max_tokens=6, temperature=1)
    _, answer = server.post("/v1/completions", prompt="A city is", seed=1, **asked)
    assert answer["choices"][0]["text"].startswith("{")
    follow = server.served.schemas.follow({"type": "object"})
    assert follow(server.served.words.encode(answer["choices"][0]["text"])).any()


def test_tokens_go_there_and_back(server: Running) -> None:
    _, made = server.post("/tokenize", prompt="best of times", add_special_tokens=False)
    assert made["count"] == len(made["tokens"]) and made["max_model_len"] == 1024
    assert server.post("/detokenize", tokens=made["tokens"])[1] == {"prompt": "best of times"}
    shown = server.post("/tokenize", messages=user("Hello"))[1]["tokens"]
    assert shown[0] == server.served.words.bos


# --- pictures and films --------------------------------------------------------------------------


def test_a_film_is_read_once_and_its_times_are_told(server: Running, tmp_path: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": film(tmp_path)}}
    asked = dict(
        messages=user({"type": "text", "text": "Describe the video."}, part),
        max_tokens=8,
        stream_options={"include_usage": True},
    )
    first = [json.loads(e) for e in server.events("/v1/chat/completions", **asked)[:-1]]
    assert first[0]["media"] == [
        {"type": "video", "seconds": [0, 1, 2, 3, 4, 5], "tokens": 6 * 65, "sampled_fps": 1.0}
    ]
    details = first[-1]["usage"]["prompt_tokens_details"]
    assert details["video_frames"] == 6 and details["video_tokens"] == 6 * 65
    again = [json.loads(e) for e in server.events("/v1/chat/completions", **asked)[:-1]]
    usage = again[-1]["usage"]
    whole_pages = usage["prompt_tokens"] // PAGE * PAGE
    assert usage["prompt_tokens_details"]["cached_tokens"] == whole_pages >= PAGE

    def said(events: list[Any]) -> str:
        return "".join(c["delta"].get("content", "") for e in events for c in e["choices"])

    assert said(again) == said(first)


def test_a_film_that_was_named_is_found_again_and_never_another(
    server: Running, tmp_path: Path
) -> None:
    first, other = film(tmp_path, 3), film(tmp_path, 5)

    def ask(url: str | None, uuid: str | None, **headers: str) -> tuple[int, Any]:
        part = {"type": "video_url", "video_url": None if url is None else {"url": url}}
        named = part if uuid is None else {**part, "uuid": uuid}
        asked = {"messages": user({"type": "text", "text": "What?"}, named), "max_tokens": 1}
        status, _, answer = server.ask("POST", "/v1/chat/completions", asked, **headers)
        return status, json.loads(answer)

    def frames(answer: tuple[int, Any]) -> int:
        assert answer[0] == 200, answer
        return answer[1]["usage"]["prompt_tokens_details"]["video_frames"]

    assert ask(None, "holiday")[0] == 400
    assert frames(ask(first, "holiday")) == 3
    again = ask(None, "holiday")
    assert frames(again) == 3
    details = again[1]["usage"]["prompt_tokens_details"]
    assert details["sampled_fps"] == 1.0 and details["video_tokens"] == 3 * 65
    assert frames(ask(other, "holiday")) == 5, "a name with other content is the other content"
    assert frames(ask(None, "holiday")) == 5
    status, told = ask(None, "holiday", Authorization="Bearer another")
    assert status == 400 and told["error"]["param"] == "uuid"
    assert frames(ask(first, None)) == 3
    assert ask(None, None)[0] == 400


def test_a_film_that_is_sent_again_is_not_decoded_from_its_text_again(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read, fetched = film(tmp_path, 7), MediaSources.read, list[str]()

    def count(self: MediaSources, wanted: str) -> bytes:
        fetched.append(wanted)
        return read(self, wanted)

    def ask(**sampling: int) -> Any:
        shown = user({"type": "video_url", "video_url": {"url": url}})
        asked = dict(messages=shown, max_tokens=4, media_io_kwargs={"video": sampling})
        status, answer = server.post("/v1/chat/completions", **asked)
        assert status == 200
        return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]

    monkeypatch.setattr(MediaSources, "read", count)
    first = ask(num_frames=3)
    assert ask(num_frames=3) == first and len(fetched) == 1
    assert ask(num_frames=4)[1] > first[1] and len(fetched) == 2, "other frames were never taken"


def test_a_conversation_is_rendered_while_its_film_is_read(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read, render, rendered = (
        film(tmp_path, 9),
        MediaSources.read,
        front.render_messages,
        Event(),
    )

    def wait(self: MediaSources, wanted: str) -> bytes:
        assert rendered.wait(60), "the film is read before the conversation is rendered"
        return read(self, wanted)

    def tell(*given: Any) -> str:
        rendered.set()
        return render(*given)

    monkeypatch.setattr(MediaSources, "read", wait)
    monkeypatch.setattr(front, "render_messages", tell)
    shown = user({"type": "video_url", "video_url": {"url": url}})
    assert server.post("/v1/chat/completions", messages=shown, max_tokens=1)[0] == 200


def test_the_codes_of_films_left_longest_ago_go_first() -> None:
    def codes(frames: int) -> FilmCodes:
        return FilmCodes(np.zeros((frames, 4), np.int32), (0.0,) * frames, is_film=True)

    kept = KeptCodes(10 * 16)
    for key, frames in ((b"a", 3), (b"b", 4), (b"c", 3)):
        kept.keep(key, codes(frames))
    assert kept.find(b"a") and kept.bytes == kept.room
    kept.keep(b"d", codes(1))
    assert kept.find(b"b") is None and kept.find(b"a") and kept.find(b"c")
    assert (len(kept), kept.bytes, kept.evicted) == (3, 7 * 16, 1)
    kept.keep(b"e", codes(11))
    assert kept.find(b"e") is None and len(kept) == 3
    kept.keep(b"f", codes(10))
    assert (len(kept), kept.bytes, kept.evicted) == (1, 160, 4)


def test_pages_and_codes_share_one_budget(server: Running) -> None:
    """A budget of 20 pages, which the model could use and more."""
    page = count_page_bytes(server.served.config, PAGE, int8=False)
    config = replace(CONFIG, cache_gib=20 * page / (1 << 30), rows=8)
    engine = server.served.open_engine(config)
    most = engine._most * page
    assert config.cache_bytes - page < most + config.code_bytes <= config.cache_bytes
    assert config.code_bytes >= page


def test_the_arguments_of_a_request_say_which_frames_are_taken(
    server: Running, tmp_path: Path
) -> None:
    part = {"type": "video_url", "video_url": {"url": film(tmp_path)}}
    for arguments, frames in (
        ({"media_io_kwargs": {"video": {"num_frames": 3}}}, 3),
        ({"mm_processor_kwargs": {"fps": 0.5}}, 3),
        ({"mm_processor_kwargs": {"video_start": 2, "video_end": 4}}, 2),
    ):
        asked = dict(messages=user(part, {"type": "text", "text": "What?"}), max_tokens=1)
        _, answer = server.post("/v1/chat/completions", **asked, **arguments)
        details = answer["usage"]["prompt_tokens_details"]
        assert details["video_frames"] == frames, arguments


def test_a_refusal_says_which_of_several_media_cannot_be_read(server: Running) -> None:
    good, broken = picture(), "data:image/png;base64,????"
    for urls, words in (
        ((good, broken), "medium 2 of 2: the data: URL is not valid base64"),
        ((broken, good, good), "medium 1 of 3: the data: URL is not valid base64"),
        ((broken,), "the data: URL is not valid base64"),
    ):
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages = user(*parts, {"type": "text", "text": "Which?"})
        status, answer = server.post("/v1/chat/completions", messages=messages, max_tokens=1)
        assert status == 400 and answer["error"]["message"].startswith(words)


def test_a_picture_of_a_conversation_stands_where_it_was_shown(server: Running) -> None:
    shown = {"type": "image_url", "image_url": {"url": picture()}}
    messages = [
        *user({"type": "text", "text": "Look."}, shown),
        {"role": "assistant", "content": "I see."},
        *user("What colour is it?"),
    ]
    status, answer = server.post("/v1/chat/completions", messages=messages, max_tokens=4)
    assert status == 200
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] == 65


def test_pictures_are_drawn_and_a_seed_draws_the_same_again(server: Running) -> None:
    asked = dict(prompt="a red circle", n=2, size="64x64", seed=3)
    status, first = server.post("/v1/images/generations", **asked)
    assert status == 200 and len(first["data"]) == 2
    drawn = Image.open(io.BytesIO(base64.b64decode(first["data"][0]["b64_json"])))
    assert drawn.size == (64, 64) and drawn.format == "PNG"
    assert server.post("/v1/images/generations", **asked)[1]["data"] == first["data"]
    status, refused = server.post("/v1/images/generations", prompt="x", size="512x512")
    assert status == 400 and "64x64" in refused["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/film.mp4",
        "file:///etc/passwd",
        "data:video/mp4;base64,????",
        "data:video/mp4,plain",
        data_url("video/mp4", b"no film at all"),
        data_url("video/mp4", b"ffconcat version 1.0\nfile secret.mp4\n"),
        data_url("video/mp4", b""),
    ],
)
def test_media_that_cannot_be_read_is_a_400_that_tells_nothing_of_the_server(
    server: Running, url: str
) -> None:
    part = {"type": "video_url", "video_url": {"url": url}}
    status, answer = server.post("/v1/chat/completions", messages=user(part), max_tokens=1)
    said = json.dumps(answer)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
    assert not any(word in said for word in ("/tmp", "/home", "0x", "Traceback", "passwd"))


def test_frames_are_chosen_by_the_names_of_other_servers() -> None:
    assert choose_frames(1.0, {"num_frames": 4}, {"video_start": 2}) == FrameSampling(
        num_frames=4, video_start=2.0
    )
    assert choose_frames(2.0, {"num_frames": -1, "backend": "x"}, None) == FrameSampling(fps=2.0)
    with pytest.raises(InputError, match="number"):
        choose_frames(1.0, {"fps": "fast"}, None)
    assert parse_data_url("data:;base64,QUI=") == b"AB"


CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}


# --- limits and errors ---------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_both_numbers(server: Running) -> None:
    status, answer = server.post("/v1/chat/completions", messages=user(BOOK * 3))
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert "1,024" in answer["error"]["message"]
    tokens = len(server.served.words.encode("Hi"))
    _, answer = server.post("/v1/completions", prompt="Hi", max_tokens=2000)
    assert f"{tokens + 1} tokens" in answer["error"]["message"]
    assert "2,000" in answer["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="1,024"):
        server.client.completions.create(model="nano", prompt=BOOK * 4)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": user("x"), "n": 9}, "n"),
        ({"messages": user("x"), "temperature": -1}, "temperature"),
        ({"messages": user("x"), "tools": [{"type": "function"}]}, "tools is not supported"),
        ({"messages": [*user("x"), CALLED]}, "tool_calls is not supported"),
        ({"messages": [*user("x"), {"role": "tool", "content": "3"}]}, "messages.1.role"),
        ({"messages": user({"type": "input_audio"})}, "messages.0.content.0.type: Input should be"),
        ({"messages": user("x"), "modalities": ["text", "audio"]}, "modalities is not supported"),
        ({"messages": user("x"), "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": user("x"), "response_format": {"type": "json_schema"}}, "json_schema"),
        ({"messages": user("x"), "response_format": json_schema({"type": "any"})}, "Invalid type"),
        ({"messages": user("x"), "top_logprobs": 21}, "top_logprobs"),
        ({"messages": user("x"), "stop_token_ids": [99999]}, "99999"),
    ],
)
def test_a_wrong_field_is_named(server: Running, body: dict[str, Any], field: str) -> None:
    status, answer = server.post("/v1/chat/completions", **body)
    assert status == 400 and field in answer["error"]["message"]
    assert {*answer["error"]} == {"message", "type", "param", "code"}


def test_what_is_no_json_or_no_route_or_no_model_is_told_in_the_same_form(
    server: Running,
) -> None:
    for method, path, body, status in (
        ("POST", "/v1/chat/completions", [1], 400),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/v1/completions", {"model": "other", "prompt": "x"}, 404),
        ("GET", "/page/../app.py", None, 404),
    ):
        found, _, answer = server.ask(method, path, body)
        assert found == status, path
        assert json.loads(answer)["error"]["message"]


def test_a_full_queue_is_503_and_says_when_to_come_again(
    engine: tuple[Served, EngineThread],
) -> None:
    config = replace(CONFIG, max_queued_requests=1)
    with listening(config, *engine) as server:
        held = threading.Event()
        blocked = server.thread.call(lambda: held.wait(30))  # the engine stands still
        asked = dict(prompt="Hi", max_tokens=1)
        waiting = threading.Thread(target=server.post, args=("/v1/completions",), kwargs=asked)
        waiting.start()
        while server.thread.queued[0] == 0:
            time.sleep(0.01)
        status, headers, answer = server.ask("POST", "/v1/completions", asked)
        held.set()
        blocked.result()
        waiting.join()
        assert status == 503 and int(headers["retry-after"]) > 0
        assert json.loads(answer)["error"]["code"] == "queue_full"
        assert server.ask("GET", "/health")[0] == 200
        assert server.post("/v1/completions", **asked)[0] == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_engine(server: Running, path: str, stream: bool) -> None:
    for begun in (False, True):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = {"stream": stream, "max_tokens": 900, "ignore_eos": True, "n": 4}
        body |= {"prompt": "Hi"} if path == "/v1/completions" else {"messages": user("Hi")}
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        while begun and server.thread.counters.running < 4:
            time.sleep(0.01)
        connection.close()
        assert wait_until_idle(server)


def begin_stream(server: Address, max_tokens: int) -> http.client.HTTPResponse:
    """A stream of so many tokens, of which the first have come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = {"prompt": "Hi", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    answer.read(50)
    return answer


@pytest.mark.slow
def test_sigterm_lets_answers_end_and_the_exit_code_is_0() -> None:
    with serving() as server:
        answer = begin_stream(server, 1000)
        server.process.send_signal(signal.SIGTERM)
        while server.ask("GET", "/ready")[0] == 200:
            time.sleep(0.01)
        refused = server.ask("POST", "/v1/completions", {"prompt": "Hi"})
        assert refused[0] == 503 and int(refused[1]["retry-after"]) > 0
        assert b"shutting down" in refused[2]
        assert server.ask("GET", "/health")[0] == 200
        events = answer.read().decode().split("\n\n")
        assert events[-2] == "data: [DONE]"
        last = json.loads(events[-3].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0


@pytest.mark.slow
def test_an_answer_that_does_not_end_in_time_is_cut_after_sigterm() -> None:
    with serving("--drain-seconds", "1", "--context", "60000", "--rope", "theta") as server:
        answer = begin_stream(server, 59000)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert server.process.wait(60) == 0
    assert not any("Traceback" in line for line in server.said)


def test_a_step_that_fails_is_a_500_and_the_next_request_is_answered(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Engine) -> bool:
        raise RuntimeError("secret words of /a/path")

    with monkeypatch.context() as broken:
        broken.setattr(Engine, "step", fail)
        status, answer = server.post("/v1/completions", prompt="Hi there", max_tokens=1)
    assert status == 500 and "secret" not in json.dumps(answer)
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text
    assert server.post("/v1/completions", prompt="Hi there", max_tokens=1)[0] == 200


@pytest.mark.parametrize("times", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_failure_ends_only_the_request_that_makes_a_step_fail(
    server: Running, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    plain = [dict(prompt=word, max_tokens=40, ignore_eos=True) for word in ("It was", "He was")]
    expected = [server.post("/v1/completions", **each)[1]["choices"] for each in plain]
    step = Engine.step

    def fail(self: Engine) -> bool:
        rows = [row for row in self._slots if row is not None]
        if any(len(row.prompt) == 9 and row.unread == 0 for row in rows):
            raise RuntimeError("the poisoned one is decoded")
        return step(self)

    monkeypatch.setattr(Engine, "step", fail)
    poisoned = dict(prompt=[5, 6, 7, 8, 9, 10, 11, 12, 13], max_tokens=40)
    for _ in range(times):
        held = threading.Event()
        server.thread.call(partial(held.wait, 30))  # so that all three begin together
        with ThreadPoolExecutor(3) as clients:
            good = [clients.submit(server.events, "/v1/completions", **each) for each in plain]
            bad = clients.submit(server.post, "/v1/completions", **poisoned)
            while server.thread.queued[0] < 3:
                time.sleep(0.01)
            held.set()
            told = [[json.loads(event) for event in each.result()[:-1]] for each in good]
        assert bad.result()[0] == 500
        for events_, choices in zip(told, expected, strict=True):
            assert "".join(event["choices"][0]["text"] for event in events_) == choices[0]["text"]
        assert wait_until_idle(server)


def test_nothing_of_a_prompt_is_logged(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server.post("/v1/completions", prompt="xylophone", max_tokens=1)
    server.post("/v1/completions", prompt="xylophone", max_tokens=-1)
    assert "xylophone" not in caplog.text


# --- who may ask ---------------------------------------------------------------------------------


def test_every_route_but_the_page_and_health_needs_the_key(
    engine: tuple[Served, EngineThread],
) -> None:
    with listening(replace(CONFIG, api_key="open sesame"), *engine) as server:
        for path in ("/v1/models", "/version", "/metrics", "/openapi.json", "/tokenizer_info"):
            assert server.ask("GET", path)[0] == 401, path
            assert server.ask("GET", path, Authorization="Bearer wrong")[0] == 401, path
            assert server.ask("GET", path, Authorization="Bearer open sesame")[0] == 200, path
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            assert server.ask("POST", path, {})[0] == 401, path
        for path in ("/", "/health", "/ready"):
            assert server.ask("GET", path)[0] == 200, path


def test_other_sites_and_other_names_of_this_machine_are_refused(server: Running) -> None:
    assert server.ask("GET", "/v1/models", Host="evil.example")[0] == 403
    asked = {"prompt": "x", "max_tokens": 1}
    assert server.ask("POST", "/v1/completions", asked, Origin="http://evil.example")[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("POST", "/v1/completions", asked, Origin=own)[0] == 200
    for host in ("[::1", "[zz]", "a]b", "evil.example@127.0.0.1", "127.0.0.1/x", "127.0.0.1:a", ""):
        status, _, answer = server.ask("GET", "/v1/models", Host=host)
        assert status == 403 and json.loads(answer)["error"]["type"] == "permission_error", host
    for origin in ("http://[", "", "null", f"{own}/", f"http://evil@127.0.0.1:{server.port}"):
        assert server.ask("POST", "/v1/completions", asked, Origin=origin)[0] == 403, origin
    for host in ("localhost", "LocalHost:1", "127.0.0.1:80", "[::1]:80"):
        assert server.ask("HEAD", "/health", Host=host)[0] == 200, host


HALF = {"role": "user", "content": "\ud800"}


@pytest.mark.parametrize(
    "path, body, said",
    [
        ("chat/completions", {"messages": [HALF]}, "half a character"),
        ("chat/completions", {"messages": [HALF], "stream": True}, "half a character"),
        ("completions", {"prompt": "x", "user": {"\udfff": 1}}, "half a character"),
        ("messages", {"messages": [HALF], "max_tokens": 1}, "half a character"),
        ("responses", {"input": "x", "instructions": "\udc00"}, "half a character"),
        ("completions", b'{"prompt": "x', "the body is not JSON: unterminated string .* 11"),
        ("completions", b'{"prompt": ' + b"[" * 5000, "the body is not JSON that can be read"),
        ("completions", b'{"prompt": ' + b"1" * 5000 + b"}", "not JSON that can be read"),
        ("completions", b'{"prompt": "\xff"}', "not JSON that can be read"),
        ("completions", {"prompt": ["x"] * 129}, "^prompt: List should have at most 128 items"),
        ("completions", {"prompt": []}, "^prompt: List should have at least 1 item"),
        ("completions", {"prompt": None}, "^prompt: Input should be a valid"),
        ("completions", {"prompt": "x", "stop": ["a"] * 17}, "^stop: List should have at most 16"),
    ],
)
def test_a_body_that_is_no_text_or_no_json_is_a_400_that_says_so(
    server: Running, path: str, body: Any, said: str
) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = server.send("POST", f"/v1/{path}", sent)
    assert status == 400 and re.search(said, json.loads(answer)["error"]["message"]), answer
    large = sent[:-1] + b" " * (1 << 20) + sent[-1:]
    assert server.send("POST", f"/v1/{path}", large)[0] == 400, "in a thread too"


def test_a_body_without_the_type_of_json_is_told_so(server: Running) -> None:
    kind = {"Content-Type": "text/plain"}
    status, _, answer = server.send("POST", "/v1/completions", b'{"prompt": "x"}', **kind)
    assert status == 400 and "set Content-Type: application/json" in answer.decode()


@pytest.mark.parametrize("value", ["NaN", "1e400", "1" + "0" * 400, "-Infinity", "2e9"])
@pytest.mark.parametrize("name", ["num_frames", "fps", "video_start"])
def test_sampling_that_is_no_number_of_this_world_is_a_400(
    server: Running, name: str, value: str
) -> None:
    asked = json.dumps({"messages": user("Hi"), "max_tokens": 1})[:-1]
    body = f'{asked}, "mm_processor_kwargs": {{"{name}": {value}}}}}'.encode()
    status, _, answer = server.send("POST", "/v1/chat/completions", body)
    assert status == 400 and f"{name} is not between 0 and" in answer.decode()


def test_an_address_that_others_reach_needs_a_key_or_a_word() -> None:
    with pytest.raises(InputError, match="key"):
        ServeConfig(model=NANO, host="0.0.0.0")
    assert ServeConfig(model=NANO, host="0.0.0.0", api_key="k, l").keys == ("k", "l")
    assert ServeConfig(model=NANO, host="0.0.0.0", insecure=True).keys == ()


def test_a_body_that_is_too_long_is_refused_before_it_is_read(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_the_page_may_load_and_run_nothing_of_elsewhere(server: Running) -> None:
    status, headers, page = server.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    whole = b""
    for name in sorted(path.name for path in PAGE_FOLDER.iterdir()):
        status, headers, content = server.ask("GET", f"/page/{name}")
        assert status == 200 and headers["content-type"].split("/")[0] == "text", name
        whole += content
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", whole)
    assert not re.search(rb"<script>|\son\w+=|style=", page), "the policy would stop it"
    assert len(gzip.compress(whole)) < 60_000


def test_the_page_never_makes_html_of_words() -> None:
    for path in sorted(PAGE_FOLDER.glob("*.js")):
        source = path.read_text(encoding="utf-8")
        if path.name == "report_page.js":  # parses a report without showing it, and builds it anew
            source = source.replace("new DOMParser().parseFromString", "")
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|"
            r"setHTML|DOMParser|location\.(search|hash)",
            source,
        )
        assert len(source.splitlines()) <= 400, path.name
        assert not found, (path.name, found)


def test_metrics_count_what_was_asked_and_answered(server: Running) -> None:
    def value(name: str) -> float:
        lines = server.ask("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [value(name) for name in names]
    asked = dict(prompt=[5, 6, 7], max_tokens=4, ignore_eos=True)
    assert server.post("/v1/completions", **asked)[0] == 200
    assert [value(name) for name in names] == [before[0] + 3, before[1] + 4]
    assert value("vllm:request_success_total") > 0
    assert wait_until_idle(server) and value("vllm:num_requests_running") == 0
    for name in (
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_prompt_tokens_count",
        "vllm:request_generation_tokens_count",
    ):
        assert f'{name}{{model_name="nano"' in server.ask("GET", "/metrics")[2].decode(), name
    codes = value("ringworld:film_codes_bytes")
    shown = user({"type": "image_url", "image_url": {"url": picture(shade=77)}})
    server.post("/v1/chat/completions", messages=shown, max_tokens=1)
    assert value("ringworld:film_codes_bytes") == codes + 4 * 64
