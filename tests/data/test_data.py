"""What the model reads: examples, books, needles, mixes, batches; bad input is refused."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.books import (
    Book,
    draw_passage,
    encode_books,
    passage_example,
    read_books,
)
from ringworld.data.example import Example
from ringworld.data.packing.loader import PackedRows, check_rows, make_batches
from ringworld.data.packing.mix import DrawExample, draw_examples
from ringworld.errors import InputError
from ringworld.mesh import make_mesh
from ringworld.settings import MeshShape
from ringworld.tasks import needle
from ringworld.tasks.needle import (
    ANSWER_TOKENS,
    CITIES,
    Needle,
    draw_needles,
    hide,
    recall_example,
)
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import SPECIAL, Tokenizer, train_tokenizer
from ringworld.vocab import Vocabulary
from ringworld.weights.shipped import NANO

STORY = (
    "It was a dark night. The ring of eight went round and round! Who sees whom? "
    "Nobody knew, in the year 1984, but the keys travelled and the queries stayed. "
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter([STORY] * 3), 400)


def refusal(f: Callable[[], object]) -> str:
    """The sentence with which something is refused: one, that says what to change."""
    with pytest.raises(InputError) as caught:
        f()
    sentence = str(caught.value)
    assert "\n" not in sentence and ". " not in sentence and ":" in sentence
    return sentence


# ---- examples


def test_a_frame_ends_with_eof_and_the_last_with_eov() -> None:
    vocabulary = Vocabulary(text=9, bos=1, eos=2, codes=6, codes_per_frame=3, vision_rows=8)
    codes = np.arange(6).reshape(2, 3)
    clip = example.frames(codes, vocabulary, 0.5)
    assert clip.tokens.tolist() == [0, 1, 2, vocabulary.eof, 3, 4, 5, vocabulary.eov]
    assert clip.vision.all() and (clip.weights == 0.5).all()
    assert len(clip) == 2 * vocabulary.frame_length
    assert (clip.tokens.dtype, clip.weights.dtype) == (np.int32, np.float32)


def test_parts_are_joined_in_order() -> None:
    vocabulary = Vocabulary(text=9, bos=1, eos=2, codes=6, codes_per_frame=1, vision_rows=8)
    parts = [example.text([1, 5], 0.0), example.frames(np.array([[3]]), vocabulary, 1.0)]
    whole = example.join(iter(parts))
    assert whole.tokens.tolist() == [1, 5, 3, vocabulary.eov]
    assert whole.vision.tolist() == [False, False, True, True]
    assert whole.weights.tolist() == [0, 0, 1, 1]


# ---- the tokenizer


@settings(max_examples=200, deadline=None)
@given(written=st.text())
@with_example("</s> is <s>not<vision> magic")
@with_example("  two  spaces\r\n\ttabs\x00 e\u0301 \U0001f9ff 0123")
def test_text_comes_back_as_it_went_in(tokenizer: Tokenizer, written: str) -> None:
    ids = tokenizer.encode(written)
    assert tokenizer.decode(ids) == written
    assert not set(ids) & {tokenizer.id(token) for token in SPECIAL}


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 10**12))
def test_every_digit_is_a_token(tokenizer: Tokenizer, number: int) -> None:
    ids = tokenizer.encode(str(number))
    assert [tokenizer.decode([i]) for i in ids] == list(str(number))


def test_a_tokenizer_is_the_same_after_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode(STORY) == tokenizer.encode(STORY)
    assert (again.size, again.bos, again.eos) == (tokenizer.size, tokenizer.bos, tokenizer.eos)
    assert again.sentence_ends == tokenizer.sentence_ends
    assert again.encode("</s>") == tokenizer.encode("</s>")


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    assert "there is no tokenizer" in refusal(lambda: load_tokenizer(tmp_path / "tokenizer.json"))
    (tmp_path / "broken.json").write_text("{")
    assert "not a tokenizer.json" in refusal(lambda: load_tokenizer(tmp_path / "broken.json"))


def test_a_tokenizer_without_our_special_tokens_is_refused(tokenizer: Tokenizer) -> None:
    assert "has no token <voice>" in refusal(lambda: tokenizer.id("<voice>"))


# ---- books

GUTENBERG = """\ufeffThe Project Gutenberg eBook of A Night
This eBook is for the use of anyone anywhere.

*** START OF THE PROJECT GUTENBERG EBOOK A NIGHT,
BY NOBODY ***

It was a dark night.
It ended.

*** END OF THE PROJECT GUTENBERG EBOOK A NIGHT ***
Licence, of many lines.
"""


def test_books_are_read_in_order_without_gutenbergs_header_and_licence(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(GUTENBERG.replace("\n", "\r\n").encode())
    (tmp_path / "a.txt").write_text("Plain.\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("Not a book.")
    assert read_books(tmp_path) == [
        Book("a", "Plain."),
        Book("b", "It was a dark night.\nIt ended."),
    ]


def test_verses_become_books(tmp_path: Path) -> None:
    lines = [
        '{"book": "One", "text": "a"}',
        '{"book": "One", "text": "b"}',
        "",
        '{"book": "Two", "text": "c"}',
    ]
    (tmp_path / "verses.jsonl").write_text("\n".join(lines))
    assert read_books(tmp_path / "verses.jsonl") == [Book("One", "a b"), Book("Two", "c")]


def test_books_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "run `ringworld fetch`" in refusal(lambda: read_books(tmp_path / "nowhere"))
    assert "holds no text" in refusal(lambda: read_books(tmp_path))
    for name, content in (
        ("prose.jsonl", b"It was a dark night."),
        ("film.jsonl", bytes(range(256))),
        ("other.jsonl", b'{"title": "One"}'),
        ("list.jsonl", b"[1, 2]"),
    ):
        (tmp_path / name).write_bytes(content)
        assert name in refusal(lambda name=name: read_books(tmp_path / name))


def test_a_passage_is_consecutive_and_every_place_is_as_likely(rng: np.random.Generator) -> None:
    books = [np.arange(100, dtype=np.int32), np.arange(1000, 1300, dtype=np.int32)]
    passages = [draw_passage(rng, books, 10) for _ in range(2000)]
    assert all(len(p) == 10 and (np.diff(p) == 1).all() for p in passages)
    of_second = np.mean([p[0] >= 1000 for p in passages])
    assert of_second == pytest.approx(300 / 400, abs=0.04)  # four standard deviations
    assert {p[0] for p in passages} >= {0, 90, 1000, 1290}
    np.testing.assert_array_equal(draw_passage(rng, books[:1], 500), books[0])


def test_a_passage_learns_every_token_but_the_first(tokenizer: Tokenizer) -> None:
    (book,) = encode_books([Book("Night", STORY)], tokenizer)
    whole = passage_example(book, tokenizer)
    assert whole.tokens[0] == tokenizer.bos and tokenizer.decode(book.tolist()) == STORY
    assert whole.tokens[-1] == tokenizer.eos
    assert whole.weights.tolist() == [0, *[1] * len(book), 1]


# ---- needles


def haystack_of(tokenizer: Tokenizer, length: int) -> np.ndarray:
    story = tokenizer.encode(STORY)
    return np.resize(np.asarray(story, np.int32), length)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [500, 1000])
def test_prompt_and_answers_fill_exactly_the_length(
    tokenizer: Tokenizer, count: int, length: int, rng: np.random.Generator
) -> None:
    needles = draw_needles(rng, count)
    haystack = haystack_of(tokenizer, needle.count_haystack(length, needles, tokenizer))
    whole = recall_example(rng, haystack, [[one] for one in needles], tokenizer)
    answers = count * len([*"1234567", "</s>"])
    assert len(whole) == length - count * ANSWER_TOKENS + answers
    if count == 1:
        hidden = hide(haystack, needles, [0.5], tokenizer)
        assert len(needle.prompt(hidden, needles[:1], tokenizer)) == length - ANSWER_TOKENS


def test_a_length_without_room_is_refused_with_the_least_that_fits(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    needles = draw_needles(rng, 2)
    sentence = refusal(lambda: needle.count_haystack(100, needles, tokenizer))
    least = int(sentence.rsplit(" ", 1)[1])
    assert needle.count_haystack(least, needles, tokenizer) == 0
    refusal(lambda: needle.count_haystack(least - 1, needles, tokenizer))


@settings(max_examples=100, deadline=None)
@given(
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    length=st.integers(0, 300),
    seed=st.integers(0, 99),
)
def test_a_needle_stands_at_its_depth_moved_back_to_the_end_of_a_sentence(
    tokenizer: Tokenizer, depths: list[float], length: int, seed: int
) -> None:
    needles = draw_needles(np.random.default_rng(seed), len(depths))
    haystack = haystack_of(tokenizer, length)
    hidden = hide(haystack, needles, depths, tokenizer)
    written = tokenizer.decode(hidden.tolist())
    ends = np.flatnonzero(np.isin(haystack, tokenizer.sentence_ends))
    longest = np.diff([-1, *ends, length]).max()
    rest = written
    for one, depth in zip(needles, depths, strict=True):
        assert written.count(one.sentence) == 1 and written.count(str(one.number)) == 1
        before, rest = rest.split(one.sentence)[0], rest.replace(one.sentence, "")
        for other in needles:
            before = before.replace(other.sentence, "")
        if depth < 1:
            assert not before or before.rstrip()[-1] in ".?!"
        place = len(tokenizer.encode(before))
        assert place <= round(length * depth) and (place == length) >= (depth == 1)
        assert place == 0 or depth == 1 or round(length * depth) - place <= longest
    assert rest == tokenizer.decode(haystack.tolist())


def test_only_the_answers_are_learned_each_after_its_question(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    needles = draw_needles(rng, 3)
    whole = recall_example(rng, haystack_of(tokenizer, 200), [[one] for one in needles], tokenizer)
    assert not whole.vision.any() and set(whole.weights) == {0, 1}
    learned = whole.tokens[whole.weights > 0].tolist()
    answers = [tokenizer.decode(learned[i : i + 8]) for i in range(0, len(learned), 8)]
    assert learned[7::8] == [tokenizer.eos] * 3
    chat = tokenizer.decode(whole.tokens.tolist())
    asked = [turn.split(" number?")[0] for turn in chat.split("What is the special magic ")[1:]]
    cities = {one.city: str(one.number) for one in needles}
    assert sorted(asked) == sorted(cities) and answers == [cities[city] for city in asked]
    assert chat.endswith(answers[-1])


def test_needles_have_different_cities_and_numbers_of_seven_digits() -> None:
    needles = draw_needles(np.random.default_rng(0), len(CITIES))
    assert len({one.city for one in needles}) == len(CITIES)
    assert all(len(str(one.number)) == 7 for one in needles)
    assert needles == draw_needles(np.random.default_rng(0), len(CITIES))
    assert Needle("Oslo", 1234567).sentence == "\nThe special magic Oslo number is: 1234567\n"


# ---- mixing


def source(token: int) -> DrawExample:
    def draw(rng: np.random.Generator, longest: int) -> Example:
        return example.text([token] * int(rng.integers(1, longest + 1)), 1.0)

    return draw


SOURCES = {"books": source(3), "film": source(4), "shapes": source(5)}


@settings(max_examples=30, deadline=None)
@given(books=st.integers(1, 9), film=st.integers(0, 9), seed=st.integers(0, 9))
def test_every_source_is_near_its_share_throughout(books: int, film: int, seed: int) -> None:
    shares = {"books": books / 10, "film": film / 10}
    examples = draw_examples(SOURCES, shares, tokens=2000, longest=50, seed=seed)
    given_, total = {3: 0, 4: 0}, books + film
    for one in examples:
        given_[int(one.tokens[0])] += len(one)
        so_far = sum(given_.values())
        # No source is ever more than one example of 50 tokens ahead.
        assert abs(given_[3] - so_far * books / total) <= 50
        assert abs(given_[4] - so_far * film / total) <= 50
    assert 2000 <= so_far < 2050
    assert film or not given_[4]


def test_a_mix_is_a_function_of_its_seed() -> None:
    def draw(seed: int, tokens: int = 500) -> list[list[int]]:
        shares = {"books": 0.5, "shapes": 0.5}
        examples = draw_examples(SOURCES, shares, tokens=tokens, longest=50, seed=seed)
        return [one.tokens.tolist() for one in examples]

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, 900)[: len(draw(1))] == draw(1)


def test_a_share_of_no_source_is_refused() -> None:
    def draw() -> object:
        return draw_examples(SOURCES, {"books": 0.5, "radio": 0.5}, tokens=9, longest=9, seed=0)

    assert "radio, which is no source" in refusal(draw)


# ---- batches

CONTEXT = 32


@pytest.fixture(scope="module")
def rows() -> PackedRows:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 40)
    examples = [example.text(rng.integers(3, 400, n).tolist(), 1.0) for n in lengths]
    return PackedRows(examples, CONTEXT)


def batches_of(rows: PackedRows, shape: MeshShape, seed: int = 0) -> Callable[[int], Batch]:
    """`batches(step)` on that mesh, brought to the host and back into the order of writing."""
    make = make_batches(rows, batch=4, seed=seed, ring=shape.seq)
    mesh = make_mesh(data=shape.data, fsdp=shape.fsdp, seq=shape.seq, tensor=shape.tensor)

    def batches(step: int) -> Batch:
        with jax.set_mesh(mesh):
            dealt = jax.device_get(make(step))
        order = np.lexsort((dealt.positions, dealt.segments - 1 & 0xFF))[:, :CONTEXT]
        return jax.tree.map(lambda x: np.take_along_axis(x, order, axis=1), dealt)

    return batches


def same(a: Batch, b: Batch) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(
    "shape",
    [MeshShape(seq=8), MeshShape(data=2, seq=4), MeshShape(fsdp=2, seq=2, tensor=2)],
    ids=lambda shape: "x".join(map(str, shape.sizes)),
)
def test_a_batch_is_the_same_on_every_mesh(rows: PackedRows, shape: MeshShape) -> None:
    there, here = batches_of(rows, shape), batches_of(rows, MeshShape())
    assert all(same(there(step), here(step)) for step in (0, 3, 1000))


def test_a_batch_is_a_function_of_seed_and_step(rows: PackedRows) -> None:
    forwards, backwards = batches_of(rows, MeshShape()), batches_of(rows, MeshShape())
    first = [forwards(step) for step in range(6)]
    second = [backwards(step) for step in reversed(range(6))][::-1]
    assert all(map(same, first, second))
    assert not same(first[0], first[1])
    assert not same(first[0], batches_of(rows, MeshShape(), seed=1)(0))


def test_an_epoch_gives_every_row_once_and_the_next_in_another_order(rows: PackedRows) -> None:
    batches, count = batches_of(rows, MeshShape()), len(rows)
    taken = [
        row.tobytes()
        for step in range(count)  # four epochs of `count` rows, four rows a step
        for row in batches(step).tokens
    ]
    every = sorted(rows[i].tokens.tobytes() for i in range(count))
    epochs = [taken[i * count : (i + 1) * count] for i in range(4)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_what_does_not_divide_over_the_mesh_is_refused() -> None:
    assert "3 rows do not divide over 2 groups" in refusal(
        lambda: check_rows(CONTEXT, 3, MeshShape(fsdp=2))
    )
    assert "6 tokens do not reach round a ring of 8" in refusal(
        lambda: check_rows(6, 1, MeshShape(seq=8))
    )
    assert "at least 1" in refusal(lambda: MeshShape(seq=0))
    assert "needs 16 devices and there are 8" in refusal(lambda: make_mesh(data=2, seq=8))


def test_one_question_asks_for_several_needles_in_lwms_words(rng: np.random.Generator) -> None:
    tokenizer = load_tokenizer(NANO)
    story = np.asarray(tokenizer.encode(STORY), np.int32)
    longest = sorted(CITIES, key=lambda city: -len(tokenizer.encode(f", {city} ")))[:3]
    needles = [Needle(city, 7_000_001 + i) for i, city in enumerate(longest)]
    for length in (500, 900):
        asked = [needles[:2], needles[2:]]
        size = needle.count_haystack(length, needles, tokenizer, asked=asked)
        for _ in range(6):  # each question comes first in some
            whole = recall_example(rng, np.resize(story, size), asked, tokenizer)
            assert length - 64 < len(whole) <= length, "answers fit what is kept for them"
    chat = tokenizer.decode(whole.tokens.tolist())
    first, second = (one.city for one in needles[:2])
    assert f"What are the special magic numbers for {first}, and {second}? " in chat
    learned = tokenizer.decode(whole.tokens[whole.weights > 0].tolist())
    assert f"{first} 7000001, {second} 7000002" in learned and "7000003" in learned
    asked_first = needle.prompt(np.zeros(0, np.int32), needles, tokenizer)
    assert tokenizer.decode(asked_first.tolist()).endswith(
        f"numbers for {first}, {second}, and {longest[2]}? Don't give information outside the "
        "document. ASSISTANT: "
    )
