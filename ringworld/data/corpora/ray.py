"""The same build on Ray, which spreads portions over many machines and repeats lost ones.

Every row of the Ray dataset is one portion, so that a worker that is killed costs only its own. The
machines share the folders that are read and written, as every cluster's file system does. Without a
cluster's address (`RAY_ADDRESS`) Ray starts one on this machine.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module

from ringworld.config import from_dict
from ringworld.data.corpora.partition import PortionNote
from ringworld.data.corpora.reader import Portion
from ringworld.errors import InputError


def run_on_ray(
    work: Callable[[Portion], PortionNote], portions: Sequence[Portion], *, workers: int
) -> Iterator[PortionNote]:
    """The notes of the portions, in order, `workers` of them at a time.

    Raises InputError when Ray is not installed, or as `work` does.
    """
    if not portions:
        return
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise InputError("Ray is not installed: run `pip install ringworld[ray]`") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # unasked, it would report the run
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # how far the build is, we tell
    rows = data.from_items(
        [{"portion": json.dumps(asdict(portion))} for portion in portions],
        override_num_blocks=len(portions),
    )
    for done in rows.map(partial(_do, work), concurrency=workers).iter_rows():
        if done["refused"]:
            raise InputError(done["refused"])
        yield from_dict(PortionNote, json.loads(done["note"]), "the note of a portion")


def _do(work: Callable[[Portion], PortionNote], row: dict[str, str]) -> dict[str, str]:
    """One portion; what Ray carries is text."""
    portion = from_dict(Portion, json.loads(row["portion"]), "a portion")
    try:
        return {"note": json.dumps(asdict(work(portion))), "refused": ""}
    except InputError as error:
        return {"note": "", "refused": str(error)}
