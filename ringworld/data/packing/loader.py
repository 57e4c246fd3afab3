"""Packed rows to batches on the mesh: a batch is a function of (seed, step) and of nothing else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int, Shaped

from ringworld.attention.balance import Order, choose_layout
from ringworld.attention.layout import deal
from ringworld.attention.mask import Where
from ringworld.batch import Batch
from ringworld.data.packing.ledger import Ledger, digest
from ringworld.data.packing.rows import MixedRows, PackedRows
from ringworld.errors import InputError
from ringworld.mesh import named_sharding
from ringworld.settings import MeshShape

Rows = PackedRows | MixedRows
RowTree = TypeVar("RowTree", Batch, Where)


def check_rows(context: int, rows: int, shape: MeshShape) -> None:
    """Raise InputError unless `rows` rows of `context` tokens divide over the mesh."""
    groups = shape.data * shape.fsdp
    if min(context, rows) < 1:
        raise InputError(
            f"{rows} rows of {context} tokens teach nothing: make batch and context 1 or more"
        )
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
    by `seed`. A process reads the examples of which its own devices hold a token; in which rows
    these are, and in which order they are dealt, every process finds from the plan.
    """
    drawn = rows.draw(seed).batch(batch)

    def read(step: int) -> tuple[HeldRows, Order, str]:
        numbers = np.asarray(drawn[step]).tolist()
        where = stack(rows.where(n) for n in numbers)
        order = choose_layout(where, ring).order
        needed, own = find_places(order, where.segments.shape)
        held = np.flatnonzero(needed.any(1)).tolist()
        part = HeldRows(held, stack(rows.part(numbers[i], needed[i]) for i in held), batch)
        return part, order, digest(part.rows, held, own[held]) if ledger else ""

    def batches(step: int) -> Batch:
        if ledger and (before := ledger.doubted(step)) is not None:
            ledger.record(before, read(before)[2])
        part, order, own_digest = read(step)
        if ledger:
            ledger.record(step, own_digest)
        return jax.tree.map(lambda x: part.place(deal(x, order)), part.rows)

    return batches


@dataclass(frozen=True)
class HeldRows:
    """Rows of a batch that a process reads, and their numbers among all `batch` of them."""

    held: list[int]
    rows: Batch
    batch: int

    def place(self, x: Shaped[np.ndarray, "b P"]) -> jax.Array:
        """An array of these rows, dealt, as that of the whole batch over the mesh."""
        sharding = named_sharding(jax.sharding.get_mesh(), "batch", "seq")

        def read(index: tuple[slice, ...] | None) -> Shaped[np.ndarray, "_ _"]:
            assert index is not None, "a device that holds nothing is not asked"
            first, past, _ = index[0].indices(self.batch)
            return x[self.held.index(first) : self.held.index(past - 1) + 1, index[1]]

        return jax.make_array_from_callback((self.batch, x.shape[1]), sharding, read)


def stack(rows: Iterable[RowTree]) -> RowTree:
    """Rows `[T]` as arrays `[B, T]`."""
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def find_places(
    order: Int[np.ndarray, "P"], shape: tuple[int, ...]
) -> tuple[Bool[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """The places of a batch of this shape that this process needs, and those that it counts.

    It needs those that one of its devices holds, where rows are dealt in this order over the mesh
    that is set. Each place is counted by the first of the processes that need it.
    """
    sharding = named_sharding(jax.sharding.get_mesh(), "batch", "seq")
    homes: dict[tuple[tuple[int, int], ...], set[int]] = {}
    dealt = (shape[0], len(order))
    for device, index in sharding.devices_indices_map(dealt).items():
        cut = tuple(part.indices(size)[:2] for part, size in zip(index, dealt, strict=True))
        homes.setdefault(cut, set()).add(device.process_index)
    needed, own = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for ((first, past), (start, stop)), processes in homes.items():
        places = order[start:stop]
        places = places[places < shape[1]]
        needed[first:past, places] |= jax.process_index() in processes
        own[first:past, places] |= jax.process_index() == min(processes)
    return needed, own
