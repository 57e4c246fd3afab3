"""What an OpenAI-compatible endpoint says, read without trusting it: replies, errors, pauses."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Reply:
    """What a model said: its text, why it ended, and the tokens that the endpoint counted."""

    content: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    counted: bool
    """whether the endpoint counted; else all tokens are our estimate, as if of the prompt"""


def read_reply(body: bytes, estimate: int) -> Reply | None:
    """The reply in the JSON of a chat completion; None when it is none."""
    try:
        said = json.loads(body)
        choice = said["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
        usage = said.get("usage") or {}
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(content, str | None) or not isinstance(finish, str | None):
        return None
    if _is_count(prompt) and _is_count(completion):
        return Reply(content or "", finish or "", prompt, completion, True)
    return Reply(content or "", finish or "", estimate, 0, False)


def _is_count(number: Any) -> TypeGuard[int]:
    return type(number) is int and 0 <= number < 10**9


def error_code(body: bytes) -> str:
    """The `code` of an OpenAI error body, or the parameter that it is about, or ""."""
    try:
        error = json.loads(body)["error"]
        named = [error.get(name) for name in ("code", "param")]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    codes = (code for code in named if isinstance(code, str))
    return next((code for code in codes if re.fullmatch(r"[\w.]{1,64}", code)), "")


def retry_after(said: str, now: float) -> float | None:
    """The seconds that a Retry-After asks for, as a number or as a date; None when it says none."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", said.strip(), re.ASCII):
        return float(said)
    with suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(said).timestamp() - now, 0.0)
    return None
