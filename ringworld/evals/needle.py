"""The needle test: hide a random number in a book, ask for it, over context lengths and depths.

The words and the scoring are LWM's: the answer is drawn greedily and counts when it contains the
number; where one question asks for several, each number counts. A model with a chat template of its
own is asked in that, by the same words: it departs from LWM's protocol in what stands around them.
The whole prompt with its answer is `length` of the model's own tokens. Beyond the model's context
its rotary is stretched by a named rule. Results are kept after every length with what they are of,
and a run of the same that was stopped goes on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from ringworld.data.example import Example, text
from ringworld.errors import InputError
from ringworld.evals.config import Grid
from ringworld.files import whole_once
from ringworld.inference.generate import write_text
from ringworld.models.context_extension import extend_context
from ringworld.models.world import World, WorldWeights
from ringworld.progress import Announce
from ringworld.settings import Extension, Sampling
from ringworld.tasks.needle import (
    Form,
    Needle,
    count_haystack,
    draw_needles,
    hide,
    max_answer_tokens,
    prompt,
)
from ringworld.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trial:
    """One needle: where it was hidden, what the model wrote, and whether that held the number.

    Of several that one question asks for, `depth` is where the first was hidden. `rule` is how the
    rotary was stretched, "plain" within the model's own context.
    """

    length: int
    depth: float
    round: int
    city: str
    number: int
    response: str
    found: bool
    rule: str = "plain"


def run_needle(
    weights: WorldWeights,
    c: World,
    tokenizer: Tokenizer,
    books: Sequence[Int[np.ndarray, "_"]],
    grid: Grid,
    results: Path,
    announce: Announce,
    *,
    identity: Mapping[str, object],
    form: Form | None = None,
    rules: Sequence[Extension] = ("plain",),
    int8: bool = False,
) -> list[Trial]:
    """Every trial of the grid, also written to `results` (JSON) with what they are of.

    `identity` says which weights are measured, in values of JSON. A file that is there already must
    have the same, and the same `int8` and seed of the grid.

    `weights` may lie on a mesh that is set. Haystacks are consecutive text of `books`, which the
    model must not have been trained on. Lengths beyond the model's context are tried by each of the
    rules, on the same prompts. Raises InputError when the books are shorter than a length, or the
    file has results of something else.
    """
    measured = {**identity, "int8": int8, "seed": grid.seed}
    if grid.needles > 1:
        measured |= {"needles": grid.needles, "asked": grid.asked}
    trials = read_trials(results, measured)
    done = {(trial.rule, trial.length, trial.depth, trial.round) for trial in trials}
    pages = np.concatenate(list(books))
    for length in grid.lengths:
        beyond = length > c.llama.context
        tried: Sequence[Extension] = rules if beyond else ("plain",)
        for turn, rule in product(range(grid.rounds), tried):
            depths = [d for d in grid.depths if (rule, length, d, turn) not in done]
            if not depths:
                continue
            seed, counts = (grid.seed, length, turn), (grid.needles, grid.asked)
            asked = hide_needles(tokenizer, form, pages, length, depths, seed, *counts)
            stretched = extend_context(c, length, rule) if beyond else c
            steps, drawn = max_answer_tokens(form, grid.asked), Sampling()
            prompts = [ids for _, ids in asked]
            written = write_text(
                weights,
                prompts,
                stretched,
                steps=steps,
                sampling=drawn,
                seed=grid.seed,
                int8=int8,
            )
            new = [
                _make_trial(length, depth, turn, needle, tokenizer.decode(ids), rule)
                for depth, (needles, _), ids in zip(depths, asked, written, strict=True)
                for needle in needles
            ]
            trials += new
            write_trials(results, trials, measured)
            right = sum(trial.found for trial in new)
            how = f" {rule}" if beyond else ""
            announce(f"needle: {length} tokens{how}, round {turn + 1}: {right} of {len(new)} found")
    return trials


def hide_needles(
    tokenizer: Tokenizer,
    form: Form | None,
    pages: Int[np.ndarray, "n"],
    length: int,
    depths: Sequence[float],
    seed: tuple[int, ...],
    count: int = 1,
    asked: int = 1,
) -> list[tuple[list[Needle], Example]]:
    """For each depth the needles that are asked for, the first at the depth, and the prompt.

    `count` are hidden and `asked` of them asked for by one question; the others are anywhere.
    """
    rng = np.random.default_rng(seed)
    if count == 1:  # prompts with one needle each have cities that differ
        hidden = [[needle] for needle in draw_needles(rng, len(depths))]
    else:
        hidden = [draw_needles(rng, count) for _ in depths]
    found = []
    for needles, depth in zip(hidden, depths, strict=True):
        wanted = needles[:asked]
        size = count_haystack(length, needles, tokenizer, form, [wanted])
        if size > len(pages):
            raise InputError(
                f"the books hold {len(pages)} tokens and a haystack needs {size}: add books or use "
                "shorter lengths"
            )
        start = int(rng.integers(len(pages) - size + 1))
        at = [depth, *rng.random(count - 1).tolist()]
        book = hide(pages[start : start + size], needles, at, tokenizer)
        found.append((wanted, text(prompt(book, wanted, tokenizer, form), 0.0)))
    return found


def _make_trial(
    length: int, depth: float, turn: int, needle: Needle, response: str, rule: str
) -> Trial:
    found = needle.found_in(response)
    return Trial(length, depth, turn, needle.city, needle.number, response, found, rule)


def read_trials(path: Path, measured: Mapping[str, object]) -> list[Trial]:
    """The trials kept so far. Raises InputError when the file is not ours, or of something else."""
    if not path.exists():
        return []
    try:
        told = json.loads(path.read_text())
        trials = [Trial(**trial) for trial in told["trials"]]
        kept = told.get("measured")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is not a needle result: remove it or use another folder"
        ) from None
    if not isinstance(kept, dict):
        raise InputError(
            f"{path} does not say which model it is of: remove it or use another folder"
        )
    others = sorted(name for name in {*kept, *measured} if kept.get(name) != measured.get(name))
    if others:
        raise InputError(
            f"{path} has results of another {' and another '.join(others)}: remove it or use "
            "another folder"
        )
    return trials


def write_trials(path: Path, trials: Iterable[Trial], measured: Mapping[str, object]) -> None:
    """Keep trials with what they are of."""
    body = {"measured": measured, "trials": [asdict(trial) for trial in trials]}
    with whole_once(path) as draft:
        draft.write_text(json.dumps(body, indent=1))


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
