"""/v1/messages: Anthropic's API over the one internal request, a conversation.

A body becomes a `ChatBody`, and the answer a message with one block of text.
"""

from collections.abc import Iterator
from secrets import token_hex
from typing import Annotated, Any, Literal

from pydantic import Field

from ringworld.errors import InputError
from ringworld.serve.answers import JSON, AnswerChoice, Answers, ChatWriter
from ringworld.serve.engine_thread import Update
from ringworld.serve.front import Asked, Front
from ringworld.serve.protocol import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_STOPS,
    MOST_TOKENS,
    Body,
    ChatBody,
    FormatBody,
    MessageBody,
    PartBody,
    SchemaBody,
    StopString,
    UrlBody,
)
from ringworld.serve.refusals import explain_error
from ringworld.serve.replies import ApiReply

# What Anthropic's API does and this server does not: fields whose value must be one of these.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "thinking": (None, {"type": "disabled"}),
    "output_format": (None,),
    "mcp_servers": (None, []),
    "container": (None,),
}


class SourceBody(Body):
    """Where the content of a picture is: in base64, or at an address."""

    type: Literal["base64", "url"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"] | None = None
    data: str | None = None
    url: str | None = None

    @property
    def address(self) -> str:
        """The content as a URL. Raises InputError when it is not there."""
        if self.type == "url" and self.url is not None:
            return self.url
        if self.type == "base64" and self.data is not None and self.media_type is not None:
            return f"data:{self.media_type};base64,{self.data}"
        raise InputError("a source in base64 needs media_type and data, and another needs url")


class BlockBody(Body):
    """A block of a message: text or a picture."""

    type: Literal["text", "image"]
    text: str | None = None
    source: SourceBody | None = None

    def as_part(self) -> PartBody:
        """The same as a part of a conversation. Raises InputError when its content is missing."""
        if self.type == "text":
            return PartBody(type="text", text=self.text)
        if self.source is None:
            raise InputError("a block of the type image needs source: add it", setting="source")
        return PartBody(type="image_url", image_url=UrlBody(url=self.source.address))


Blocks = Annotated[list[BlockBody], Field(max_length=MOST_PARTS)]


class TurnBody(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class CountBody(Body):
    """The body of /v1/messages/count_tokens."""

    model: str
    messages: list[TurnBody] = Field(min_length=1, max_length=MOST_MESSAGES - 1)
    system: str | Blocks | None = None

    def as_chat(self, **more: Any) -> ChatBody:
        """The same as a conversation, with more fields.

        Raises InputError, which names the field, for what the server cannot do.
        """
        self.refuse_unsupported(UNSUPPORTED)
        if self.messages[-1].role == "assistant":
            raise InputError("the last message has to be the user's", setting="messages")
        system = [] if self.system is None else [_as_message("system", self.system)]
        turns = [_as_message(turn.role, turn.content) for turn in self.messages]
        return ChatBody(model=self.model, messages=[*system, *turns], **more)


class OutputFormatBody(Body):
    """The form of an answer: JSON that a schema allows."""

    type: Literal["json_schema"]
    wanted: dict[str, Any] = Field(alias="schema")

    def as_format(self) -> FormatBody:
        """The same for a conversation."""
        wanted = SchemaBody.model_validate({"schema": self.wanted})
        return FormatBody(type=self.type, json_schema=wanted)


class OutputBody(Body):
    """How an answer is to be; an `effort` changes nothing here."""

    format: OutputFormatBody | None = None


class MessagesBody(CountBody):
    """The body of /v1/messages."""

    max_tokens: int = Field(ge=1, le=MOST_TOKENS)
    stop_sequences: list[StopString] | None = Field(None, max_length=MOST_STOPS)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 30)
    stream: bool = False
    output_config: OutputBody | None = None

    def as_chat(self, **more: Any) -> ChatBody:
        """The same as a conversation."""
        shaped = self.output_config.format if self.output_config else None
        return super().as_chat(
            response_format=shaped.as_format() if shaped else None,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stream=self.stream,
            **more,
        )


def _as_message(role: Literal["system", "user", "assistant"], content: str | Blocks) -> MessageBody:
    if isinstance(content, str):
        return MessageBody(role=role, content=content)
    return MessageBody(role=role, content=[block.as_part() for block in content])


class MessageReply(ApiReply):
    """The answer as a message, or as the events that build one."""

    named = True

    def __init__(self, front: Front, body: ChatBody) -> None:
        super().__init__(front)
        self._stops, self._id = body.stops, f"msg_{token_hex(12)}"

    def failure(self, error: Exception) -> JSON:
        """The event that ends a stream which has failed."""
        return explain_error(error).anthropic()

    def _open(self, asked: Asked) -> Answers:
        return Answers([ChatWriter(self._words, self._stops)], 1)

    def _complete(self, asked: Asked, answers: Answers, last: Update | None) -> JSON:
        text = {"type": "text", "text": answers.choices[0].text, "citations": None}
        return self._message(_usage(asked, answers)) | {"content": [text]} | _ending(answers)

    def _begin(self, asked: Asked) -> Iterator[JSON]:
        yield {"type": "message_start", "message": self._message(_usage(asked, None))}
        block = {"type": "text", "text": "", "citations": None}
        yield {"type": "content_block_start", "index": 0, "content_block": block}

    def _gain(self, choice: AnswerChoice) -> Iterator[JSON]:
        if choice.text:
            delta = {"type": "text_delta", "text": choice.text}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}

    def _end(self, asked: Asked, answers: Answers) -> Iterator[JSON]:
        yield {"type": "content_block_stop", "index": 0}
        counted = ("cache_creation", "inference_geo", "service_tier")
        usage = {k: v for k, v in _usage(asked, answers).items() if k not in counted}
        yield {"type": "message_delta", "delta": _ending(answers), "usage": usage}
        yield {"type": "message_stop"}

    def _message(self, usage: JSON) -> JSON:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._front.config.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": usage,
        }


def _ending(answers: Answers) -> JSON:
    choice = answers.choices[0]
    why = "stop_sequence" if choice.stop else "max_tokens" if choice.finish == "length" else None
    return {
        "stop_reason": why or "end_turn",
        "stop_sequence": choice.stop,
        "stop_details": None,
        "container": None,
    }


def _usage(asked: Asked, answers: Answers | None) -> JSON:
    """Tokens that were read of kept pages count apart from those of the prompt."""
    reused = 0 if answers is None else answers.reused
    return {
        "input_tokens": asked.prompt_tokens - reused,
        "cache_read_input_tokens": reused,
        "cache_creation_input_tokens": 0,
        "cache_creation": None,
        "output_tokens": 0 if answers is None else answers.tokens,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
        "inference_geo": None,
    }
