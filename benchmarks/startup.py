"""How long `ringworld VERB --help` takes, beside an interpreter that does nothing.

`python -m benchmarks.startup` prints the least wall time of some runs of each, and the ratio.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

from ringworld.cli.verbs import VERBS

RUNS = 5


def least_seconds(command: Sequence[str]) -> float:
    """The least wall time of `RUNS` runs, in seconds. Raises CalledProcessError when one fails."""
    took = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> None:
    """Print the table."""
    bare = least_seconds([sys.executable, "-c", "pass"])
    print(f"{'python -c pass':<30}{bare:6.3f} s")
    for verb in ("", "train", *VERBS):
        words = [*verb.split(), "--help"]
        seconds = least_seconds([sys.executable, "-m", "ringworld", *words])
        print(f"{' '.join(['ringworld', *words]):<30}{seconds:6.3f} s {seconds / bare:6.1f} x")


if __name__ == "__main__":
    main()
