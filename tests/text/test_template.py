"""Chat templates: what transformers renders, within limits; LWM's forms are as LWM wrote them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import InputError
from ringworld.tasks.clips import question_prompt, video_prompt
from ringworld.tasks.needle import Needle, prompt
from ringworld.text import template
from ringworld.text.load import load_tokenizer
from ringworld.text.template import (
    FORMS,
    IMAGE_PLACEHOLDER,
    Message,
    TemplateLimits,
    render,
)
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = {file.stem: file for file in (Path(__file__).parent / "templates").glob("*.jinja")}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
ODD = "  two  spaces\n\n{{ 7 * 7 }} {% if %} <b>&amp;</b> 'quoted' \"so\" héllo 🙂 数 </s>"
TURNS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    (
        {"role": "user", "content": ODD},
        {"role": "assistant", "content": " An answer. \n"},
        {"role": "user", "content": ODD * 3},
    ),
)
SYSTEM_TURNS = ({"role": "system", "content": "Be short.\n"}, *TURNS[1])
TOOL = {"type": "function", "function": {"name": "find", "description": "é <b>", "parameters": {}}}


def read(name: str) -> str:
    return TEMPLATES[name].read_text(encoding="utf-8")


# ---- as others render


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("prompted", [True, False])
def test_templates_render_as_transformers_does(name: str, prompted: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    cases = [*TURNS] + ([] if name == "mistral" else [SYSTEM_TURNS])
    tools = [TOOL] if name.startswith("qwen") else None
    for messages in cases:
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=read(name),
            add_generation_prompt=prompted,
            tools=tools,
            **NAMES,
        )
        ours = render(
            read(name), messages, add_generation_prompt=prompted, tools=tools or [], **NAMES
        )
        assert ours == rendered[0]


def test_a_template_renders_to_the_letter() -> None:
    asked = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes."}]
    assert render(read("llama3"), asked[:1], bos_token="<B>") == (
        "<B><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(read("mistral"), asked, **NAMES) == "<s>[INST]  Hi  [/INST]Yes.</s>"
    marked = "{% generation %}{{ messages[0].content }}{% endgeneration %}!"
    assert render(marked, asked) == " Hi !"
    assert render("{{ {'a': '<é>'} | tojson }}{{ strftime_now('%Y') | length }}", []) == (
        '{"a": "<é>"}4'
    )


def test_what_is_said_is_never_read_as_a_template() -> None:
    assert ODD in render(read("smollm2"), [{"role": "user", "content": ODD}])


# ---- hostile ones

BOMBS = {
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "nested loops": "{% for a in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4,
    "silent nested loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "a long string": "{{ 'x' * 10 ** 10 }}",
    "a doubling string": "{% set n = namespace(s='x') %}{% for i in range(99) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "a padded string": "{{ '%1000000000s' % 'x' }}",
    "a centred string": "{{ 'x' | center(10 ** 10) }}",
    "a high power": "{{ 10 ** (10 ** 10) }}",
    "a long product": "{{ 'xxxxxxxxxx' | batch(1) | map('join', 'x' * 9999999) | join }}" * 99,
    "itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep brackets": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "Python's classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "a format's attributes": "{{ '{0.__class__.__init__}'.format(messages) }}",
    "an attribute filter": "{{ (cycler | attr('__init__')).__globals__.os.system('id') }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "a change": "{{ messages.append(1) }}",
    "no Jinja": "{% for %}",
    "no end": "{% if true %}",
    "a refusal": "{{ raise_exception('x' * 9999) }}",
    "no such filter": "{{ messages | pickle }}",
    "too much of it": "x" * 70_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_is_one_sentence(name: str) -> None:
    started = time.monotonic()
    try:
        shown = render(BOMBS[name], TURNS[0])
    except InputError as error:
        said = str(error)
        assert said.startswith("the chat template ") and len(said) < 400 and "\n" not in said
    else:
        # The sandbox may print a harmless nothing instead; it may not print what it guards.
        assert name in {"a format's attributes", "a function's globals"} and "<" not in shown
    # Two seconds of processor are allowed; the rest is a busy machine's.
    assert time.monotonic() - started < TemplateLimits().patience + 5


def test_a_refusal_is_told_in_the_templates_words() -> None:
    with pytest.raises(InputError, match="refuses these messages: Conversation roles must"):
        render(read("mistral"), [{"role": "assistant", "content": "first"}])


def test_a_template_that_waits_is_ended_by_the_clock() -> None:
    limits = TemplateLimits(seconds=60, patience=1.0)
    with pytest.raises(InputError, match="runs too long"):
        render(BOMBS["silent nested loops"], TURNS[0], limits=limits)


# A terminal sends Ctrl-C to a whole group of processes: here every 5 ms, while one renders.
INTERRUPTED = """
import os, signal, threading
from ringworld.text.template import render

done = threading.Event()
def interrupt():
    while not done.wait(0.005):
        os.killpg(0, signal.SIGINT)

noted = []
signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
threading.Thread(target=interrupt).start()
try:
    shown = render("{{ messages[0].content }}", [{"role": "user", "content": "whole"}])
finally:
    done.set()
assert noted
print(shown)
"""


def test_a_ctrl_c_while_a_template_is_rendered_does_not_end_it() -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert done.stdout == "whole\n", done.stderr


def test_each_text_has_a_renderer_of_its_own_that_was_started_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = template.StartedRenderers()
    monkeypatch.setattr(template, "RENDERERS", ready)
    monkeypatch.setattr(ready, "refill", ready._fill)
    asked = []
    take = ready.take
    monkeypatch.setattr(ready, "take", lambda: asked.append(take()) or asked[-1])
    for i in range(3):
        waiting = ready._waiting
        assert render("{{ messages[0].content }}", TURNS[0]) == "Hi"
        assert (waiting is None) == (i == 0) and waiting in (None, asked[-1])
    assert len({process.pid for process in asked}) == 3
    assert all(process.returncode == 0 for process in asked), "each has ended"
    assert ready._waiting is not None
    ready._waiting.kill()
    ready._waiting.wait()
    assert render("{{ messages[0].content }}", TURNS[0]) == "Hi", "one that has died is not asked"
    last = ready._waiting
    ready.close()
    assert last.poll() is not None and ready._waiting is None


def test_no_renderer_outlives_the_process_that_started_it() -> None:
    program = (
        "import os, sys\nfrom ringworld.text import template\n"
        "template.render('x', [])\ntemplate.RENDERERS._fill()\n"
        "print(template.RENDERERS._waiting.pid, flush=True)\n"
        "if sys.argv[1] == 'killed': os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for how in ("ended", "killed"):
        done = subprocess.run(
            [sys.executable, "-c", program, how],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        begun, process = time.monotonic(), Path("/proc", done.stdout.strip())
        while process.exists():
            assert time.monotonic() < begun + 30, f"it waits on when its owner is {how}"
            time.sleep(0.05)


def test_a_whole_book_goes_through() -> None:
    book = "It was a dark night. 数 " * 200_000
    asked = [{"role": "user", "content": book}]
    assert render(read("llama3"), asked).count("dark") == 200_000


# ---- LWM's forms

ASK = "How many?"
SYSTEM = "You are a helpful assistant."
PAIRS = Vocabulary(text=2048, bos=1, eos=2, codes=4, codes_per_frame=2, vision_rows=6)


def test_lwms_forms_are_to_the_letter() -> None:
    asked = [{"role": "user", "content": ASK}]
    assert render(FORMS["lwm"], asked, **NAMES) == f"<s>{SYSTEM} USER: How many? ASSISTANT:"
    seen = [{"role": "user", "content": f"{ASK}\n{IMAGE_PLACEHOLDER}"}]
    assert render(FORMS["lwm"], seen, **NAMES) == (
        f"<s>{SYSTEM} USER: How many?\n{IMAGE_PLACEHOLDER} ASSISTANT:"
    )
    wish = [{"role": "user", "content": "a cat"}]
    drawn = "<s>You are a helpful assistant. USER: Generate {} of a cat ASSISTANT: "
    assert render(FORMS["image"], wish, **NAMES) == drawn.format("an image")
    assert render(FORMS["video"], wish, **NAMES) == drawn.format("a video")


def test_a_second_turn_follows_the_end_of_the_first_answer() -> None:
    asked = {"role": "user", "content": ASK}
    talk = [asked, {"role": "assistant", "content": "Two."}, asked]
    assert render(FORMS["lwm"], talk, **NAMES) == (
        f"<s>{SYSTEM} USER: How many? ASSISTANT: Two.</s> USER: How many? ASSISTANT:"
    )


def test_the_forms_are_what_the_shipped_model_was_trained_on() -> None:
    words = load_tokenizer(NANO / "tokenizer.json")
    needle = Needle("Paris", 1234567)
    book = np.asarray(words.encode("It was late."))
    asked = [{"role": "user", "content": f"It was late. {needle.question}"}]
    ours = words.encode_spelled(render(FORMS["needle"], asked, **NAMES))
    assert words.decode(ours) == words.decode(prompt(book, [needle], words).tolist())
    wish = [{"role": "user", "content": "a red circle"}]
    drawn = words.encode_spelled(render(FORMS["video"], wish, **NAMES))
    assert [*drawn, words.vision_start] == video_prompt("a red circle", words).tokens.tolist()
    before, after = render(
        FORMS["lwm"], [{"role": "user", "content": f"{ASK}\n{IMAGE_PLACEHOLDER}"}], **NAMES
    ).split(IMAGE_PLACEHOLDER)
    codes = question_prompt(ASK, np.asarray([[1, 2]]), words, PAIRS)
    told = codes.tokens[~codes.vision].tolist()
    assert told == [
        *words.encode_spelled(before),
        words.vision_start,
        words.vision_end,
        *words.encode_spelled(after),
    ]
