"""Questions about long documents, written by a model that reads them chunk by chunk.

LWM's way to teach long answers (arXiv 2402.08268, stage I chat): a document is cut into chunks of
1,000 tokens, a model with a short context writes a question and its answer for each, neighbouring
chunks are put together up to the target context, and their pairs stand at the end as a chat. The
evidence is then anywhere in the context, and only the answers are learned.

One pass over the documents, in order: requests run ahead in threads, replies come back in the order
of the chunks, so that the same replies give the same bytes whatever the concurrency.
"""

import json
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, TaskProgressColumn, TextColumn

from ringworld.data.questions.chunks import Chunk, cut_document, measure_documents, read_documents
from ringworld.data.questions.completion import Reply
from ringworld.data.questions.config import LEAST_ROOM, LONGEST_TURN, QA
from ringworld.data.questions.contexts import TEMPLATE_ROOM, Verdict, group_chunks
from ringworld.data.questions.endpoint import BudgetSpent, Client, RunStopped, Unanswered
from ringworld.data.questions.pairs import (
    INSTRUCTION,
    QAPair,
    Rejected,
    fold,
    openai_messages,
    read_pair,
    request_body,
    turn_length,
)
from ringworld.data.questions.replies import PRIVATE, Replies
from ringworld.errors import InputError
from ringworld.files import alone_in, whole, writing_to
from ringworld.progress import Announce, make_progress
from ringworld.text.load import load_tokenizer
from ringworld.text.tokenizer import Tokenizer

ROWS, PAIRS, REPORT, CACHE = "questions.jsonl", "pairs.jsonl", "report.json", "cache"
# Chunks that wait in line for each thread, so that one slow reply does not idle the others.
CHUNKS_AHEAD = 8


@dataclass
class QACounts:
    """What became of the documents: the body of the report."""

    documents: int = 0
    empty_documents: int = 0
    chunks: int = 0
    too_short: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    not_asked: int = 0
    cached: int = 0
    cached_tokens: int = 0
    rows: int = 0
    row_tokens: int = 0
    learned_tokens: int = 0
    chunks_without_row: int = 0

    @property
    def unanswered_alone(self) -> Counter[str]:
        """Why chunks got no answer, when not one did; else nothing."""
        answered = self.accepted or self.rejected
        return Counter() if answered else self.unanswered


def run_qa(qa: QA, announce: Announce, client: Client | None = None) -> Path:
    """Write `questions.jsonl`, `pairs.jsonl` and `report.json` into the folder; return the first.

    Raises InputError for what a user can put right, and KeyboardInterrupt when it was stopped, once
    the answers under way have arrived. Every answer that arrived is kept in any case.
    """
    generator = PairGenerator(
        qa, load_tokenizer(qa.tokenizer), client or Client(qa.endpoint, qa.budget)
    )
    with writing_to(qa.folder):  # documents and replies may be private
        qa.folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with alone_in(qa.folder), _stopping(generator.client, announce), _progress(generator) as show:
        with whole(qa.folder / ROWS) as rows, whole(qa.folder / PAIRS) as pairs:
            _write(generator, rows, pairs, show)
        _report(generator, announce)
    if lost := generator.counts.unanswered_alone:
        raise InputError(
            f"no chunk got an answer{_reasons(lost)}: see that {qa.endpoint.base_url} serves "
            f"{qa.endpoint.model}, then run the same command to go on"
        )
    return qa.folder / ROWS


class PairGenerator:
    """One pass over the documents: chunks are asked about ahead, and judged in order."""

    def __init__(self, qa: QA, tokenizer: Tokenizer, client: Client) -> None:
        self.qa, self.tokenizer, self.client = qa, tokenizer, client
        self.counts = QACounts()
        self.ended = ""
        self._replies = Replies(qa.folder / CACHE)
        self._room = len(tokenizer.encode(INSTRUCTION)) + qa.endpoint.answer_tokens + LEAST_ROOM
        self._seen: set[bytes] = set()

    def verdicts(self) -> Generator[Verdict, None, None]:
        """A verdict on every chunk, in order. Raises KeyboardInterrupt when the client stopped."""
        line: deque[tuple[Chunk, Future[Answered] | None]] = deque()
        under_way: dict[bytes, Future[Answered]] = {}
        with ThreadPoolExecutor(self.qa.endpoint.concurrency) as pool:
            try:
                for chunk in self._chunks():
                    line.append((chunk, self._submit(pool, chunk, under_way)))
                    if len(line) > CHUNKS_AHEAD * self.qa.endpoint.concurrency:
                        yield self._judge(*line.popleft())
                while line:
                    yield self._judge(*line.popleft())
            finally:
                self.client.stop()
                pool.shutdown(cancel_futures=True)

    def _chunks(self) -> Iterator[Chunk]:
        for document in read_documents(self.qa.documents, self.qa.text_field):
            self.counts.documents += 1
            if not document.written.strip():
                self.counts.empty_documents += 1
                continue
            chunks = cut_document(document, self.tokenizer, self.qa.chunk)
            self.counts.chunks += len(chunks)
            yield from chunks

    def _submit(
        self, pool: ThreadPoolExecutor, chunk: Chunk, under_way: dict[bytes, "Future[Answered]"]
    ) -> "Future[Answered] | None":
        """The reply to come; the same chunk twice is one request. None for a chunk too short."""
        if chunk.tokens < self.qa.shortest or not chunk.written.strip():
            return None
        body = request_body(chunk.written, self.qa.endpoint)
        coming = under_way.get(body)
        if coming is None:
            coming = pool.submit(self._ask, body, chunk.tokens + self._room)
            under_way[body] = coming
            coming.add_done_callback(lambda _: under_way.pop(body, None))
        return coming

    def _ask(self, body: bytes, estimate: int) -> "Answered":
        """In a thread: what was kept, or what the endpoint says, which is kept at once."""
        kept = self._replies.find(body)
        if kept is not None:
            return Answered(kept, cached=True)
        reply = self.client.ask(body, estimate)
        self._replies.keep(body, reply)
        return Answered(reply, cached=False)

    def _judge(self, chunk: Chunk, coming: "Future[Answered] | None") -> Verdict:
        counts = self.counts
        if coming is None:
            counts.too_short += 1
            return Verdict(chunk, None, "too short")
        try:
            pair = self._read(chunk, coming.result())
        except BudgetSpent as spent:
            self.ended = str(spent)
            counts.not_asked += 1
            return Verdict(chunk, None, "not asked")
        except (RunStopped, Unanswered) as lost:
            if self.client.stopped:
                raise KeyboardInterrupt(
                    f"stopped: every answer so far is kept in {self.qa.folder / CACHE}; run the "
                    "same command to go on"
                ) from None
            counts.unanswered[str(lost)] += 1
            return Verdict(chunk, None, f"no answer: {lost}")
        except Rejected as rejected:
            counts.rejected[str(rejected)] += 1
            return Verdict(chunk, None, f"rejected: {rejected}")
        counts.accepted += 1
        return Verdict(chunk, pair, "accepted")

    def _read(self, chunk: Chunk, answered: "Answered") -> QAPair:
        """The pair in a reply. Raises Rejected, also for one that is long or not new.

        The same question about two books has two answers; within one it would be ambiguous.
        """
        if answered.cached:
            self.counts.cached += 1
            reply = answered.reply
            self.counts.cached_tokens += reply.prompt_tokens + reply.completion_tokens
        pair = read_pair(answered.reply, chunk.written)
        if turn_length(pair, self.tokenizer) + TEMPLATE_ROOM > LONGEST_TURN:
            raise Rejected("too many tokens")
        question, answer = fold(pair.question), fold(pair.answer)
        marks = {_mark(chunk.document, question), _mark(question, "", answer)}
        if marks & self._seen:
            raise Rejected("duplicate")
        self._seen |= marks
        return pair


@dataclass(frozen=True)
class Answered:
    """A reply, and whether it was asked for in an earlier run."""

    reply: Reply
    cached: bool


def _mark(*parts: str) -> bytes:
    """Sixteen bytes for a text: ten million pairs fit into a gigabyte or two."""
    return blake2b("\n".join(parts).encode(), digest_size=16).digest()


def _write(generator: PairGenerator, rows: Path, pairs: Path, show: Callable[[int], None]) -> None:
    """The verdicts as lines of `pairs`, and document by document as rows of chat."""
    counts, qa = generator.counts, generator.qa
    with (
        open(rows, "w", encoding="utf-8") as row_file,
        open(pairs, "w", encoding="utf-8") as pair_file,
        closing(generator.verdicts()) as verdicts,
    ):

        def noted() -> Iterator[Verdict]:
            for verdict in verdicts:
                pair_file.write(_line(_note(verdict)))
                show(len(verdict.chunk.written.encode()))
                yield verdict

        for _, of_document in groupby(noted(), key=lambda verdict: verdict.chunk.document):
            for context in group_chunks(of_document, qa.context, generator.tokenizer):
                if not context.pairs:
                    counts.chunks_without_row += context.chunks
                    continue
                row_file.write(
                    _line({"messages": openai_messages(context.document, context.pairs)})
                )
                counts.rows += 1
                counts.row_tokens += len(context.example)
                counts.learned_tokens += int(np.count_nonzero(context.example.weights))


def _note(verdict: Verdict) -> dict[str, Any]:
    where = {"document": verdict.chunk.document, "chunk": verdict.chunk.index}
    return where | {"verdict": verdict.word} | (asdict(verdict.pair) if verdict.pair else {})


def _line(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False) + "\n"


def _report(generator: PairGenerator, announce: Announce) -> None:
    """Write `report.json`, and say the same in some lines."""
    counts, tally, qa = generator.counts, generator.client.tally, generator.qa
    said = {
        "ended": generator.ended or "every chunk was read",
        **asdict(counts),
        "rejected": dict(sorted(counts.rejected.items())),
        "unanswered": dict(sorted(counts.unanswered.items())),
        "requests": tally.requests,
        "retried": dict(sorted(tally.retried.items())),
        "tokens": {
            "prompt": tally.prompt_tokens,
            "completion": tally.completion_tokens,
            "of_these_estimated": tally.estimated_tokens,
        },
        "settings": asdict(qa),
    }
    with whole(qa.folder / REPORT) as draft:
        draft.write_text(json.dumps(said, indent=2, default=str) + "\n", "utf-8")
    rejected, lost = counts.rejected.total(), counts.unanswered.total()
    announce(
        f"{counts.chunks:,} chunks of {counts.documents:,} documents: {counts.accepted:,} pairs "
        f"accepted, {rejected:,} rejected{_reasons(counts.rejected)}, {lost:,} not answered"
        f"{_reasons(counts.unanswered)}, {counts.too_short:,} too short to ask about, "
        f"{counts.not_asked:,} not asked"
    )
    announce(
        f"{tally.requests:,} requests, of which {tally.retried.total():,} tries again"
        f"{_reasons(tally.retried)}; {counts.cached:,} answers from the cache; {tally.tokens:,} "
        f"tokens spent, and {counts.cached_tokens:,} saved by it"
    )
    share = counts.learned_tokens / max(counts.row_tokens, 1)
    announce(
        f"{counts.rows:,} rows of {counts.row_tokens:,} tokens, of which {share:.2%} are learned"
    )
    if generator.ended:
        announce(f"stopped early: {generator.ended}; raise it and run the same command to go on")


def _reasons(counter: Counter[str]) -> str:
    told = ", ".join(f"{word} {count:,}" for word, count in counter.most_common())
    return f" ({told})" if told else ""


@contextmanager
def _stopping(client: Client, announce: Announce) -> Generator[None, None, None]:
    """On SIGINT or SIGTERM nothing more is sent, and what is under way arrives; a second cuts it.

    Signals reach the main thread alone; elsewhere this does nothing.
    """

    def stop(*_: object) -> None:
        if client.stopped:
            client.transport.abort()
            return
        client.stop()
        announce("stopping when the answers under way have arrived; once more leaves them")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(generator: PairGenerator) -> Generator[Callable[[int], None], None, None]:
    """A bar over the bytes of the documents, with the pairs and tokens so far."""
    columns = BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}")
    with make_progress(*columns) as bar:
        task = bar.add_task("", total=measure_documents(generator.qa.documents))

        def show(size: int) -> None:
            counts, tally = generator.counts, generator.client.tally
            bar.update(
                task,
                advance=size,
                description=f"{counts.accepted:,} accepted, {counts.rejected.total():,} rejected, "
                f"{tally.requests:,} requests, {tally.tokens:,} tokens",
            )

        yield show
