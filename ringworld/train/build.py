"""The one builder of a training step: its state, where the state lies on a mesh, and the update.

Training, the compile for TPUs and the tests of memory and traffic all build the same program here.
What is learned is an argument: a loss maps weights and a batch to a scalar and its metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt32

from ringworld import params
from ringworld.batch import Batch
from ringworld.errors import InputError
from ringworld.mesh import RULES, Rules, named_sharding, shard, spec
from ringworld.params import Leaf, pytree_dataclass
from ringworld.train.freeze import divide, rejoin
from ringworld.train.guard import Guard, judge, start_guard

T = TypeVar("T")
Metrics = dict[str, jax.Array]
Valued = tuple[Float[Array, ""], Metrics]  # the scalar to minimise, and metrics
Loss = Callable[[Any, Any], Valued]  # of weights and a batch


@dataclass(frozen=True)
class SummedLoss:
    """A loss that is linear in sums over rows, so that the rows may go through in parts.

    `sums` maps weights and rows to a tree of sums over these rows; `combine` maps the sums of a
    whole batch, and the batch, to the loss and its metrics.
    """

    sums: Callable[[Any, Any], Any]
    combine: Callable[[Any, Any], Valued]

    def __call__(self, weights: Any, batch: Any) -> Valued:
        """The loss of a batch that goes through at once."""
        return self.combine(self.sums(weights, batch), batch)


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How the gradients of a batch become an update of the weights."""

    frozen: tuple[str, ...] = ()
    """names of weights that are not trained, as patterns: vision_*, blocks.w*"""
    accumulate: int = 1
    """parts that the rows of a step go through in, one after another, to save memory"""
    guard: Guard = Guard()
    """when an update is skipped"""

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise InputError(f"accumulate is {self.accumulate}: make it 1 or more")


EVERY = Updates()  # of every weight, by the whole batch at once


@pytree_dataclass
class TrainState:
    """All that a step changes.

    There is no random key and no data position in it: both are functions of `step`, so that a
    resumed run is the run that never stopped.
    """

    step: Leaf  # int32 scalar: how many steps have been made
    weights: Leaf
    optimizer: Leaf  # of the weights that are not frozen
    guard: Leaf = None  # a `GuardState`; None in a training that skips no update


Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
# A state, a batch, and whether the state moves -> the state, metrics, a checksum of the gradients.
Advance = Callable[
    [TrainState, Any, Bool[Array, ""]], tuple[TrainState, Metrics, UInt32[Array, ""]]
]


@dataclass(frozen=True)
class Build:
    """A training step and the state that it takes.

    `state` has the shape, dtype and sharding of every array, and no memory. `step` is jitted, and
    donates the memory of the state that it is given. `replay` is `step` with gradients that are
    computed twice and compared.
    """

    state: TrainState
    step: Step
    replay: Step


def build(
    specs: Any,
    mesh: Mesh | AbstractMesh,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    rules: Rules = RULES,
    updates: Updates = EVERY,
) -> Build:
    """The training step of the weights that `specs` describes, divided over `mesh` by `rules`.

    `optimizer` is that of the weights that are not frozen. Nothing is computed or allocated, so the
    mesh may be one of devices that are only described. Call it and what it returns under
    `jax.set_mesh(mesh)`.
    """

    def fresh() -> TrainState:
        return start(params.init(specs, 0, rules=rules), optimizer, updates)

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    abstract = jax.tree.map(place, jax.eval_shape(fresh))
    step, replay = (make(loss, optimizer, updates) for make in (make_step, make_replay))
    return Build(abstract, step, replay)


def start(
    weights: Any, optimizer: optax.GradientTransformation, updates: Updates = EVERY
) -> TrainState:
    """The state before the first update.

    Call it under `jax.set_mesh` when the weights are divided over a mesh, so that the counters lie
    on that mesh too.
    """
    trained, _ = divide(weights, updates.frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        weights=weights,
        optimizer=optimizer.init(trained),
        guard=start_guard(updates.guard),
    )


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, updates: Updates = EVERY
) -> Step:
    """The jitted update: loss, gradients, optimizer. It donates the memory of the old state.

    Its metrics are those of the loss, "loss" and "grad_norm", "skipped" (1 where the guard kept the
    weights and the optimizer as they were) and "skips" (how many updates the run has skipped).
    """
    advance = make_advance(loss, optimizer, updates)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return advance(state, batch, jnp.array(True))[:2]

    return step


def make_replay(
    loss: Loss, optimizer: optax.GradientTransformation, updates: Updates = EVERY
) -> Step:
    """`make_step`, but the gradients are computed twice by one program before the weights move.

    The state is held once. The function returned raises InputError when the two have not the same
    bits, which means that the machine computes wrongly.
    """
    advance = jax.jit(make_advance(loss, optimizer, updates), donate_argnums=0)

    def replay(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        number = int(state.step)
        state, _, first = advance(state, batch, jnp.array(False))
        state, metrics, second = advance(state, batch, jnp.array(True))
        if int(first) != int(second):
            raise InputError(
                f"the gradients of step {number} differ when they are computed twice, so a device "
                "computes wrongly: go on from the last checkpoint, which is as it was, on others"
            )
        return state, metrics

    return replay


def make_advance(loss: Loss, optimizer: optax.GradientTransformation, updates: Updates) -> Advance:
    """A step that moves the state only where its flag is true."""

    def advance(
        state: TrainState, batch: Any, flag: Bool[Array, ""]
    ) -> tuple[TrainState, Metrics, UInt32[Array, ""]]:
        trained, frozen = divide(state.weights, updates.frozen)
        gradient = differentiate(keep_frozen(loss, frozen), updates.accumulate)
        (value, metrics), grads = gradient(trained, batch)
        norm = optax.tree.norm(grads)
        keep, guard = judge(updates.guard, state.guard, value, norm)
        changes, moments = optimizer.update(grads, state.optimizer, trained)
        moved = _where(
            keep & flag,
            (optax.apply_updates(trained, changes), moments),
            (trained, state.optimizer),
        )
        after = TrainState(
            step=state.step + flag.astype(jnp.int32),
            weights=rejoin(moved[0], frozen),
            optimizer=moved[1],
            guard=_where(flag, guard, state.guard),
        )
        counts = {"skipped": (~keep).astype(jnp.float32), "skips": guard.skips}
        return after, {"loss": value, "grad_norm": norm, **metrics, **counts}, checksum(grads)

    return advance


def keep_frozen(loss: Loss, frozen: Any) -> Loss:
    """The loss as a function of the trained weights alone."""
    if isinstance(loss, SummedLoss):
        sums = loss.sums
        return SummedLoss(lambda trained, batch: sums(rejoin(trained, frozen), batch), loss.combine)
    return lambda trained, batch: loss(rejoin(trained, frozen), batch)


def differentiate(loss: Loss, parts: int) -> Callable[[Any, Any], tuple[Valued, Any]]:
    """The function from weights and a batch, whose rows go through in parts, to loss and gradients.

    Raises InputError when there are several parts and the loss is no `SummedLoss`.
    """
    if parts == 1:
        return jax.value_and_grad(loss, has_aux=True)
    if not isinstance(loss, SummedLoss):
        raise InputError("the loss is not a sum over rows: set accumulate to 1")
    return gradient_in_parts(loss, parts)


def gradient_in_parts(loss: SummedLoss, parts: int) -> Callable[[Any, Any], tuple[Valued, Any]]:
    """`jax.value_and_grad(loss, has_aux=True)` for a batch whose rows go through in parts.

    Each part adds its gradients, in the dtype of the weights, to those of the parts before it. How
    much a sum weighs is read from the whole batch, so the result is that of the whole batch.
    """

    def gradient(weights: Any, batch: Any) -> tuple[Valued, Any]:
        def add(total: tuple[Any, Any], rows: Any) -> tuple[tuple[Any, Any], None]:
            sums, backward = jax.vjp(lambda w: loss.sums(w, rows), weights)
            return jax.tree.map(jnp.add, total, (sums, backward(weight)[0])), None

        pieces = split_rows(batch, parts)
        first = jax.tree.map(lambda x: x[0], pieces)
        shape = jax.eval_shape(loss.sums, weights, first)
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        weight = jax.grad(lambda sums: loss.combine(sums, batch)[0])(none)
        start = none, jax.tree.map(jnp.zeros_like, weights)
        (sums, grads), _ = jax.lax.scan(add, start, pieces)
        return loss.combine(sums, batch), grads

    return gradient


def split_rows(batch: Any, parts: int) -> Any:
    """Rows `[B, T]` as `[parts, B / parts, T]`; every device splits the rows that it holds.

    Raises InputError when a device holds a number of rows that does not divide.
    """
    rows = spec("batch", "seq")

    def split(x: Array) -> Array:
        if x.shape[0] % parts:
            raise InputError(
                f"the {x.shape[0]} rows that a device holds do not divide into {parts} parts: "
                "change accumulate or the batch",
                setting="accumulate",
            )
        return x.reshape(parts, -1, *x.shape[1:])

    every = jax.shard_map(
        lambda batch: jax.tree.map(split, batch),
        in_specs=rows,
        out_specs=PartitionSpec(None, *rows),
    )
    return every(jax.tree.map(lambda x: shard(x, "batch", "seq"), batch))


def checksum(tree: Any) -> UInt32[Array, ""]:
    """A sum of the bits of all floats in a tree: it changes when any one bit does."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        width = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        total = total * 31 + jnp.sum(bits, dtype=jnp.uint32)
    return total


def _where(flag: Bool[Array, ""], new: T, old: T) -> T:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


def abstract_batch(mesh: Mesh | AbstractMesh, rows: int, context: int) -> Batch:
    """A batch of `rows` rows of `context` tokens, without memory, divided over a mesh."""

    def array(dtype: Any) -> jax.ShapeDtypeStruct:
        sharding = named_sharding(mesh, "batch", "seq")
        return jax.ShapeDtypeStruct((rows, context), dtype, sharding=sharding)

    ids, floats, bools = array(jnp.int32), array(jnp.float32), array(jnp.bool_)
    return Batch(ids, bools, ids, bools, floats, ids, ids)


def abstract_of(tree: Any) -> Any:
    """The shape, dtype and sharding of every leaf: what a checkpoint is restored onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@jax.jit
def is_finite(tree: Any) -> jax.Array:
    """Whether no number in the tree is NaN or infinite; a bool scalar."""
    finite = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite = finite & jnp.isfinite(leaf).all()
    return finite
