"""The needle test: hide a random number in a book, ask for it, over context lengths and depths.

The words and the scoring are LWM's: the answer is drawn greedily and counts when it contains the
number. The whole prompt with its answer is `length` of the model's own tokens. Results are kept
after every length, and a run that was stopped goes on.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from ringworld.data.example import text
from ringworld.data.needle import ANSWER_ROOM, Needle, draw_needles, hide, prompt, room
from ringworld.data.tokenizer import Tokenizer
from ringworld.errors import InputError
from ringworld.files import whole
from ringworld.generate.sample import Sampling
from ringworld.generate.text import write_text
from ringworld.models.world import World, WorldWeights


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Context lengths in tokens, depths in [0, 1], and how often each pair is tried."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    rounds: int
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One needle: where it was hidden, what the model wrote, and whether that held the number."""

    length: int
    depth: float
    round: int
    city: str
    number: int
    response: str
    found: bool


def run_needle(
    weights: WorldWeights,
    c: World,
    tokenizer: Tokenizer,
    books: Sequence[Int[np.ndarray, "_"]],
    grid: Grid,
    results: Path,
    announce: Callable[[str], None],
) -> list[Trial]:
    """Every trial of the grid, also written to `results` (JSON).

    `weights` may lie on a mesh that is set. Haystacks are consecutive text of `books`, which the
    model must not have been trained on. Raises InputError when the books are shorter than a length.
    """
    trials = read_trials(results)
    done = {(trial.length, trial.depth, trial.round) for trial in trials}
    pages = np.concatenate(list(books))
    for length in grid.lengths:
        for turn in range(grid.rounds):
            depths = [d for d in grid.depths if (length, d, turn) not in done]
            if not depths:
                continue
            trials += _try_depths(weights, c, tokenizer, pages, length, depths, turn, grid.seed)
            _write_trials(results, trials)
            right = sum(trial.found for trial in trials[-len(depths) :])
            announce(f"needle: {length} tokens, round {turn + 1}: {right} of {len(depths)} found")
    return trials


def _try_depths(
    weights: WorldWeights,
    c: World,
    tokenizer: Tokenizer,
    pages: Int[np.ndarray, "n"],
    length: int,
    depths: Sequence[float],
    turn: int,
    seed: int,
) -> list[Trial]:
    rng = np.random.default_rng((seed, length, turn))
    needles = draw_needles(rng, len(depths))
    prompts = []
    for needle, depth in zip(needles, depths, strict=True):
        size = room(length, [needle], tokenizer)
        if size > len(pages):
            raise InputError(
                f"the books hold {len(pages)} tokens and a haystack needs {size}: add books or use "
                "shorter lengths"
            )
        start = int(rng.integers(len(pages) - size + 1))
        hidden = hide(pages[start : start + size], [needle], [depth], tokenizer)
        prompts.append(text(prompt(hidden, needle, tokenizer), 0.0))
    written = write_text(weights, prompts, c, steps=ANSWER_ROOM, sampling=Sampling(), seed=seed)
    responses = [tokenizer.decode(ids) for ids in written]
    return [
        _judge(length, depth, turn, needle, response)
        for depth, needle, response in zip(depths, needles, responses, strict=True)
    ]


def _judge(length: int, depth: float, turn: int, needle: Needle, response: str) -> Trial:
    found = str(needle.number) in response
    return Trial(length, depth, turn, needle.city, needle.number, response, found)


def read_trials(path: Path) -> list[Trial]:
    """The trials kept so far. Raises InputError when the file is not ours."""
    if not path.exists():
        return []
    try:
        return [Trial(**trial) for trial in json.loads(path.read_text())["trials"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not a needle result: remove it or use another folder"
        ) from None


def _write_trials(path: Path, trials: Iterable[Trial]) -> None:
    with whole(path) as draft:
        draft.write_text(json.dumps({"trials": [asdict(trial) for trial in trials]}, indent=1))


def accuracy(
    trials: Sequence[Trial],
) -> tuple[list[int], list[float], Float[np.ndarray, "depths lengths"]]:
    """The lengths, the depths, and the share found at each pair (NaN where nothing was tried)."""
    lengths = sorted({trial.length for trial in trials})
    depths = sorted({trial.depth for trial in trials})
    share = np.full((len(depths), len(lengths)), np.nan)
    for row, depth in enumerate(depths):
        for column, length in enumerate(lengths):
            found = [t.found for t in trials if (t.length, t.depth) == (length, depth)]
            if found:
                share[row, column] = np.mean(found)
    return lengths, depths, share
