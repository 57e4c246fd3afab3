"""Weights, said once: a table of shapes, logical axes and initialisers.

A model is a frozen dataclass of weights. The same dataclass filled with `Param`s instead of arrays
is its *spec table*; the abstract arrays, the shardings, the initial values, the count and the names
are all read from it. In place of the array of a matrix there may be an `Int8` or an `Adapted`.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from ringworld.mesh import GATHERED, RULES, Rules, axis_size, named_sharding, shard, spec

T = TypeVar("T")
Leaf = Any  # an array, or anything a tree map makes of one: a shape, a sharding, None
Weight = Any  # the leaf of a model: an array, a Param, or anything a tree map makes of one


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are the children of a pytree."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


@pytree_dataclass
class Int8:
    """A matrix as whole numbers from -127 to 127, and a float32 scale for each of its outputs.

    The weight is value times scale. It takes half the memory of bfloat16.
    """

    values: Weight
    scales: Weight

    @property
    def T(self) -> "Int8":
        """The matrix transposed; each output keeps its scale."""
        return Int8(self.values.T, self.scales)


@pytree_dataclass
class Adapted:
    """A matrix with a low-rank adapter beside it: its product with x is x W + scale (x A) B.

    `a` is [inputs..., rank] and `b` is [rank, outputs...]. Source: Hu et al., "LoRA" (arXiv
    2106.09685).
    """

    base: Weight
    a: Weight
    b: Weight
    scale: float = field(metadata={"static": True})


Matrix = jax.Array | Int8 | Adapted


@dataclass(frozen=True)
class Param:
    """One weight: its shape, the logical axis of each dimension, and how it starts.

    `scale` is the standard deviation of a normal start; 0 starts at `fill` everywhere. `inputs` are
    the axes of a matrix that its product sums over, counted from the last one as -1; the other axes
    (but for "layers") are its outputs. Without a `dtype` it has the one that all weights have.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float = 0.0
    fill: float = 0.0
    inputs: tuple[int, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), f"{self.shape} and {self.axes} differ in length"

    def without_inputs(self) -> "Param":
        """What has one number for each output: the scales of an `Int8`."""
        return self._select(
            [axis for axis in range(-len(self.shape), 0) if axis not in self.inputs]
        )

    def int8(self) -> Int8:
        """The matrix as `Int8`. It starts at 0: int8 weights are made of others."""
        values = replace(self, scale=0.0, fill=0.0, dtype="int8")
        return Int8(values, replace(self.without_inputs(), dtype="float32"))

    def low_rank(self, rank: int) -> tuple["Param", "Param"]:
        """A and B of an adapter of the matrix: A is drawn, and B is 0, so that nothing changes."""
        layers = [-len(self.shape)] if self.axes[0] == "layers" else []
        fan_in = math.prod(self.shape[axis] for axis in self.inputs)
        a, b = self._select([*layers, *self.inputs]), self.without_inputs()
        at = len(layers)
        summed = tuple(range(-1 - len(self.inputs), -1))
        return (
            dense((*a.shape, rank), (*a.axes, None), fan_in=fan_in, inputs=summed),
            Param(
                (*b.shape[:at], rank, *b.shape[at:]),
                (*b.axes[:at], None, *b.axes[at:]),
                inputs=(at - len(b.shape) - 1,),
            ),
        )

    def _select(self, kept: list[int]) -> "Param":
        return Param(tuple(self.shape[i] for i in kept), tuple(self.axes[i] for i in kept))


def dense(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    fan_in: int,
    inputs: tuple[int, ...] = (),
) -> Param:
    """A weight of a contraction over `fan_in` numbers: normal with deviation 1 / sqrt(fan_in)."""
    return Param(shape, axes, scale=1 / math.sqrt(fan_in), inputs=inputs)


def constant(shape: tuple[int, ...], axes: tuple[str | None, ...], fill: float) -> Param:
    """A weight that starts at one value: the gains and biases."""
    return Param(shape, axes, fill=fill)


def _is_param(x: object) -> bool:
    return isinstance(x, Param)


def map_specs(f: Callable[[Param], Any], specs: T) -> T:
    """The spec table with `f` applied to each Param."""
    return jax.tree.map(f, specs, is_leaf=_is_param)


def arrays_of(p: Param, w: Weight) -> Any:
    """The Param of each array that stands for the weight of `p`, in the structure of `w`."""
    if isinstance(w, Adapted):
        a, b = p.low_rank(w.a.shape[-1])
        return Adapted(arrays_of(p, w.base), a, b, w.scale)
    return p.int8() if isinstance(w, Int8) else p


def specs_of(specs: Any, weights: Any) -> Any:
    """The spec table with a Param for each array of `weights`, some of which are `Matrix`es."""
    return jax.tree.map(arrays_of, specs, weights, is_leaf=_is_param)


def stacked(layers: int, specs: T) -> T:
    """The specs of `layers` equal blocks, stacked on a leading axis for `lax.scan`."""
    return map_specs(
        lambda p: replace(p, shape=(layers, *p.shape), axes=("layers", *p.axes)), specs
    )


def paths(specs: Any) -> dict[str, Any]:
    """Each weight's dotted name and its Param (or array), in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=_is_param)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def count(specs: Any) -> int:
    """The number of parameters."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(specs, is_leaf=_is_param))


def abstract(specs: T, dtype: DTypeLike = jnp.float32) -> T:
    """Shapes and dtypes without memory, for tracing and for restoring."""
    return map_specs(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype or dtype), specs)


def shardings(specs: T, mesh: Mesh, rules: Rules = RULES) -> T:
    """Where each weight lives on `mesh`."""
    return map_specs(lambda p: named_sharding(mesh, *p.axes, rules=rules), specs)


def init(specs: T, seed: int, dtype: DTypeLike = jnp.float32, rules: Rules = RULES) -> T:
    """Fresh weights, the same on every mesh.

    Each weight draws from a key folded with its own name, so that adding one leaves the others be.
    """
    root = jax.random.key(seed)

    def start(name: str, p: Param) -> jax.Array:
        if p.scale == 0.0:
            return shard(jnp.full(p.shape, p.fill, p.dtype or dtype), *p.axes, rules=rules)
        key = jax.random.fold_in(root, zlib.crc32(name.encode()))
        return shard(p.scale * jax.random.normal(key, p.shape, dtype), *p.axes, rules=rules)

    leaves, tree = jax.tree.flatten(specs, is_leaf=_is_param)
    return jax.tree.unflatten(
        tree, [start(name, p) for name, p in zip(paths(specs), leaves, strict=True)]
    )


def gather(weights: T, specs: Any, over: tuple[str, ...] = ()) -> T:
    """Weights whole along the model width, to compute with.

    `over` names the mesh axes that divide the tokens: each device has a part of the gradient of
    what is gathered, and the backward scatters the sum of the parts, so that none holds all of it.
    """

    def whole(p: Param, w: Any) -> Any:
        is_matrix = "embed" in p.axes and len(p.axes) > 1
        if is_matrix and any(axis_size(axis) > 1 for axis in over):
            return _gather_to_scatter(w, p, over)
        return shard(w, *p.axes, rules=GATHERED)

    return jax.tree.map(whole, specs_of(specs, weights), weights, is_leaf=_is_param)


def _gather_to_scatter(w: jax.Array, p: Param, over: tuple[str, ...]) -> jax.Array:
    """`w` whole along the model width; its gradient is a part on each device along `over`.

    (A reshard would do, but the compiler of TPUs sums its gradient whole and takes a slice.)
    """
    width = p.axes.index("embed")
    divided = jax.typeof(w).sharding.spec[width] or ()
    divided = (divided,) if isinstance(divided, str) else divided
    along = tuple(axis for axis in divided if axis in over and axis_size(axis) > 1)
    rest = tuple(axis for axis in over if axis not in along)
    whole = spec(*p.axes, rules=GATHERED)
    parts = PartitionSpec(*(along or None if i == width else axis for i, axis in enumerate(whole)))

    def local(w: jax.Array) -> jax.Array:
        w = lax.pcast(w, rest, to="reduced")
        return lax.all_gather(w, along, axis=width, tiled=True, to="reduced") if along else w

    w = jax.sharding.reshard(w, parts)
    reduced = whole.update(reduced=frozenset(over))
    return jax.shard_map(local, in_specs=parts, out_specs=reduced)(w)


def partitions(weights: Any) -> Any:
    """How the mesh divides each array of weights, as `shard_map` wants it."""
    return jax.tree.map(lambda w: jax.typeof(w).sharding.spec, weights)
