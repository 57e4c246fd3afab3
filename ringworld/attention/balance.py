"""Which order a batch should have: the work of every device at every ring step, counted.

A kernel visits a pair of tiles when what the queries may see and the keys overlap (`mask.may_see`),
so its work is the number of such pairs. Counted for query device r and key device s it is a matrix
`W[r, s]`; at ring step i device r works on W[r, r - i], and nobody goes on before the last is done:

    work = sum_s W[r, s] of device r          time = sum_i max_r W[r, r - i]

Everything is O(T): no pair of tokens and no pair of tiles is ever looked at alone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ringworld.attention.layout import (
    STRIPE,
    contiguous_order,
    deal,
    striped_order,
    zigzag_order,
)
from ringworld.attention.mask import Where, causal

Order = Int[np.ndarray, "P"]
# After every (segment, position): where padding stands.
LAST = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Layout:
    """An order of a row, and its work `[R, R]`: live pairs of tiles, by query and key device."""

    name: str
    order: Order
    work: Int[np.ndarray, "R R"]

    @property
    def imbalance(self) -> float:
        """Most work of a device over the mean: 1 is even."""
        of_device = self.work.sum(1)
        return float(of_device.max() / max(of_device.mean(), 1e-9))

    @property
    def time(self) -> float:
        """Pairs of tiles that pass one after another: the slowest device of each ring step."""
        ring = np.arange(len(self.work))
        return float(sum(self.work[ring, ring - step].max() for step in ring))

    @property
    def hops(self) -> int:
        """How many rotations the ring makes before nothing more is seen."""
        queries, keys = np.nonzero(self.work)
        return int(((queries - keys) % len(self.work)).max(initial=0))


def make_orders(length: int, ring: int) -> dict[str, Order]:
    """The orders there are for rows of `length` tokens on a ring; one device has only one."""
    orders = {"contiguous": contiguous_order(length, ring)}
    if ring > 1:
        orders["zigzag"] = zigzag_order(length, ring)
        orders["striped"] = striped_order(length, ring)
    return orders


def choose_layout(where: Where, ring: int, tile: int = STRIPE) -> Layout:
    """The layout in which a ring finishes these rows `[B, T]` first; they come in written order.

    Between equal times the one with fewer rotations is chosen. The rows are causal, and
    `where.span` narrows what a token sees.
    """
    orders = make_orders(where.segments.shape[1], ring)
    layouts = [
        Layout(name, order, count_work(where, order, ring, tile)) for name, order in orders.items()
    ]
    return min(layouts, key=lambda layout: (layout.time, layout.hops))


def count_work(where: Where, order: Order, ring: int, tile: int) -> Int[np.ndarray, "R R"]:
    """The pairs of tiles that each device visits with the keys of each, summed over the rows."""
    span = causal(where) if where.span is None else causal(where) & where.span
    segments = deal(where.segments, order)
    real, base = segments > 0, segments.astype(np.int64) << 32

    def cut_dealt(x: Int[np.ndarray, "B T"], padding: int) -> Int[np.ndarray, "B R I t"]:
        places = np.where(real, base + deal(x, order), padding)
        return _cut(places.reshape(len(places), ring, -1), tile, padding)

    keys_low, keys_high = (
        cut_dealt(where.positions, LAST).min(-1),
        cut_dealt(where.positions, -1).max(-1),
    )
    sees_low, sees_high = cut_dealt(span.first, LAST).min(-1), cut_dealt(span.stop - 1, -1).max(-1)
    work = np.zeros((ring, ring), np.int64)
    for row in zip(sees_low, sees_high, keys_low, keys_high, strict=True):
        work += _count_row(*row)
    return work


def _cut(x: Int[np.ndarray, "B R P"], tile: int, padding: int) -> Int[np.ndarray, "B R I t"]:
    filled = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tile)), constant_values=padding)
    return filled.reshape(*x.shape[:2], -1, tile)


def _count_row(
    sees_low: Int[np.ndarray, "R I"],
    sees_high: Int[np.ndarray, "R I"],
    keys_low: Int[np.ndarray, "R J"],
    keys_high: Int[np.ndarray, "R J"],
) -> Int[np.ndarray, "R R"]:
    """Live pairs of one row. A device's keys are in the row's order, so its tiles are sorted."""
    work = []
    for low, high in zip(keys_low, keys_high, strict=True):
        there = high >= 0
        begun = np.searchsorted(low[there], sees_high, side="right")
        ended = np.searchsorted(high[there], sees_low, side="left")
        work.append(np.maximum(begun - ended, 0).sum(1))
    return np.stack(work, axis=1)
