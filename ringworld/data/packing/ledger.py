"""The ledger: which batch each step was given, so that data cannot change under a run unseen.

`ledger.jsonl` has one line a step, `{"step": 7, "digest": "..."}`, beside the metrics. A run that
goes on makes some batches again, the one before its first step at least, and they must be the same
to the last bit.

A digest is the sum of a hash of every place of the batch, so each process adds up the places that
it reads, and no process needs to read them all.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt64

from ringworld.batch import Batch
from ringworld.distributed import exchange_texts, is_first
from ringworld.errors import InputError
from ringworld.files import whole, writing_to

LEDGER_FILE = "ledger.jsonl"
LANES = 2  # sums of 64 bits in a digest
# The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): it mixes 64 bits to 64 bits.
SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
CHANNEL = "ledger"  # batches are made in a thread of their own


def digest(
    batch: Batch, numbers: list[int] | None = None, own: Bool[np.ndarray, "b T"] | None = None
) -> str:
    """The digest of a batch on the host, or of its part in the places `own`, as hexadecimal.

    It tells each array's name, dtype and length, and the bytes of every place. `numbers` are the
    numbers in the batch of the rows that are given, all by default.
    """
    arrays = vars(batch)
    rows, length = next(iter(arrays.values())).shape
    kinds = [f"{name} {array.dtype} {length}" for name, array in arrays.items()]
    start = np.frombuffer(hashlib.sha256("\n".join(kinds).encode()).digest(), np.uint64)
    row = np.arange(rows) if numbers is None else np.asarray(numbers)
    place = (row[:, None] * length + np.arange(length)).astype(np.uint64)
    sums = []
    for lane in range(LANES):
        state = _mix(place + start[lane])
        for array in arrays.values():
            bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
            state = _mix(state ^ bits.astype(np.uint64))
        sums.append(int(state.sum(where=True if own is None else own)))
    return "".join(f"{total:016x}" for total in sums)


def add_digests(parts: list[str]) -> str:
    """The digest of a batch from those of its parts."""
    lanes = [range(16 * lane, 16 * lane + 16) for lane in range(LANES)]
    sums = [sum(int(part[lane.start : lane.stop], 16) for part in parts) for lane in lanes]
    return "".join(f"{total % 2**64:016x}" for total in sums)


def _mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    for shift, factor in SPLITMIX:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


class Ledger:
    """The record at `path`. Every process has one, and process 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._compared = False

    @cached_property
    def _known(self) -> dict[int, str]:
        """What the file says; a last line that a kill cut short is taken out of it."""
        if not self.path.exists():
            return {}
        text = self.path.read_text()
        kept = text[: text.rfind("\n") + 1]
        if kept != text:
            with whole(self.path) as draft:
                draft.write_text(kept)
        try:
            lines = [json.loads(line) for line in kept.splitlines()]
            return {int(line["step"]): str(line["digest"]) for line in lines}
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.path} is damaged: remove it to go on without the record of earlier batches"
            ) from None

    def doubted(self, step: int) -> int | None:
        """The step before, if it is on record and nothing was compared with the record yet."""
        return step - 1 if not self._compared and step - 1 in self._known else None

    def record(self, step: int, part: str) -> None:
        """Write down the batch of a step, of which this process read the part of this digest.

        All processes call it. Raises InputError when the step was given another batch before.
        """
        found, known = add_digests(exchange_texts(part, CHANNEL)), self._known.get(step)
        self._compared = True
        if known == found or not is_first():
            return
        if known is not None:
            raise InputError(
                f"the batch of step {step} is not the one in {self.path}: the data changed since, "
                "so put back what was there, or train in another folder"
            )
        with writing_to(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "digest": found}) + "\n")
        self._known[step] = found
