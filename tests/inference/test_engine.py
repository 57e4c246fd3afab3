"""The engine: whatever runs beside a request, it gets the bits that it gets alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringworld.attention.mask import Where
from ringworld.data.example import Example, frames, join, text
from ringworld.errors import InputError, TooLargeError
from ringworld.inference import drafts
from ringworld.inference import engine as engines
from ringworld.inference.config import EngineConfig
from ringworld.inference.engine import Engine
from ringworld.inference.pool import PageBook, chain_contents, count_page_bytes
from ringworld.inference.request import Output, Request
from ringworld.mesh import make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import init, shardings
from ringworld.settings import Sampling
from ringworld.vocab import Vocabulary

TINY = World(
    llama=Llama(
        layers=2, model=32, mlp=64, heads=4, kv_heads=2, head_width=8, context=96, rope_theta=1e4
    ),
    vocabulary=Vocabulary(text=64, bos=1, eos=2, codes=16, codes_per_frame=4, vision_rows=24),
)
PAGE, ROWS, PAGES = 8, 4, 24  # tokens of a page over the ring, rows, pages of the pool
DRAWN = Sampling(temperature=1.0, top_k=12, top_p=0.95, min_p=0.02)
PENALIZED = Sampling(
    temperature=0.7, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2
)
RINGS = [1, 8]


@pytest.fixture(scope="module")
def weights() -> WorldWeights:
    # Four times the usual start, so that the greatest logit is clear of rounding.
    return jax.tree.map(lambda x: 4 * x, init(specs(TINY), 0))


@contextmanager
def ring_of(size: int, weights: WorldWeights) -> Iterator[WorldWeights]:
    """The weights on a ring of so many devices."""
    with jax.set_mesh(make_mesh(seq=size)):
        yield jax.device_put(weights, shardings(specs(TINY), jax.sharding.get_mesh()))


def make(weights: WorldWeights, *, ring: int = 1, pages: int = PAGES, **rest: Any) -> Engine:
    page = PAGE // ring
    int8 = rest.get("int8", False)
    room = pages * count_page_bytes(TINY, page, int8)
    return Engine(
        weights,
        TINY,
        EngineConfig(cache_bytes=room, rows=rest.pop("rows", ROWS), page=page, **rest),
    )


def words(length: int, seed: int = 0) -> Example:
    return text(np.random.default_rng(seed).integers(3, 64, length).tolist(), 0.0)


def pictures(seed: int = 0) -> Example:
    codes = np.random.default_rng(seed).integers(0, 16, (3, 4))
    return join([text([1], 0.0), frames(codes, TINY.vocabulary, 0.0), words(4, seed)])


def asked(prompt: Example, tokens: int = 9, **rest: Any) -> Request:
    return Request(prompt=prompt, max_new_tokens=tokens, **{"logprobs": 2, **rest})


BOOK = words(40)
MENU = (
    asked(words(3)),
    asked(words(16), 1),
    asked(BOOK, 12),
    asked(join([BOOK, words(5, 1)])),
    asked(join([BOOK, words(11, 2)]), sampling=DRAWN, seed=7),
    asked(text(BOOK.tokens[:24], 0.0), 6, sampling=DRAWN, seed=7, samples=2),
    asked(words(29, 3), stops=(5, 9, 11, 40)),
    asked(pictures(), sampling=PENALIZED, seed=3),
    asked(words(9, 4), 14, codes=True, logprobs=None, sampling=DRAWN, guided_from=words(2, 5)),
    asked(words(70, 6), 20),
    asked(join([BOOK, words(3, 8)]), 0, prompt_logprobs=True),
)


def told(answer: Output) -> tuple[Any, ...]:
    """All that a request gets."""
    samples = [(sample.ids, sample.scores, sample.finish) for sample in answer.samples]
    return samples, answer.prompt_scores


def run_alone(engine: Engine, request: Request) -> Output:
    """The answer of an engine that holds nothing."""
    engine.forget()
    return engine.finish(engine.submit(request))


@pytest.fixture(scope="module")
def alone(weights: WorldWeights) -> dict[int, list[Any]]:
    """What each request of the menu gets when it runs alone, on each ring."""
    found = {}
    for ring in RINGS:
        with ring_of(ring, weights) as placed:
            engine = make(placed, ring=ring)
            found[ring] = [told(run_alone(engine, request)) for request in MENU]
            assert_empty(engine)
    return found


def assert_empty(engine: Engine) -> None:
    """Nobody holds anything, and every page is free or kept."""
    counted = engine.counters
    assert (counted.waiting, counted.running, counted.pages_read) == (0, 0, 0)
    engine.forget()
    assert engine.counters.pages_kept == 0
    assert engine._book.room == engine._book.count - 1


@pytest.fixture(scope="module", params=RINGS)
def busy(request: pytest.FixtureRequest, weights: WorldWeights) -> tuple[int, Engine]:
    """An engine that lives through all examples, on a ring of 1 and of 8."""
    with ring_of(request.param, weights) as placed:
        return request.param, make(placed, ring=request.param)


@pytest.fixture(scope="module")
def solitary(weights: WorldWeights) -> dict[int, Engine]:
    """An engine on each ring that runs one request at a time."""
    found = {}
    for ring in RINGS:
        with ring_of(ring, weights) as placed:
            found[ring] = make(placed, ring=ring)
    return found


ACTS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, len(MENU) - 1)),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.just(0)),
)


DRIVEN = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(max_examples=10, **DRIVEN)
@given(acts=st.lists(ACTS, min_size=4, max_size=24))
def test_in_any_company_a_request_gets_the_bits_that_it_gets_alone(
    busy: tuple[int, Engine], alone: dict[int, list[Any]], acts: list[tuple[str, int]]
) -> None:
    """Random arrivals, cancels and evictions of 11 kinds of requests that share beginnings."""
    ring, engine = busy
    with jax.set_mesh(make_mesh(seq=ring)):
        act_out(engine, MENU, alone[ring], acts)


def draw_up(
    shared: int, own: int, tokens: int, seed: int, kind: dict[str, Any], samples: int
) -> Request:
    """A request that begins with so many tokens of the book, and goes on with some of its own."""
    prompt = join([text(BOOK.tokens[:shared], 0.0), words(own, seed)])
    return asked(prompt, tokens, seed=seed, samples=samples, **kind)


def even(ids: Any) -> np.ndarray:
    """The ids that a grammar allows: even and odd ones in turn."""
    return np.arange(64) % 2 == len(ids) % 2


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"sampling": DRAWN},
    {"sampling": PENALIZED, "stops": (5, 9, 11, 40)},
    {"sampling": DRAWN, "allow": even},
    {"prompt_logprobs": True},
    {"sampling": DRAWN, "codes": True, "logprobs": None, "guided_from": words(2, 5)},
    {"tenant": "another"},
)
PLANS = st.fixed_dictionaries(
    dict(
        shared=st.integers(0, len(BOOK)),
        own=st.integers(1, 30),
        tokens=st.integers(1, 20),
        seed=st.integers(0, 3),
        kind=st.sampled_from(KINDS),
        samples=st.integers(1, 2),
    )
)


@pytest.mark.slow
@settings(max_examples=100, **DRIVEN)
@given(
    plans=st.lists(PLANS, min_size=1, max_size=6),
    acts=st.lists(ACTS, min_size=4, max_size=30),
)
def test_requests_of_any_length_get_the_bits_that_they_get_alone(
    busy: tuple[int, Engine],
    solitary: dict[int, Engine],
    plans: list[dict[str, Any]],
    acts: list[tuple[str, int]],
) -> None:
    """Random requests too, against one at a time without a cache."""
    ring, engine = busy
    menu = [draw_up(**plan) for plan in plans]
    with jax.set_mesh(make_mesh(seq=ring)):
        alone = [told(run_alone(solitary[ring], request)) for request in menu]
        act_out(engine, menu, alone, acts)


def act_out(
    engine: Engine, menu: Sequence[Request], alone: list[Any], acts: list[tuple[str, int]]
) -> None:
    """Run the acts to their end, and compare what every request got."""
    running: list[tuple[int, Output]] = []
    cancelled: set[int] = set()
    for act, number in acts:
        if act == "submit":
            which = number % len(menu)
            running.append((which, engine.submit(menu[which])))
        elif act == "step":
            for _ in range(number):
                engine.step()
        elif act == "cancel" and number < len(running):
            if not running[number][1].finished:
                cancelled.add(number)
            engine.cancel(running[number][1])
        elif act == "forget":
            engine.forget()
    while engine.step():
        pass
    for i, (which, answer) in enumerate(running):
        if i not in cancelled:
            assert told(answer) == alone[which]
    counted = engine.counters
    assert (counted.waiting, counted.running, counted.pages_read) == (0, 0, 0)
    assert engine._book.room == engine._book.count - 1


def write_slowly(weights: WorldWeights, request: Request) -> list[int]:
    """Greedy text from a whole forward a token, without a cache."""
    tokens, vision = request.prompt.tokens.tolist(), request.prompt.vision.tolist()
    for _ in range(request.max_new_tokens):
        row = slow_logits(weights, tokens, vision)[len(tokens) - 1]
        tokens.append(int(row.argmax()))
        vision.append(False)
    written = tokens[len(request.prompt) :]
    ends = [i for i, token in enumerate(written) if token in request.stops]
    return written[: ends[0]] if ends else written


def slow_logits(weights: WorldWeights, tokens: list[int], vision: list[bool]) -> np.ndarray:
    n, room = len(tokens), TINY.llama.context
    row = np.zeros((2, 1, room), np.int32)
    row[0, 0, :n], row[1, 0, :n] = tokens, vision
    positions = np.arange(room, dtype=np.int32)[None]
    where = Where(positions, (positions < n).astype(np.int32))
    x = jax.jit(forward, static_argnums=4)(weights, row[0], row[1] > 0, where, TINY)
    return np.asarray(x[0] @ weights.heads.text)


@pytest.mark.parametrize("ring", RINGS)
def test_greedy_answers_are_those_of_whole_forwards(
    weights: WorldWeights, alone: dict[int, list[Any]], ring: int
) -> None:
    for request, (samples, _) in zip(MENU, alone[ring], strict=True):
        if request.max_new_tokens and request.sampling == Sampling() and not request.codes:
            assert samples[0][0] == write_slowly(weights, request)


def test_log_probabilities_are_those_of_whole_forwards(
    weights: WorldWeights, alone: dict[int, list[Any]]
) -> None:
    prompt = MENU[-1].prompt
    logits = slow_logits(weights, prompt.tokens.tolist(), prompt.vision.tolist())
    whole = np.asarray(jax.nn.log_softmax(logits))
    for ring in RINGS:
        scores = alone[ring][-1][1]
        assert len(scores) == len(prompt) - 1
        wanted = whole[np.arange(len(scores)), prompt.tokens[1:]]
        apart = np.array([score.logprob for score in scores]) - wanted
        # Two layers of float32 in another order: 2e-4 of 40 nats. All are compared together, as one
        # of them may be 4e-4 off on some kinds of CPU.
        assert np.linalg.norm(apart) < 5e-6 * np.linalg.norm(wanted)
        assert [score.top[0][0] for score in scores] == whole[: len(scores)].argmax(-1).tolist()


def test_a_hit_gives_the_bits_of_a_miss_and_reads_only_the_rest(weights: WorldWeights) -> None:
    engine = make(weights)
    first = join([BOOK, words(5, 1)])
    engine.finish(engine.submit(asked(first)))
    for prompt, reused in ((first, 40), (join([BOOK, words(11, 2)]), 40), (BOOK, 32)):
        hit = engine.finish(engine.submit(asked(prompt)))
        assert (hit.reused, hit.computed) == (reused, len(prompt) - reused)
        fresh = make(weights)
        miss = fresh.finish(fresh.submit(asked(prompt)))
        assert miss.reused == 0 and told(hit) == told(miss)


def test_pages_are_shared_only_by_the_same_tenant_content_and_kind_of_token(
    weights: WorldWeights,
) -> None:
    engine = make(weights)
    seen = pictures()
    given = join([seen, words(9)])
    engine.finish(engine.submit(asked(given, tenant="a", content=b"film")))
    other = replace(given, vision=~given.vision)
    for request, reused in (
        (asked(given, tenant="a", content=b"film"), 24),
        (asked(given, tenant="b", content=b"film"), 0),
        (asked(given, tenant="a", content=b"film at 2 fps"), 0),
        (asked(other, tenant="a", content=b"film"), 0),
    ):
        assert engine.finish(engine.submit(request)).reused == reused


def test_two_prompts_that_arrive_together_share_the_reading(weights: WorldWeights) -> None:
    engine = make(weights)
    both = [engine.submit(asked(join([BOOK, words(3, i)]))) for i in (1, 2)]
    while engine.step():
        pass
    assert sum(answer.computed for answer in both) == 40 + 3 + 3
    assert engine.counters.reused == 40


def test_a_cancelled_reading_keeps_its_full_pages(weights: WorldWeights) -> None:
    engine = make(weights)
    answer = engine.submit(asked(words(70, 6)))
    for _ in range(4):
        engine.step()
    engine.cancel(answer)
    assert answer.samples[0].finish == "cancelled" and engine.counters.pages_kept == 4
    again = engine.finish(engine.submit(asked(words(70, 6))))
    assert again.reused == 32


def test_far_into_a_row_half_a_page_is_read_as_a_page(
    weights: WorldWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, read = list[int](), engines.read_chunk

    def note(*given: Any) -> Any:
        sizes.append(given[2].shape[1])
        return read(*given)

    monkeypatch.setattr(engines, "read_chunk", note)
    monkeypatch.setattr(engines, "MOSTLY_ATTENTION", 40)
    engine = make(weights)
    for rest, wanted in ((4, [2, 2]), (5, [PAGE]), (7, [PAGE]), (3, [2, 1])):
        sizes.clear()
        request = asked(join([BOOK, words(rest, rest)]), prompt_logprobs=True)
        answer = engine.finish(engine.submit(request))
        assert answer.ids == write_slowly(weights, request)
        assert sizes == [PAGE] * 5 + wanted
        # Behind the padding the answer is written where the padding stood.
        assert len(answer.ids) == 9 and len(answer.prompt_scores) == len(request.prompt) - 1
    hit = engine.finish(engine.submit(asked(join([BOOK, words(5, 5)]))))
    assert hit.reused == 40 and told(hit) == told(run_alone(engine, hit.request))


def test_a_short_question_waits_for_two_chunks_of_a_long_prompt(weights: WorldWeights) -> None:
    engine = make(weights)
    long = engine.submit(asked(words(70, 6)))
    engine.step()
    short = engine.submit(asked(words(3)))
    before = long.computed
    while not short.ids:
        engine.step()
    assert long.computed - before <= 2 * PAGE and long.computed < 70


def test_no_more_than_two_chunks_are_started_before_an_earlier_one_has_ended(
    weights: WorldWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = [], []

    class Chunk:
        def block_until_ready(self) -> None:
            ended.append(self)

    def note(*given: Any) -> Any:
        _, x, pages = read(*given)
        started.append(Chunk())
        assert len(started) - len(ended) <= engines.STARTED_AHEAD + 1
        return started[-1], x, pages

    read = engines.read_chunk
    monkeypatch.setattr(engines, "read_chunk", note)
    engine = make(weights)
    for seed in (1, 2):
        engine.submit(asked(words(70, seed), 1))
    while engine.step():
        pass
    assert len(started) >= 2 * 70 // PAGE and ended == started[: len(ended)]


def test_a_request_waits_until_there_is_room_for_its_longest_answer(weights: WorldWeights) -> None:
    engine = make(weights, pages=9)  # 64 tokens
    first, second = (engine.submit(asked(words(30, i), 10)) for i in (1, 2))
    engine.step()
    assert engine.counters.waiting == 1
    engine.finish(first)
    assert not second.ids
    engine.finish(second)
    assert engine.counters.evicted > 0
    fresh = make(weights, pages=9)
    assert told(fresh.finish(fresh.submit(second.request))) == told(second)


def test_room_that_is_reserved_is_there_from_the_start_and_is_no_more_than_the_cache(
    weights: WorldWeights,
) -> None:
    grown, reserved, whole = (make(weights, pages=16) for _ in range(3))
    reserved.reserve(8)
    whole.reserve(1000)
    at_start, small = reserved.counters.bytes, grown.counters.bytes
    assert at_start == 4 * small and whole.counters.bytes == 8 * small
    wanted, found = (run_alone(engine, asked(words(40))) for engine in (grown, reserved))
    assert told(found) == told(wanted)
    assert grown.counters.bytes > small and reserved.counters.bytes == at_start


def test_what_can_never_fit_is_refused_with_both_numbers(weights: WorldWeights) -> None:
    with pytest.raises(TooLargeError, match=r"take 100 tokens and the model's context is 96"):
        make(weights).submit(asked(words(90), 10))
    with pytest.raises(TooLargeError, match=r"take 80 tokens and the cache has room for 64"):
        make(weights, pages=9).submit(asked(words(70), 10))
    with pytest.raises(TooLargeError, match=r"takes 2 rows and the engine has 1"):
        make(weights, rows=1).submit(MENU[8])
    with pytest.raises(TooLargeError, match=r"cache of [\d,]+ bytes has no room"):
        make(weights, pages=1)
    with pytest.raises(InputError, match="need the text of ids"):
        asked(words(3), stop_strings=("x",))


def test_a_stop_string_ends_an_answer_before_it(weights: WorldWeights) -> None:
    def spell(ids: Any) -> str:
        return "".join(f"<{i}>" for i in ids)

    engine = make(weights)
    ids = engine.finish(engine.submit(asked(BOOK, 9))).ids
    end = f"<{ids[3]}><{ids[4]}>"
    cut = engine.finish(engine.submit(asked(BOOK, 9, stop_strings=(end,), spell=spell)))
    whole = spell(ids)
    assert cut.samples[0].text == whole[: whole.index(end)]
    assert cut.samples[0].finish == "stop" and len(cut.ids) < 9


def test_a_grammar_allows_what_it_allows(weights: WorldWeights) -> None:
    engine = make(weights)
    beside = engine.submit(asked(words(3)))
    answer = engine.finish(engine.submit(asked(BOOK, 9, allow=even)))
    assert [i % 2 for i in answer.ids] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert told(engine.finish(beside)) == told(run_alone(engine, asked(words(3))))


def test_samples_differ_and_a_seed_repeats_them(weights: WorldWeights) -> None:
    engine = make(weights)
    request = asked(BOOK, 8, sampling=Sampling(temperature=20.0), samples=3)
    first, again = (engine.finish(engine.submit(request)) for _ in range(2))
    other = engine.finish(engine.submit(replace(request, seed=1)))
    assert len({tuple(sample.ids) for sample in first.samples}) == 3
    assert told(first) == told(again) and told(first) != told(other)


def test_guesses_that_come_true_save_steps_and_change_no_bit(
    weights: WorldWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "DECODE_STEPS", 1)
    request = asked(BOOK, 20, sampling=DRAWN, seed=3)
    truth = run_alone(make(weights), request)
    engine = make(weights)
    true, wrong = list(truth.ids), [63, *truth.ids[1:]]

    def count_steps(guess: list[int]) -> int:
        def find(history: np.ndarray, most: int) -> list[int]:
            done = len(history) - len(BOOK)
            return guess[done : done + most] if done % 2 else wrong[:most]

        monkeypatch.setattr(drafts, "find_draft", find)
        engine.forget()
        answer, steps = engine.submit(request), 0
        while not answer.finished:
            engine.step()
            steps += 1
        assert told(answer) == told(truth)
        return steps

    assert count_steps(true) < count_steps([])


def test_a_guess_is_what_followed_the_same_ids_before() -> None:
    history = np.asarray([1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 7, 1, 2, 3])
    assert drafts.find_draft(history, 2) == [9, 8]
    assert drafts.find_draft(history[:8], 9) == [4, 5, 1, 2, 3]
    assert drafts.find_draft(history[:5], 9) == []


def test_penalties_keep_an_answer_from_repeating_itself(weights: WorldWeights) -> None:
    engine = make(weights)
    strict = Sampling(presence_penalty=1e6)
    ids = engine.finish(engine.submit(asked(words(3), 20, sampling=strict))).ids
    assert len(set(ids)) == 20


def test_a_frequency_penalty_counts_and_a_bias_is_added(weights: WorldWeights) -> None:
    engine = make(weights)
    plain = engine.finish(engine.submit(asked(words(3), 12)))
    chosen = plain.ids[0]
    wanted = engine.submit(asked(words(3), 12, bias=((chosen, -1e6), (7, 1e5), (8, 1e5 - 50))))
    assert engine.finish(wanted).ids == [7] * 12
    # Each time that 7 is chosen it loses 600, so that 7 and 8, 500 apart, take turns.
    fair = Sampling(frequency_penalty=600.0)
    both = engine.submit(asked(words(3), 6, bias=((7, 1e5), (8, 1e5 - 500)), sampling=fair))
    assert engine.finish(both).ids == [7, 8] * 3
    with pytest.raises(InputError, match="513"):
        asked(words(3), 1, bias=tuple((i, 1.0) for i in range(513)))


@pytest.mark.parametrize("ring", RINGS)
def test_int8_keys_and_values_change_the_scores_by_little(
    weights: WorldWeights, alone: dict[int, list[Any]], ring: int
) -> None:
    with ring_of(ring, weights) as placed:
        engine = make(placed, ring=ring, int8=True)
        found = [score.logprob for score in run_alone(engine, MENU[-1]).prompt_scores]
    exact = [score.logprob for score in alone[ring][-1][1]]
    assert 0 < np.abs(np.subtract(found, exact)).mean() < 0.5
    assert count_page_bytes(TINY, PAGE, True) < count_page_bytes(TINY, PAGE, False)


def test_the_oldest_page_goes_first_and_none_before_those_that_continue_it() -> None:
    book = PageBook(6)
    contents = list(chain_contents(words(24), 8, b""))
    pages = [book.take() for _ in contents]
    for page, content in zip(pages, contents, strict=True):
        book.keep(page, content)
    for page in reversed(pages):
        book.release(page)
    assert [book.find(content) for content in contents] == pages
    taken = [book.take() for _ in range(4)]  # two are free, two must go
    assert taken[2:] == [pages[2], pages[1]]
    assert [book.find(content) for content in contents] == [pages[0], None, None]


def test_a_page_is_found_only_by_equal_tokens() -> None:
    book = PageBook(3)
    content = next(chain_contents(words(8), 8, b""))
    book.keep(book.take(), content)
    assert book.find(replace(content, tokens=b"other")) is None
