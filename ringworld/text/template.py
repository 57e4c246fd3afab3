"""Chat templates: messages to the one text that a model was taught to answer.

A template is data from a model's folder, and a program in Jinja's language. It is rendered in a
process of its own with little memory, a clock and nothing to reach (see `renderer`), so a hostile
one can end that process and nothing else. What comes back equals `apply_chat_template` of
transformers on the same messages.

Our own forms are templates too: LWM's chat, and the needle question that its models know from
training. Where a film or a picture stands, the text has
`IMAGE_PLACEHOLDER`, and codes take its place.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringworld.errors import InputError

RENDERER = Path(__file__).with_name("renderer.py")
# LWM's words: how every conversation begins, and what it adds to the question for a needle.
DESCRIBE = "Describe the video."
DESCRIBE_IMAGE = "Describe the image."
SYSTEM = "You are a helpful assistant."
ANSWER_RULES = (
    "Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct."
)
# One noncharacter of Unicode: no text of a person has it.
IMAGE_PLACEHOLDER = "\ufdd0"

Message = Mapping[str, Any]  # "role", and "content" or what else the template reads


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """How much a template may cost: its own characters, those it may add, memory, time.

    `seconds` are of the processor, the start of the process among them (0.2); `patience` of the
    clock, on a machine that does other things too.
    """

    template: int = 64 << 10
    characters: int = 1 << 20
    memory: int = 512 << 20
    seconds: int = 2
    patience: float = 20.0


LIMITS = TemplateLimits()
# So many seconds after a text the next renderer is started. At once it would take a core of two
# from the model, which reads the text: as long as a start is spared.
REFILL_S = 0.5
_LWM = (
    "{{ bos_token }}" + SYSTEM + "{% for message in messages %}"
    "{% if message.role == 'assistant' %} ASSISTANT: {{ message.content }}{{ eos_token }}"
    "{% else %} USER: {{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_NEEDLE = (
    "{{ bos_token }}" + SYSTEM + "{% for message in messages %}"
    "{% if message.role == 'assistant' %} ASSISTANT: {{ message.content }}{{ eos_token }}"
    "{% else %} USER: {{ message.content }}"
    "{% if loop.first %} " + ANSWER_RULES + "{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT: {% endif %}"
)


def _draw(what: str) -> str:
    wish = "{{ messages[-1].content }}"
    return f"{{{{ bos_token }}}}{SYSTEM} USER: Generate {what} of {wish} ASSISTANT: "


# By name: a talk, with or without a film in it; a question about a book, as needles are asked; and
# the wishes for a picture and for a film, behind which `<vision>` comes next.
FORMS = {
    "lwm": _LWM,
    "needle": _NEEDLE,
    "image": _draw("an image"),
    "video": _draw("a video"),
}
SENTENCES = {
    "unsafe": "reaches for what a template must not have",
    "syntax": "is not Jinja",
    "long": "writes too much",
    "memory": "needs too much memory",
    "time": "runs too long",
    "failed": "cannot render these messages",
}


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    limits: TemplateLimits = LIMITS,
    **more: Any,
) -> str:
    """The messages as the text that the model reads, special tokens spelled.

    `more` is what else the template asks for, such as `tools`. Raises InputError when the template
    refuses the messages, is no template, reaches out of its sandbox or exceeds a limit.
    """
    if len(template) > limits.template:
        raise InputError(
            f"the chat template has {len(template):,} characters and {limits.template:,} are "
            "allowed: use another, such as lwm",
            setting="template",
        )
    context = {
        **more,
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    size = len(json.dumps(context))
    # A template may show what it is given a few times over; a long book takes its own room.
    bounds = {
        "characters": limits.characters + 4 * size,
        "memory": limits.memory + 32 * size,
        "seconds": limits.seconds + size // 10_000_000,
    }
    request = json.dumps({"limits": bounds, "template": template, "context": context})
    answer = _ask(request, limits.patience)
    if "text" in answer:
        return answer["text"]
    said = "".join(c for c in answer.get("said", "") if c.isprintable())[:200]
    if answer["fault"] == "refused":
        raise InputError(f"the chat template refuses these messages: {said or 'it does not say'}")
    sentence = SENTENCES.get(answer["fault"], SENTENCES["failed"]) + (f" ({said})" if said else "")
    raise InputError(f"the chat template {sentence}: use another, such as lwm", setting="template")


def _ask(request: str, patience: float) -> dict[str, str]:
    """What a confined process answers; "time" when it had to be ended."""
    process = RENDERERS.take()
    try:
        said, _ = process.communicate(request.encode(), patience)
    except subprocess.TimeoutExpired:
        return {"fault": "time"}
    finally:
        _end(process)
        RENDERERS.refill()
    try:
        answer = json.loads(said)
    except ValueError:
        return {"fault": "time" if process.returncode < 0 else "failed"}
    return answer if isinstance(answer, dict) else {"fault": "failed"}


class StartedRenderers:
    """Renderers that are started before they are asked, each for one request.

    Of requests that come after a pause none waits for a start: 60 ms, and 200 on a slow machine.
    """

    def __init__(self) -> None:
        """None is started yet."""
        self._waiting: subprocess.Popen[bytes] | None = None
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def take(self) -> "subprocess.Popen[bytes]":
        """A renderer that nobody else asks."""
        with self._lock:
            process, self._waiting = self._waiting, None
        if process is not None and process.poll() is None:
            return process
        return _start()

    def refill(self) -> None:
        """Start the one that is asked next, a little later: what was rendered is read first."""
        with self._lock:
            pending, self._pending = self._pending, True
        if not pending:
            timer = threading.Timer(REFILL_S, self._fill)
            timer.daemon = True
            timer.start()

    def _fill(self) -> None:
        with self._lock:
            self._pending = False
            if self._waiting is None and not self._closed:
                self._waiting = _start()

    def close(self) -> None:
        """End the one that waits, and start no other."""
        with self._lock:
            self._closed, process, self._waiting = True, self._waiting, None
        if process is not None:
            _end(process)

    def _forget(self) -> None:
        """A forked process starts renderers of its own."""
        self._lock, self._waiting = threading.Lock(), None
        self._pending = self._closed = False


RENDERERS = StartedRenderers()


def _start() -> "subprocess.Popen[bytes]":
    with tempfile.TemporaryDirectory(prefix="ringworld-renderer-") as folder:
        return subprocess.Popen(
            [sys.executable, "-I", "-B", str(RENDERER.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,  # which is gone when it is asked
            env={"LC_ALL": "C.UTF-8"},
            process_group=0,  # a Ctrl-C at the terminal is for who asks
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with process:
        pass
