"""The same build on Ray, which spreads blocks over many machines and repeats those that were lost.

Every row of the Ray dataset is one block, so that a worker that is killed costs only its own. The
machines share the folders that are read and written, as every cluster's file system does. Without a
cluster's address (`RAY_ADDRESS`) Ray starts one on this machine.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module

from ringworld.data.block import BlockNote
from ringworld.data.intake import Block
from ringworld.data.strict import plainly, strictly
from ringworld.errors import InputError


def run_on_ray(
    work: Callable[[Block], BlockNote], blocks: Sequence[Block], *, workers: int
) -> Iterator[BlockNote]:
    """The notes of the blocks, in order, `workers` of them at a time.

    Raises InputError when Ray is not installed, or as `work` does.
    """
    if not blocks:
        return
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise InputError("Ray is not installed: run `pip install ringworld[ray]`") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = data.from_items(
        [{"block": json.dumps(plainly(block))} for block in blocks], override_num_blocks=len(blocks)
    )
    for done in rows.map(partial(_do, work), concurrency=workers).iter_rows():
        if done["refused"]:
            raise InputError(done["refused"])
        yield strictly(BlockNote, json.loads(done["note"]), "the note of a block")


def _do(work: Callable[[Block], BlockNote], row: dict[str, str]) -> dict[str, str]:
    """One block; what Ray carries is text."""
    block = strictly(Block, json.loads(row["block"]), "a block")
    try:
        return {"note": json.dumps(plainly(work(block))), "refused": ""}
    except InputError as error:
        return {"note": "", "refused": str(error)}
