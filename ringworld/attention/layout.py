"""The order in which a row's tokens are dealt to the ring: only a permutation of the row.

An order is an index for each place of the dealt row, device after device; the index T stands for
padding, so rows of any length go onto any ring. Of R = 4 devices, with pieces numbered in the row:

    contiguous   0 | 1 | 2 | 3               the last device does most; short documents stay near
    zig-zag      0 7 | 1 6 | 2 5 | 3 4       one document: all do the same at every ring step
    striped      0 4 8 | 1 5 9 | 2 6 .. |    any documents: even to about one stripe a device

Source of the zig-zag: Zhu, "ring-flash-attention"; of stripes: Brandon et al. (arXiv 2311.09431),
here of whole blocks, so that tiles stay dense.
"""

import numpy as np
from jaxtyping import Int, Shaped

from ringworld.errors import InputError

# Stripes as long as a tile: balanced to a tile, and no tile is cut by a stripe's border.
STRIPE = 256


def dealt_length(length: int, ring: int) -> int:
    """The places of a dealt row, the same in every order: two equal pieces a device.

    Raises InputError when there is nothing to deal, or nobody to deal to.
    """
    if length < 1 or ring < 1:
        raise InputError(
            f"{length} tokens cannot be dealt to {ring} devices: both must be 1 or more"
        )
    return length if ring == 1 else length + -length % (2 * ring)


def _pieces(length: int, ring: int, count: int) -> Int[np.ndarray, "N p"]:
    places = np.minimum(np.arange(dealt_length(length, ring)), length)
    return places.reshape(count, -1)


def contiguous_order(length: int, ring: int) -> Int[np.ndarray, "P"]:
    """Device r holds piece r of R."""
    return _pieces(length, ring, 1)[0]


def zigzag_order(length: int, ring: int) -> Int[np.ndarray, "P"]:
    """Device r holds pieces r and 2R - 1 - r of 2R; one device holds the row."""
    if ring == 1:
        return contiguous_order(length, ring)
    pieces = _pieces(length, ring, 2 * ring)
    return np.concatenate([pieces[[r, 2 * ring - 1 - r]].reshape(-1) for r in range(ring)])


def striped_order(length: int, ring: int, stripe: int = STRIPE) -> Int[np.ndarray, "P"]:
    """Device r holds every R-th stripe, from stripe r on; a last, shorter round takes the rest."""
    places = _pieces(length, ring, 1)[0]
    whole = len(places) // (ring * stripe) * ring * stripe
    rounds = places[:whole].reshape(-1, ring, stripe).swapaxes(0, 1).reshape(ring, -1)
    rest = places[whole:].reshape(ring, -1)
    return np.concatenate([rounds, rest], axis=1).reshape(-1)


def deal(rows: Shaped[np.ndarray, "B T"], order: Int[np.ndarray, "P"]) -> Shaped[np.ndarray, "B P"]:
    """Rows as they were written put into an order; padding's places get 0, its segment."""
    return np.pad(rows, ((0, 0), (0, 1)))[:, order]


def invert(order: Int[np.ndarray, "P"], length: int) -> Int[np.ndarray, "T"]:
    """The place of each of the row's `length` tokens: `dealt[:, invert(order, T)]` is the row."""
    inverse = np.empty(length, order.dtype)
    tokens = np.flatnonzero(order < length)
    inverse[order[tokens]] = tokens
    return inverse
