"""A question and its answer: how a model is asked for one, and what makes one fit to learn from.

The prompt asks for JSON with a `question`, an `answer` and the `evidence`, a sentence copied from
the chunk. What can be checked without another model is: that the evidence stands in the chunk, that
the answer's numbers and names do, and that the question can be understood without seeing the chunk,
since it will stand at the end of a book.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ringworld.data.corpora.chat_formats import PLACEHOLDER
from ringworld.data.example import Example, join, text
from ringworld.data.questions.completion import Reply
from ringworld.data.questions.endpoint import Endpoint
from ringworld.text.template import SYSTEM
from ringworld.text.tokenizer import Tokenizer

INSTRUCTION = """\
You write one question and its answer about a chunk of a long document.
The question will be asked by someone who has read the whole document and cannot see the chunk:
name the people, places and things it is about, and ask for one fact that only this chunk tells.
Never speak of the passage, the text, the excerpt, the document or the author.
The answer is short and uses the chunk's own words, names and numbers.
The evidence is one sentence copied from the chunk, letter for letter, that proves the answer.
Reply with JSON alone: {"question": "...", "answer": "...", "evidence": "..."}
If the chunk tells no fact, reply {"question": "", "answer": "", "evidence": ""}."""
# Shorter questions ask nothing in particular; longer ones and longer answers retell the chunk.
SHORTEST_QUESTION, LONGEST_QUESTION = 8, 400
LONGEST_ANSWER = 600
# Letters of a name that must stand in the chunk: its end may be bent ("Corfu", "Corfiotes").
STEM = 4
POINTING = re.compile(
    r"\b(the|this|that|these|above|given|provided|following)\s+"
    r"(given\s+|provided\s+|above\s+|following\s+)?"
    r"(passage|text|excerpt|extract|paragraph|snippet|chunk|document|context|article|section"
    r"|chapter)s?\b"
    r"|\b(mentioned|described|stated|quoted)\s+(above|below|here)\b"
    r"|\baccording to the (author|writer|narrator)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)


@dataclass(frozen=True)
class QAPair:
    """A question about a document, and its answer."""

    question: str
    answer: str


class Rejected(Exception):
    """A reply that holds no pair to learn from; its text is one word that says why."""


def request_body(chunk: str, endpoint: Endpoint) -> bytes:
    """The chat completion to ask for; the same chunk and endpoint give the same bytes."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": chunk},
        ],
        endpoint.limit_name: endpoint.answer_tokens,
    }
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if endpoint.json_mode:
        body["response_format"] = {"type": "json_object"}
    return json.dumps(body, sort_keys=True, ensure_ascii=False).encode()


def read_pair(reply: Reply, chunk: str) -> QAPair:
    """The pair in a reply about `chunk`. Raises Rejected for one that is not fit.

    Thoughts before `</think>` and a fence around the JSON are taken off.
    """
    if reply.finish == "length":
        raise Rejected("cut off")
    if reply.finish == "content_filter":
        raise Rejected("filtered")
    said = reply.content.rpartition("</think>")[2].strip()
    fenced = FENCE.match(said)
    found = _object(fenced[1] if fenced else said)
    fields = [found.get(name, "") for name in ("question", "answer", "evidence")]
    if not {"question", "answer"} <= set(found) or not all(isinstance(f, str) for f in fields):
        raise Rejected("wrong fields")
    question, answer, evidence = (" ".join(field.split()) for field in fields)
    if not question and not answer:
        raise Rejected("nothing to ask")
    _check(question, answer)
    _check_ground(question, answer, evidence, chunk)
    return QAPair(question, answer)


def _object(written: str) -> dict[str, Any]:
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        raise Rejected("not JSON") from None
    if not isinstance(found, dict):
        raise Rejected("not an object")
    return found


def _check(question: str, answer: str) -> None:
    """Raise Rejected for lengths that do not fit, pointing at the chunk, or control characters."""
    if not SHORTEST_QUESTION <= len(question) <= LONGEST_QUESTION:
        raise Rejected("length of question")
    if not 1 <= len(answer) <= LONGEST_ANSWER:
        raise Rejected("length of answer")
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Cn") for sign in question + answer):
        raise Rejected("control characters")
    if POINTING.search(question) or POINTING.search(answer):
        raise Rejected("points at the text")
    if len(_words(answer)) > 1 and fold(answer) in fold(question):
        raise Rejected("answers itself")


def _check_ground(question: str, answer: str, evidence: str, chunk: str) -> None:
    """Raise Rejected when the evidence is not the chunk's, or the answer has facts of its own."""
    if evidence and fold(evidence) not in fold(chunk):
        raise Rejected("evidence not found")
    known = {word[:STEM] for word in _words(chunk) + _words(question)}
    names = re.findall(r"(?<=[\w,;] )[A-Z]\w{2,}", answer)  # not the first word of a sentence
    if any(name.casefold()[:STEM] not in known for name in names):
        raise Rejected("unknown name")
    numbers = _numbers(chunk) | _numbers(question)
    if not _numbers(answer) <= numbers:
        raise Rejected("unknown number")


def fold(written: str) -> str:
    """Letters and digits alone, one space between words: the same words, however set."""
    return " ".join(_words(written))


def _words(written: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", written).casefold())


def _numbers(written: str) -> set[str]:
    grouped = re.sub(r"(?<=\d),(?=\d{3})", "", unicodedata.normalize("NFKC", written))
    return set(re.findall(r"\d+", grouped))


def chat_turns(document: str, pairs: Sequence[QAPair]) -> list[tuple[str, str]]:
    """Who says what: the pairs as a chat about the document, which opens the first turn."""
    said = []
    for i, pair in enumerate(pairs):
        asked = pair.question if i else f"{document} {pair.question}"
        said += [("user", asked), ("assistant", pair.answer)]
    return said


def openai_messages(document: str, pairs: Sequence[QAPair]) -> list[dict[str, Any]]:
    """The turns as OpenAI's `messages`; what spells a placeholder is said to be text."""
    return [
        {
            "role": role,
            "content": [{"type": "text", "text": words}] if PLACEHOLDER.search(words) else words,
        }
        for role, words in chat_turns(document, pairs)
    ]


def turn_length(pair: QAPair, tokenizer: Tokenizer) -> int:
    """The tokens that a pair adds to its document, the end of the answer included."""
    asked = len(tokenizer.encode(f" USER: {pair.question} ASSISTANT:"))
    return asked + len(tokenizer.encode_answer(pair.answer)) + 1


def qa_example(document: str, pairs: Sequence[QAPair], tokenizer: Tokenizer) -> Example:
    """A document and a chat about it, of which only the answers and their ends are learned.

        <s>{system} USER: {document} {question} ASSISTANT: {answer}</s>
        USER: {question} ASSISTANT: {answer}</s> ...

    The prompt's words are LWM's (arXiv 2402.08268, generated questions of stage I). Weight 1 for
    the tokens of an answer and its `</s>`, 0 for everything else.
    """
    parts = [text(tokenizer.bos_ids, 0.0)]
    for i, (role, words) in enumerate(chat_turns(document, pairs)):
        if role == "user":
            opening = f"{SYSTEM} USER: " if i == 0 else " USER: "
            parts.append(text(tokenizer.encode(f"{opening}{words} ASSISTANT:"), 0.0))
        else:
            parts.append(text([*tokenizer.encode_answer(words), tokenizer.eos], 1.0))
    return join(parts)
