"""Packing: every target once, nothing mixed, rows full, and each example counted as one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.batch import Batch
from ringworld.data.example import Example, weigh
from ringworld.data.pack import Piece, efficiency, pack_row, plan_rows, split

LENGTHS = st.lists(st.integers(0, 90), max_size=30)
CONTEXTS = st.integers(1, 40)


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples whose every token is a number of its own; every third token is an image code."""
    first, examples = 0, []
    for length in lengths:
        tokens = np.arange(first, first + length, dtype=np.int32)
        weights = np.ones(length, np.float32)
        examples.append(Example(tokens, tokens % 3 == 0, weights))
        first += length
    return examples


def pack(lengths: list[int], context: int) -> tuple[list[Example], list[Batch]]:
    examples = examples_of(lengths)
    rows = plan_rows(lengths, context)
    return examples, [pack_row(row, examples.__getitem__, context) for row in rows]


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_every_target_is_there_once_behind_the_token_before_it(
    lengths: list[int], context: int
) -> None:
    examples, rows = pack(lengths, context)
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
    _, rows = pack(lengths, context)
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
    for row in pack(lengths, context)[1]:
        padding = row.segments == 0
        assert not padding[0] and (np.diff(padding.astype(int)) >= 0).all()
        for field in vars(row).values():
            assert not field[padding].any()


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_a_plan_depends_on_the_lengths_alone_and_keeps_to_the_context(
    lengths: list[int], context: int
) -> None:
    plan = plan_rows(lengths, context)
    assert plan == plan_rows(tuple(lengths), context)
    assert all(0 < sum(piece.inputs for piece in row) <= context for row in plan)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_pieces_of_an_example_share_one_token(lengths: list[int], context: int) -> None:
    pieces = split(lengths, context)
    for example, length in enumerate(lengths):
        own = [piece for piece in pieces if piece.example == example]
        assert all(a.stop == b.start + 1 for a, b in zip(own, own[1:], strict=False))
        assert all(1 <= piece.inputs <= context for piece in own)
        if length > 1:
            assert own[0].start == 0 and own[-1].stop == length
        else:
            assert not own  # nothing precedes its only token


@pytest.mark.parametrize("context", [1024, 32768])
def test_rows_are_full_to_99_percent_for_lengths_like_those_of_lwm(
    context: int, rng: np.random.Generator
) -> None:
    lengths = np.exp(rng.uniform(np.log(16), np.log(2 * context), 2000)).astype(int).tolist()
    assert efficiency(plan_rows(lengths, context), context) >= 0.99


def test_efficiency_counts_the_places_with_a_token() -> None:
    assert efficiency([(Piece(0, 0, 9),), (Piece(1, 0, 3), Piece(2, 0, 3))], 8) == 12 / 16


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, context=CONTEXTS)
def test_the_weights_of_a_piece_sum_to_one_in_each_modality_it_predicts(
    lengths: list[int], context: int
) -> None:
    for row in pack(lengths, context)[1]:
        for segment in range(1, row.segments.max() + 1):
            for kind in (row.target_vision, ~row.target_vision):
                own = row.weights[(row.segments == segment) & kind]
                # A float32 sum of at most 40 numbers that were each rounded.
                assert len(own) == 0 or own.sum() == pytest.approx(1, abs=1e-5)


def test_weights_keep_their_proportions_and_the_first_token_has_none() -> None:
    tokens, vision = np.arange(6, dtype=np.int32), np.array([0, 0, 0, 1, 1, 0], np.bool_)
    weights = np.array([5, 1, 3, 2, 2, 0], np.float32)
    found = weigh(Example(tokens, vision, weights)).weights
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 0.5, 0.5, 0])
    np.testing.assert_array_equal(weights, [5, 1, 3, 2, 2, 0])  # the given example is left alone


def test_an_example_that_predicts_nothing_weighs_nothing() -> None:
    tokens = np.arange(4, dtype=np.int32)
    silent = weigh(Example(tokens, tokens > 2, np.zeros(4, np.float32)))
    assert not silent.weights.any()
