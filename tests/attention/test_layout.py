"""An order of a row is a permutation of it, and the layout counts what every device will do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention.balance import Layout, choose_layout, count_work, make_orders
from ringworld.attention.layout import (
    contiguous_order,
    deal,
    invert,
    striped_order,
    zigzag_order,
)
from ringworld.attention.mask import (
    Where,
    key_bounds,
    may_see,
    query_bounds,
    reach,
    window,
)
from ringworld.errors import InputError

MILLION = 1 << 20


def pack(lengths: list[int], row: int) -> Where:
    """One row of documents with these lengths, and padding behind them."""
    positions, segments, at = *np.zeros((2, 1, row), np.int32), 0
    for segment, length in enumerate(lengths, start=1):
        length = min(length, row - at)
        positions[0, at : at + length] = np.arange(length)
        segments[0, at : at + length] = segment
        at += length
    return Where(positions, segments)


def draw_lengths(row: int, longest: int, seed: int) -> list[int]:
    """Document lengths as in LWM's stages, even over their logarithm from 1K on, filling a row."""
    rng, lengths = np.random.default_rng(seed), []
    while sum(lengths) < row:
        lengths.append(int(np.exp(rng.uniform(np.log(1024), np.log(longest)))))
    return lengths


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 300), ring=st.integers(1, 9), stripe=st.integers(1, 40))
def test_every_order_deals_each_token_once_to_equal_shards(
    length: int, ring: int, stripe: int
) -> None:
    orders = (
        contiguous_order(length, ring),
        zigzag_order(length, ring),
        striped_order(length, ring, stripe),
    )
    row = np.arange(1, length + 1)[None]
    for order in orders:
        assert len(order) % ring == 0 and len(order) - length < 2 * ring
        dealt = deal(row, order)
        np.testing.assert_array_equal(dealt[:, invert(order, length)], row)
        assert (dealt > 0).sum() == length


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 300), ring=st.integers(1, 9))
def test_a_device_holds_its_tokens_in_the_order_of_the_row(length: int, ring: int) -> None:
    for order in make_orders(length, ring).values():
        assert (np.diff(order.reshape(ring, -1), axis=1) >= 0).all()


def test_nothing_to_deal_and_nobody_to_deal_to_are_refused() -> None:
    for length, ring in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="must be 1 or more"):
            contiguous_order(length, ring)


def visited(where: Where, order: np.ndarray, ring: int, tile: int) -> np.ndarray:
    """The pairs of tiles that the kernel visits, each pair asked for alone, [R, R]."""

    def tiles(rows: np.ndarray) -> jax.Array:
        shards = deal(rows, order).reshape(ring, -1)
        shards = np.pad(shards, ((0, 0), (0, -shards.shape[1] % tile)))
        return jnp.asarray(shards.reshape(ring, -1, tile))

    queries = query_bounds(jax.tree.map(tiles, reach(where, True)))
    keys = key_bounds(jax.tree.map(tiles, Where(where.positions, where.segments)))
    live = may_see(
        jax.tree.map(lambda x: x[:, :, None, None], queries),
        jax.tree.map(lambda x: x[None, None], keys),
    )
    return np.asarray(live).sum((1, 3))


@pytest.mark.parametrize("ring", [1, 3, 4])
@pytest.mark.parametrize("lengths", [[190], [37, 1, 50, 3, 20], [64, 64]], ids=str)
def test_the_plan_counts_the_pairs_of_tiles_that_the_kernel_visits(
    ring: int, lengths: list[int]
) -> None:
    where = pack(lengths, 200)
    for order in make_orders(200, ring).values():
        for seen in (where, Where(where.positions, where.segments, window(where, 20))):
            found = count_work(seen, order, ring, tile=8)
            np.testing.assert_array_equal(found, visited(seen, order, ring, tile=8))


@pytest.mark.parametrize("ring", [8, 64])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_million_tokens_of_documents_from_1k_to_1m_are_within_5_percent_of_even(
    ring: int, seed: int
) -> None:
    where = pack(draw_lengths(MILLION, MILLION, seed), MILLION)
    assert choose_layout(where, ring).imbalance <= 1.05


def test_one_long_document_is_never_left_contiguous() -> None:
    layout = choose_layout(pack([MILLION], MILLION), 8)
    assert layout.name != "contiguous" and layout.imbalance <= 1.05 and layout.hops == 7


def test_short_documents_stay_where_they_are_and_the_ring_stops_early() -> None:
    shard, ring = 8192, 8
    layout = choose_layout(pack([shard] * ring, shard * ring), ring)
    assert (layout.name, layout.hops) == ("contiguous", 0)
    # A document that begins in the middle of a shard is seen from the next one: a rotation.
    shifted = count_work(
        pack([shard // 2] + [shard] * (ring - 1), shard * ring),
        contiguous_order(shard * ring, ring),
        ring,
        256,
    )
    assert Layout("contiguous", contiguous_order(shard * ring, ring), shifted).hops == 1
