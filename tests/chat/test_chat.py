"""Conversations: turns through the cache are one whole forward, and a terminal loses nothing."""

import errno
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ringworld.attention.mask import Where
from ringworld.chat import ask as ask_module
from ringworld.chat.config import ChatRequest, ImageRequest, VideoRequest
from ringworld.chat.session import Session, Style, find_stops
from ringworld.chat.terminal import (
    HELP,
    Attachments,
    Terminal,
    chat,
    choose_template,
    describe_sampling,
    describe_speed,
    interruptible,
    make_terminal,
    open_session,
    read_document,
    talk,
)
from ringworld.data.example import Example, join, text
from ringworld.errors import BadFileError, InputError, TooLargeError
from ringworld.inference import generate
from ringworld.inference.programs import DECODE_STEPS
from ringworld.media.clip import ANIMATIONS
from ringworld.mesh import make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import init
from ringworld.rope import critical_base
from ringworld.rope_scaling import Llama3, YaRN
from ringworld.settings import Sampling
from ringworld.tasks.needle import Needle
from ringworld.tasks.shape_language import caption, caption_still, questions
from ringworld.tasks.shapes import freeze_scene, sample_scene
from ringworld.text.load import load_tokenizer
from ringworld.text.template import DESCRIBE, DESCRIBE_IMAGE, FORMS, IMAGE_PLACEHOLDER
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.imported import read_sampling
from ringworld.weights.model import Model, load_model
from ringworld.weights.shipped import NANO, NANO_WORLD

WORDS = load_tokenizer(NANO / "tokenizer.json")
LLAMA = Llama(
    layers=2, model=32, mlp=64, heads=4, kv_heads=2, head_width=8, context=256, rope_theta=1e4
)
CODES = Vocabulary(text=2048, bos=1, eos=2, codes=16, codes_per_frame=4, vision_rows=24)
TINY = World(llama=LLAMA, vocabulary=CODES)
ROW = 256
GREEDY = Sampling()
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def weights() -> WorldWeights:
    # Four times the usual start, so that the greatest logit is clear of rounding.
    return jax.tree.map(lambda x: 4 * x, init(specs(TINY), 0))


@pytest.fixture(scope="module")
def model(weights: WorldWeights) -> Model:
    return Model(TINY, weights, WORDS, None, None)


@partial(jax.jit, static_argnames="c")
def whole_row(
    weights: WorldWeights, tokens: jax.Array, vision: jax.Array, length: jax.Array, c: World
) -> jax.Array:
    positions = jnp.arange(ROW, dtype=jnp.int32)[None]
    where = Where(positions, (positions < length).astype(jnp.int32))
    return forward(weights, tokens, vision, where, c)[0, length - 1] @ weights.heads.text


def write_slowly(weights: WorldWeights, given: Example, steps: int) -> list[int]:
    """Greedy tokens from a whole forward each, without a cache."""
    tokens, vision = np.zeros((1, ROW), np.int32), np.zeros((1, ROW), np.bool_)
    tokens[0, : len(given)], vision[0, : len(given)] = given.tokens, given.vision
    for i in range(len(given), len(given) + steps):
        tokens[0, i] = whole_row(weights, tokens, vision, jnp.int32(i), TINY).argmax()
    return tokens[0, len(given) : len(given) + steps].tolist()


# ---- the session


def ask(session: Session, question: str, **rest: object) -> str:
    return "".join(session.ask(question, **rest))


def test_a_turn_reads_from_the_last_full_page_on(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PAGE", 16)
    session = Session(model, TINY, Style(template=CHATML, max_new_tokens=5))
    first = ask(session, "Who goes there?")
    used, told = session.used, []

    def on_read(total: int) -> Callable[[int], None]:
        told.append(total)
        return lambda done: None

    second = ask(session, "And you?", on_read=on_read)
    rest = WORDS.encode_spelled("</s>\n<s>user\nAnd you?</s>\n<s>assistant\n")
    assert told == [len(rest)]
    prompt = WORDS.encode_spelled("<s>user\nWho goes there?</s>\n<s>assistant\n")
    assert session._engine.counters.reused == len(prompt) // 16 * 16 > 0
    assert used < session.used <= used + len(rest) + 5
    assert session.left == 256 - session.used
    roles = [message["role"] for message in session.messages]
    assert roles == ["user", "assistant"] * 2
    assert session.messages[3]["content"] == second.strip() and first


def test_a_conversation_with_int8_keys_and_values_holds_less(model: Model) -> None:
    held = []
    for int8 in (False, True):
        session = Session(model, TINY, Style(template=CHATML, max_new_tokens=3, int8=int8))
        ask(session, "Who goes there?")
        held.append(session._engine.counters.bytes)
    width = TINY.llama.head_width
    assert held[1] / held[0] == (width + 4) / (4 * width)  # a scale for each head


def test_a_session_writes_what_whole_forwards_do(model: Model, weights: WorldWeights) -> None:
    session = Session(model, TINY, Style(template=CHATML, max_new_tokens=6))
    asked = "<s>user\nWho goes there?</s>\n<s>assistant\n"
    given = text(WORDS.encode_spelled(asked), 0.0)
    ids = write_slowly(weights, given, 6)
    ids = ids[: ids.index(2)] if 2 in ids else ids
    assert ask(session, "Who goes there?") == WORDS.decode(ids)
    more = WORDS.encode_spelled("</s>\n<s>user\nAnd?</s>\n<s>assistant\n")
    ids = write_slowly(weights, join([given, text([*ids, *more], 0.0)]), 6)
    ids = ids[: ids.index(2)] if 2 in ids else ids
    assert ask(session, "And?") == WORDS.decode(ids)


def test_a_template_that_rewrites_the_past_makes_it_be_read_again(model: Model) -> None:
    forgetful = "<s>{{ messages | length }} {{ messages[-1].content }} ASSISTANT:"
    session = Session(model, TINY, Style(template=forgetful, max_new_tokens=4))
    ask(session, "One")
    again = ask(session, "Two")
    counted = forgetful.replace("{{ messages | length }}", "3")
    fresh = Session(model, TINY, Style(template=counted, max_new_tokens=4))
    assert ask(fresh, "Two") == again
    assert len(session.messages) == 4


def test_what_does_not_fit_is_refused_with_both_numbers_and_changes_nothing(model: Model) -> None:
    session = Session(model, TINY, Style(template=CHATML, max_new_tokens=4))
    ask(session, "Hello")
    used, messages = session.used, session.messages
    with pytest.raises(InputError, match=r"would take [\d,]{3,} tokens and the context is 256:"):
        ask(session, "word " * 400)
    assert (session.used, session.messages) == (used, messages)
    assert ask(session, "Hello again")


def test_an_answer_that_fills_the_context_says_so_after_its_last_word(model: Model) -> None:
    style = Style(
        template=CHATML, max_new_tokens=1000, sampling=Sampling(temperature=1.0, top_k=40)
    )
    session, pieces = Session(model, TINY, style), []
    session._stops = ()
    with pytest.raises(InputError, match=r"stopped at 256 tokens, because the context is 256:"):
        for piece in session.ask("Hello"):
            pieces.append(piece)
    assert pieces and (session.used, session.left) == (256, 0)
    session.reset()
    assert (session.used, session.messages) == (0, ())
    assert next(session.ask("Hello"))


def test_a_stopped_answer_stays_and_a_stopped_reading_does_not(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PAGE", 16)
    session, pieces = Session(model, TINY, Style(template=CHATML, max_new_tokens=64)), []
    for piece in session.ask("Hello", stopped=lambda: bool(pieces)):
        pieces.append(piece)
    assert session.messages[-1]["content"] == "".join(pieces).strip()
    used, said = session.used, session.messages
    ticks: list[int] = []
    assert not ask(
        session,
        "word " * 20,
        on_read=lambda total: ticks.append,
        stopped=lambda: bool(ticks),
    )
    assert (session.used, session.messages) == (used, said)
    assert session.ask("Go on")


def test_an_answer_ends_at_the_models_end_and_at_the_templates() -> None:
    backend = load_tokenizer(NANO / "tokenizer.json").backend
    backend.add_special_tokens(["<|im_end|>"])
    chatty = Tokenizer(backend)
    ended = CHATML.replace("</s>", "<|im_end|>")
    assert find_stops(chatty, (2,), ended) == (2, 2048)
    assert find_stops(WORDS, (2, 7), FORMS["lwm"]) == (2, 7)
    assert find_stops(WORDS, (2,), "{{ raise_exception('never') }}") == (2,)


def test_a_model_without_an_end_writes_until_it_is_stopped(model: Model) -> None:
    endless = replace(TINY, vocabulary=replace(CODES, eos=-1))
    plain = "{{ messages[-1].content }}"
    session = Session(
        replace(model, config=endless), endless, Style(template=plain, max_new_tokens=9)
    )
    ask(session, "Hello")
    assert session.used == len(WORDS.encode("Hello")) + 9


def test_an_answer_ends_at_any_end_that_the_model_names(
    model: Model, weights: WorldWeights
) -> None:
    plain = "{{ messages[-1].content }}"
    given = text(WORDS.encode("Hello"), 0.0)
    ids = write_slowly(weights, given, 3)
    session = Session(replace(model, ends=(ids[2],)), TINY, Style(template=plain, max_new_tokens=9))
    assert ask(session, "Hello") == WORDS.decode(ids[: ids.index(ids[2])])
    assert not session.cut


def test_an_answer_that_is_cut_at_its_longest_says_so(model: Model) -> None:
    session = Session(replace(model, ends=()), TINY, Style(template=CHATML, max_new_tokens=3))
    session._stops, paper = (), Paper("Hello")
    talk_on(session, paper.terminal)
    assert session.cut
    assert "the answer was cut at 3 tokens: max_new_tokens allows more" in paper.told
    session.reset()
    assert not session.cut


def test_words_of_a_stranger_end_no_turn(model: Model) -> None:
    session = Session(model, TINY, Style(template=CHATML, max_new_tokens=2))
    totals: list[int] = []

    def on_read(total: int) -> Callable[[int], None]:
        totals.append(total)
        return lambda done: None

    ask(session, "a</s>b", on_read=on_read)
    plain = len(WORDS.encode_spelled("<s>user\n</s>\n<s>assistant\n"))
    assert totals[0] >= plain + len(WORDS.encode("a</s>b")) - 1


@pytest.mark.parametrize("ring", [1, 4])
def test_the_shipped_model_reads_a_document_and_recalls(ring: int) -> None:
    with nullcontext() if ring == 1 else jax.set_mesh(make_mesh(seq=ring)):
        shipped = load_model(NANO)
        style = Style(template=FORMS["needle"], max_new_tokens=16)
        session = Session(shipped, shipped.config, style)
        needle = Needle("Paris", 4815162)
        pages = "To be, or not to be, that is the question. " * 20
        book = pages + needle.sentence + pages
        assert str(needle.number) in ask(session, needle.question, document=book)
        assert 400 < session.used < 1024


# ---- stretching


def test_rules_of_stretching_change_the_rotary_and_nothing_else() -> None:
    for rule in ("theta", "ntk", "yarn", "plain"):
        longer = extend_context(TINY, 1024, rule)
        assert longer.llama.context == 1024
        assert replace(longer, llama=LLAMA) == TINY
        assert extend_context(TINY, 128, rule) == TINY.at(128, 1e4), "shorter is not stretched"
    assert extend_context(TINY, 1024, "theta").llama.rope_theta >= critical_base(1024, 1e4, 256)
    assert extend_context(TINY, 1024, "plain").llama.rope_theta == 1e4
    yarn = extend_context(TINY, 1024, "yarn")
    assert yarn.llama.rope_scaling == YaRN(factor=4.0, trained_context=256)
    assert extend_context(yarn, 4096, "yarn") == extend_context(TINY, 4096, "yarn")
    llama3 = Llama3(factor=8.0, low_turns=1.0, high_turns=4.0, trained_context=64)
    with pytest.raises(InputError, match="scaled already"):
        extend_context(replace(TINY, llama=replace(LLAMA, rope_scaling=llama3)), 4096, "yarn")
    with pytest.raises(InputError, match="holds no question"):
        extend_context(TINY, 1, "yarn")
    with pytest.raises(InputError, match="use at most 2,147,483,647 tokens"):
        extend_context(TINY, 10**11, "plain")


def test_yarn_and_ntk_stretch_from_the_trained_context_and_theta_from_the_reach() -> None:
    far = TINY.at(256, 1e4, rope_context=1024)
    yarn, ntk = (extend_context(far, 512, rule).llama for rule in ("yarn", "ntk"))
    assert yarn.rope_scaling == YaRN(factor=2.0, trained_context=256)
    assert ntk.rope_theta == pytest.approx(1e4 * 2 ** (8 / 6))
    assert extend_context(far, 512, "theta").llama.rope == far.llama.rope
    reached = TINY.at(1024, 1e4)
    assert extend_context(far, 4096, "theta") == extend_context(reached, 4096, "theta")


def test_ntk_slows_the_slowest_pair_by_the_stretch_and_not_the_fastest() -> None:
    before, after = (c.llama.rope.frequencies() for c in (TINY, extend_context(TINY, 1024, "ntk")))
    np.testing.assert_allclose(before / after, np.geomspace(1, 4, 4), rtol=1e-12)


# ---- the terminal


class Paper:
    """A terminal whose person says what is written, and what was shown and told there."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines, self.shown, self.told, self.prompts = iter(lines), "", [], []

    @property
    def terminal(self) -> Terminal:
        return Terminal(
            ask=self.ask,
            show=self.show,
            announce=self.told.append,
            reading=self.reading,
            counters=True,
        )

    def ask(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self.lines, EOFError)
        if not isinstance(line, str):
            raise line()
        return line

    def show(self, piece: str) -> None:
        self.shown += piece

    @contextmanager
    def reading(self) -> Generator[Callable[[int], Callable[[int], None]], None, None]:
        yield lambda total: lambda done: None


def talk_on(session: Session, terminal: Terminal, document: str = "") -> None:
    """`talk` with a model that sees in every picture the codes of one frame, in a film of two."""

    def view(kind: str, path: Path) -> np.ndarray:
        if not path.is_file():
            raise InputError(f"there is no file at {path}")
        return np.arange(4 if kind == "image" else 8).reshape(-1, 4)

    talk(session, terminal, Attachments(document), view)


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    yield Session(model, TINY, Style(template=CHATML, max_new_tokens=3))


def test_tokens_used_and_left_are_always_to_be_seen(session: Session) -> None:
    paper = Paper("Hello", "/reset")
    talk_on(session, paper.terminal)
    assert paper.prompts[0].startswith("[0 tokens used, 256 left]")
    used = [int(prompt[1:].split()[0]) for prompt in paper.prompts]
    assert used[0] == used[2] == 0 < used[1]
    assert paper.shown.endswith("\n")


def test_a_document_is_read_with_the_next_question_only(session: Session, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It was a dark and stormy night.")
    paper = Paper(
        f"/doc {book}", "Hello", "Again", f"/doc {tmp_path / 'none'}", "/wat", "/quit", "x"
    )
    talk_on(session, paper.terminal)
    asked = [m["content"] for m in session.messages if m["role"] == "user"]
    assert asked == ["It was a dark and stormy night.\n\nHello", "Again"]
    assert any("there is no file at" in told for told in paper.told)
    assert f"there is no /wat:\n{HELP}" in paper.told and "x" not in asked


def test_a_document_says_its_tokens_and_one_that_does_not_fit_is_refused_at_once(
    session: Session, tmp_path: Path
) -> None:
    book, shelf = tmp_path / "book.txt", tmp_path / "shelf.txt"
    book.write_text("It was a dark and stormy night.", encoding="utf-8-sig")
    shelf.write_text("word " * 400)
    paper = Paper(f"/doc {shelf}", f"/doc {book}", "/doc", "Hello")
    talk_on(session, paper.terminal)
    tokens = len(WORDS.encode("It was a dark and stormy night."))
    assert "the context is 256" in paper.told[1]
    assert f"{book}, {tokens} tokens, will be read with the next question" in paper.told
    assert "no document will be read: /doc FILE names one" in paper.told
    assert session.messages[0]["content"] == "Hello"
    with pytest.raises(InputError, match="the context is 256"):
        talk_on(session, Paper("never").terminal, shelf.read_text())


def test_a_reading_that_is_stopped_says_so_and_its_document_waits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PAGE", 16)
    session = Session(model, TINY, Style(template=CHATML, max_new_tokens=4))
    paper = Paper("Hello", "Again")
    terminal = paper.terminal

    @contextmanager
    def interrupted() -> Generator[Callable[[int], Callable[[int], None]], None, None]:
        first = len(paper.prompts) == 1
        yield lambda total: lambda done: os.kill(os.getpid(), signal.SIGINT) if first else None

    talk_on(session, replace(terminal, reading=interrupted), "word " * 20)
    assert "stopped before it was read: nothing of the question stays" in paper.told
    assert [m["content"] for m in session.messages[:1]] == ["word " * 20 + "\n\nAgain"]


def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    nowhere, told = tmp_path / "model", []
    for config, said in (
        ({"question": " "}, "the question is empty"),
        ({"question": "caf\udce9"}, "is not UTF-8"),
        ({"question": "Hello", "max_new_tokens": 0}, "an answer of 0 tokens"),
        ({"question": "Hello", "doc": tmp_path / "none"}, "no file at"),
    ):
        with pytest.raises(InputError, match=said):
            chat(ChatRequest(model=nowhere, **config), told.append)
    assert not told


def test_an_error_ends_no_conversation(session: Session) -> None:
    paper = Paper("word " * 400, "Hello")
    talk_on(session, paper.terminal)
    assert any("the context is 256" in told for told in paper.told)
    assert len(session.messages) == 2


def test_ctrl_c_twice_at_the_prompt_leaves(session: Session) -> None:
    paper = Paper(KeyboardInterrupt, "Hello", KeyboardInterrupt, KeyboardInterrupt, "never")
    with pytest.raises(KeyboardInterrupt):
        talk_on(session, paper.terminal)
    assert len(session.messages) == 2
    assert paper.told.count("Ctrl-C again to leave") == 2


def test_ctrl_c_stops_an_answer_and_a_second_one_is_an_interrupt() -> None:
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_one_question_goes_to_the_output_and_its_cost_to_the_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("It was late. The special magic Rome number is: 7654321\nShe slept. " * 3)
    told: list[str] = []
    asked = "What is the special magic Rome number?"
    config = ChatRequest(model=NANO, question=asked, doc=book, max_new_tokens=12)
    terminal = make_terminal(told.append)
    chat(config, told.append, terminal)
    assert "7654321" in capsys.readouterr().out
    assert told == [
        f"loading {NANO}",
        load_model(NANO).about,
        "greedy decoding: at temperature 0 the same question has the same answer",
    ]
    chat(config, told.append, replace(terminal, counters=True))
    assert re.fullmatch(r"first token after \d+\.\d s(, then \d+\.\d tokens/s)?", told[-2])
    assert re.fullmatch(r"\d+ tokens used, \d+ left", told[-1])


def test_templates_are_the_models_own_unless_another_is_asked_for(tmp_path: Path) -> None:
    assert choose_template("own", None, True) == "own"
    assert choose_template(None, None, True) == FORMS["needle"]
    assert choose_template(None, None, False) == FORMS["lwm"]
    assert choose_template("own", "lwm", False) == FORMS["lwm"]
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    assert choose_template("own", str(file), False) == "{{ messages }}"
    with pytest.raises(InputError, match="no template nothing: use lwm, needle"):
        choose_template("own", "nothing", False)


def test_documents_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n")
    for name, said in (("bytes", "not UTF-8"), ("empty", "is empty"), ("none", "no file")):
        with pytest.raises(InputError, match=said):
            read_document(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        read_document(tmp_path)


def test_a_config_opens_a_session_of_its_context(model: Model) -> None:
    config = ChatRequest(model=NANO, context=1024, rope="ntk", max_new_tokens=7)
    session = open_session(model, config)
    assert (session.used, session.left) == (0, 1024)


def test_a_mesh_that_divides_the_batch_is_refused(model: Model) -> None:
    with jax.set_mesh(make_mesh(fsdp=2)), pytest.raises(InputError, match="a conversation is one"):
        Session(model, TINY, Style(max_new_tokens=1))


def test_a_picture_and_a_film_named_in_a_chat_go_with_the_next_question_only(
    model: Model, tmp_path: Path
) -> None:
    picture, film = tmp_path / "a picture.png", tmp_path / "film.mp4"
    picture.touch()
    film.touch()
    seeing = FORMS["lwm"]
    session = Session(model, TINY, Style(template=seeing, max_new_tokens=2))
    paper = Paper(f'/image "{picture}"', f"/video {film}", "What moves?", "And now?", "/quit")
    talk_on(session, paper.terminal)
    asked = [m["content"] for m in session.messages if m["role"] == "user"]
    assert [words.count(IMAGE_PLACEHOLDER) for words in asked] == [2, 0]
    assert [len(codes) for codes in session._history.images] == [1, 2]
    told = "\n".join(paper.told)
    assert re.search(r'a picture.png", \d+ tokens, goes with the next question', told)
    assert re.search(r"film.mp4, 2 frames, \d+ tokens, goes with the next question", told)


def test_a_picture_is_put_away_or_refused_when_it_is_missing_or_does_not_fit(
    session: Session, tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.touch()
    paper = Paper(f"/video {film}", "/video", f"/image {tmp_path / 'none'}", "Hello")
    talk_on(session, paper.terminal)
    assert "nothing will be looked at: /video FILE names something" in paper.told
    assert any("there is no file at" in told for told in paper.told)
    assert IMAGE_PLACEHOLDER not in session.messages[0]["content"]
    session.reset()
    crowded = Paper(*[f"/video {film}"] * 60, "/quit")
    talk_on(session, crowded.terminal)
    taken = sum("goes with the next question" in told for told in crowded.told)
    assert 0 < taken < 60 and sum("the context is 256" in told for told in crowded.told) == (
        60 - taken
    )


def test_a_message_of_several_lines_is_one_question_and_never_a_command(session: Session) -> None:
    talk_on(session, Paper("/quit now\nor later").terminal)
    assert [m["content"] for m in session.messages[:1]] == ["/quit now\nor later"]


def test_a_pipe_hears_no_counters(session: Session) -> None:
    paper = Paper("Hello")
    talk_on(session, replace(paper.terminal, counters=False))
    assert paper.shown and not [told for told in paper.told if "was cut" not in told]


def test_speed_is_told_from_the_first_token_on_or_not_at_all() -> None:
    now = time.perf_counter()
    assert describe_speed(2 * DECODE_STEPS, 1.25, now - 2) == "first token after 1.2 s"
    said = describe_speed(104, 0.5, now - 10)
    assert re.fullmatch(r"first token after 0\.5 s, then 10\.[23] tokens/s", said)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (None, None),
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"do_sample": False, "temperature": 0.6}, Sampling()),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
            Sampling(temperature=0.6, top_k=20, top_p=0.9),
        ),
    ],
)
def test_sampling_is_what_transformers_reads_in_generation_config(
    tmp_path: Path, written: dict[str, object] | None, wanted: Sampling | None
) -> None:
    if written is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(written))
    assert read_sampling(tmp_path) == wanted


@pytest.mark.parametrize("bad", [{"temperature": "hot"}, {"top_p": 0.0}, {"top_k": True}])
def test_sampling_that_no_model_can_have_is_refused_with_its_file(
    tmp_path: Path, bad: dict[str, object]
) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, **bad}))
    with pytest.raises(BadFileError, match=str(file)):
        read_sampling(tmp_path)


def test_the_models_own_sampling_holds_but_for_what_is_asked_for() -> None:
    own = Sampling(temperature=0.6, top_k=20, top_p=0.9)
    assert ChatRequest(model=NANO).choose_sampling(own) == own
    assert ChatRequest(model=NANO).choose_sampling(None) == GREEDY
    assert ChatRequest(model=NANO, temperature=0.0).choose_sampling(own) == replace(
        own, temperature=0.0
    )
    assert describe_sampling(GREEDY).startswith("greedy decoding")
    assert describe_sampling(own) == "sampling at temperature 0.6, top_k 20, top_p 0.9"


def test_the_shipped_model_says_what_it_knows_in_sentences_it_was_trained_on() -> None:
    about = load_model(NANO).about
    assert "\n" not in about
    scenes = [sample_scene(np.random.default_rng(i)) for i in range(400)]
    known = {asked for scene in scenes for asked, _ in questions(scene)} | {DESCRIBE}
    captions = {caption(scene) for scene in scenes}
    needles = {Needle("Paris", 1).question}
    quoted = re.findall(r'"([^"]+)"', about)
    assert len(quoted) == 4
    for sentence in quoted:
        assert sentence.lower() in {s.lower() for s in known | captions | needles}, sentence
    listed = re.findall(r"^  (.+)$", (NANO / "about.txt").read_text(), re.M)
    unknown = {s for s in listed if s not in known | captions | needles}
    assert unknown <= {"a red circle moves left and a blue square stays still"}
    page = (Path(__file__).parents[2] / "docs" / "chat.md").read_text()
    assert all(sentence in page for sentence in listed)


def test_nano_world_says_what_it_knows_in_sentences_it_was_trained_on() -> None:
    about = (NANO_WORLD / "about.txt").read_text()
    scenes = [sample_scene(np.random.default_rng(i)) for i in range(4000)]
    stills = [freeze_scene(scene, 0, frames=1) for scene in scenes]
    known = {asked for scene in scenes for asked, _ in questions(scene)}
    known |= {DESCRIBE, DESCRIBE_IMAGE, *map(caption, scenes), *map(caption_still, stills)}
    known |= {caption(still, motion=False) for still in stills}
    listed = re.findall(r"^  (.+)$", about, re.M) + re.findall(r'"([^"]+)"', about)
    assert len(listed) > 10
    assert set(listed) - known <= {
        "a red circle at the top left and a blue square in the middle",
        "a red circle moves left and a blue square stays still",
    }


# ---- clips and pictures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, model: Model) -> np.ndarray:
    """The clip that every caption gives, whatever the model."""
    clip = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    known = replace(model, about="it knows a")
    monkeypatch.setattr(ask_module, "load_model", lambda path, *rest: known)
    monkeypatch.setattr(ask_module, "draw_captions", lambda model, captions, **rest: [clip])
    monkeypatch.setattr(ask_module, "draw_pictures", lambda model, captions, **rest: [clip[0]])
    return clip


def test_a_drawn_clip_is_written_larger_and_says_what_the_model_knows(
    drawn: np.ndarray, tmp_path: Path
) -> None:
    out, told = tmp_path / "new" / "clip.gif", []
    ask_module.draw_video(VideoRequest(model=NANO, caption="", output=out, scale=3), told.append)
    assert told == ["it knows a", f"wrote {out}"]
    with Image.open(out) as picture:
        assert picture.size == (18, 12) and picture.n_frames == 2


def test_a_drawn_picture_is_written_larger_and_replaces_no_file_unless_it_may(
    drawn: np.ndarray, tmp_path: Path
) -> None:
    out, told = tmp_path / "new" / "picture.png", []
    wanted = ImageRequest(model=NANO, caption="", output=out, scale=3)
    ask_module.draw_image(wanted, told.append)
    assert told == ["it knows a", f"wrote {out}"]
    with Image.open(out) as picture:
        assert np.array_equal(np.asarray(picture)[::3, ::3], drawn[0]) and picture.format == "PNG"
    with pytest.raises(BadFileError, match="exists already") as caught:
        ask_module.draw_image(wanted, told.append)
    assert caught.value.setting == "overwrite"
    ask_module.draw_image(replace(wanted, overwrite=True, scale=1), told.append)
    with Image.open(out) as picture:
        assert picture.size == (6, 4)


def test_a_drawn_clip_replaces_no_file_unless_it_may(drawn: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "clip.gif"
    out.write_text("kept")
    wanted = VideoRequest(model=NANO, caption="a", output=out)
    with pytest.raises(BadFileError, match="exists already") as caught:
        ask_module.draw_video(wanted, print)
    assert caught.value.setting == "overwrite" and out.read_text() == "kept"
    ask_module.draw_video(replace(wanted, overwrite=True), print)
    assert out.read_bytes().startswith(b"GIF")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_clip_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    kind = TooLargeError if code == errno.ENOSPC else BadFileError
    with pytest.raises(kind, match=os.strerror(code).lower()):
        ask_module.draw_video(
            VideoRequest(model=tmp_path / "none", caption="a", output=tmp_path / "x.mp4"), print
        )
    with pytest.raises(kind, match=os.strerror(code).lower()):
        ask_module.draw_image(
            ImageRequest(model=tmp_path / "none", caption="a", output=tmp_path / "x.png"), print
        )
    for name, said in (("x.avi", "must end in .gif, .mp4 or .webm"), ("d.gif", "is a folder")):
        (tmp_path / "d.gif").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=said):
            ask_module.check_output(tmp_path / name, ANIMATIONS, overwrite=True)
    with pytest.raises(InputError, match=r"x[.]gif must end in .png"):
        ask_module.draw_image(
            ImageRequest(model=NANO, caption="a", output=tmp_path / "x.gif"), print
        )


@pytest.mark.parametrize("bad", [{"frames": 0}, {"scale": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_a_clip_of_nothing_is_refused_by_the_name_of_the_setting(bad: dict[str, float]) -> None:
    with pytest.raises(InputError) as caught:
        VideoRequest(model=NANO, caption="a", output=Path("x.gif"), **bad)
    assert caught.value.setting in bad
