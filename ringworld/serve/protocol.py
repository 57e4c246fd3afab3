"""The bodies of requests, as OpenAI and vLLM name their fields; every number has a bound.

A field that is not listed is ignored. One that is listed and asks for what the server cannot do is
refused by `refuse_unsupported`, so that no answer is quietly another than the one asked for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ringworld.errors import InputError
from ringworld.inference.programs import MOST_ALTERNATIVES
from ringworld.inference.request import MOST_BIASED
from ringworld.settings import DRAWING, GUIDANCE, Sampling
from ringworld.tasks.clips import FRAMES_A_CLIP

MOST_ANSWERS = 8
MOST_PROMPTS = 128
MOST_MESSAGES = 1000
MOST_PARTS = 1024
MOST_TOKENS = 1 << 26  # far beyond any context, which refuses with both numbers
LONGEST_STOP = 64
MOST_STOPS = 16

Alternatives = Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)]
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
TokenName = Annotated[str, Field(max_length=10)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# What other servers do and this one does not: fields whose value must be one of these.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "suffix": (None, ""),
    "min_tokens": (None, 0),
    "prompt_logprobs": (None,),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
}
# The same of a message.
UNSUPPORTED_IN_MESSAGES: dict[str, tuple[object, ...]] = {
    "tool_calls": (None, []),
    "function_call": (None,),
    "audio": (None,),
}


class Body(BaseModel):
    """A JSON object; NaN and infinity are no numbers, and fields that are not listed are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    def refuse_unsupported(self, fields: Mapping[str, tuple[object, ...]] = UNSUPPORTED) -> None:
        """Raise InputError, which names the field, when the server cannot do what it asks."""
        given = self.model_extra or {}
        for name, harmless in fields.items():
            if name in given and given[name] not in harmless:
                raise InputError(f"{name} is not supported: leave it out", setting=name)


class StreamOptions(Body):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class SchemaBody(Body):
    """A JSON schema, as OpenAI wraps it."""

    wanted: dict[str, Any] = Field(alias="schema")


class FormatBody(Body):
    """The form of an answer: any text, a JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that an answer follows, None for any text.

        Raises InputError when it is missing.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise InputError("the type json_schema needs json_schema: add it")
        return self.json_schema.wanted


class SamplingBody(Body):
    """How an answer is written; what chat and completions have in common."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 30)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenName, Bias] | None = Field(None, max_length=MOST_BIASED)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MOST_STOPS)
    ignore_eos: bool = False
    response_format: FormatBody | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    cache_salt: str | None = Field(None, max_length=256)

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Ids with what is added to their logits. Raises InputError for what is no id."""
        given = self.logit_bias or {}
        if not all(token.isascii() and token.isdecimal() for token in given):
            raise InputError("the names in logit_bias are token ids", setting="logit_bias")
        return tuple((int(token), more) for token, more in given.items())

    def choose_sampling(self, own: Sampling) -> Sampling:
        """The model's own sampling with what was asked for in its place."""

        def pick(name: str) -> float:
            asked = getattr(self, name)
            return getattr(own, name) if asked is None else asked

        top_k = own.top_k if self.top_k is None else max(self.top_k, 0)
        return Sampling(
            temperature=pick("temperature"),
            top_k=top_k,
            top_p=pick("top_p"),
            min_p=pick("min_p"),
            repetition_penalty=pick("repetition_penalty"),
            presence_penalty=pick("presence_penalty"),
            frequency_penalty=pick("frequency_penalty"),
        )


class UrlBody(Body):
    """Where the content of a part is; nowhere when its `uuid` says which it is."""

    url: str | None = None


class PartBody(Body):
    """A part of a message: text, a picture or a film, with a name that the client gives it."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: UrlBody | None = None
    video_url: UrlBody | None = None
    uuid: str | None = Field(None, min_length=1, max_length=256)


class MessageBody(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[PartBody], Field(max_length=MOST_PARTS)] | None = None

    @property
    def parts(self) -> list[PartBody]:
        """The content as parts."""
        if isinstance(self.content, list):
            return self.content
        return [PartBody(type="text", text=self.content or "")]


class ChatBody(SamplingBody):
    """The body of /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    def refuse_unsupported(self, fields: Mapping[str, tuple[object, ...]] = UNSUPPORTED) -> None:
        """Raise InputError, which names the field, for what the server cannot do."""
        super().refuse_unsupported(fields)
        for message in self.messages:
            message.refuse_unsupported(UNSUPPORTED_IN_MESSAGES)

    @property
    def longest(self) -> int | None:
        """The longest answer in tokens, None when it is not said."""
        asked = self.max_completion_tokens
        return self.max_tokens if asked is None else asked

    @property
    def alternatives(self) -> int | None:
        """How many alternatives each token's log-probability has, None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(SamplingBody):
    """The body of /v1/completions."""

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_PROMPTS),
        ]
    )
    echo: bool = False
    logprobs: Alternatives | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [each for each in self.prompt if isinstance(each, str | list)]


class TokenizeBody(Body):
    """The body of /tokenize: a text, or messages as the chat template shows them."""

    prompt: str | None = None
    messages: list[MessageBody] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """The body of /detokenize."""

    tokens: list[TokenId]


class DrawingBody(Body):
    """What is drawn and how: the fields that pictures and clips have in common."""

    prompt: str = Field(min_length=1, max_length=32_000)
    model: str | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    guidance_scale: float = Field(GUIDANCE, ge=0, le=100)
    temperature: float = Field(DRAWING.temperature, ge=0, le=100)
    top_k: int = Field(DRAWING.top_k, ge=0, le=1 << 30)
    min_p: float = Field(DRAWING.min_p, ge=0, le=1)


class ImageBody(DrawingBody):
    """The body of /v1/images/generations."""

    n: int = Field(1, ge=1, le=4)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None


class ClipBody(DrawingBody):
    """The body of /draw."""

    frames: int = Field(FRAMES_A_CLIP, ge=1, le=1024)
