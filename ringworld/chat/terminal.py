"""`ringworld chat`: a conversation on a terminal, or one question and its answer.

The answer goes to standard output as it is decoded, everything else to standard error. Ctrl-C stops
what the model is doing and not the program; twice at the prompt, it leaves.
"""

import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax

from ringworld.chat.config import ChatRequest
from ringworld.chat.person import Terminal, make_terminal
from ringworld.chat.session import Codes, Session, Style
from ringworld.distributed import check_same, exchange_texts
from ringworld.errors import BadFileError, InputError
from ringworld.inference.programs import DECODE_STEPS
from ringworld.media.clip import read_clip, read_image
from ringworld.media.sampling import FrameSampling
from ringworld.mesh import make_mesh
from ringworld.models.context_extension import extend_context
from ringworld.progress import Announce
from ringworld.settings import Sampling
from ringworld.text.template import FORMS
from ringworld.weights.model import Model, load_model

HELP = """/doc FILE   read a text file with the next question; without FILE none
/image FILE look at a picture with the next question; without FILE at none
/video FILE look at a film with the next question; without FILE at none
/reset      forget the conversation
/help       this list
/quit       leave (so do Ctrl-D, and Ctrl-C twice)
\"""         begins a message of several lines, and ends it
Ctrl-C stops an answer, or the reading of a document."""


@dataclass
class Attachments:
    """What goes with the next question: a document, and the codes of pictures and films."""

    document: str = ""
    images: list[Codes] = field(default_factory=list)
    image_tokens: int = 0

    def clear(self) -> None:
        """Take everything off."""
        self.document, self.images, self.image_tokens = "", [], 0


def chat(config: ChatRequest, announce: Announce, terminal: Terminal | None = None) -> None:
    """Answer one question, or talk until the person leaves.

    Raises InputError when a file or an option cannot be used, or the context is too small for the
    document or, for one question, for both; KeyboardInterrupt when the person stops it.
    """
    if config.question is None and sys.stdin is None:
        raise InputError("there is no question, and standard input is closed: give a question")
    attached = Attachments("" if config.doc is None else read_document(config.doc))
    check_same({"document": hashlib.sha256(attached.document.encode()).hexdigest()})
    shape = config.mesh
    mesh = jax.set_mesh(make_mesh(**asdict(shape)))
    terminal = terminal or make_terminal(announce)
    announce(f"loading {config.model}")
    with mesh:
        model = load_model(config.model, config.weights.dtype, config.weights.adapter)
        if model.about:
            announce(model.about)
        session = open_session(model, config)
        announce(describe_sampling(config.choose_sampling(model.sampling)))
        for kind, path in (("image", config.image), ("video", config.video)):
            if path is not None:
                attached.images.append(view(model, kind, path, config.fps))
        if config.question is None:
            talk(
                session, terminal, attached, lambda kind, path: view(model, kind, path, config.fps)
            )
            return
        if not answer(session, terminal, config.question, attached):
            raise KeyboardInterrupt
        if terminal.counters:
            announce(count_tokens(session))


def open_session(model: Model, config: ChatRequest) -> Session:
    """A session in the model's own template and sampling, or as the config says."""
    c = model.config
    if config.context is not None:
        c = extend_context(c, config.context, config.rope)
    style = Style(
        template=choose_template(model.chat_template, config.template, config.doc is not None),
        sampling=config.choose_sampling(model.sampling),
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        int8=config.int8,
    )
    return Session(model, c, style)


def describe_sampling(sampling: Sampling) -> str:
    """How tokens are chosen, in one line."""
    if sampling.temperature == 0:
        return "greedy decoding: at temperature 0 the same question has the same answer"
    kept = f", top_k {sampling.top_k}" if sampling.top_k else ""
    kept += f", top_p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    return f"sampling at temperature {sampling.temperature:g}{kept}"


def choose_template(own: str | None, asked: str | None, has_document: bool) -> str:
    """The template asked for, or else the model's own, or else one of LWM's forms.

    Raises InputError when there is no such template.
    """
    if asked is None:
        return own or FORMS["needle" if has_document else "lwm"]
    if asked in FORMS:
        return FORMS[asked]
    if not Path(asked).is_file():
        raise InputError(
            f"there is no template {asked}: use {', '.join(FORMS)} or a Jinja file",
            setting="template",
        )
    return read_document(Path(asked))


def read_document(path: Path) -> str:
    """The text of a file. Raises BadFileError when it is missing, empty or not UTF-8."""
    try:
        written = path.read_text(encoding="utf-8-sig")  # books often begin with the mark of Windows
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadFileError(f"there is no file at {path}: check the path") from None
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is not UTF-8 text: convert it first") from None
    except (OSError, ValueError):
        raise BadFileError(f"{path} cannot be opened: check its name and permissions") from None
    if not written.strip():
        raise BadFileError(f"{path} is empty: give a file with text in it")
    return written


def view(model: Model, kind: str, path: Path, fps: float) -> Codes:
    """The codes `[Z, Q]` of a picture, or of a film's frames at `fps` a second.

    Raises InputError when the model has no codec, or the file cannot be read.
    """
    codec = model.codec
    if kind == "image":
        return codec.encode(read_image(path, size=codec.config.size)[None])
    return codec.encode(read_clip(path, FrameSampling(fps=fps), size=codec.config.size).frames)


def answer(session: Session, terminal: Terminal, question: str, attached: Attachments) -> bool:
    """Show one answer, and how fast it came; whether it ended before the person stopped it.

    Of a stopped turn the session keeps the answer so far, or nothing when the question was still
    being read.
    """
    first = asked = time.perf_counter()
    shown = False
    with interruptible() as stopped, terminal.reading() as on_read:
        pieces = session.ask(
            question,
            document=attached.document,
            images=attached.images,
            on_read=on_read,
            stopped=stopped,
        )
        try:
            for piece in pieces:
                first = first if shown else time.perf_counter()
                shown = True
                terminal.show(piece)
        finally:
            if shown:
                terminal.show("\n")
        if stopped():
            return False
    if session.cut:
        terminal.announce(
            f"the answer was cut at {session.max_new_tokens:,} tokens: max_new_tokens allows more"
        )
    if terminal.counters and shown:
        terminal.announce(describe_speed(session.answered, first - asked, first))
    return True


def describe_speed(tokens: int, wait: float, first: float) -> str:
    """Seconds to the first piece, and tokens per second from then on where there are enough.

    `first` is when the first piece came, in seconds of `time.perf_counter`.
    """
    said = f"first token after {wait:.1f} s"
    seconds = time.perf_counter() - first
    if tokens > 2 * DECODE_STEPS and seconds > 0:
        said += f", then {(tokens - 1) / seconds:.1f} tokens/s"
    return said


def count_tokens(session: Session) -> str:
    """The tokens used and left."""
    return f"{session.used:,} tokens used, {session.left:,} left"


def talk(
    session: Session,
    terminal: Terminal,
    attached: Attachments,
    view: Callable[[str, Path], Codes],
) -> None:
    """Ask for messages and answer them, until the person leaves.

    `view` gives the codes of an "image" or a "video" file. Raises TooLargeError when what is
    attached does not fit the context, and KeyboardInterrupt when the person leaves by Ctrl-C.
    """
    if attached.document:
        tokens = session.measure(attached.document)
        terminal.announce(f"{tokens:,} tokens will be read with the first question")
    if terminal.counters:
        terminal.announce("/help lists what else you can say")
    warned = False
    while True:
        try:
            message = terminal.ask(f"[{count_tokens(session)}] > ").strip()
        except EOFError:
            if terminal.counters:
                terminal.announce("")
            return
        except KeyboardInterrupt:
            terminal.announce("")
            if warned:
                raise
            warned = True
            terminal.announce("Ctrl-C again to leave")
            continue
        warned = False
        if message == "/quit":
            return
        try:
            if message.startswith("/") and "\n" not in message:
                _obey(message, session, terminal, attached, view)
            elif message:
                _answer_message(session, terminal, message, attached)
        except InputError as error:
            terminal.announce(str(error))


def _answer_message(
    session: Session, terminal: Terminal, message: str, attached: Attachments
) -> None:
    """One turn. What is attached stays for the next question when this one was not read."""
    before = len(session.messages)
    try:
        answer(session, terminal, message, attached)
    finally:
        if len(session.messages) > before:
            attached.clear()
    if len(session.messages) == before:
        terminal.announce("stopped before it was read: nothing of the question stays")


def _obey(
    command: str,
    session: Session,
    terminal: Terminal,
    attached: Attachments,
    view: Callable[[str, Path], Codes],
) -> None:
    """Do what a line that begins with a slash says. Raises InputError when it cannot be done."""
    word, _, name = command.partition(" ")
    name = name.strip()
    if word == "/reset":
        session.reset()
        attached.clear()
        terminal.announce("the conversation is forgotten")
    elif word == "/doc" and not name:
        attached.document = ""
        terminal.announce("no document will be read: /doc FILE names one")
    elif word == "/doc":
        document = read_document(find_file(name))
        tokens = session.measure(document)
        attached.document = document
        terminal.announce(f"{name}, {tokens:,} tokens, will be read with the next question")
    elif word in ("/image", "/video") and not name:
        attached.images, attached.image_tokens = [], 0
        terminal.announce(f"nothing will be looked at: {word} FILE names something")
    elif word in ("/image", "/video"):
        codes = view(word[1:], find_file(name))
        tokens = session.measure_image(codes, attached.image_tokens)
        attached.images.append(codes)
        attached.image_tokens += tokens
        frames = f"{len(codes):,} frames, " if word == "/video" else ""
        terminal.announce(f"{name}, {frames}{tokens:,} tokens, goes with the next question")
    else:
        terminal.announce(HELP if word == "/help" else f"there is no {word}:\n{HELP}")


def find_file(name: str) -> Path:
    """The path of a file named in a chat, `~` being the home folder, quotes around it left out."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise BadFileError(f"there is no home folder for {name}: give the whole path") from None


@contextmanager
def interruptible() -> Generator[Callable[[], bool], None, None]:
    """Within it Ctrl-C is only noted, and the function that it gives tells; a second one raises.

    Where several processes compute together, it tells all of them when one has noted it.
    """
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
        yield lambda: any(exchange_texts("noted" if noted else ""))
    finally:
        signal.signal(signal.SIGINT, usual)
