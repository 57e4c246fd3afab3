"""The tokenizer recipe: every word of the world's chat is one token, and a run is not repeated."""

from pathlib import Path

import pytest

from ringworld.data.books import Book
from ringworld.recipes import tokenizer as tokenizer_recipe
from ringworld.recipes.tokenizer import SampleTexts, nano_tokenizer
from ringworld.tasks.needle import CITIES, Needle
from ringworld.text.load import load_tokenizer
from ringworld.text.template import ANSWER_RULES


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, held = Book("Dream", "the moon shines bright. " * 50), Book("Isaiah", "watchman " * 50)
    monkeypatch.setattr(tokenizer_recipe, "fetch", lambda name: Path(name))
    monkeypatch.setattr(tokenizer_recipe, "read_books", lambda path: [kept, held])


def test_the_tokenizer_reads_needles_and_talk_and_no_book_that_is_held_out(books: None) -> None:
    texts = nano_tokenizer().data
    assert isinstance(texts, SampleTexts)
    read = "\n".join(texts.read())
    assert "moon" in read and "watchman" not in read
    assert all(Needle(city, 1234567).sentence in read for city in CITIES) and ANSWER_RULES in read


def test_a_made_tokenizer_reads_back_and_is_not_made_again(books: None, tmp_path: Path) -> None:
    said: list[str] = []
    made = nano_tokenizer().run(tmp_path, said.append)
    assert nano_tokenizer().run(tmp_path, said.append) == made
    assert len(said) == 1
    tokenizer = load_tokenizer(made)
    wish = "a red circle moves left"
    assert tokenizer.decode(tokenizer.encode(wish)) == wish
    assert len(tokenizer.encode(" circle")) == 1
