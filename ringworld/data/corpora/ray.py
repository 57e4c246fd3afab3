"""Partitions run on a Ray cluster, which repeats those of machines that it loses.

Every row of the Ray dataset is one partition, so that a killed worker costs only its own. The
machines share the folders that are read and written. Without a cluster's address (`RAY_ADDRESS`)
Ray starts a cluster on this machine.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module

from ringworld.config import from_dict
from ringworld.data.corpora.partition import PartitionNote
from ringworld.data.corpora.reader import Partition
from ringworld.errors import InputError


def run_on_ray(
    work: Callable[[Partition], PartitionNote], partitions: Sequence[Partition], *, workers: int
) -> Iterator[PartitionNote]:
    """The notes of the partitions, in order, `workers` of them at a time.

    Raises InputError when Ray is not installed, or as `work` does.
    """
    if not partitions:
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
        [{"partition": json.dumps(asdict(partition))} for partition in partitions],
        override_num_blocks=len(partitions),
    )
    for done in rows.map(partial(_do, work), concurrency=workers).iter_rows():
        if done["refused"]:
            raise InputError(done["refused"])
        yield from_dict(PartitionNote, json.loads(done["note"]), "the note of a partition")


def _do(work: Callable[[Partition], PartitionNote], row: dict[str, str]) -> dict[str, str]:
    """One partition; what Ray carries is text."""
    partition = from_dict(Partition, json.loads(row["partition"]), "a partition")
    try:
        return {"note": json.dumps(asdict(work(partition))), "refused": ""}
    except InputError as error:
        return {"note": "", "refused": str(error)}
