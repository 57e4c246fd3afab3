"""The one type of a recipe, stages x data, and the record that a run keeps of its recipe.

F/run.json     the resolved recipe, with the sha256 of what its paths lead to
F/data/        what was read and encoded once
F/STAGE/       what each stage leaves
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from ringworld.config import flatten
from ringworld.distributed import barrier, check_same, is_first
from ringworld.errors import InputError
from ringworld.files import check_shared, whole
from ringworld.progress import Announce
from ringworld.train.stage import Data, Stage
from ringworld.weights.open import hash_model

RECORD = "run.json"
HASHES = "sha256"
SHOWN_DIFFERENCES = 4  # differences that are named
# Settings that change how a run is carried out and not what it learns, but for rounding.
FREE = re.compile(
    r"^stages\.\d+\.(mesh|activations|weights_over|updates\.accumulate|eval_\w+"
    r"|loop\.(save_every|keep|milestones|log_every|patience|replay_every|sinks)"
    r"|save_every|sheet_every)\b|^data\.(verify|held_out|windows\.may_skip)$"
)
STAGE_NAME = re.compile(r"\w[\w.-]*")
STAGE = re.compile(r"stages\.(\d+)\.")
STEPS = re.compile(r"stages\.(\d+)\.(loop|training)\.steps")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages and the data that they are trained on.

    The first stage starts from the model `start`, or from nothing; each other one from what the one
    before it made.
    """

    name: str
    """the name of the recipe"""
    stages: tuple[Stage[Any], ...]
    """what is done, one after another"""
    data: Data
    """what the stages are trained on"""
    start: Path | None = None
    """the model that the first stage starts from: a folder, a file, or a name that fetch knows"""

    def __post_init__(self) -> None:
        """Refuse names of stages that cannot be those of folders of their own beside `data`."""
        names = ["data", *(stage.name for stage in self.stages)]
        for number, name in enumerate(names):
            if not STAGE_NAME.fullmatch(name) or name in names[:number]:
                raise InputError(
                    f"a stage is called {name!r}: give each stage a name of its own that a folder "
                    "can have, other than data",
                    setting="name",
                )

    def run(self, folder: Path, announce: Announce) -> Path:
        """Do in `folder` what is left of the stages; returns the path of what the last one made.

        Stages that are done are not repeated, the one that was interrupted goes on. Raises
        InputError when a setting cannot work, before anything is written, when the folder holds a
        run of another recipe, and when several processes have not one recipe, data and folder.
        """
        for number, stage in enumerate(self.stages):
            stage.check(self.data, None if number else self.start, folder)
        check_same(flatten(resolve(self)))
        check_shared(folder)
        if is_first():
            record_run(self, folder, announce)
        barrier()
        made = self.start
        for stage in self.stages:
            made = stage.run(self.data, made, folder, announce)
        if made is None:
            raise InputError(f"the recipe {self.name} has no stage: give it one")
        return made

    def hashes(self) -> dict[str, str | None]:
        """The sha256 of what each path of the recipe leads to, by the dotted name of its field."""
        named = {f"data.{name}": found for name, found in self.data.hashes().items()}
        for number, stage in enumerate(self.stages):
            named |= {f"stages.{number}.{name}": found for name, found in stage.hashes().items()}
        return named | ({"start": hash_model(self.start)} if self.start else {})


def record_run(recipe: Recipe, folder: Path, announce: Announce) -> None:
    """Save the resolved recipe as `run.json`, having compared it with the one that is there.

    Paths are compared by what they lead to, so data and models may be moved. A setting that the
    record lacks, because an earlier version did not know it, is at its default. What may change:
    the settings of a stage that has kept nothing yet, settings that change nothing that is learned,
    and the number of steps of the last stage that has kept something, which may grow. Raises
    InputError, naming each difference, when the folder holds a run of another recipe.
    """
    record, resolved = folder / RECORD, resolve(recipe)
    if record.exists():
        changes = find_changes(_read_record(record), resolved, list(find_defaults(recipe)))
        longer = find_longer(recipe, folder, changes)
        if real := [name for name in find_real(recipe, folder, changes) if name not in longer]:
            told = [
                f"{name} was {_show(changes[name][0])}, is {_show(changes[name][1])}"
                for name in real[:SHOWN_DIFFERENCES]
            ]
            more = (
                f"; {len(real) - SHOWN_DIFFERENCES} more differ"
                if len(real) > SHOWN_DIFFERENCES
                else ""
            )
            raise InputError(
                f"{folder} holds a run of another recipe ({'; '.join(told)}{more}): use another "
                "folder, or the settings of that run"
            )
        for name, stage in longer.items():
            announce(stage.extend(folder, changes[name][0]))
    with whole(record) as draft:
        draft.write_text(json.dumps(resolved, indent=1) + "\n")


def resolve(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: every setting, and the sha256 of what its paths lead to."""
    return json.loads(json.dumps(asdict(recipe) | {HASHES: recipe.hashes()}, default=str))


def find_changes(
    old: dict[str, Any], new: dict[str, Any], defaults: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """What differs between two records: by dotted name, what it was and what it is.

    A path differs when the hashes of what it leads to do; where one is not known, it does not. Nor
    does what the old one lacks, if it is at its default: itself, or the group that it is in.
    """
    hashes = [record.get(HASHES) or {} for record in (old, new)]
    flat = [
        flatten({key: value for key, value in record.items() if key != HASHES}) | known
        for record, known in zip((old, new), hashes, strict=True)
    ]
    unknown = {name for known in hashes for name, digest in known.items() if digest is None}
    unset = tuple(f"{name}." for name in defaults)
    unknown |= {name for name in flat[1] if name not in flat[0] and f"{name}.".startswith(unset)}
    names = dict.fromkeys((*flat[1], *flat[0]))
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in names if name not in unknown}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def find_defaults(value: Any, name: str = "") -> Iterator[str]:
    """The dotted names of the fields of a dataclass, and of those within it, at their default."""
    if isinstance(value, tuple):
        for i, child in enumerate(value):
            yield from find_defaults(child, f"{name}.{i}")
    if not is_dataclass(value):
        return
    for field in fields(value):
        own, path = getattr(value, field.name), f"{name}.{field.name}".removeprefix(".")
        made = field.default_factory() if field.default_factory is not MISSING else field.default
        if own == made:
            yield path
        else:
            yield from find_defaults(own, path)


def find_real(recipe: Recipe, folder: Path, changes: Mapping[str, Any]) -> list[str]:
    """Those of the changes that make it another run than the one in the folder."""
    kept = [stage.kept(folder) for stage in recipe.stages]
    depends = any(k and stage.reads_data for k, stage in zip(kept, recipe.stages, strict=True))
    real = []
    for name in changes:
        match = STAGE.match(name)
        if match and int(match[1]) < len(kept):
            matters = kept[int(match[1])] and not FREE.search(name)
        else:
            cached = name.startswith(("data", "start")) and (folder / "data").exists()
            matters = (depends or cached) and not FREE.search(name)
        if matters:
            real.append(name)
    return real


def find_longer(
    recipe: Recipe, folder: Path, changes: Mapping[str, tuple[Any, Any]]
) -> dict[str, Stage[Any]]:
    """The stages that are given more steps than they had, by the name of the setting.

    A stage that another one has gone on from is none of them.
    """
    kept = [n for n, stage in enumerate(recipe.stages) if stage.kept(folder)]
    found = {}
    for name, (was, new) in changes.items():
        match = STEPS.fullmatch(name)
        if match and kept and int(match[1]) == kept[-1] and isinstance(was, int) and new > was:
            found[name] = recipe.stages[kept[-1]]
    return found


def _read_record(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{record} is damaged: remove it, or use another folder")
    return found


def _show(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
