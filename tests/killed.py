"""`ringworld` as a program that can kill itself at a save.

`python tests/killed.py SAVE WORDS...` runs the words, and dies of SIGKILL just before its SAVE-th
checkpoint is written, so that the steps before it are lost. With 0 it is not killed.
"""

import os
import signal
import sys
from typing import Any

from ringworld.cli import program
from ringworld.train.checkpoint import Checkpoints


def main() -> None:
    """Run the command line, and die where the first argument says."""
    wanted, real, saves = int(sys.argv.pop(1)), Checkpoints.save, 0

    def save(self: Checkpoints, *given: Any, **named: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *given, **named)

    Checkpoints.save = save
    program()


if __name__ == "__main__":
    main()
