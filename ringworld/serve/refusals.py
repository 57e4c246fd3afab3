"""Why a request is not answered, and how each API tells it: OpenAI's form and Anthropic's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ringworld.errors import InputError, TooLargeError

# Seconds after which a client that was refused for the queue may ask again.
RETRY_AFTER = 5
WAITING = "as many requests wait as the server lets wait: try again later"
# What a client that has gone away is told, in nginx's way.
CLIENT_GONE = 499
# A field's name or its place in a list, but not the name of a type that pydantic puts between.
FIELD, TYPES = re.compile(r"\w+"), ("str", "int", "float", "bool")
# How the kinds of pydantic's errors end that say that a value is of another type.
OTHER_TYPES = ("_type", "_parsing")
# Paths whose errors have Anthropic's form.
MESSAGES = "/v1/messages"
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
ANTHROPIC_TYPES = OPENAI_TYPES | {429: "rate_limit_error", 503: "overloaded_error"}


class BusyError(Exception):
    """As much waits already as the server lets wait; the text may say of what."""


class UnknownModelError(Exception):
    """A request names a model that is not served."""


class EngineFailedError(Exception):
    """The engine failed while a request ran, and was started anew."""


class GoneError(Exception):
    """The client has closed the connection."""


class NotFoundError(Exception):
    """What a path names is not there; the text is a sentence for the client."""


@dataclass(frozen=True)
class HttpRefusal:
    """A status of HTTP with a sentence; `setting` names the field that has to change."""

    status: int
    sentence: str
    code: str | None = None
    setting: str | None = None
    retry_after: int | None = None

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = OPENAI_TYPES.get(self.status, kind)
        error = {"message": self.sentence, "type": kind, "param": self.setting, "code": self.code}
        return {"error": error}

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's form."""
        kind = "invalid_request_error" if self.status < 500 else "api_error"
        kind = ANTHROPIC_TYPES.get(self.status, kind)
        error = {"type": kind, "message": self.sentence}
        return {"type": "error", "error": error, "request_id": None}

    def respond(self, path: str) -> JSONResponse:
        """The answer of a path, in the form of its API."""
        body = self.anthropic() if path.startswith(MESSAGES) else self.openai()
        again = self.retry_after
        headers = None if again is None else {"Retry-After": str(again)}
        return JSONResponse(body, self.status, headers)


def explain_error(error: Exception) -> HttpRefusal:
    """Why an error ended a request. One that nobody foresaw is told without its text."""
    match error:
        case TooLargeError():
            return HttpRefusal(400, str(error), "context_length_exceeded", error.setting)
        case InputError():
            return HttpRefusal(400, str(error), setting=error.setting)
        case BusyError():
            sentence = str(error) or WAITING
            return HttpRefusal(503, sentence, "queue_full", retry_after=RETRY_AFTER)
        case UnknownModelError():
            sentence = "this server has no model of that name: GET /v1/models lists it"
            return HttpRefusal(404, sentence, "model_not_found", "model")
        case NotFoundError():
            return HttpRefusal(404, str(error))
        case EngineFailedError():
            return HttpRefusal(
                500, "the engine failed and was started anew: send the request again"
            )
        case RequestValidationError():
            return _explain_fields(error)
        case HTTPException():
            return HttpRefusal(error.status_code, str(error.detail))
        case GoneError():
            return HttpRefusal(CLIENT_GONE, "the client has closed the connection")
    return HttpRefusal(500, "the server failed: try again")


def _explain_fields(error: RequestValidationError) -> HttpRefusal:
    """The field that is wrong, and why.

    Of one that may have several types, that is meant which fits but for its value, or else the one
    that fits furthest.
    """

    def fit(each: Mapping[str, Any]) -> tuple[bool, int]:
        return not each["type"].endswith(OTHER_TYPES), len(each["loc"])

    first = max(error.errors(), key=fit)
    if isinstance(first["input"], bytes):
        return HttpRefusal(400, "the body is not sent as JSON: set Content-Type: application/json")
    parts = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(part for part in parts if FIELD.fullmatch(part) and part not in TYPES)
    return HttpRefusal(400, f"{place or 'the body'}: {first['msg']}", setting=place or None)


EXPLAINED = (
    InputError,
    BusyError,
    UnknownModelError,
    NotFoundError,
    EngineFailedError,
    GoneError,
    RequestValidationError,
    HTTPException,
)


def openai_failure(error: Exception) -> dict[str, Any]:
    """The event of a stream that an error ends, in OpenAI's form."""
    return explain_error(error).openai()
