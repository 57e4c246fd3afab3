"""Checkpoints that are whole or absent.

Orbax writes the arrays, so that any mesh can restore what any other mesh saved. This module adds a
manifest with a hash per file, which is written last and verified before a checkpoint is used. A
step is the folder `step_00000020/`:

    weights/         the weights
    optimizer/       the optimiser's state
    guard/           what decides which updates are skipped, in trainings that skip any
    manifest.json    the step, the identity of the run, every array, every file and its hash

While it is written, its folder is called `.tmp-0`; the rename is the commit. A checkpoint whose
hashes differ is renamed to `.bad`, and the step before it is used. No random key and no pickle is
stored.
"""

import itertools
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ringworld.config import flatten
from ringworld.distributed import barrier, first_says, is_first
from ringworld.errors import InputError
from ringworld.files import check_space, sync, writing_to
from ringworld.params import paths
from ringworld.progress import Announce
from ringworld.train.build import TrainState
from ringworld.train.manifest import Damaged, read_manifest, verify, write_manifest

FOLDER = "checkpoints"
CHECKPOINT_PARTS = ("weights", "optimizer", "guard")
# A part that checkpoints of before 2026-11-29 lack. It begins at 0, as in a new run.
LATER_PART = "guard"
HEADROOM = 1.1  # of the arrays' bytes: Orbax's index and the manifest
# After a failed write, threads of Orbax and TensorStore go on writing for a moment: they are waited
# for, the folder is removed again and again, and no two attempts of a process share a folder.
ATTEMPTS = itertools.count()
REST_S, REMOVALS, PAUSE_S = 30.0, 10, 0.05
STEP = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run.

    The newest `keep` steps and all `milestones` stay; an older step is deleted only after a newer
    one is committed and has been read back. `announce` gets one line for each damaged checkpoint.
    """

    folder: Path
    keep: int
    milestones: tuple[int, ...]
    announce: Announce

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise InputError(
                f"keep is {self.keep}: keep at least 2 checkpoints, one may be damaged"
            )

    def steps(self) -> list[int]:
        """The committed steps, oldest first, whether or not their files are still whole."""
        return find_steps(self.folder)

    def prepare(self) -> None:
        """Make the folder and remove what killed saves left.

        Only the one process that trains here may call it. Raises InputError when the folder cannot
        be written.
        """
        if is_first():
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                for stale in self.folder.glob("step_*.tmp*"):
                    shutil.rmtree(stale)
        barrier()

    def check_space(self, state: Any) -> None:
        """Raise InputError when one more checkpoint of `state` does not fit on the disk."""
        check_space(self.folder, _bytes(state))

    def save(self, state: TrainState, identity: dict[str, Any]) -> Path:
        """Commit `state` as its step and return the folder.

        `identity` is JSON that says which model and recipe this is; `restore` compares it. On any
        failure the unfinished folder is removed and earlier steps stay as they are. Raises
        InputError when the disk is full or fails, and when the step is there already.
        """
        final = self._path(int(state.step))
        temporary = final.with_name(f"{final.name}.tmp-{next(ATTEMPTS)}")
        if final.exists():
            raise InputError(f"{final} is there already: restore from it or use another folder")
        with _quiet(), writing_to(self.folder):
            self.check_space(state)
            try:
                _write(temporary, state, identity)
                if is_first():
                    os.rename(temporary, final)
                    sync(self.folder)
            except BaseException:
                if is_first():
                    _remove(temporary)
                raise
        barrier()
        self._retire(int(state.step))
        return final

    def restore(self, abstract: TrainState, identity: dict[str, Any]) -> TrainState | None:
        """The newest whole step, laid out by the shardings of `abstract`; None when there is none.

        `abstract` holds a ShapeDtypeStruct with a sharding for each leaf, on any mesh. Damaged
        steps are set aside as `.bad`. Raises InputError when the checkpoint is of another model or
        run, naming what differs.
        """
        for step in first_says(self.steps()[::-1]):
            path = self._path(step)
            try:
                content = read_manifest(path)
                _check_same(path, content, identity, abstract)
                verify(path, content)
            except Damaged as damage:
                self._set_aside(path, str(damage))
                continue
            parts = {
                part: self._restore_part(path, part, getattr(abstract, part), content["arrays"])
                for part in CHECKPOINT_PARTS
            }
            count = jax.device_put(np.asarray(step, np.int32), abstract.step.sharding)
            return TrainState(step=count, **parts)
        return None

    def _restore_part(self, path: Path, part: str, abstract: Any, stored: dict[str, str]) -> Any:
        if part == LATER_PART and jax.tree.leaves(abstract) and not _has_part(stored, part):
            self.announce(f"{path.name} is of an earlier version, without a {part}: it begins anew")
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract)
        return _restore_part(path, part, abstract)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _set_aside(self, path: Path, damage: str) -> None:
        bad = path.with_name(f"{path.name}.bad")
        while bad.exists():
            bad = bad.with_name(f"{bad.name}.bad")
        barrier()
        if is_first():
            os.rename(path, bad)
        barrier()
        self.announce(f"{path.name} is damaged ({damage}): set aside as {bad.name}")

    def _retire(self, newest: int) -> None:
        path = self._path(newest)
        try:
            verify(path, read_manifest(path))
        except Damaged as damage:
            raise InputError(
                f"{path} could not be read back ({damage}): check the disk; older steps were kept"
            ) from damage
        for step in self.steps()[: -self.keep]:
            if is_first() and step not in self.milestones:
                going = self._path(step).with_name(f"{self._path(step).name}.tmp")
                os.rename(self._path(step), going)
                shutil.rmtree(going)


def find_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints a folder has, oldest first; none where there is no folder."""
    matches = [STEP.fullmatch(path.name) for path in folder.glob("step_*")]
    return sorted(int(match[1]) for match in matches if match)


def _write(folder: Path, state: TrainState, identity: dict[str, Any]) -> None:
    with _orbax() as orbax:
        for part in CHECKPOINT_PARTS:
            if arrays := paths(getattr(state, part)):
                orbax.save((folder / part).absolute(), args=ocp.args.PyTreeSave(arrays))
    described = [_describe(part, getattr(state, part)) for part in CHECKPOINT_PARTS]
    content = {
        "step": int(state.step),
        "identity": identity,
        "arrays": {name: shape for part in described for name, shape in part.items()},
        "versions": {"jax": jax.__version__, "orbax": ocp.__version__},
    }
    write_manifest(folder, content)


def _restore_part(folder: Path, part: str, abstract: Any) -> Any:
    wanted = paths(abstract)
    if not wanted:
        return abstract
    how = ocp.checkpoint_utils.construct_restore_args(wanted)
    with _orbax() as orbax:
        arrays = orbax.restore(
            (folder / part).absolute(), args=ocp.args.PyTreeRestore(wanted, restore_args=how)
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])


def _describe(part: str, tree: Any) -> dict[str, str]:
    return {f"{part}.{name}": f"{x.dtype}{list(x.shape)}" for name, x in paths(tree).items()}


def _check_same(
    folder: Path, content: dict[str, Any], identity: dict[str, Any], abstract: TrainState
) -> None:
    stored, wanted = content["arrays"], {}
    for part in CHECKPOINT_PARTS:
        if part != LATER_PART or _has_part(stored, part):
            wanted |= _describe(part, getattr(abstract, part))
    _refuse_other(
        folder, {"identity": content["identity"], **stored}, {"identity": identity, **wanted}
    )


def _has_part(stored: dict[str, str], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in stored)


def _refuse_other(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    there, here = flatten(stored), flatten(json.loads(json.dumps(wanted)))
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if names:
        shown = [f"{n} is {there.get(n)} there and {here.get(n)} here" for n in names[:3]]
        more = f", and {len(names) - 3} more differ" if len(names) > 3 else ""
        raise InputError(
            f"{folder} is a checkpoint of another run ({'; '.join(shown)}{more}): "
            "use another folder, or the configuration that it was made with"
        )


def _bytes(state: Any) -> int:
    leaves = jax.tree.leaves(state)
    return int(HEADROOM * sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves))


@contextmanager
def _orbax() -> Generator[ocp.Checkpointer, None, None]:
    """Orbax; its threads have ended when this ends, also after an error in one of them."""
    try:
        with ocp.PyTreeCheckpointer() as orbax:
            yield orbax
    finally:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax"):
                thread.join(REST_S)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Suppress the tracebacks of Orbax's threads; the error of a failed save is raised anyway."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


def _remove(folder: Path) -> None:
    for _ in range(REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(PAUSE_S)
