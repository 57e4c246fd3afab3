"""`python -m benchmarks.masks`: how long it takes to describe a mask of ten million tokens.

The fastest of five; the peer is filling one int32 array of that length, what any description costs.
"""

import time
from collections.abc import Callable

import numpy as np
import tyro

from ringworld.attention.mask import Where, block_stops, causal, causal_by_block, window

LENGTH = 10_000_000
REPEATS = 5
FRAME, SEEN = 257, 1 << 20  # tokens of a frame of LWM's, and of the window


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main() -> None:
    """Print a line a mask: its seconds, and how many times the peer's."""
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    rows = Where(positions, np.ones_like(positions))
    peer = fastest(lambda: np.full((1, LENGTH), 1, np.int32))
    print(f"{LENGTH:,} tokens; filling one array: {peer:.3f} s")
    for name, build in {
        "causal": lambda: causal(rows),
        "window": lambda: window(rows, SEEN),
        "frame by frame, in a window": lambda: (
            causal_by_block(rows, block_stops(rows, positions // FRAME)) & window(rows, SEEN)
        ),
    }.items():
        seconds = fastest(build)
        print(f"{name:28} {seconds:.3f} s  {seconds / peer:5.1f} x")


if __name__ == "__main__":
    tyro.cli(main, prog="bench-masks")
