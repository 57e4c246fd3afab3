"""Packed rows to batches on the mesh: a batch is a function of (seed, step) and of nothing else."""

from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np

from ringworld.attention.layout import deal
from ringworld.attention.plan import plan_order
from ringworld.batch import Batch
from ringworld.data.example import Example
from ringworld.data.pack import pack_row, plan_rows
from ringworld.errors import InputError
from ringworld.mesh import MeshShape, has_mesh, named_sharding


class PackedRows:
    """Examples packed into rows of `context` tokens; any row is made when it is asked for."""

    def __init__(self, examples: Sequence[Example], context: int) -> None:
        self.examples, self.context = examples, context
        self.plan = plan_rows([len(example) for example in examples], context)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        """Row `index` as numpy arrays `[context]`."""
        return pack_row(self.plan[index], self.examples.__getitem__, self.context)


def check_rows(context: int, rows: int, shape: MeshShape) -> None:
    """Raise InputError unless `rows` rows of `context` tokens divide over the mesh."""
    groups = shape.data * shape.fsdp
    if rows % groups:
        raise InputError(
            f"{rows} rows do not divide over {groups} groups (data x fsdp): make the batch a "
            f"multiple of {groups}"
        )
    if context < shape.seq:
        raise InputError(
            f"rows of {context} tokens do not reach round a ring of {shape.seq}: make the context "
            "longer or the seq axis shorter"
        )


def make_batches(rows: PackedRows, *, batch: int, seed: int, ring: int) -> Callable[[int], Batch]:
    """`batches(step)`: `batch` rows on the mesh that is set when it is called.

    They are dealt to the ring in the order that suits them best. Rows are shuffled over all epochs
    by `seed`. Every process makes the whole batch on its host and keeps its own part.
    """
    dataset = grain.MapDataset.source(rows).seed(seed).shuffle().repeat().batch(batch)

    def batches(step: int) -> Batch:
        rows = dataset[step]
        assert rows is not None, "a repeated dataset has rows for every step"
        order = plan_order(rows.where, ring).order
        return jax.tree.map(lambda x: _place(deal(x, order)), rows)

    return batches


def _place(x: np.ndarray) -> jax.Array:
    if not has_mesh():
        return jax.numpy.asarray(x)
    sharding = named_sharding(jax.sharding.get_mesh(), "batch", "seq")
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
