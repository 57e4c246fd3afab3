"""The order in which a row's tokens are dealt to the ring: only a permutation of the row.

Contiguous: device r holds piece r of R, and under a causal mask the last device does all R pieces'
work while the first does one. Zig-zag: the row is cut into 2R pieces and device r holds pieces r
and 2R - 1 - r, so that every device does the same work at every ring step:

    R = 4:   device 0: 0 7    device 1: 1 6    device 2: 2 5    device 3: 3 4
"""

import numpy as np
from jaxtyping import Int

from ringworld.errors import InputError


def check_zigzag(length: int, ring: int) -> None:
    """Raise InputError unless a row of `length` tokens can be dealt in zig-zag to a ring."""
    if length % (2 * ring):
        raise InputError(
            f"a row of {length} tokens does not divide into {2 * ring} pieces for a ring of "
            f"{ring}: make the sequence length a multiple of {2 * ring}"
        )


def zigzag_order(length: int, ring: int) -> Int[np.ndarray, "T"]:
    """For each place of the dealt row, the index of its token in the row as it was written.

    Raises InputError unless 2 * ring divides the length.
    """
    check_zigzag(length, ring)
    pieces = np.arange(length).reshape(2 * ring, -1)
    return np.concatenate([pieces[[r, 2 * ring - 1 - r]].reshape(-1) for r in range(ring)])


def invert(order: Int[np.ndarray, "T"]) -> Int[np.ndarray, "T"]:
    """The permutation that puts a dealt row back as it was written."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
