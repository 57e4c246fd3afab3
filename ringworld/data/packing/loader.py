"""Packed rows to batches on the mesh: a batch is a function of (seed, step) and of nothing else."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Shaped

from ringworld.attention.balance import choose_layout
from ringworld.attention.layout import deal, dealt_length
from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.data.packing.ledger import Ledger
from ringworld.data.packing.rows import MixedRows, PackedRows
from ringworld.errors import InputError
from ringworld.mesh import named_sharding
from ringworld.settings import MeshShape

Rows = PackedRows | MixedRows
RowTree = TypeVar("RowTree", Batch, Where)


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


def make_batches(
    rows: Rows, *, batch: int, seed: int, ring: int, ledger: Ledger | None = None
) -> Callable[[int], Batch]:
    """`batches(step)`: `batch` rows on the mesh that is set when it is called.

    They are dealt to the ring in the order that suits them best. Rows are shuffled over all epochs
    by `seed`. A process reads the rows that its own devices hold a part of, and all of them where
    it keeps the ledger; which rows these are, and in which order they are dealt, every process
    finds from the plan.
    """
    drawn = rows.draw(seed).batch(batch)

    def batches(step: int) -> Batch:
        numbers = np.asarray(drawn[step]).tolist()
        if ledger and (before := ledger.doubted(step)) is not None:
            ledger.record(before, stack(rows[n] for n in np.asarray(drawn[before]).tolist()))
        held = list(range(batch)) if ledger else rows_held(batch, dealt_length(rows.context, ring))
        read = stack(rows[numbers[i]] for i in held)
        if ledger:
            ledger.record(step, read)
        where = read.where if len(held) == batch else stack(rows.where(n) for n in numbers)
        order = choose_layout(where, ring).order
        return jax.tree.map(lambda x: _place(deal(x, order), held, batch), read)

    return batches


def stack(rows: Iterable[RowTree]) -> RowTree:
    """Rows `[T]` as arrays `[B, T]`."""
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def rows_held(batch: int, length: int) -> list[int]:
    """The rows of a batch of which this process's devices hold a part on the mesh that is set."""
    sharding = named_sharding(jax.sharding.get_mesh(), "batch", "seq")
    parts = sharding.addressable_devices_indices_map((batch, length)).values()
    return sorted({i for part in parts if part for i in range(batch)[part[0]]})


def _place(x: Shaped[np.ndarray, "b P"], held: list[int], batch: int) -> jax.Array:
    """Rows `held` of a batch, this process's part of it, as an array over the mesh."""
    sharding = named_sharding(jax.sharding.get_mesh(), "batch", "seq")

    def read(index: tuple[slice, ...] | None) -> Shaped[np.ndarray, "_ _"]:
        assert index is not None, "a device that holds nothing is not asked"
        first, past, _ = index[0].indices(batch)
        return x[held.index(first) : held.index(past - 1) + 1, index[1]]

    return jax.make_array_from_callback((batch, x.shape[1]), sharding, read)
