"""Needle accuracy of a model folder, as numbers and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from ringworld.data.samples import read_shelf
from ringworld.distributed import first_goes_first
from ringworld.evals.config import Grid
from ringworld.evals.heatmap import draw_heatmaps
from ringworld.evals.needle import Trial, run_needle
from ringworld.files import whole_once
from ringworld.mesh import make_mesh
from ringworld.progress import Announce
from ringworld.settings import Extension, MeshShape
from ringworld.tasks.needle import make_form
from ringworld.weights.model import Model


def measure_needles(
    model: Model,
    named: str,
    grid: Grid,
    mesh: MeshShape,
    out: Path,
    announce: Announce,
    rules: Sequence[Extension],
    *,
    identity: Mapping[str, object],
    int8: bool = False,
) -> None:
    """Needle accuracy of a model: `needle.json` and the picture `needle.png` in `out`.

    `named` is what the picture calls the model, `identity` says which weights it has, and `int8`
    how keys and values are kept. Haystacks are the held-out books. Lengths beyond the model's
    context are read by each of the rules. Raises InputError when a prompt does not fit a length, or
    the folder has results of something else.
    """
    with jax.set_mesh(make_mesh(**asdict(mesh))):
        own, words = model.chat_template, model.tokenizer
        form = None if own is None else make_form(own, words)
        with first_goes_first():
            shelf = read_shelf(words, out / "data", announce)
        trials = run_needle(
            model.sharded_weights(),
            model.config,
            words,
            shelf.held_out,
            grid,
            out / "needle.json",
            announce,
            identity=identity,
            form=form,
            rules=rules,
            int8=int8,
        )
    reach, name = model.config.llama.rope_reach, f"needles of {named}"
    maps = {f"{name}, {rule}": select_rule(trials, rule, reach) for rule in rules}
    if max(trial.length for trial in trials) <= reach:
        maps = {name: trials}
    with whole_once(out / "needle.png") as draft:
        draft.write_bytes(draw_heatmaps(maps))
    announce(f"wrote {out / 'needle.json'} and {out / 'needle.png'}")


def select_rule(trials: Sequence[Trial], rule: str, trained: int) -> list[Trial]:
    """The trials of a rule, and those within the trained context, where no rule is needed."""
    return [trial for trial in trials if trial.rule == rule or trial.length <= trained]
