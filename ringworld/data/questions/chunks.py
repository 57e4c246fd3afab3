"""Documents cut into chunks that a short-context model reads one by one, and put together again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringworld.data.books import strip_gutenberg
from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    """A text, and the name of where it stands."""

    name: str
    written: str


@dataclass(frozen=True)
class Chunk:
    """A run of a document's characters, and its tokens as part of the document."""

    document: str
    index: int
    written: str
    tokens: int


def measure_documents(path: Path) -> int:
    """The bytes of everything that `read_documents` reads there, for a bar of progress."""
    return sum(file.stat().st_size for file in _files(path))


def read_documents(path: Path, field: str) -> Iterator[Document]:
    """A document a `.txt` file of a folder, in order of their names, or a line of a JSONL.

    Gutenberg's headers are left out. Raises InputError for what cannot be read, with file and line.
    """
    for file in _files(path):
        if file.suffix == ".jsonl":
            yield from _lines(file, field)
            continue
        content = file.read_bytes()
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            yield Document(name, strip_gutenberg(content.decode("utf-8")))
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise InputError(f"{file}:{line} is not UTF-8: convert the file") from None


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not found or not all(file.is_file() for file in found):
        raise InputError(
            f"there are no documents at {path}: give a folder of .txt files, one file, or a .jsonl"
        )
    return found


def _lines(file: Path, field: str) -> Iterator[Document]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                written = json.loads(line)[field]
                written.encode()  # half of a surrogate pair is no text
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f'{file}:{number} is no JSON object with a text in "{field}": correct the '
                    "line, or name the field"
                ) from None
            yield Document(f"{file.name}:{number}", written)


def cut_document(document: Document, tokenizer: Tokenizer, length: int) -> list[Chunk]:
    """The document in chunks of `length` tokens, of which the last may be shorter.

    Their texts, joined, are the document to the letter. A cut falls before a token, or before the
    character whose bytes it divides.
    """
    spans = tokenizer.backend.encode(document.written, add_special_tokens=False).offsets
    places = range(0, len(spans), length)
    starts = [0, *(spans[place][0] for place in places[1:]), len(document.written)]
    return [
        Chunk(
            document.name,
            i,
            document.written[starts[i] : starts[i + 1]],
            min(length, len(spans) - place),
        )
        for i, place in enumerate(places)
    ]
