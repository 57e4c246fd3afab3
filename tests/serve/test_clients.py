"""The official clients, unchanged, and the vendors' own OpenAPI files for what the server sends."""

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.serving import BOOK, Running, picture, user
from tests.vendors import find_fault

QUESTION = "What is a city?"


@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{server.port}", api_key="none", max_retries=0
    ) as client:
        yield client


def read_events(server: Running, path: str, **body: Any) -> list[tuple[str | None, Any]]:
    """The names and the objects of a stream."""
    _, _, answer = server.ask("POST", path, {**body, "stream": True})
    found = []
    for block in answer.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if fields.get("data", "[DONE]") != "[DONE]":
            found.append((fields.get("event"), json.loads(fields["data"])))
    return found


def test_anthropics_client_asks_streams_and_counts(
    server: Running, claude: anthropic.Anthropic
) -> None:
    asked: Any = dict(
        model="nano",
        max_tokens=12,
        system="You are brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
    )
    whole = claude.messages.create(**asked)
    counted = claude.messages.count_tokens(**{k: v for k, v in asked.items() if k != "max_tokens"})
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 5
    assert whole.content[0].type == "text" and whole.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(**asked) as stream:
        pieces = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert pieces == whole.content[0].text == final.content[0].text != ""
    assert final.usage.output_tokens == whole.usage.output_tokens <= 12
    assert final.stop_reason == whole.stop_reason
    chat = server.client.chat.completions.create(
        model="nano",
        messages=[{"role": "system", "content": "You are brief."}, *user(QUESTION)],
        max_tokens=12,
    )
    assert chat.choices[0].message.content == pieces, "one internal request stands behind both"


def test_a_stop_sequence_is_named_and_not_shown(claude: anthropic.Anthropic) -> None:
    asked: Any = dict(model="nano", max_tokens=24, messages=user(QUESTION))
    text = claude.messages.create(**asked).content[0].text
    assert len(text) > 3, text
    stop = text[1:3]
    cut = claude.messages.create(**asked, stop_sequences=["never there", stop])
    assert cut.content[0].text == text[: text.index(stop)]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)


def test_a_picture_in_a_block_is_the_picture_of_a_part(
    server: Running, claude: anthropic.Anthropic
) -> None:
    url = picture()
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    asked: Any = [{"type": "image", "source": source}, {"type": "text", "text": "Which colour?"}]
    counted = claude.messages.count_tokens(model="nano", messages=user(*asked))
    _, same = server.post(
        "/v1/chat/completions",
        messages=user({"type": "image_url", "image_url": {"url": url}}, asked[1]),
        max_tokens=1,
    )
    assert counted.input_tokens == same["usage"]["prompt_tokens"] > 65


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (anthropic.NotFoundError, {"model": "other"}),
        (anthropic.BadRequestError, {"tools": [{"name": "x", "input_schema": {}}]}),
        (anthropic.BadRequestError, {"messages": user({"type": "tool_result", "content": "x"})}),
        (anthropic.BadRequestError, {"output_config": {"format": {"type": "xml"}}}),
        (anthropic.BadRequestError, {"messages": [{"role": "assistant", "content": "x"}]}),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": BOOK * 3}]}),
        (anthropic.BadRequestError, {"max_tokens": 0}),
    ],
)
def test_errors_of_messages_have_anthropics_form(
    server: Running, claude: anthropic.Anthropic, error: type[anthropic.APIStatusError], more: Any
) -> None:
    asked = dict(model="nano", max_tokens=1, messages=user(QUESTION)) | more
    with pytest.raises(error):
        claude.messages.create(**asked)
    _, told = server.post("/v1/messages", **asked)
    assert find_fault("anthropic", "ErrorResponse", told) is None


def test_openais_client_gets_a_response_and_its_numbered_events(server: Running) -> None:
    asked: Any = dict(model="nano", input=QUESTION, max_output_tokens=12, instructions="Be brief.")
    client = server.client
    whole = client.responses.create(**asked)
    assert whole.status in ("completed", "incomplete") and whole.store is False
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    last: Any = events[-1]
    assert last.type == f"response.{whole.status}"
    pieces = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert pieces == last.response.output_text == whole.output_text != ""
    assert last.response.usage == whole.usage.model_copy(
        update={"input_tokens_details": last.response.usage.input_tokens_details}
    )
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        whole.output[0].model_dump(),
        {"type": "message", "role": "user", "content": "And a town?"},
    ]
    again = client.responses.create(model="nano", input=items, max_output_tokens=4)
    assert again.usage.input_tokens > whole.usage.input_tokens + 4


def test_a_response_follows_a_schema(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [7]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    shaped: Any = {"type": "json_schema", "name": "it", "schema": schema, "strict": True}
    asked: Any = dict(input=QUESTION, max_output_tokens=40, text={"format": shaped})
    whole = server.client.responses.create(model="nano", **asked)
    assert json.loads(whole.output_text) == {"n": 7}
    _, told = server.post("/v1/responses", **asked)
    assert find_fault("openai", "Response", told) is None


def test_a_message_follows_a_schema(server: Running, claude: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [7]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    shaped: Any = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    asked: Any = dict(model="nano", max_tokens=40, messages=user(QUESTION), output_config=shaped)
    whole = claude.messages.create(**asked)
    assert whole.content[0].type == "text" and json.loads(whole.content[0].text) == {"n": 7}
    with claude.messages.stream(**asked) as stream:
        assert json.loads("".join(stream.text_stream)) == {"n": 7}
    _, told = server.post("/v1/messages", **asked)
    assert find_fault("anthropic", "Message", told) is None
    shaped["format"]["schema"] = {"type": "any"}
    with pytest.raises(anthropic.BadRequestError, match="cannot be followed"):
        claude.messages.create(**asked)


@pytest.mark.parametrize(
    "more", [{"previous_response_id": "resp_1"}, {"background": True}, {"truncation": "auto"}]
)
def test_a_response_that_would_be_another_than_asked_for_is_refused(
    server: Running, more: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(more))):
        server.client.responses.create(model="nano", input="x", **more)


# --- the vendors' files --------------------------------------------------------------------------

SCORED = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("vendor", "schema", "path", "body"),
    [
        (
            "openai",
            "CreateChatCompletionResponse",
            "/v1/chat/completions",
            {"messages": user(QUESTION), "n": 2, "logprobs": True, "top_logprobs": 2},
        ),
        ("openai", "CreateCompletionResponse", "/v1/completions", {"prompt": "Hi", "logprobs": 2}),
        (
            "openai",
            "Response",
            "/v1/responses",
            {"input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        ),
        ("anthropic", "Message", "/v1/messages", {"model": "nano", "messages": user(QUESTION)}),
        ("openai", "ImagesResponse", "/v1/images/generations", {"prompt": "a red circle"}),
        (
            "anthropic",
            "CountMessageTokensResponse",
            "/v1/messages/count_tokens",
            {"model": "nano", "messages": user(QUESTION)},
        ),
    ],
)
def test_answers_keep_the_vendors_schemas(
    server: Running, vendor: str, schema: str, path: str, body: dict[str, Any]
) -> None:
    status, answer = server.post(path, **body, max_tokens=4, max_output_tokens=4)
    assert status == 200, answer
    assert find_fault(vendor, schema, answer) is None


@pytest.mark.parametrize(
    ("vendor", "schema", "path", "body"),
    [
        (
            "openai",
            "CreateChatCompletionStreamResponse",
            "/v1/chat/completions",
            {"messages": user(QUESTION), **SCORED},
        ),
        ("openai", "CreateCompletionResponse", "/v1/completions", {"prompt": "Hi", "logprobs": 2}),
        (
            "openai",
            "ResponseStreamEvent",
            "/v1/responses",
            {"input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        ),
        (
            "anthropic",
            "MessageStreamEvent",
            "/v1/messages",
            {"model": "nano", "messages": user(QUESTION)},
        ),
    ],
)
def test_events_keep_the_vendors_schemas(
    server: Running, vendor: str, schema: str, path: str, body: dict[str, Any]
) -> None:
    events = read_events(server, path, **body, max_tokens=4, max_output_tokens=4)
    assert events
    for name, event in events:
        assert name == event.get("type"), "the name of an event is its type"
        if schema == "CreateCompletionResponse":
            # OpenAI sends null until the end, which its file does not say.
            for choice in event["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        kind = schema
        if schema == "ResponseStreamEvent":  # a name of its own tells what is wrong
            words = event["type"].removeprefix("response.").removeprefix("output_text.")
            kind = "".join(word.title() for word in re.split(r"[._]", words))
            kind = f"Response{'Text' if 'output_text' in event['type'] else ''}{kind}Event"
        assert find_fault(vendor, kind, event) is None


def test_models_and_errors_keep_the_vendors_schemas(server: Running) -> None:
    models = json.loads(server.ask("GET", "/v1/models")[2])
    assert find_fault("openai", "ListModelsResponse", models) is None
    one = json.loads(server.ask("GET", "/v1/models/nano")[2])
    assert find_fault("openai", "Model", one) is None
    for path, body in (
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": "x", "model": "other"}),
        ("/v1/nothing", {}),
    ):
        assert find_fault("openai", "ErrorResponse", server.post(path, **body)[1]) is None


def test_the_validators_find_faults() -> None:
    assert find_fault("anthropic", "Message", {"type": "message"}) is not None
    assert find_fault("openai", "Model", {"id": 1, "object": "model"}) is not None
