"""Packing: every target once, nothing mixed, rows full, and each example counted as one."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_world

from ringworld import params
from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing import pack
from ringworld.data.packing.pack import (
    Cut,
    PackingPlan,
    Piece,
    Pieces,
    best_fit,
    drop_long,
    efficiency,
    even_fit,
    lay,
    pack_row,
    plan_rows,
    run_on,
    split_long,
    truncate_long,
    weigh_examples,
    weigh_rows,
)
from ringworld.data.packing.rows import PackedRows, Packing
from ringworld.errors import InputError
from ringworld.mesh import shard
from ringworld.models import llama
from ringworld.models.world import forward, specs
from ringworld.train.loss import loss
from ringworld.vocab import Vocabulary

LENGTHS = st.lists(st.integers(0, 90), max_size=30)
CONTEXTS = st.integers(1, 40)
CUTS = st.sampled_from([split_long, truncate_long, drop_long])


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples whose every token is a number of its own; every third token is an image code."""
    first, examples = 0, []
    for length in lengths:
        tokens = np.arange(first, first + length, dtype=np.int32)
        weights = np.ones(length, np.float32)
        examples.append(Example(tokens, tokens % 3 == 0, weights))
        first += length
    return examples


def pack_all(lengths: list[int], context: int) -> tuple[list[Example], list[Batch]]:
    examples = examples_of(lengths)
    rows = plan_rows(lengths, context)
    return examples, [pack_row(row, examples.__getitem__, context) for row in rows_of(rows)]


def rows_of(plan: PackingPlan) -> list[tuple[Piece, ...]]:
    return [plan[i] for i in range(len(plan))]


# ---- what goes into a row


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_every_target_is_there_once_behind_the_token_before_it(
    lengths: list[int], context: int
) -> None:
    examples, rows = pack_all(lengths, context)
    wanted = [(a, b) for e in examples for a, b in zip(e.tokens[:-1], e.tokens[1:], strict=True)]
    found = [
        pair
        for row in rows
        for pair in zip(row.tokens[row.segments > 0], row.targets[row.segments > 0], strict=True)
    ]
    assert sorted(found) == wanted


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_a_segment_is_one_run_of_one_example_with_positions_from_zero(
    lengths: list[int], context: int
) -> None:
    _, rows = pack_all(lengths, context)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in rows:
        assert row.tokens.shape == (context,)
        for segment in range(1, row.segments.max() + 1):
            places = np.flatnonzero(row.segments == segment)
            assert (np.diff(places) == 1).all()
            np.testing.assert_array_equal(row.positions[places], np.arange(len(places)))
            assert len(set(owner[row.tokens[places]])) == 1
            assert (np.diff(row.tokens[places]) == 1).all()
            np.testing.assert_array_equal(row.targets[places], row.tokens[places] + 1)
            np.testing.assert_array_equal(row.vision[places], row.tokens[places] % 3 == 0)
            np.testing.assert_array_equal(row.target_vision[places], row.targets[places] % 3 == 0)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_padding_has_no_segment_no_weight_and_stands_behind(
    lengths: list[int], context: int
) -> None:
    for row in pack_all(lengths, context)[1]:
        padding = row.segments == 0
        assert not padding[0] and (np.diff(padding.astype(int)) >= 0).all()
        for field in vars(row).values():
            assert not field[padding].any()


# ---- long examples


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_pieces_of_a_split_example_share_one_token(lengths: list[int], context: int) -> None:
    pieces = split_long(lengths, context)
    for number, length in enumerate(lengths):
        own = [piece for piece in pieces if piece.example == number]
        assert all(a.stop == b.start + 1 for a, b in zip(own, own[1:], strict=False))
        assert all(1 <= piece.inputs <= context for piece in own)
        if length > 1:
            assert own[0].start == 0 and own[-1].stop == length
        else:
            assert not own  # nothing precedes its only token


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_truncated_and_dropped_examples_are_one_piece_or_none(
    lengths: list[int], context: int
) -> None:
    wanted = [Piece(i, 0, min(n, context + 1)) for i, n in enumerate(lengths) if n > 1]
    assert list(truncate_long(lengths, context)) == wanted
    assert list(drop_long(lengths, context)) == [p for p in wanted if lengths[p.example] == p.stop]


@pytest.mark.parametrize(("long", "tokens"), [("split", 33), ("truncate", 20), ("drop", 4)])
def test_a_long_example_is_split_truncated_or_dropped_as_the_packing_says(
    long: Any, tokens: int
) -> None:
    rows = PackedRows(examples_of([30, 5]), 16, Packing(long=long))
    assert sum(int((rows[i].segments > 0).sum()) for i in range(len(rows))) == tokens


def test_examples_that_make_no_row_are_refused() -> None:
    with pytest.raises(InputError, match="1 examples make no row of 16 tokens"):
        PackedRows(examples_of([30]), 16, Packing(long="drop"))


# ---- plans


def fit_by_definition(sizes: list[int], context: int) -> list[int]:
    """Best fit, decreasing, looking at every row for every piece."""
    rows, found = [], [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fits = [row for row, used in enumerate(rows) if used + sizes[i] <= context]
        row = max(fits, key=lambda row: (rows[row], -row), default=len(rows))
        rows += [0] * (row == len(rows))
        rows[row] += sizes[i]
        found[i] = row
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data(), context=CONTEXTS)
def test_a_piece_goes_into_the_fullest_row_with_room_longest_first(
    data: st.DataObject, context: int
) -> None:
    sizes = data.draw(st.lists(st.integers(1, context), max_size=40))
    assert best_fit(np.array(sizes, int), context).tolist() == fit_by_definition(sizes, context)


def fit_evenly_by_definition(sizes: list[int], context: int) -> list[int]:
    """`even_fit`, a row at a time, looking at every piece for every place."""
    waiting = sorted(range(len(sizes)), key=lambda i: sizes[i])
    found, row, short = [0] * len(sizes), 0, 0
    while waiting:
        if sizes[waiting[0]] > short:
            reached = [i for n, i in enumerate(waiting, 1) if n >= len(waiting) / 10]
            short = sizes[reached[0]]
        longest = next(i for i in waiting if sizes[i] == sizes[waiting[-1]])
        taken, room = [longest], context - sizes[longest]
        waiting.remove(longest)
        while True:
            fits = [i for i in waiting if sizes[i] <= room]
            for others in range(max(room // short, 1) - 1, -1, -1):
                if some := [i for i in fits if sizes[i] <= room - others * short]:
                    fits = some
                    break
            if not fits:
                break
            chosen = max(fits, key=lambda i: (sizes[i], -i))
            taken.append(chosen)
            waiting.remove(chosen)
            room -= sizes[chosen]
        for i in taken:
            found[i] = row
        row += 1
    return found


@settings(max_examples=200, deadline=None)
@given(data=st.data(), context=CONTEXTS)
def test_a_long_piece_gets_short_ones_beside_it_where_rows_have_few(
    data: st.DataObject, context: int
) -> None:
    sizes = data.draw(st.lists(st.integers(1, context), max_size=40))
    rows = even_fit(np.array(sizes, int), context).tolist()
    slow = fit_evenly_by_definition(sizes, context)

    # Equal pieces may change places: what is compared is the lengths in each row.
    def lengths_of(found: list[int]) -> list[list[int]]:
        held = [[s for s, row in zip(sizes, found, strict=True) if row == n] for n in set(found)]
        return [sorted(row) for row in held]

    assert lengths_of(rows) == lengths_of(slow)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS, cut=CUTS)
def test_a_plan_has_every_piece_once_and_keeps_to_the_context(
    lengths: list[int], context: int, cut: Cut
) -> None:
    rows = rows_of(plan_rows(lengths, context, cut))
    assert rows == rows_of(plan_rows(np.array(lengths, int), context, cut))
    assert all(0 < sum(piece.inputs for piece in row) <= context for row in rows)
    key = {piece: i for i, piece in enumerate(cut(lengths, context))}
    assert sorted(key[piece] for row in rows for piece in row) == list(range(len(key)))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_windows_of_examples_are_planned_each_by_itself(lengths: list[int], context: int) -> None:
    apart = []
    for first in range(0, len(lengths), 7):
        for row in rows_of(plan_rows(lengths[first : first + 7], context)):
            apart.append(tuple(Piece(p.example + first, p.start, p.stop) for p in row))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "PLAN_WINDOW", 7)
        assert rows_of(plan_rows(lengths, context)) == apart


def lwm_lengths(rng: np.random.Generator, count: int, context: int) -> np.ndarray:
    """Six clips of about 400 tokens to three videos that nearly fill a row of 8K, to a document."""
    kind = rng.random(count)
    clips, videos = rng.normal(400, 60, count), 7722 + rng.integers(10, 100, count)
    documents = np.exp(rng.uniform(np.log(1e3), np.log(1e6), count))
    videos = np.minimum(videos, context)
    return np.where(kind < 0.6, clips, np.where(kind < 0.9, videos, documents)).astype(np.int64)


@pytest.mark.parametrize("context", [2**13, 2**15, 2**17, 2**20])
def test_rows_are_full_to_99_percent_for_lengths_like_those_of_lwm(
    context: int, rng: np.random.Generator
) -> None:
    books = np.exp(rng.uniform(np.log(1e3), np.log(2**20), 20_000)).astype(np.int64)
    for lengths in (books, lwm_lengths(rng, 20_000, context)):
        assert efficiency(plan_rows(lengths, context), context) >= 0.99


def test_pictures_alone_fill_their_rows_as_far_as_three_of_them_can(
    rng: np.random.Generator,
) -> None:
    lengths = 263 + rng.lognormal(4.0, 0.6, 20_000).astype(np.int64)
    # As many rows as three pieces a row would be, and the one in eighty that fits in none of them.
    least = len(lengths) / 3
    assert len(plan_rows(lengths, 1024)) < 1.02 * least
    assert best_fit(lengths - 1, 1024).max() > 1.05 * least


def test_efficiency_counts_the_places_with_a_token() -> None:
    pieces = Pieces(np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([9, 3, 3]))
    assert efficiency(PackingPlan(np.array([0, 1, 3]), pieces), 8) == 12 / 16


def test_lengths_beyond_a_plan_are_refused() -> None:
    with pytest.raises(InputError, match="at most 2147483647 tokens"):
        plan_rows([5, 2**31], 8)


# ---- weights


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_the_weights_of_a_piece_sum_to_one_in_each_modality_it_predicts(
    lengths: list[int], context: int
) -> None:
    for row in pack_all(lengths, context)[1]:
        for segment in range(1, row.segments.max() + 1):
            for kind in (row.target_vision, ~row.target_vision):
                own = row.weights[(row.segments == segment) & kind]
                # A float32 sum of at most 40 numbers that were each rounded.
                assert len(own) == 0 or own.sum() == pytest.approx(1, abs=1e-5)


def two_examples(weigh: Any) -> np.ndarray:
    """The weights of a row with targets of 1, 3 | 2, 2 of vision, 0 and, in another piece, 4."""
    first = Example(
        np.arange(6, dtype=np.int32),
        np.array([0, 0, 0, 1, 1, 0], np.bool_),
        np.array([5, 1, 3, 2, 2, 0], np.float32),
    )
    examples = [first, example.text([7, 8], 4.0)]
    row = [Piece(0, 0, 6), Piece(1, 0, 2)]
    return pack_row(row, examples.__getitem__, 8, weigh).weights


def test_weights_keep_their_proportions_and_the_first_token_has_none() -> None:
    np.testing.assert_allclose(two_examples(weigh_examples), [0.25, 0.75, 0.5, 0.5, 0, 1, 0, 0])


def test_row_weighting_shares_one_weight_among_the_examples_of_a_row() -> None:
    found = two_examples(weigh_rows)
    np.testing.assert_allclose(found, [1 / 8, 3 / 8, 0.5, 0.5, 0, 0.5, 0, 0])


def test_an_example_that_predicts_nothing_weighs_nothing() -> None:
    tokens = np.arange(4, dtype=np.int32)
    silent = [Example(tokens, tokens > 2, np.zeros(4, np.float32))]
    assert not pack_row([Piece(0, 0, 4)], silent.__getitem__, 8).weights.any()


# ---- naive packing


def test_a_naive_row_is_one_segment_whose_positions_run_on() -> None:
    where = lay([Piece(0, 0, 4), Piece(1, 2, 5)], 7)
    assert where.segments.tolist() == [1, 1, 1, 2, 2, 0, 0]
    assert where.positions.tolist() == [0, 1, 2, 0, 1, 0, 0]
    naive = run_on(where)
    assert naive.segments.tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert naive.positions.tolist() == [0, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize("segments", ["masked", "naive"])
def test_the_plan_alone_tells_where_the_tokens_of_a_row_stand(segments: Any) -> None:
    rows = PackedRows(examples_of([9, 30, 5, 5]), 16, Packing(segments=segments))
    for i in range(len(rows)):
        wanted, found = rows[i].where, rows.where(i)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


# ---- packed training is unpacked training


CONTEXT = 32
VOCABULARY = Vocabulary(text=24, bos=1, eos=2, codes=6, codes_per_frame=4, vision_rows=8)
TINY = tiny_world(VOCABULARY, CONTEXT, heads=2, kv_heads=1, head_width=8)
SHARE = 0.4
# Packed weights are float32, each off by up to 6e-8 of itself; everything else is float64.
TOLERANCE = 1e-6


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model and the loss in float64, wherever they ask for float32."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    monkeypatch.setitem(llama.COMPUTE, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield


@cache
def mixed_examples() -> list[Example]:
    """Questions, frames and answers of many lengths, some longer than a row, text among them."""
    rng = np.random.default_rng(0)
    found = []
    for n in (5, 60, 3, 9, 41, 2, 14, 22, 30, 7, 4, 12):
        codes = rng.integers(0, VOCABULARY.codes, (int(rng.integers(1, 3)), 4))
        asked = example.text(rng.integers(3, 24, 2).tolist(), 0.0)
        said = example.text(rng.integers(3, 24, n).tolist(), 1.0)
        seen = example.frames(codes, VOCABULARY, float(rng.choice([0.0, 0.3, 1.0])))
        parts = [[asked, seen, said], [asked, said, seen], [said]][len(found) % 3]
        found.append(example.join(parts))
    return found


def alone(piece: Piece) -> dict[str, np.ndarray]:
    """A piece in a padded row of its own, with the weights that its example was given."""
    whole = mixed_examples()[piece.example]
    padding = (0, CONTEXT - piece.inputs)
    read, next_ = slice(piece.start, piece.stop - 1), slice(piece.start + 1, piece.stop)
    return {
        "tokens": np.pad(whole.tokens[read], padding),
        "vision": np.pad(whole.vision[read], padding),
        "targets": np.pad(whole.tokens[next_], padding),
        "target_vision": np.pad(whole.vision[next_], padding),
        "weights": np.pad(whole.weights[next_], padding).astype(np.float64),
        "segments": np.pad(np.ones(piece.inputs, np.int32), padding),
        "positions": np.pad(np.arange(piece.inputs, dtype=np.int32), padding),
    }


READ = ("tokens", "vision", "positions", "segments")


def unpacked_loss(rows: dict[str, np.ndarray], weights: Any) -> jax.Array:
    """The mean over rows of each row's mean, in each modality over the rows that predict it."""
    tokens, vision, *where = map(jnp.asarray, [rows[name] for name in READ])
    x = forward(weights, tokens, vision, Where(*where), TINY)
    total = jnp.zeros(())
    for of_vision, head, share in (
        (False, weights.heads.text, 1 - SHARE),
        (True, weights.heads.vision, SHARE),
    ):
        counted = np.where(rows["target_vision"] == of_vision, rows["weights"], 0.0)
        targets = np.where(rows["target_vision"] == of_vision, rows["targets"], 0)
        logs = shard(jax.nn.log_softmax(x @ head), None, None, None)
        nll = -jnp.take_along_axis(logs, jnp.asarray(targets)[..., None], -1)[..., 0]
        predicts = counted.sum(1) > 0
        means = (nll * counted).sum(1)[predicts] / counted.sum(1)[predicts]
        total = total + share * means.mean()
    return total


def packed_against_unpacked(packing: Packing) -> tuple[float, float]:
    """The relative errors of the loss and of the worst gradient over some rows of a plan."""
    rows = PackedRows(mixed_examples(), CONTEXT, packing)
    taken = [i for i in range(len(rows)) if i % 4]  # every fourth row is in another batch
    pieces = [piece for i in taken for piece in rows.plan[i]]
    lone = jax.tree.map(lambda *x: np.stack(x), *[alone(piece) for piece in pieces])
    batch = jax.tree.map(lambda *x: np.stack(x), *[rows[i] for i in taken])
    batch = Batch(**{**vars(batch), "weights": batch.weights.astype(np.float64)})
    weights = params.init(specs(TINY), seed=1, dtype=jnp.float64)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(partial(unpacked_loss, lone)))(weights)
    value_and_grad = jax.value_and_grad(lambda w, b: loss(w, b, TINY, SHARE)[0])
    found, grads = jax.jit(value_and_grad)(weights, batch)
    assert found.dtype == wanted.dtype == np.float64
    named, exact = params.paths(grads), params.paths(wanted_grads)
    assert all(np.abs(exact[name]).max() > 0 for name in exact)
    errors = [np.abs(named[n] - exact[n]).max() / np.abs(exact[n]).max() for n in exact]
    return float(abs(found - wanted) / wanted), float(max(errors))


def test_packed_training_is_unpacked_training_in_loss_and_every_gradient(float64: None) -> None:
    plan = PackedRows(mixed_examples(), CONTEXT).plan
    taken = [plan[i] for i in range(len(plan)) if i % 4]
    left = {p.example for i in range(0, len(plan), 4) for p in plan[i]}
    assert max(map(len, taken)) >= 3
    assert left & {p.example for row in taken for p in row}  # parts of an example are elsewhere
    value, grads = packed_against_unpacked(Packing())
    assert value <= TOLERANCE and grads <= TOLERANCE


@pytest.mark.parametrize(
    "packing",
    [Packing(segments="naive"), Packing(weights="rows"), Packing(segments="naive", weights="rows")],
    ids=["naive", "rows", "both"],
)
def test_naive_packing_and_row_weighting_train_something_else(
    float64: None, packing: Packing
) -> None:
    value, grads = packed_against_unpacked(packing)
    # Not rounding: thousands of times the tolerance of what is equal.
    assert value > 1e-3 and grads > 1e-2


# ---- plans on a disk


def test_a_kept_plan_is_mapped_and_is_the_plan(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = examples_of([9, 70, 5, 5, 30])
    made = PackedRows(examples, 16)
    first = PackedRows(examples, 16, plans=tmp_path)
    monkeypatch.setattr(
        "ringworld.data.packing.rows.plan_rows", None
    )  # a kept plan is not made again
    again = PackedRows(examples, 16, plans=tmp_path)
    assert rows_of(made.plan) == rows_of(first.plan) == rows_of(again.plan)
    assert isinstance(again.plan.offsets, np.memmap) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", ["lengths", "context", "cut"])
def test_a_kept_plan_of_something_else_is_not_taken(tmp_path: Any, change: str) -> None:
    examples = examples_of([9, 70, 5, 5, 30])
    PackedRows(examples, 16, plans=tmp_path)
    arguments: dict[str, Any] = {
        "lengths": (examples[:-1], 16, Packing()),
        "context": (examples, 17, Packing()),
        "cut": (examples, 16, Packing(long="truncate")),
    }
    found = PackedRows(*arguments[change], plans=tmp_path)
    assert rows_of(found.plan) == rows_of(PackedRows(*arguments[change]).plan)
    assert len(list(tmp_path.iterdir())) == 4
