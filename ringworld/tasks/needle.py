"""Needles: random numbers hidden in a book, the question for one of them, and its judge.

The words are LWM's, so that its figures can be compared. Numbers are random, because what a model
has read before proves nothing. Lengths and depths are counted in the model's own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ringworld.data.example import Example, join, text
from ringworld.errors import InputError
from ringworld.text.template import ANSWER_RULES, SYSTEM, render
from ringworld.text.tokenizer import Tokenizer

# Tokens of an answer: seven digits and the end of the text, with some to spare.
ANSWER_TOKENS = 16
# Tokens for each number of an answer that has several: its city may have nine of its own.
NAMED_TOKENS = 24
# LWM's rules for a question that asks for several numbers.
RULES_OF_SEVERAL = "Don't give information outside the document."
# A model that was not trained on needles answers in a sentence: "The special magic ... number is".
SENTENCE_TOKENS = 48
# Noncharacters of Unicode, which stand for the book and the question in a form.
BOOK, QUESTION = "\ufdd1", "\ufdd2"
NAMES = """
    Accra Algiers Amman Amsterdam Ankara Athens Auckland Baghdad Baku Bangkok Barcelona Beirut
    Belgrade Berlin Bogota Brussels Bucharest Budapest Cairo Caracas Chicago Colombo Copenhagen
    Dakar Damascus Delhi Dhaka Doha Dublin Geneva Hanoi Havana Helsinki Istanbul Jakarta
    Jerusalem Kampala Kathmandu Khartoum Kigali Kinshasa Kyiv Lagos Lima Lisbon London Luanda
    Madrid Manila Melbourne Milan Montreal Moscow Mumbai Nairobi Oslo Paris Prague Quito Riga
    Rome Seattle Seoul Sofia Tallinn Tokyo Vienna Warsaw Zagreb
"""
CITIES = tuple(NAMES.split())
# The numbers have seven digits.
LOWEST_NUMBER, NUMBER_COUNT = 1_000_000, 9_000_000


@dataclass(frozen=True)
class Needle:
    """A city and its magic number of seven digits."""

    city: str
    number: int

    @property
    def sentence(self) -> str:
        """The line that is hidden in the book."""
        return f"\nThe special magic {self.city} number is: {self.number}\n"

    @property
    def question(self) -> str:
        """The question at the end."""
        return f"What is the special magic {self.city} number?"

    def found_in(self, response: str) -> bool:
        """Whether a response contains the number, as LWM judges."""
        return str(self.number) in response


def make_question(needles: Sequence[Needle]) -> str:
    """The question for the numbers of some cities, in LWM's words."""
    if len(needles) == 1:
        return needles[0].question
    *others, last = (needle.city for needle in needles)
    return f"What are the special magic numbers for {', '.join(others)}, and {last}?"


def make_answer(needles: Sequence[Needle]) -> str:
    """The answer to that question: the number, or each number behind its city."""
    if len(needles) == 1:
        return str(needles[0].number)
    return ", ".join(f"{needle.city} {needle.number}" for needle in needles)


@dataclass(frozen=True)
class Form:
    """The text of a model's chat template around a book, with special tokens as text.

    `before` comes before the book; `after` comes after it and has `QUESTION` where the question
    goes.
    """

    before: str
    after: str


def make_form(template: str, tokenizer: Tokenizer) -> Form:
    """The form of a chat template.

    Raises InputError when the template does not show them as they are.
    """
    first, last = tokenizer.bos_name or "", tokenizer.eos_name or ""
    asked = [{"role": "user", "content": f"{BOOK} {QUESTION} {ANSWER_RULES}"}]
    before, *rest = render(template, asked, bos_token=first, eos_token=last).split(BOOK)
    if len(rest) != 1 or QUESTION not in rest[0]:
        raise InputError(
            "the chat template does not show a question once, as it was asked: remove "
            "chat_template.jinja, and LWM's form is used"
        )
    return Form(before, rest[0])


def draw_needles(rng: np.random.Generator, count: int) -> list[Needle]:
    """Needles of different cities, numbers uniform over seven digits."""
    cities = rng.choice(len(CITIES), size=count, replace=False)
    return [
        Needle(CITIES[i], int(rng.integers(LOWEST_NUMBER, LOWEST_NUMBER + NUMBER_COUNT)))
        for i in cities
    ]


def hide(
    haystack: Int[np.ndarray, "n"],
    needles: Sequence[Needle],
    depths: Sequence[float],
    tokenizer: Tokenizer,
) -> Int[np.ndarray, "m"]:
    """The haystack with each needle at its depth in [0, 1], moved back to the end of a sentence."""
    ends = np.flatnonzero(np.isin(haystack, tokenizer.sentence_ends)) + 1
    places = []
    for depth in depths:
        place = round(len(haystack) * depth)
        before = ends[ends <= place]
        places.append(len(haystack) if depth >= 1 else int(before[-1]) if len(before) else 0)
    pieces, last = [], 0
    for i in np.argsort(places, kind="stable"):
        pieces += [haystack[last : places[i]], tokenizer.encode(needles[i].sentence)]
        last = places[i]
    return np.concatenate([*pieces, haystack[last:]]).astype(np.int32)


def _opening(tokenizer: Tokenizer, form: Form | None = None) -> list[int]:
    if form is not None:
        return tokenizer.encode_spelled(form.before)
    return [*tokenizer.bos_ids, *tokenizer.encode(f"{SYSTEM} USER: ")]


def _ask(needles: Sequence[Needle], tokenizer: Tokenizer, form: Form | None = None) -> list[int]:
    question = make_question(needles)
    if form is not None:
        return tokenizer.encode_spelled(form.after.replace(QUESTION, question))
    rules = ANSWER_RULES if len(needles) == 1 else RULES_OF_SEVERAL
    return tokenizer.encode(f" {question} {rules} ASSISTANT: ")


def _ask_again(needles: Sequence[Needle], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(f" USER: {make_question(needles)} ASSISTANT: ")


def max_answer_tokens(form: Form | None, numbers: int = 1) -> int:
    """The most tokens that an answer with so many numbers may have."""
    if form is not None:
        return SENTENCE_TOKENS * numbers
    return ANSWER_TOKENS if numbers == 1 else NAMED_TOKENS * numbers


def count_haystack(
    length: int,
    needles: Sequence[Needle],
    tokenizer: Tokenizer,
    form: Form | None = None,
    asked: Sequence[Sequence[Needle]] = (),
) -> int:
    """How many haystack tokens fit into `length` beside needles, their questions and answers.

    `asked` are the needles of each question; without it each has a question of its own. Raises
    InputError when the others alone do not fit.
    """
    hidden = sum(len(tokenizer.encode(needle.sentence)) for needle in needles)
    asked = asked or [[needle] for needle in needles]
    again = [len(_ask_again(some, tokenizer)) for some in asked]
    # Any of them may come first, with its rules.
    rules = max(len(_ask(s, tokenizer, form)) - n for s, n in zip(asked, again, strict=True))
    answers = sum(max_answer_tokens(form, len(some)) for some in asked)
    questions = sum(again) + rules + answers
    left = length - len(_opening(tokenizer, form)) - hidden - questions
    if left < 0:
        raise InputError(
            f"a needle prompt does not fit into {length} tokens: use at least {length - left}"
        )
    return left


def max_needles(length: int) -> int:
    """The most needles that leave a third of `length` tokens to the haystack, from 1 to 16."""
    return max(1, min(16, (length - 128) // 96))


def prompt(
    hidden: Int[np.ndarray, "n"],
    asked: Sequence[Needle],
    tokenizer: Tokenizer,
    form: Form | None = None,
) -> Int[np.ndarray, "m"]:
    """A book with its needles, one question and the rules, up to where the answer begins.

    The words around them are LWM's unless a form is given.
    """
    parts = [_opening(tokenizer, form), hidden, _ask(asked, tokenizer, form)]
    return np.concatenate(parts).astype(np.int32)


def recall_example(
    rng: np.random.Generator,
    haystack: Int[np.ndarray, "n"],
    asked: Sequence[Sequence[Needle]],
    tokenizer: Tokenizer,
) -> Example:
    """A book with needles at random depths; only answers are learned.

    `asked` are the needles of each question, which come in a random order.
    """
    needles = [needle for some in asked for needle in some]
    hidden = hide(haystack, needles, rng.random(len(needles)).tolist(), tokenizer)
    parts = [text(_opening(tokenizer), 0.0), text(hidden, 0.0)]
    for turn, i in enumerate(rng.permutation(len(asked))):
        ask = _ask_again if turn else _ask
        parts += [
            text(ask(asked[i], tokenizer), 0.0),
            text([*tokenizer.encode(make_answer(asked[i])), tokenizer.eos], 1.0),
        ]
    return join(parts)
