"""Books: read, cleaned, and cut into examples."""

import json
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, document, join, text
from ringworld.errors import InputError
from ringworld.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Book:
    """A title and its text."""

    title: str
    written: str


def read_books(path: Path) -> list[Book]:
    """The books of a folder of text files, without Gutenberg headers, or of a JSONL of verses.

    Raises InputError when there is nothing to read.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        books = [
            Book(file.stem, strip_gutenberg(file.read_text("utf-8", "replace"))) for file in files
        ]
    elif path.is_file():
        books = _books_of_verses(path)
    else:
        raise InputError(f"there are no books at {path}: run `ringworld fetch` first")
    books = [book for book in books if book.written]
    if not books:
        raise InputError(f"{path} holds no text: give a folder of .txt files")
    return books


def strip_gutenberg(written: str) -> str:
    """The text between Project Gutenberg's START and END lines, or all of it."""
    start = re.search(r"\*\*\* ?START OF.*?\*\*\*", written, re.S)
    end = re.search(r"\*\*\* ?END OF", written)
    return written[start.end() if start else 0 : end.start() if end else None].strip()


def _books_of_verses(path: Path) -> list[Book]:
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        by_book = groupby(lines, key=lambda line: line["book"])
        return [Book(title, " ".join(line["text"] for line in verses)) for title, verses in by_book]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} is not a JSONL of verses: give lines of {{"book": ..., "text": ...}}, or a '
            "folder of .txt files"
        ) from error


def encode_books(books: list[Book], tokenizer: Tokenizer) -> list[Int[np.ndarray, "_"]]:
    """Each book's ids, without `<s>` or `</s>`."""
    return [np.asarray(tokenizer.encode(book.written), np.int32) for book in books]


def draw_passage(
    rng: np.random.Generator, books: list[Int[np.ndarray, "_"]], length: int
) -> Int[np.ndarray, "m"]:
    """`length` consecutive ids from a random place, or a whole book that is shorter.

    Books are drawn by their length, so that every place is equally likely.
    """
    lengths = np.array([len(book) for book in books])
    book = books[rng.choice(len(books), p=lengths / lengths.sum())]
    start = int(rng.integers(max(len(book) - length, 0) + 1))
    return book[start : start + length]


def passage_example(passage: Int[np.ndarray, "n"], tokenizer: Tokenizer) -> Example:
    """A passage of a book, as a document of its own."""
    return document(passage, tokenizer)


def echo_example(
    rng: np.random.Generator, passage: Int[np.ndarray, "n"], tokenizer: Tokenizer
) -> Example:
    """A passage's ids in random order, and once more in that order, learned the second time.

    Only copying predicts it, so it is the shortest way to the heads that find what was seen before
    (Olsson et al., "In-context learning and induction heads", arXiv 2209.11895).
    """
    shuffled = rng.permutation(passage)
    return join([text(tokenizer.bos_ids, 0.0), text(shuffled, 0.0), text(shuffled, 1.0)])
