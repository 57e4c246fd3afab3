"""`ringworld chat`: a conversation on a terminal, or one question and its answer.

The answer goes to standard output as it is written, everything else to standard error. Ctrl-C stops
what the model is doing and not the program; twice at the prompt, it leaves.
"""

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from tyro.conf import Positional

from ringworld.chat.session import Session, Style
from ringworld.errors import InputError
from ringworld.inference.stream import Tick
from ringworld.media.clip import read_clip, read_image
from ringworld.media.sampling import FrameSampling
from ringworld.mesh import make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.progress import Announce, make_progress
from ringworld.settings import Extension, MeshShape, Sampling
from ringworld.text.template import FORMS
from ringworld.weights.model import Model, load_model

HELP = """/doc FILE   read a text file with the next question; without FILE none
/reset      forget the conversation
/help       this list
/quit       leave (so do Ctrl-D, and Ctrl-C twice)
Ctrl-C stops an answer, or the reading of a document."""
# Reading that takes about this many tokens is done before anyone wonders, even on two cores.
SOON = 512


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk with a model, about a document, pictures or a film."""

    model: Positional[Path]
    question: Positional[str | None] = None
    """one question; without it you are asked for as many as you like"""
    doc: Path | None = None
    """a text file that stands before the first question"""
    image: Path | None = None
    video: Path | None = None
    fps: float = 1.0
    """frames of the video a second"""
    context: int | None = None
    """tokens of the conversation; more than the model was trained for stretches its RoPE"""
    rope: Extension = "yarn"
    """how RoPE is stretched"""
    template: str | None = None
    """lwm, needle or a file of Jinja; without it the model's own"""
    answer: int = 512
    """the longest answer in tokens"""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    mesh: MeshShape = field(default_factory=MeshShape)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where a person sits: what asks for a line, shows a piece of an answer, tells something.

    `reading()` gives for a while what makes of a number of tokens something that shows progress.
    """

    ask: Callable[[str], str]
    show: Callable[[str], None]
    announce: Announce
    reading: Callable[[], AbstractContextManager[Callable[[int], Tick]]]


def chat(config: Chat, announce: Announce) -> None:
    """Answer one question, or talk until the person leaves.

    Raises InputError when a file or an option cannot be used, or the context is too small for the
    document or, for one question, for both.
    """
    if config.question is not None and not config.question.strip():
        raise InputError("the question is empty: ask something, or leave it out to talk")
    if config.answer < 1:
        raise InputError(f"an answer of {config.answer} tokens says nothing: use 1 or more")
    document = "" if config.doc is None else read_document(config.doc)
    shape = config.mesh
    mesh = jax.set_mesh(make_mesh(**asdict(shape)))
    desk = make_desk(announce)
    announce(f"loading {config.model}")
    with mesh:
        model = load_model(config.model)
        session = open_session(model, config)
        sights = _look(model, config)
        if config.question is None:
            talk(session, desk, document, sights)
            return
        if answer(session, desk, config.question, document, sights):
            raise KeyboardInterrupt("stopped before the question was read")
        announce(count_tokens(session))


def open_session(model: Model, config: Chat) -> Session:
    """A session in the model's own template, or as the config says."""
    c = model.config
    if config.context is not None:
        c = extend_context(c, config.context, config.rope)
    style = Style(
        template=choose_template(model.chat_template, config.template, config.doc is not None),
        sampling=config.sampling,
        seed=config.seed,
        most=config.answer,
    )
    return Session(model, c, style)


def choose_template(own: str | None, asked: str | None, has_document: bool) -> str:
    """The template asked for, or else the model's own, or else one of LWM's forms.

    Raises InputError when there is no such template.
    """
    if asked is None:
        return own or FORMS["needle" if has_document else "lwm"]
    if asked in FORMS:
        return FORMS[asked]
    if not Path(asked).is_file():
        raise InputError(f"there is no template {asked}: use {', '.join(FORMS)} or a Jinja file")
    return read_document(Path(asked))


def read_document(path: Path) -> str:
    """The text of a file. Raises InputError when it is missing or no text."""
    try:
        written = path.read_text(encoding="utf-8-sig")  # books often begin with the mark of Windows
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"there is no file at {path}: check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: convert it first") from None
    except OSError:
        raise InputError(f"{path} cannot be opened: check its permissions") from None
    if not written.strip():
        raise InputError(f"{path} is empty: give a file with text in it")
    return written


def _look(model: Model, config: Chat) -> list[Int[np.ndarray, "Z Q"]]:
    """The codes of the picture and of the film that the config names."""
    sights = []
    if config.image is not None:
        size = model.codec.config.size
        sights.append(model.codec.encode(read_image(config.image, size=size)[None]))
    if config.video is not None:
        clip = read_clip(config.video, FrameSampling(fps=config.fps), size=model.codec.config.size)
        sights.append(model.codec.encode(clip.frames))
    return sights


def answer(
    session: Session,
    desk: Desk,
    question: str,
    document: str = "",
    sights: list[Int[np.ndarray, "Z Q"]] | None = None,
) -> bool:
    """Show one answer; whether it was stopped before the question was read."""
    before, shown = len(session.messages), False
    with interruptible() as stopped, desk.reading() as on_read:
        pieces = session.ask(
            question,
            document=document,
            sights=sights or [],
            on_read=on_read,
            stopped=stopped,
        )
        try:
            for piece in pieces:
                shown = True
                desk.show(piece)
        finally:
            if shown:
                desk.show("\n")
    if session.cut:
        desk.announce(f"the answer ends at {session.most:,} tokens: --answer N allows more")
    return len(session.messages) == before


def count_tokens(session: Session) -> str:
    """The tokens used and left."""
    return f"{session.used:,} tokens used, {session.left:,} left"


def talk(
    session: Session,
    desk: Desk,
    document: str = "",
    sights: list[Int[np.ndarray, "Z Q"]] | None = None,
) -> None:
    """Ask for lines and answer them, until the person leaves.

    Raises InputError when the document does not fit the context.
    """
    if document:
        desk.announce(f"{session.measure(document):,} tokens will be read with the first question")
    desk.announce("/help lists what else you can say")
    seen, warned = sights or [], False
    while True:
        try:
            line = desk.ask(f"[{count_tokens(session)}] > ").strip()
        except EOFError:
            desk.announce("")
            return
        except KeyboardInterrupt:
            desk.announce("")
            if warned:
                return
            warned = True
            desk.announce("Ctrl-C again to leave")
            continue
        warned = False
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/doc":
                document = _take(session, desk, rest.strip())
            elif word == "/reset":
                session.reset()
                document, seen = "", []
                desk.announce("the conversation is forgotten")
            elif word.startswith("/"):
                desk.announce(HELP if word == "/help" else f"there is no {word}:\n{HELP}")
            elif line and answer(session, desk, line, document, seen):
                desk.announce("stopped before it was read: nothing of the question stays")
            elif line:
                document, seen = "", []
        except InputError as error:
            desk.announce(str(error))


def _take(session: Session, desk: Desk, name: str) -> str:
    """The document of that name, to be read with the next question; "" without a name."""
    if not name:
        desk.announce("no document will be read: /doc FILE names one")
        return ""
    document = read_document(Path(name).expanduser())
    tokens = session.measure(document)
    desk.announce(f"{name}, {tokens:,} tokens, will be read with the next question")
    return document


@contextmanager
def interruptible() -> Generator[Callable[[], bool], None, None]:
    """Within it Ctrl-C is only noted, and the function that it gives tells; a second one raises."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, usual)


def make_desk(announce: Announce) -> Desk:
    """The desk of a real terminal."""
    with suppress(ImportError):  # with it `input` edits its line and remembers the lines before
        import_module("readline")
    return Desk(
        ask=_ask,
        show=lambda piece: print(piece, end="", flush=True),
        announce=announce,
        reading=lambda: _reading(announce),
    )


def _ask(prompt: str) -> str:
    """A line of input. Where answers go into a file, the prompt does not."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


@contextmanager
def _reading(announce: Announce) -> Generator[Callable[[int], Tick], None, None]:
    """Progress drawn on standard error until all is read, or one plain line of it elsewhere."""
    bar = make_progress(TextColumn("reading"), BarColumn(), MofNCompleteColumn(), transient=True)

    def progress(total: int) -> Tick:
        if total < SOON:
            return lambda done: None
        if bar.disable:
            announce(f"reading {total:,} tokens")
        bar.start()
        task = bar.add_task("reading", total=total)

        def tick(done: int) -> None:
            bar.update(task, completed=done)
            if done >= total:
                bar.stop()

        return tick

    try:
        yield progress
    finally:
        bar.stop()
