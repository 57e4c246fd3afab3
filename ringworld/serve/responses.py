"""/v1/responses: OpenAI's newer API over the one internal request. Nothing is stored.

A body becomes a `ChatBody`, and the answer a response with one message.
"""

import time
from collections.abc import Iterator
from secrets import token_hex
from typing import Annotated, Any, Literal

from pydantic import Field

from ringworld.errors import InputError
from ringworld.serve.answers import JSON, AnswerChoice, Answers, ChatWriter, chat_logprobs
from ringworld.serve.engine_thread import Update
from ringworld.serve.front import Asked, Front
from ringworld.serve.protocol import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOKENS,
    Alternatives,
    Body,
    ChatBody,
    FormatBody,
    MessageBody,
    PartBody,
    SchemaBody,
    UrlBody,
)
from ringworld.serve.refusals import explain_error
from ringworld.serve.replies import ApiReply, tell_usage

# What OpenAI's API does and this server does not: fields whose value must be one of these.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "tools": (None, []),
    "truncation": (None, "disabled"),
}
LOGPROBS = "message.output_text.logprobs"


class ContentBody(Body):
    """A part of an item: text of either side, or a picture."""

    type: Literal["input_text", "output_text", "input_image"]
    text: str | None = None
    image_url: str | None = None

    def as_part(self) -> PartBody:
        """The same as a part of a conversation. Raises InputError when its content is missing."""
        if self.type != "input_image":
            return PartBody(type="text", text=self.text)
        if self.image_url is None:
            raise InputError("a part of the type input_image needs image_url: add it")
        return PartBody(type="image_url", image_url=UrlBody(url=self.image_url))


class ItemBody(Body):
    """One message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentBody], Field(max_length=MOST_PARTS)]

    def as_message(self) -> MessageBody:
        """The same as a message of a conversation."""
        if isinstance(self.content, str):
            return MessageBody(role=self.role, content=self.content)
        return MessageBody(role=self.role, content=[part.as_part() for part in self.content])


class FormatChoice(Body):
    """The form of an answer, as `protocol.FormatBody` with the schema in the open."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    wanted: dict[str, Any] | None = Field(None, alias="schema")

    def as_format(self) -> FormatBody:
        """The same for a conversation."""
        told = self.wanted
        wanted = None if told is None else SchemaBody.model_validate({"schema": told})
        return FormatBody(type=self.type, json_schema=wanted)


class TextBody(Body):
    """What kind of text is asked for."""

    format: FormatChoice = Field(default_factory=FormatChoice)


class ResponsesBody(Body):
    """The body of /v1/responses."""

    model: str | None = None
    input: str | Annotated[list[ItemBody], Field(min_length=1, max_length=MOST_MESSAGES - 1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    include: list[str] | None = Field(None, max_length=16)
    top_logprobs: Alternatives | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    text: TextBody = Field(default_factory=TextBody)
    stream: bool = False

    def as_chat(self) -> ChatBody:
        """The same as a conversation.

        Raises InputError, which names the field, for what the server cannot do.
        """
        self.refuse_unsupported(UNSUPPORTED)
        told = self.instructions
        messages = [] if told is None else [MessageBody(role="system", content=told)]
        if isinstance(self.input, str):
            messages.append(MessageBody(role="user", content=self.input))
        else:
            messages += [item.as_message() for item in self.input]
        return ChatBody(
            model=self.model,
            messages=messages,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=LOGPROBS in (self.include or []),
            top_logprobs=self.top_logprobs,
            response_format=self.text.format.as_format(),
            stream=self.stream,
        )


class ResponseReply(ApiReply):
    """The answer as a response, or as the numbered events that build one."""

    named = True

    def __init__(self, front: Front, body: ResponsesBody, chat: ChatBody) -> None:
        super().__init__(front)
        self._body, self._scored = body, chat.alternatives is not None
        self._sampling = chat.choose_sampling(front.served.sampling)
        self._id, self._item = f"resp_{token_hex(12)}", f"msg_{token_hex(12)}"
        self._created, self._told = int(time.time()), 0
        self._place = {"item_id": self._item, "output_index": 0, "content_index": 0}

    def failure(self, error: Exception) -> JSON:
        """The event that ends a stream which has failed."""
        told = explain_error(error)
        return self._event("error", code=told.code, message=told.sentence, param=told.setting)

    def _open(self, asked: Asked) -> Answers:
        return Answers([ChatWriter(self._words, ())], 1)

    def _complete(self, asked: Asked, answers: Answers, last: Update | None) -> JSON:
        choice = answers.choices[0]
        status = "incomplete" if choice.finish == "length" else "completed"
        return self._response(status) | {
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "output": [self._message(choice, status)],
            "usage": _usage(asked, answers),
        }

    def _begin(self, asked: Asked) -> Iterator[JSON]:
        empty = AnswerChoice(0)
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        item = self._message(empty, "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        part = self._part(empty)
        yield self._event("response.content_part.added", **self._place, part=part)

    def _gain(self, choice: AnswerChoice) -> Iterator[JSON]:
        if choice.text or choice.scores:
            more = {"delta": choice.text, "logprobs": self._logprobs(choice)}
            yield self._event("response.output_text.delta", **self._place, **more)

    def _end(self, asked: Asked, answers: Answers) -> Iterator[JSON]:
        whole = self._complete(asked, answers, None)
        item = whole["output"][0]
        part = item["content"][0]
        said = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place, **said)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _event(self, kind: str, **fields: Any) -> JSON:
        number, self._told = self._told, self._told + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _logprobs(self, choice: AnswerChoice) -> list[JSON]:
        return chat_logprobs(choice, self._front.speller)["content"] if self._scored else []

    def _part(self, choice: AnswerChoice) -> JSON:
        found = self._logprobs(choice)
        return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": found}

    def _message(self, choice: AnswerChoice, status: str) -> JSON:
        head = {"id": self._item, "type": "message", "role": "assistant", "status": status}
        return head | {"content": [self._part(choice)]}

    def _response(self, status: str) -> JSON:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._front.config.name,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self._sampling.temperature,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self._sampling.top_p,
            "truncation": "disabled",
        }


def _usage(asked: Asked, answers: Answers) -> JSON:
    told = tell_usage(asked, answers)
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": told["prompt_tokens_details"],
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told["total_tokens"],
    }
