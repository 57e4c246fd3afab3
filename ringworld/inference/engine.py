"""The engine: requests in, answers out, many at a time, each as if it ran alone.

    submit -> waits -> is admitted, with pages for its prompt and its longest answer
           -> is read in chunks, two requests in turn -> decodes with all others -> is finished

One call of `step` admits what fits, reads a chunk of two prompts, and decodes some steps. All of it
is in one order, so the same calls give the same answers. The engine knows no tokenizer.
"""

from collections import deque
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.attention.paged import PAGES_AT_ONCE
from ringworld.data.example import on_grid
from ringworld.errors import InputError, TooLargeError
from ringworld.inference.config import Counters, EngineConfig
from ringworld.inference.drafts import Draft, lay_drafts, propose_drafts
from ringworld.inference.pool import (
    PageBook,
    chain_contents,
    count_page_bytes,
    grow_pages,
    make_pages,
)
from ringworld.inference.programs import (
    DECODE_STEPS,
    Choice,
    choose_tokens,
    decode_rows,
    read_chunk,
    score_chunk,
)
from ringworld.inference.request import Completion, Finish, Output, Request, TokenScore
from ringworld.inference.rows import ActiveRow, Group, lay_rows, lay_table
from ringworld.mesh import axis_size, fetch_whole
from ringworld.models.world import World, WorldWeights

# Prompts that are read in turn: a short question waits for a chunk of a long one, not for all.
READ_TOGETHER = 2
# Chunks that are started before an earlier one has ended: the next is ready when a device is, and a
# cancel waits for two. Dozens can lock up a CPU's devices (ringworld/cpu.py).
STARTED_AHEAD = 2
# From this position on a chunk is mostly attention, which takes less of a token the more there are:
# of nano at 38,656, 256 tokens took 159 ms, 64 took 75 and 16 took 35.
MOSTLY_ATTENTION = 8192


class Engine:
    """Prefill, decoding and scoring of many requests with one model, on the mesh that is set.

    Every device of `data` and `fsdp` computes the same; `seq` divides pages and `tensor` heads.
    """

    def __init__(self, weights: WorldWeights, c: World, config: EngineConfig) -> None:
        self._weights, self._c, self._config = weights, c, config
        self._page = config.page * axis_size("seq")
        columns = -(-c.llama.context // self._page)
        self._columns = columns + -columns % PAGES_AT_ONCE
        self._most = config.cache_bytes // count_page_bytes(c, config.page, config.int8)
        if self._most < 2:
            raise TooLargeError(
                f"a cache of {config.cache_bytes:,} bytes has no room for two pages of "
                f"{self._page} tokens: give it more"
            )
        self._pages = make_pages(2, config.page, c, config.int8)
        self._book = PageBook(2)
        self._waiting: deque[Group] = deque()
        self._reading: deque[ActiveRow] = deque()
        self._started: deque[jax.Array] = deque()
        self._slots: list[ActiveRow | None] = [None] * config.rows
        self._computed = self._reused = 0
        # One device can begin a chunk anywhere; a ring reads whole pages, with padding at the end.
        sizes = (self._page, max(self._page // 4, 1), max(self._page // 16, 1))
        self._sizes = sizes if axis_size("seq") == 1 else sizes[:1]

    @property
    def counters(self) -> Counters:
        """What it holds now."""
        return Counters(
            waiting=len(self._waiting),
            running=sum(row is not None for row in self._slots),
            pages_read=self._book.read,
            pages_kept=self._book.kept,
            most_pages=self._most,
            bytes=sum(x.nbytes for x in jax.tree.leaves(self._pages)),
            computed=self._computed,
            reused=self._reused,
            evicted=self._book.evicted,
        )

    def submit(self, request: Request) -> Output:
        """The answer to be filled by later steps.

        Raises InputError, before anything is computed, for what could never run: a prompt and an
        answer beyond the context or the cache, frames of a model without codes.
        """
        if request.codes and not self._c.vocabulary.codes:
            raise InputError("this model has no image codes: use a world model to draw")
        given = [request.prompt, *([request.guided_from] if request.guided_from else [])]
        prompts = [on_grid(prompt, self._c.vocabulary) for prompt in given]
        self._check_room(max(map(len, prompts)) + request.max_new_tokens, len(prompts))
        answer = Output(request, [Completion() for _ in range(request.samples)])
        owner = repr((request.tenant, request.content)).encode()
        for index, sample in enumerate(answer.samples):
            group = tuple(
                ActiveRow(
                    answer=answer,
                    sample=sample,
                    index=index,
                    prompt=prompt,
                    contents=list(chain_contents(prompt, self._page, owner)),
                    leads=i == 0,
                )
                for i, prompt in enumerate(prompts)
            )
            self._waiting.append(group)
        return answer

    def _check_room(self, tokens: int, rows: int) -> None:
        context, room = self._c.llama.context, (self._most - 1) * self._page // rows
        if tokens > context:
            raise TooLargeError(
                f"the prompt and its answer take {tokens} tokens and the model's context is "
                f"{context}: shorten the prompt or use a model of longer context"
            )
        if -(-tokens // self._page) * rows > self._most - 1:
            raise TooLargeError(
                f"the prompt and its answer take {tokens} tokens and the cache has room for "
                f"{room}: shorten the prompt or give the cache more memory"
            )
        if rows > len(self._slots):
            raise TooLargeError(
                f"a guided answer takes {rows} rows and the engine has {len(self._slots)}: "
                "give it more rows"
            )

    def cancel(self, answer: Output) -> None:
        """End a request where it stands, and free what it holds; its full pages are kept."""
        self._waiting = deque(group for group in self._waiting if group[0].answer is not answer)
        for row in list(self._slots):
            if row is not None and row.answer is answer:
                self._leave(row)
        for sample in answer.samples:
            sample.finish = sample.finish or "cancelled"

    def step(self) -> bool:
        """Do some work; whether more is left."""
        while self._waiting and self._admit(self._waiting[0]):
            self._waiting.popleft()
        for _ in range(min(READ_TOGETHER, len(self._reading))):
            row = self._reading.popleft()
            self._read(row)
            if row.unread:
                self._reading.append(row)
            else:
                self._begin(row)
        self._decode()
        return bool(self._waiting) or any(row is not None for row in self._slots)

    def finish(self, answer: Output) -> Output:
        """The answer, when steps have finished it."""
        while not answer.finished:
            self.step()
        return answer

    def stream(self, answer: Output) -> Iterator[list[int]]:
        """The ids of the first sample as they come, some at a time; empty while others go on."""
        told = 0
        while not answer.finished:
            self.step()
            yield answer.ids[told:]
            told = len(answer.ids)

    def reserve(self, pages: int) -> None:
        """Make room for so many pages, or as many as the cache has, before they are needed.

        A pool that grows is another shape, for which every program is compiled again.
        """
        if (least := min(pages, self._most)) > self._book.count:
            self._grow(least)

    def forget(self) -> None:
        """Free the pages that are kept for later requests."""
        self._book.forget()

    # ---- room

    def _admit(self, group: Group) -> bool:
        """Give the rows of a sample slots, and pages for all that they will hold; or nothing."""
        free = [i for i, row in enumerate(self._slots) if row is None]
        found = [self._find_pages(row) for row in group]
        wanted = [-(-max(row.length - 1, len(row.prompt)) // self._page) for row in group]
        needed = sum(wanted) - sum(map(len, found))
        idle = len({page for pages in found for page in pages if self._book.is_idle(page)})
        lacking = needed - (self._book.room - idle)
        if len(free) < len(group) or lacking > self._most - self._book.count:
            return False
        if lacking > 0:
            self._grow(self._book.count + lacking)
        for pages in found:
            for page in pages:
                self._book.hold(page)
        for row, slot, pages, count in zip(group, free, found, wanted, strict=False):
            row.slot, self._slots[slot] = slot, row
            row.pages = pages + [self._book.take() for _ in range(count - len(pages))]
            self._count_reused(row, len(pages))
            self._reading.append(row)
        return True

    def _grow(self, least: int) -> None:
        """Make the pool larger: twice as large as often as it takes, for few compiled shapes."""
        count = self._book.count
        while count < least:
            count *= 2
        count = min(count, self._most)
        self._pages = grow_pages(self._pages, count)
        self._book.grow(count)

    def _find_pages(self, row: ActiveRow) -> list[int]:
        """The kept pages that hold what comes next of a prompt; its last token is always read."""
        pages: list[int] = []
        stop = (len(row.prompt) - 1) // self._page
        for content in row.contents[row.computed // self._page : stop]:
            page = None if row.scored else self._book.find(content)
            if page is None:
                break
            pages.append(page)
        return pages

    def _count_reused(self, row: ActiveRow, pages: int) -> None:
        tokens = pages * self._page
        row.computed += tokens
        row.answer.reused += tokens
        self._reused += tokens

    def _leave(self, row: ActiveRow) -> None:
        """Free a row's slot and pages, the last page first."""
        for page in reversed(row.pages):
            self._book.release(page)
        row.pages, self._slots[row.slot] = [], None
        if row in self._reading:
            self._reading.remove(row)

    # ---- prefill

    def _read(self, row: ActiveRow) -> None:
        """Read the next page of a prompt, after what another row has read of it meanwhile."""
        for page in self._find_pages(row):
            own = row.computed // self._page
            self._book.hold(page)
            self._book.release(row.pages[own])
            row.pages[own] = page
            self._count_reused(row, 1)
        stop = row.computed + min(self._page, row.unread)
        while row.computed < stop:
            self._read_chunk(row)

    def _read_chunk(self, row: ActiveRow) -> None:
        """Read the largest chunk that a prompt fills, or the rest of it in the smallest.

        Far into a row half a chunk is enough: it takes less time than the two smaller ones.
        """
        start = row.computed
        enough = row.unread if start < MOSTLY_ATTENTION else 2 * row.unread - 1
        size = next((size for size in self._sizes if size <= enough), self._sizes[-1])
        stop = min(start + size, len(row.prompt))
        tokens, vision = np.zeros((1, size), np.int32), np.zeros((1, size), np.bool_)
        tokens[0, : stop - start] = row.prompt.tokens[start:stop]
        vision[0, : stop - start] = row.prompt.vision[start:stop]
        x, row.x, self._pages = read_chunk(
            self._weights,
            self._pages,
            tokens,
            vision,
            lay_table(row, self._columns),
            np.int32(start),
            np.int32(stop - start - 1),
            self._c,
        )
        self._started.append(x)
        if len(self._started) > STARTED_AHEAD:
            self._started.popleft().block_until_ready()
        row.computed = stop
        row.answer.computed += stop - start
        self._computed += stop - start
        if stop % self._page == 0:
            page = stop // self._page - 1
            self._book.keep(row.pages[page], row.contents[page])
        if row.scored:
            self._score(row, x, start, stop)

    def _score(self, row: ActiveRow, x: jax.Array, start: int, stop: int) -> None:
        """Keep the log-probabilities of the tokens behind those of a chunk."""
        following = row.prompt.tokens[start + 1 : stop + 1]
        targets = np.zeros((1, x.shape[1]), np.int32)
        targets[0, : len(following)] = following
        alternatives = row.answer.request.logprobs or 0
        found = score_chunk(self._weights, x, targets, alternatives, self._c)
        logprobs, ids, tops = map(fetch_whole, found)
        row.answer.prompt_scores += [
            TokenScore(
                float(logprobs[i]), tuple(zip(ids[i].tolist(), tops[i].tolist(), strict=True))
            )
            for i in range(len(following))
        ]

    # ---- decoding

    def _begin(self, row: ActiveRow) -> None:
        """Choose the first token of a sample whose rows are read."""
        group = self._group(row)
        if any(other.unread for other in group):
            return
        if not row.answer.request.max_new_tokens:
            self._end(group, "length")
            return
        places = range(len(group))
        rows = lay_rows([group], [places], len(group), self._c.vocabulary.text)
        x = jnp.concatenate([other.x for other in group if other.x is not None])
        found = choose_tokens(x, self._weights, rows, self._c)
        for other in group:
            other.x = None
        self._take(group, jax.device_get(found), 0)

    def _group(self, row: ActiveRow) -> Group:
        rows = (other for other in self._slots if other and other.sample is row.sample)
        return tuple(sorted(rows, key=lambda other: not other.leads))

    def _decode(self) -> None:
        """Some steps of all rows that decode."""
        rows = [row if row is not None and row.decodes else None for row in self._slots]
        groups = [self._group(row) for row in rows if row is not None and row.leads]
        if not groups:
            return
        places = [[row.slot for row in group] for group in groups]
        batch = lay_rows(groups, places, len(rows), self._c.vocabulary.text)
        tables = np.zeros((len(rows), self._columns), np.int32)
        for row in filter(None, rows):
            tables[row.slot] = lay_table(row, self._columns)
        drafts = propose_drafts(groups, [i for i, row in enumerate(rows) if row is None])
        lay_drafts(batch, tables, drafts)
        masked = any(row.answer.request.allow for row in filter(None, rows))
        steps = 1 if masked or drafts else DECODE_STEPS
        found, self._pages = decode_rows(
            self._weights,
            self._pages,
            tables,
            batch,
            np.int32(steps),
            self._c,
        )
        found = jax.device_get(found)
        for i in range(steps):
            choice = jax.tree.map(lambda x, i=i: x[i], found)
            for group in groups:
                if group[0].sample.finish is None:
                    self._take(group, choice, group[0].slot)
        for draft in drafts:
            self._accept(draft, rows[draft.slot], jax.tree.map(lambda x: x[0], found))

    def _accept(self, draft: Draft, row: ActiveRow | None, choice: Choice) -> None:
        """Add what was chosen behind guesses that came true."""
        for token, place in zip(draft.tokens, draft.places, strict=True):
            if row is None or row.sample.finish or row.sample.ids[-1] != token:
                return
            self._take((row,), choice, place)

    def _take(self, group: Group, choice: Choice, place: int) -> None:
        """Add a chosen token to a sample, and end the sample where it has to."""
        sample, request = group[0].sample, group[0].answer.request
        token = int(choice.token[place])
        if token in request.stops and not request.codes:
            self._end(group, "stop")
            return
        sample.ids.append(token)
        if request.logprobs is not None:
            ids, tops = choice.top[place].tolist(), choice.top_logprobs[place].tolist()
            top = tuple(zip(ids, tops, strict=True))[: request.logprobs]
            sample.scores.append(TokenScore(float(choice.logprob[place]), top))
        if request.stop_strings and request.spell is not None:
            text = request.spell(sample.ids)
            cuts = [text.find(end) for end in request.stop_strings if end in text]
            if cuts:
                sample.text = text[: min(cuts)]
                self._end(group, "stop")
                return
        if len(sample.ids) == request.max_new_tokens:
            self._end(group, "length")

    def _end(self, group: Group, why: Finish) -> None:
        group[0].sample.finish = why
        for row in group:
            self._leave(row)
