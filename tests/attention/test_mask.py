"""A mask is an interval per token: it composes, is told in O(T), and means what its name says."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention.mask import (
    Reach,
    Span,
    Where,
    block_stops,
    causal,
    causal_by_block,
    causal_with_prefix,
    everything,
    reach,
    sees,
    window,
)

T = 24
FRAME = 5


def packed() -> Where:
    """Documents of 11, 1 and 8 tokens, and padding."""
    positions, segments = np.zeros((2, 1, T), np.int32)
    for segment, (start, stop) in enumerate(((0, 11), (11, 12), (12, 20)), start=1):
        positions[0, start:stop] = np.arange(stop - start)
        segments[0, start:stop] = segment
    return Where(positions, segments)


def shown(where: Where, span: Span) -> np.ndarray:
    """The mask as a boolean array [T, T]."""
    queries = Reach(where.segments, span.first, span.stop)
    return np.asarray(sees(*(_on_device(x) for x in (queries, where))))[0]


def _on_device(tree: object) -> object:
    return type(tree)(*(None if x is None else jnp.asarray(x) for x in vars(tree).values()))


ROWS = packed()
P, S = ROWS.positions[0], ROWS.segments[0]
TOGETHER = (S[:, None] == S[None]) & (S[:, None] > 0)
FRAMES = P // FRAME
MASKS: dict[str, tuple[Span, Callable[[int, int], bool]]] = {
    "everything": (everything(ROWS), lambda t, s: True),
    "causal": (causal(ROWS), lambda t, s: P[s] <= P[t]),
    "window": (causal(ROWS) & window(ROWS, 3), lambda t, s: P[t] - 3 < P[s] <= P[t]),
    "prefix": (causal_with_prefix(ROWS, 4), lambda t, s: P[s] <= P[t] or P[s] < 4),
    "frames": (
        causal_by_block(ROWS, block_stops(ROWS, FRAMES[None])),
        lambda t, s: FRAMES[s] <= FRAMES[t],
    ),
    "frames in a window": (
        causal_by_block(ROWS, block_stops(ROWS, FRAMES[None])) & window(ROWS, 6),
        lambda t, s: FRAMES[s] <= FRAMES[t] and P[s] > P[t] - 6,
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_span_is_the_rule_that_its_name_says(name: str) -> None:
    span, rule = MASKS[name]
    wanted = np.array([[TOGETHER[t, s] and rule(t, s) for s in range(T)] for t in range(T)])
    np.testing.assert_array_equal(shown(ROWS, span), wanted)


@settings(max_examples=50, deadline=None)
@given(a=st.sampled_from(sorted(MASKS)), b=st.sampled_from(sorted(MASKS)))
def test_and_lets_a_token_see_what_both_do(a: str, b: str) -> None:
    one, other = MASKS[a][0], MASKS[b][0]
    both = shown(ROWS, one) & shown(ROWS, other)
    np.testing.assert_array_equal(shown(ROWS, one & other), both)


def test_a_rows_span_narrows_the_causal_mask() -> None:
    narrowed = Where(*(_on_device(ROWS).positions, _on_device(ROWS).segments), window(ROWS, 3))
    found = np.asarray(sees(reach(narrowed, True), narrowed))[0]
    np.testing.assert_array_equal(found, shown(ROWS, MASKS["window"][0]))


def test_padding_neither_sees_nor_is_seen() -> None:
    for span, _ in MASKS.values():
        mask = shown(ROWS, span)
        assert not mask[S == 0].any() and not mask[:, S == 0].any()


def test_ten_million_tokens_are_described_in_16_bytes_each() -> None:
    length = 10_000_000
    positions = np.arange(length, dtype=np.int32)[None]
    rows = Where(positions, np.ones_like(positions))
    span = causal_by_block(rows, block_stops(rows, positions // 257)) & window(rows, 1 << 20)
    described = (rows.positions, rows.segments, span.first, span.stop)
    assert sum(x.nbytes for x in described) == 16 * length
    assert {x.dtype for x in described} == {np.dtype(np.int32)}
