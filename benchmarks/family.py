"""`make bench-family`: every figure of the models that ship, from their committed weights.

The scenes, levels and needles come from seeds that no recipe uses. Each evaluation is a command of
`ringworld eval` and leaves its files in a folder of its own.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.table import describe_machine, draw
from ringworld.evals.needle import Trial
from ringworld.evals.proportion import Proportion, percent
from ringworld.evals.story import count_found

HEAD = ("model", "what", "right", "95 %", "a guess")
# Of four needles two are asked for by one question, as in LWM's table.
SEVERAL = ("--grid.needles", "4", "--grid.asked", "2")
SEED = 990_300  # of the needles; scenes and levels have seeds of their own by default
THINGS = {1: "one thing", 2: "two things", 3: "three things"}
DRAWN = {
    "captions": "captions of unseen clips of {}",
    "pictures": "pictures of {} drawn from words",
    "drawn": "clips of {} drawn from words",
    "next_frames": "clips of {}: the next three frames",
}
KEPT = {
    "codec_pictures": "true pictures of {} through the codec",
    "codec": "true clips of {} through the codec",
}
HIDDEN = {
    "nano/needle": "needles",
    "nano-text/needle": "needles",
    "nano-text/several": "two of four needles",
}
PLAYED = {
    "one_step": "the frame after an action",
    "one_step_nothing_moves": "the frame after an action that moves nothing",
    "action": "actions read back from frames",
    "rollout": "rollouts of {} frames right to the end",
}
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Every figure of the models that ship."""

    folder: Path = Path("runs/family")
    """where each evaluation leaves its files"""
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """lengths at which needles are hidden, in tokens"""
    longest: int = 65536
    """the length that nano-text alone is tried at too; a needle takes 40 s there"""
    rounds: int = 2
    """needles for each length and each of five depths"""
    scenes: int = 100
    """scenes of one, two and three things each"""
    episodes: int = 100
    """levels of the world with actions"""
    steps: int = 30
    """frames of a rollout"""


def list_commands(bench: Bench) -> dict[Path, list[str]]:
    """The words of each command by the file that it leaves in the folder."""
    depths = [str(depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)]
    grid = ["--grid.depths", *depths, "--grid.rounds", str(bench.rounds)]
    grid += ["--grid.seed", str(SEED), "--grid.lengths"]
    lengths = [str(length) for length in bench.lengths]
    shapes = ["--scenes", str(bench.scenes)]
    play = ["--episodes", str(bench.episodes), "--steps", str(bench.steps)]
    asked = {
        "nano/needle": ["needle", "nano", *grid, *lengths],
        "nano-text/needle": ["needle", "nano-text", *grid, *lengths, str(bench.longest)],
        "nano-text/several": ["needle", "nano-text", *grid, *lengths, *SEVERAL],
        "nano/shapes": ["shapes", "nano", *shapes],
        "nano-world/shapes": ["shapes", "nano-world", *shapes],
        "nano-play/play": ["play", "nano-play", *play],
    }
    return {
        bench.folder / name / f"{words[0]}.json": [
            *("eval", *words),
            *("--folder", str(bench.folder / name)),
        ]
        for name, words in asked.items()
    }


def make_rows(found: dict[str, dict[str, Any]], steps: int) -> Iterator[Row]:
    """The rows of the table, from what the evaluations of `list_commands` left."""
    for name, what in HIDDEN.items():
        trials = [Trial(**trial) for trial in found[name]["trials"]]
        for length in sorted({trial.length for trial in trials}):
            words = f"{what} at {length:,} tokens"
            yield _row(name.split("/")[0], words, count_found(trials, length))
    for model in ("nano", "nano-world"):
        figures = found[f"{model}/shapes"]
        yield _row(model, "questions about unseen clips", Proportion(**figures["answers"]))
        for key, what in (DRAWN | KEPT).items():
            for each in figures[key]:
                words = what.format(THINGS[each["things"]])
                yield _row(model, words, Proportion(**each["whole"]), known=key in DRAWN)
        for each in figures["captions"]:
            words = f"F1 of captions of unseen clips of {THINGS[each['things']]}"
            yield model, words, f"{each['f1']:.3f}", "", ""
        ahead = figures["film_continuation"]
        words = "held-out film, nearer than its last frame repeated"
        yield _row(model, words, Proportion(**ahead["nearer"]))
        errors = f"{ahead['error']:.4f}", f"{ahead['repeated_error']:.4f}"
        yield model, "its squared error, and that of the last frame", " / ".join(errors), "", ""
        yield model, "held-out film through the codec", f"{figures['film_psnr']:.1f} dB", "", ""
    for key, what in PLAYED.items():
        yield _row("nano-play", what.format(steps), Proportion(**found["nano-play/play"][key]))


def _row(model: str, what: str, counted: Proportion, *, known: bool = True) -> Row:
    low, high = counted.interval
    guess = percent(counted.chance) if known else ""
    right = f"{counted.right:,} of {counted.tried:,}"
    return model, what, right, f"{100 * low:.0f} to {100 * high:.0f} %", guess


def main() -> None:
    """Measure everything, and print the table."""
    bench, found = tyro.cli(Bench, prog="bench-family"), dict[str, dict[str, Any]]()
    for place, words in list_commands(bench).items():
        print(f"ringworld {' '.join(words)}", file=sys.stderr)
        if code := subprocess.run([sys.executable, "-m", "ringworld", *words]).returncode:
            sys.exit(code)
        found[str(place.parent.relative_to(bench.folder))] = json.loads(place.read_text())
    rows = list(make_rows(found, bench.steps))
    Console().print(draw("The models that ship", HEAD, rows))
    print(describe_machine())


if __name__ == "__main__":
    main()
