"""Documents become rows with questions at their end; answers that were paid for are never lost."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving import (
    Behaviour,
    Endpointlike,
    Handler,
    answer,
    drip,
    flood,
    garble,
    reset,
    say,
    serving,
    stall,
    status,
    truncate,
)

from ringworld import cli
from ringworld.data.corpora.folders import ShardFolders
from ringworld.data.corpora.shards import Shards
from ringworld.data.packing.rows import Apart
from ringworld.data.questions.chunks import Chunk, Document, cut_document, read_documents
from ringworld.data.questions.completion import Reply
from ringworld.data.questions.config import QA
from ringworld.data.questions.contexts import TEMPLATE_ROOM, Verdict, group_chunks
from ringworld.data.questions.endpoint import Budget, Client, Endpoint
from ringworld.data.questions.pairs import QAPair, Rejected, openai_messages, qa_example, read_pair
from ringworld.data.questions.qa import run_qa
from ringworld.data.questions.replies import Replies
from ringworld.errors import InputError
from ringworld.files import alone_in
from ringworld.recipes.recipe import Recipe
from ringworld.recipes.shards import TokenShards, choose_examples
from ringworld.recipes.shards import shards as recipe_of_shards
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer
from ringworld.weights.shipped import NANO

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
KEY = "sk-not-a-real-key-0123456789"
CHUNK = 60
FILLER = "The road went on and on between the fields, and nobody was seen on it that day. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tokenizer that ships."""
    return load_tokenizer(NANO / "tokenizer.json")


@pytest.fixture
def server() -> Iterator[Endpointlike]:
    """A local endpoint."""
    with serving() as state:
        yield state


def fact(i: int) -> str:
    """A fact that no other number tells."""
    return f"The keeper of Tower{i} is Ada Smith{i * 7}. "


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Three books, of which one is empty, and 24 or more chunks."""
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(fact(i) + FILLER * 2 for i in range(12)))
    (folder / "b.txt").write_text("".join(fact(i) + FILLER * 2 for i in range(12, 20)))
    (folder / "c.txt").write_text(" \n")
    return folder


def job(server: Endpointlike, books: Path, folder: Path, **options: Any) -> QA:
    """A small job for the local endpoint."""
    endpoint = Endpoint(base_url=server.url, model="m", concurrency=4, timeout=20.0)
    given: dict[str, Any] = {"chunk": CHUNK, "shortest": 10, "context": 600}
    given |= {"documents": books, "tokenizer": NANO, "endpoint": endpoint, "folder": folder}
    return QA(**(given | options))


def plain(content: Any) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else content[0]["text"]


def run(qa: QA) -> dict[str, Any]:
    """Run the job, its pauses skipped, and read its report."""
    client = Client(qa.endpoint, qa.budget, now=lambda: 0.0, wait=lambda seconds: False)
    run_qa(qa, lambda said: None, client)
    return json.loads((qa.folder / "report.json").read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- pairs -----------------------------------------------------------------------------------

TOLD = "In 1,203 the fleet of Count Baldwin left Corfu. It had 480 ships, and Rome was silent."
ASKED = QAPair("Who is it?", "Nobody")
GOOD = {"question": "How many ships did Baldwin's fleet have?", "answer": "480 ships"}


def judged(said: dict[str, Any] | str, finish: str = "stop") -> QAPair:
    """The pair in a reply about the chunk above."""
    content = said if isinstance(said, str) else json.dumps(said)
    return read_pair(Reply(content, finish, 1, 1, True), TOLD)


@pytest.mark.parametrize(
    "said",
    [
        GOOD,
        GOOD | {"evidence": "It had 480 ships, and Rome was silent."},
        GOOD | {"evidence": "it had  480 ships — and Rome was silent"},
        GOOD | {"note": 7},
        "```json\n" + json.dumps(GOOD) + "\n```",
        "<think>Is it {480}?</think>\n" + json.dumps(GOOD),
        json.dumps(GOOD | {"question": "How many ships \n did Baldwin's fleet have?"}, indent=2),
    ],
    ids=str,
)
def test_a_good_pair_is_read_however_it_is_wrapped(said: dict[str, Any] | str) -> None:
    assert judged(said) == QAPair(**GOOD)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("There were 480 ships.", "not JSON"),
        ("", "not JSON"),
        ('{"question": "How many', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ({"question": "How many ships?"}, "wrong fields"),
        (GOOD | {"answer": 480}, "wrong fields"),
        (GOOD | {"answer": None}, "wrong fields"),
        (GOOD | {"evidence": ["It had 480 ships"]}, "wrong fields"),
        ({"question": "", "answer": ""}, "nothing to ask"),
        (GOOD | {"question": "Why?"}, "length of question"),
        (GOOD | {"question": "Why? " * 100}, "length of question"),
        (GOOD | {"answer": " "}, "length of answer"),
        (GOOD | {"answer": "480 ships " * 100}, "length of answer"),
        (GOOD | {"answer": "480\u0000 ships"}, "control characters"),
        (GOOD | {"answer": "480 \ud800 ships"}, "control characters"),
        (GOOD | {"question": "How many ships does the passage mention?"}, "points at the text"),
        (GOOD | {"question": "How many ships, in the given text?"}, "points at the text"),
        (GOOD | {"answer": "480 ships, as mentioned above"}, "points at the text"),
        (GOOD | {"question": "Did the fleet have 480 ships in it?"}, "answers itself"),
        (GOOD | {"evidence": "It had 480 galleys."}, "evidence not found"),
        (GOOD | {"answer": "It had 500 ships"}, "unknown number"),
        (GOOD | {"answer": "The ships of Count Henry"}, "unknown name"),
    ],
)
def test_what_is_not_fit_is_rejected_with_its_reason(said: dict[str, Any] | str, word: str) -> None:
    with pytest.raises(Rejected, match=f"^{word}$"):
        judged(said)


def test_names_may_be_bent_and_numbers_set_otherwise() -> None:
    asked = "When did the fleet leave, and who was silent?"
    assert judged({"question": asked, "answer": "In 1203; the Corfiotes were silent"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["question", "answer", "evidence"]) | st.text(), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(said=JSON.map(json.dumps) | st.text())
def test_whatever_a_model_says_is_a_pair_or_rejected(said: str) -> None:
    try:
        pair = judged(said)
    except Rejected:
        return
    assert pair.question and pair.answer


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_reply_that_did_not_end_is_rejected(finish: str) -> None:
    with pytest.raises(Rejected, match="cut off|filtered"):
        judged(GOOD, finish)


# --- what is learned -------------------------------------------------------------------------


def test_only_answers_and_their_ends_are_learned(tokenizer: Tokenizer) -> None:
    pairs = [QAPair("Who came?", "Ada"), QAPair("When did she come?", "At 7 o'clock")]
    document = "Ada came at 7 o'clock. </s> is written here."
    example = qa_example(document, pairs, tokenizer)
    given = [
        tokenizer.bos,
        *tokenizer.encode(f"You are a helpful assistant. USER: {document} Who came? ASSISTANT:"),
    ]
    first = [*tokenizer.encode(" Ada"), tokenizer.eos]
    asked = tokenizer.encode(" USER: When did she come? ASSISTANT:")
    second = [*tokenizer.encode(" At 7 o'clock"), tokenizer.eos]
    np.testing.assert_array_equal(example.tokens, [*given, *first, *asked, *second])
    weights = [0.0] * len(given) + [1.0] * len(first) + [0.0] * len(asked) + [1.0] * len(second)
    np.testing.assert_array_equal(example.weights, weights)
    assert not example.vision.any()
    assert (example.tokens == tokenizer.eos).sum() == 2


def test_messages_open_with_the_document_and_take_turns() -> None:
    said = openai_messages(
        "Ada came.", [QAPair("Who came?", "Ada"), QAPair("And then?", "Nothing")]
    )
    assert said == [
        {"role": "user", "content": "Ada came. Who came?"},
        {"role": "assistant", "content": "Ada"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Nothing"},
    ]


# --- chunks and contexts ---------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "written", ["Call me Ishmael. " * 9, "naïve 東京 🛶🛶 \u0301e\r\n\t x" * 5, "x"]
)
def test_chunks_joined_are_the_document(tokenizer: Tokenizer, written: str, length: int) -> None:
    chunks = cut_document(Document("d", written), tokenizer, length)
    assert "".join(chunk.written for chunk in chunks) == written
    assert sum(chunk.tokens for chunk in chunks) == len(tokenizer.encode(written))
    assert all(chunk.tokens == length for chunk in chunks[:-1])
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


@pytest.mark.parametrize("most", [200, 333, 1000, 10_000])
def test_contexts_hold_every_chunk_once_and_are_full(tokenizer: Tokenizer, most: int) -> None:
    written = "".join(fact(i) + FILLER for i in range(40))
    verdicts = [
        Verdict(chunk, QAPair(f"What is told at {i}?", f"Fact {i}") if i % 3 else None, "")
        for i, chunk in enumerate(cut_document(Document("d", written), tokenizer, CHUNK))
    ]
    contexts = list(group_chunks(iter(verdicts), most, tokenizer))
    assert "".join(context.document for context in contexts) == written
    assert sum(context.chunks for context in contexts) == len(verdicts)
    asked = [pair for context in contexts for pair in context.pairs]
    assert Counter(asked) == Counter(v.pair for v in verdicts if v.pair)
    at = 0
    for context in contexts:
        own = [v.pair for v in verdicts[at : at + context.chunks] if v.pair]
        assert Counter(context.pairs) == Counter(own)
        at += context.chunks
        room = TEMPLATE_ROOM * len(context.pairs)
        assert len(context.example) + room == context.length <= most
    # Another chunk with its turn has at most CHUNK + 40 tokens: no context but the last has room.
    assert all(context.length > most - CHUNK - 40 for context in contexts[:-1])


def test_the_order_of_questions_tells_nothing_of_their_places(tokenizer: Tokenizer) -> None:
    chunks = [Chunk("d", i, FILLER, 20) for i in range(30)]
    pairs = [QAPair(f"What is at {i}?", str(i)) for i in range(30)]
    verdicts = [Verdict(c, p, "") for c, p in zip(chunks, pairs, strict=True)]
    (context,) = group_chunks(verdicts, 10_000, tokenizer)
    assert list(context.pairs) != pairs and Counter(context.pairs) == Counter(pairs)
    (again,) = group_chunks(verdicts, 10_000, tokenizer)
    assert again.pairs == context.pairs


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"fine\nbad \xff byte", r"a\.txt:2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}\n', r"a\.jsonl:2 is no JSON object"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "\n', r"a\.jsonl:3 is no JSON object"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1 is no JSON object"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1 is no JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1 is no JSON object"),
    ],
)
def test_a_bad_document_is_refused_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        list(read_documents(tmp_path / name, "text"))


def test_documents_come_from_folders_files_and_lines(tmp_path: Path, books: Path) -> None:
    assert [d.name for d in read_documents(books, "text")] == ["a.txt", "b.txt", "c.txt"]
    assert [d.name for d in read_documents(books / "b.txt", "text")] == ["b.txt"]
    (tmp_path / "d.jsonl").write_text('{"body": "one"}\n\n{"body": "three"}\n')
    assert [(d.name, d.written) for d in read_documents(tmp_path / "d.jsonl", "body")] == [
        ("d.jsonl:1", "one"),
        ("d.jsonl:3", "three"),
    ]
    with pytest.raises(InputError, match="there are no documents"):
        list(read_documents(tmp_path / "nothing", "text"))


# --- the whole job ---------------------------------------------------------------------------

BEHAVIOURS: list[Behaviour] = [
    status(429, Retry_After="3"),
    status(500),
    truncate,
    flood,
    garble,
    reset,
    status(200, b"<html>", Content_Type="text/html"),
    status(200, b'{"choices'),
]


def test_rows_hold_the_books_their_questions_and_only_their_answers(
    server: Endpointlike, books: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    qa = job(server, books, tmp_path / "qa")
    report = run(qa)
    rows, pairs = lines(qa.folder / "questions.jsonl"), lines(qa.folder / "pairs.jsonl")
    assert all(set(row) == {"messages"} for row in rows)
    assert report["accepted"] == sum(len(row["messages"]) // 2 for row in rows) > 12
    assert report["chunks"] == len(pairs) and report["documents"] == 3
    assert report["empty_documents"] == 1 and report["rows"] == len(rows) > 2
    words = Counter(pair["verdict"] for pair in pairs)
    assert words["accepted"] == report["accepted"]
    assert words["too short"] == report["too_short"]
    assert report["rejected"] == {"nothing to ask": words["rejected: nothing to ask"]}
    assert report["requests"] == len(server.asked) == len(pairs) - report["too_short"]
    assert report["tokens"]["prompt"] == 1100 * len(server.asked)
    for row in rows:
        document = row["messages"][0]["content"]
        turns = row["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        for asked, told in zip(turns[::2], turns[1::2], strict=True):
            place = re.search(r"Who is the keeper of (\w+)\?$", asked["content"])
            assert place and f"The keeper of {place[1]} is {told['content']}." in document
    told = "".join(row["messages"][0]["content"] for row in rows)
    assert all(fact(i).strip() in told for i in range(20))


def test_a_second_run_is_free_and_writes_the_same_bytes(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    qa = job(server, books, tmp_path / "qa")
    first = run(qa)
    rows = (qa.folder / "questions.jsonl").read_bytes()
    asked = len(server.asked)
    second = run(replace(qa, endpoint=replace(qa.endpoint, concurrency=1)))
    assert (qa.folder / "questions.jsonl").read_bytes() == rows
    assert len(server.asked) == asked and second["requests"] == 0
    assert second["cached"] == first["requests"] == asked
    assert second["cached_tokens"] == 1140 * asked and second["tokens"]["prompt"] == 0


def test_misbehaviour_changes_the_report_and_no_row(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    calm = job(server, books, tmp_path / "calm")
    asked = run(calm)["requests"]
    server.plan.extend([b for behaviour in BEHAVIOURS for b in (behaviour, answer)])
    rough = job(server, books, tmp_path / "rough")
    report = run(rough)
    assert sum(report["retried"].values()) == len(BEHAVIOURS) == report["requests"] - asked
    for name in ("questions.jsonl", "pairs.jsonl"):
        assert (calm.folder / name).read_bytes() == (rough.folder / name).read_bytes()


def test_a_chunk_without_an_answer_is_told_and_asked_again_by_the_next_run(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    server.plan.extend([status(400), say("no JSON"), say(json.dumps(GOOD)), status(500)])
    qa = job(server, books, tmp_path / "qa")
    report = run(replace(qa, endpoint=replace(qa.endpoint, concurrency=1, retries=0)))
    assert report["unanswered"] == {"status 400": 1, "status 500": 1}
    assert report["rejected"]["not JSON"] == 1 and report["rejected"]["unknown number"] == 1
    verdicts = [pair["verdict"] for pair in lines(qa.folder / "pairs.jsonl")]
    assert verdicts[:4] == [
        "no answer: status 400",
        "rejected: not JSON",
        "rejected: unknown number",
        "no answer: status 500",
    ]
    again = run(qa)
    assert again["requests"] == 2 and again["unanswered"] == {}


def test_a_run_without_one_answer_fails_in_a_sentence_and_keeps_its_report(
    server: Endpointlike, tmp_path: Path
) -> None:
    server.always = status(500)
    (tmp_path / "short.txt").write_text(fact(1) + FILLER * 2)
    with pytest.raises(InputError, match=r"no chunk got an answer \(status 500 \d\): see that "):
        run(job(server, tmp_path / "short.txt", tmp_path / "qa"))
    assert json.loads((tmp_path / "qa" / "report.json").read_text())["accepted"] == 0


def test_a_budget_ends_the_run_cleanly_and_a_second_run_goes_on(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    whole_job = job(server, books, tmp_path / "whole")
    chunks = run(whole_job)["requests"]
    server.asked.clear()
    said: list[str] = []
    qa = job(server, books, tmp_path / "qa", budget=Budget(requests=5))
    run_qa(qa, said.append)
    report = json.loads((qa.folder / "report.json").read_text())
    assert len(server.asked) == report["requests"] == 5
    assert report["not_asked"] == chunks - 5
    assert report["ended"] == "the budget of 5 requests is spent"
    assert "stopped early: the budget of 5 requests is spent" in said[-1]
    assert lines(qa.folder / "questions.jsonl")
    run(replace(qa, budget=Budget()))
    assert len(server.asked) == chunks
    name = "questions.jsonl"
    assert (qa.folder / name).read_bytes() == (whole_job.folder / name).read_bytes()


def test_the_same_chunk_is_asked_about_once_and_its_pair_taken_once(
    server: Endpointlike, tmp_path: Path
) -> None:
    line = json.dumps({"text": fact(1) + FILLER * 2})
    (tmp_path / "d.jsonl").write_text(f"{line}\n" * 9)
    report = run(job(server, tmp_path / "d.jsonl", tmp_path / "qa"))
    assert len(server.asked) == report["requests"] == 1
    assert report["accepted"] == 1 and report["rejected"] == {"duplicate": 8}


def test_a_damaged_answer_is_asked_for_again(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    qa = job(server, books, tmp_path / "qa")
    run(qa)
    asked = len(server.asked)
    entries = sorted((qa.folder / "cache").rglob("*.json"))
    assert len(entries) == asked and all(e.parent.name == e.name[:2] for e in entries)
    harms = [b"", entries[1].read_bytes()[:-3], b"[]", b'{"content": 7}']
    for entry, harm in zip(entries, harms, strict=False):
        entry.write_bytes(harm)
    assert run(qa)["requests"] == len(harms)


def test_no_more_requests_are_under_way_than_asked_for(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    run(job(server, books, tmp_path / "qa"))
    assert 1 <= server.most_under_way <= 4


def test_a_refused_key_ends_the_run_and_leaves_no_half_of_a_file(
    server: Endpointlike, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QA_KEY", KEY)
    qa = job(server, books, tmp_path / "qa")
    qa = replace(qa, endpoint=replace(qa.endpoint, key_variable="QA_KEY"))
    server.plan.extend([answer, answer])
    server.always = status(401, json.dumps({"error": {"message": KEY, "code": KEY}}).encode())
    with pytest.raises(InputError, match="refused the key .*QA_KEY") as error:
        run(qa)
    assert KEY not in str(error.value)
    assert {p.name for p in qa.folder.iterdir()} == {".lock", "cache"}
    assert len(list((qa.folder / "cache").rglob("*.json"))) == 2


def test_the_key_is_in_no_file_and_in_nothing_said(
    server: Endpointlike,
    books: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QA_KEY", KEY)
    qa = job(server, books, tmp_path / "qa")
    qa = replace(qa, endpoint=replace(qa.endpoint, key_variable="QA_KEY"))
    said: list[str] = []
    run_qa(qa, said.append)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    printed = capfd.readouterr()
    assert KEY not in "".join(said) + printed.out + printed.err
    written = [path for path in qa.folder.rglob("*") if path.is_file()]
    assert len(written) > len(server.asked)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_one_run_at_a_time_in_a_folder(server: Endpointlike, books: Path, tmp_path: Path) -> None:
    qa = job(server, books, tmp_path / "qa")
    with alone_in(qa.folder), pytest.raises(InputError, match="another run is at work"):
        run(qa)
    assert server.asked == []


def test_a_context_without_room_for_a_question_is_refused(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="a context of 500 tokens holds no chunk of 60"):
        job(server, books, tmp_path / "qa", context=500)
    with pytest.raises(InputError, match="shortest lies between"):
        job(server, books, tmp_path / "qa", shortest=61)


def test_only_their_owner_may_read_documents_and_replies(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    for folder in (ours, theirs):
        run(job(server, books, folder))
    folders = (ours, ours / "cache", theirs, theirs / "cache")
    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == [
        "0o700",
        "0o700",
        "0o755",  # as it was given
        "0o700",
    ]


def test_replies_are_found_by_the_whole_request(tmp_path: Path) -> None:
    replies, reply = Replies(tmp_path), Reply("x", "stop", 1, 2, True)
    replies.keep(b"one", reply)
    assert replies.find(b"one") == reply and replies.find(b"one ") is None


# --- death -----------------------------------------------------------------------------------

PROGRAM = """
import sys, tyro
from ringworld.data.questions.config import QA
from ringworld.data.questions.qa import run_qa
try:
    run_qa(tyro.cli(QA, args=sys.argv[1:]), lambda said: print(said, flush=True))
except KeyboardInterrupt as stop:
    print(stop, flush=True)
    sys.exit(1)
"""


def start(qa: QA) -> "subprocess.Popen[str]":
    """The job in a process of its own."""
    words = [str(qa.documents), "--tokenizer", str(qa.tokenizer), "--folder", str(qa.folder)]
    words += ["--chunk", str(qa.chunk), "--shortest", "10", "--context", str(qa.context)]
    words += ["--endpoint.base-url", qa.endpoint.base_url, "--endpoint.model", "m"]
    words += ["--endpoint.concurrency", "3"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hold_from(server: Endpointlike, first: int) -> None:
    """Answer so many requests, and let the following wait."""
    server.plan.extend([answer] * first)
    server.always = stall


def wait_until_held(server: Endpointlike, count: int) -> None:
    """Return when so many requests have come, the last of which wait."""
    for _ in range(1200):
        if len(server.asked) >= count:
            return
        server.released.wait(0.05)
    pytest.fail(f"{len(server.asked)} requests came, not {count}")


def test_a_kill_costs_only_what_was_under_way(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    calm = job(server, books, tmp_path / "calm")
    chunks = run(calm)["requests"]
    server.asked.clear()
    hold_from(server, 7)
    qa = job(server, books, tmp_path / "qa")
    program = start(qa)
    wait_until_held(server, 10)
    program.send_signal(signal.SIGKILL)
    assert program.wait(60) == -signal.SIGKILL
    # Three threads: seven answers were kept before the next request of their thread was sent.
    assert len(list((qa.folder / "cache").rglob("[0-9a-f]*.json"))) == 7
    server.always = None
    report = run(qa)
    assert (report["requests"], report["cached"]) == (chunks - 7, 7)
    assert len(server.asked) == chunks + 3
    for name in ("questions.jsonl", "pairs.jsonl"):
        assert (qa.folder / name).read_bytes() == (calm.folder / name).read_bytes()


def test_ctrl_c_waits_for_what_is_under_way_and_says_how_to_go_on(
    server: Endpointlike, books: Path, tmp_path: Path
) -> None:
    gate = server.released

    def answer_late(handler: Handler) -> None:
        gate.wait()
        answer(handler)

    server.plan.extend([answer] * 7)
    server.always = answer_late
    qa = job(server, books, tmp_path / "qa")
    program = start(qa)
    wait_until_held(server, 10)
    program.send_signal(signal.SIGINT)
    assert program.stdout is not None
    assert "stopping when the answers under way have arrived" in program.stdout.readline()
    gate.set()
    said, _ = program.communicate(timeout=60)
    assert program.returncode == 1
    assert "every answer so far is kept" in said and "run the same command to go on" in said
    assert len(server.asked) == len(list((qa.folder / "cache").rglob("*.json"))) == 10
    assert {p.name for p in qa.folder.iterdir()} == {".lock", "cache"}


def test_a_second_ctrl_c_leaves_at_once(server: Endpointlike, books: Path, tmp_path: Path) -> None:
    server.always = drip
    program = start(job(server, books, tmp_path / "qa"))
    wait_until_held(server, 3)
    program.send_signal(signal.SIGINT)
    assert program.stdout is not None
    program.stdout.readline()
    program.send_signal(signal.SIGINT)
    said, _ = program.communicate(timeout=60)
    assert program.returncode == 1 and "run the same command to go on" in said


def test_rows_become_shards_of_which_only_the_answers_are_learned(
    server: Endpointlike,
    books: Path,
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (books / "d.txt").write_text("In a page <video> is a tag. " + fact(30) * 5)
    qa = job(server, books, tmp_path / "qa")
    run(qa)
    (chat,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.S | re.M)
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": openai_messages("Hi.", [ASKED])}))
    spec = chat.replace("runs/qa", "qa").replace("models/mine", NANO.as_posix())
    (tmp_path / "mix.toml").write_text(spec)
    page = PAGE.replace("\\\n", " ")
    build, train = re.findall(r"^\$ ringworld ((?:data build|train) .*)$", page, re.M)
    monkeypatch.chdir(tmp_path)
    cli.run(shlex.split(build), print)
    shards = Shards(tmp_path / "tokens")
    rows = lines(qa.folder / "questions.jsonl")
    built = [shards[int(i)] for i in shards.indices("questions")]
    assert len(built) == len(rows) > 2
    for row, example in zip(rows, built, strict=True):
        said = [plain(turn["content"]) for turn in row["messages"]]
        asked = [re.search(r"Who is the keeper of \w+\?$", words) for words in said[::2]]
        pairs = [QAPair(q[0], told) for q, told in zip(asked, said[1::2], strict=True) if q]
        expected = qa_example(said[0].removesuffix(f" {pairs[0].question}"), pairs, tokenizer)
        np.testing.assert_array_equal(example.tokens, expected.tokens)
        np.testing.assert_array_equal(example.weights, expected.weights)
        assert len(example) <= qa.context
    assert any("<video>" in plain(row["messages"][0]["content"]) for row in rows)
    recipe = tyro.cli(Recipe, default=recipe_of_shards(), args=shlex.split(train)[2:])
    assert isinstance(recipe.data, TokenShards)
    apart = choose_examples(
        ShardFolders([tmp_path / "tokens"]), recipe.stages[0], recipe.data.apart
    )
    assert isinstance(apart, Apart) and apart.shares == {"chat": 0.7, "questions": 0.3}
    assert set(recipe.data.apart) == set(apart.shares)


# --- the page --------------------------------------------------------------------------------


def test_the_command_of_the_page_runs(
    server: Endpointlike, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = re.search(r"^```console\n\$ (ringworld data qa .*?)^```$", PAGE, re.S | re.M)
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " "))[3:]
    monkeypatch.setenv("QA_KEY", KEY)
    qa = tyro.cli(QA, args=words)
    assert qa.endpoint.key_variable == "QA_KEY"
    near = replace(qa.endpoint, base_url=server.url)
    near_qa = replace(qa, documents=books, tokenizer=NANO, endpoint=near, folder=tmp_path / "qa")
    run(near_qa)
    assert server.asked[0]["model"] == qa.endpoint.model
    assert lines(tmp_path / "qa" / "questions.jsonl")
    for name in ("questions.jsonl", "pairs.jsonl", "report.json", "cache"):
        assert f"`{name}" in PAGE and (tmp_path / "qa" / name).exists()
