"""The four mesh axes, and which of them divides which axis of an array.

Arrays are described by *logical* axes ("batch", "seq", "heads" ...). `Rules` maps each logical axis
to the mesh axes that divide it, so a sharding is written once, by meaning:

    mesh axis   divides
    data        the batch
    fsdp        the batch, and every weight along the model width
    seq         the sequence: the ring; where a stage asks for it, every weight as fsdp does
    tensor      heads, MLP features and vocabulary rows

Meshes are *explicit*: the sharding is part of an array's type, and a wrong one is an error at trace
time. A mesh is always set while something is computed; one device is a mesh of 1 x 1 x 1 x 1.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import combinations
from typing import Any, ParamSpec, TypeVar
from weakref import ref

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ringworld.distributed import barrier
from ringworld.errors import InputError
from ringworld.settings import MeshShape, WeightAxis

P = ParamSpec("P")
R = TypeVar("R")
AXES = ("data", "fsdp", "seq", "tensor")
Index = tuple[slice, ...]  # a part of an array


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The mesh axes that divide each logical axis; with `None` every device holds all of it."""

    batch: tuple[str, ...] | None = ("data", "fsdp")
    seq: str | None = "seq"
    embed: tuple[WeightAxis, ...] | None = ("fsdp",)
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"
    layers: str | None = None


RULES = Rules()
GATHERED = Rules(embed=None)
ALIGNED = 64  # bytes: where the memory of an array begins that XLA takes without a copy


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    seq: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """An explicit mesh over the first `data * fsdp * seq * tensor` devices.

    Several processes that compute together must all make the same meshes, in the same order.
    Raises InputError when there are fewer devices than the mesh needs, or, where several processes
    compute together, when the devices of one of them would be left out.
    """
    shape = MeshShape(data=data, fsdp=fsdp, seq=seq, tensor=tensor)
    available = list(jax.devices() if devices is None else devices)
    if devices is None and jax.process_count() > 1 and shape.devices != len(available):
        raise InputError(
            f"the mesh {'x'.join(map(str, shape.sizes))} (data x fsdp x seq x tensor) is of "
            f"{shape.devices} devices and the {jax.process_count()} processes have "
            f"{len(available)}: make it as many, or start other processes"
        )
    if shape.devices > len(available):
        raise InputError(
            f"the mesh {'x'.join(map(str, shape.sizes))} (data x fsdp x seq x tensor) needs "
            f"{shape.devices} devices and there are {len(available)}: make an axis smaller, or on "
            f"a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={shape.devices}"
        )
    grid = np.asarray(available[: shape.devices], dtype=object).reshape(shape.sizes)
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
    if devices is None and jax.process_count() > 1 and available[0].platform == "cpu":
        _connect(mesh)
    return mesh


@cache
def _connect(mesh: Mesh) -> None:
    """Sum over each choice of axes once, while all processes are here.

    gloo connects the devices of a sum when they first make it, and waits 30 s for all of them: on a
    busy machine processes that each compile a step come later than that. Once connected they wait.
    """
    barrier()
    divided = [axis for axis in AXES if mesh.shape[axis] > 1]
    for count in range(1, len(divided) + 1):
        for axes in combinations(divided, count):
            parts = PartitionSpec(axes)
            add = jax.shard_map(
                partial(jax.lax.psum, axis_name=axes), mesh=mesh, in_specs=parts, out_specs=spec()
            )
            ones = np.ones(math.prod(mesh.shape[axis] for axis in axes), np.float32)
            x = jax.make_array_from_callback(
                ones.shape, NamedSharding(mesh, parts), ones.__getitem__
            )
            jax.block_until_ready(jax.jit(add)(x))


def local_mesh() -> Mesh:
    """A mesh of one device, of this process."""
    return make_mesh(devices=jax.local_devices())


def abstract_mesh(shape: MeshShape) -> AbstractMesh:
    """An explicit mesh of devices that are not there: to trace on, under `use_abstract_mesh`."""
    return AbstractMesh(shape.sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def spec(*logical: str | None, rules: Rules = RULES) -> PartitionSpec:
    """The partition of an array with these logical axes, `None` for an axis that is not divided."""
    return PartitionSpec(*(None if name is None else getattr(rules, name) for name in logical))


def mesh_is_set() -> bool:
    """Whether a mesh is set. For the doors that may set one; nothing else chooses by it."""
    return not jax.sharding.get_abstract_mesh().empty


def on_a_mesh(f: Callable[P, R]) -> Callable[P, R]:
    """`f` under the mesh that is set, or else under a mesh of one device.

    For doors that a program may call before it has set a mesh: it is given plain arrays then, which
    know of no mesh. Not for use under `jax.jit`.
    """

    def leave(x: Any) -> Any:
        return x.addressable_data(0) if isinstance(x, jax.Array) else x

    @wraps(f)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if mesh_is_set():
            return f(*args, **kwargs)
        with jax.set_mesh(local_mesh()):
            result = f(*args, **kwargs)
        return jax.tree.map(leave, result)

    return run


def on_one_device(f: Callable[P, R]) -> Callable[P, R]:
    """`f` under a mesh of one device of this process, whichever mesh is set.

    For what is small, and what each of several processes does for itself. Not for use under
    `jax.jit`.
    """

    @wraps(f)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.set_mesh(local_mesh()):
            return f(*args, **kwargs)

    return run


def platform() -> str:
    """What the devices of the current mesh are, or the default ones: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def axis_size(axis: str) -> int:
    """How many devices the mesh has along `axis`. Raises InputError when no mesh is set."""
    _check_mesh()
    return jax.sharding.get_abstract_mesh().shape[axis]


def shard(x: jax.Array, *logical: str | None, rules: Rules = RULES) -> jax.Array:
    """`x` divided along its logical axes over the mesh. Raises InputError when no mesh is set."""
    _check_mesh()
    return jax.sharding.reshard(x, spec(*logical, rules=rules))


def replicate(tree: R) -> R:
    """Every array of a pytree, whole on every device. Raises InputError when no mesh is set."""
    return jax.tree.map(lambda x: shard(x, *(None,) * x.ndim), tree)


def _check_mesh() -> None:
    if not mesh_is_set():
        raise InputError(
            "no mesh is set: compute within `with jax.set_mesh(ringworld.make_mesh()):`, which is "
            "one device, or give make_mesh more"
        )


def named_sharding(
    mesh: Mesh | AbstractMesh, *logical: str | None, rules: Rules = RULES
) -> NamedSharding:
    """Where an array with these logical axes lives on `mesh`."""
    return NamedSharding(mesh, spec(*logical, rules=rules))


def place(x: np.ndarray, *logical: str | None, rules: Rules = RULES) -> jax.Array:
    """An array of the host on the mesh, or on the default device before a mesh is set.

    Each device receives its own part only.
    """
    return place_parts(x.shape, lambda indices: [x[i] for i in indices], *logical, rules=rules)


def place_parts(
    shape: tuple[int, ...],
    read: Callable[[list[Index]], list[np.ndarray]],
    *logical: str | None,
    rules: Rules = RULES,
) -> jax.Array:
    """As `place`, of an array of which `read` gives the parts at some indices.

    It is asked once, for the parts that devices of this process hold, each of them once.
    """
    if not mesh_is_set():
        return _place_part(read([(slice(None),) * len(shape)]), [None])[0]
    sharding = named_sharding(jax.sharding.get_mesh(), *logical, rules=rules)
    homes: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        homes.setdefault(str(index), (index or (), []))[1].append(device)
    parts = read([index for index, _ in homes.values()])[::-1]
    placed: dict[jax.Device, jax.Array] = {}
    for _, devices in homes.values():
        placed |= zip(devices, _place_part(parts, devices), strict=True)
    return jax.make_array_from_single_device_arrays(shape, sharding, list(placed.values()))


def empty_on_host(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """An array without values that a CPU device takes as its own, where numpy's would be copied.

    JAX copies what does not begin at a multiple of 64 bytes.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def _place_part(parts: list[np.ndarray], devices: Sequence[jax.Device | None]) -> list[jax.Array]:
    """The last of the parts, which is taken off the list, on each of the devices."""
    part = np.asarray(parts.pop())
    placed = jax.block_until_ready([jax.device_put(part, device) for device in devices])
    address, copied = part.ctypes.data, ref(part)
    del part
    if platform() != "cpu" or all(x.unsafe_buffer_pointer() != address for x in placed):
        _wait_until_freed(copied)
    return placed


def _wait_until_freed(copied: ref[np.ndarray]) -> None:
    """Wait, a second at most, for what JAX has copied from, so that no two large parts stand here.

    A thread of JAX's lets go of it some time after the copy, and Python frees it when it collects.
    On a busy machine that was seen to take more than 20 ms.
    """
    for _ in range(1000):
        gc.collect(0)
        if copied() is None:
            return
        time.sleep(0.001)


def fetch_whole(x: jax.Array) -> np.ndarray:
    """An array of a mesh on the host of every process. For results, which are small."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    assert isinstance(x.sharding, NamedSharding), "an array of many processes lies on a mesh"
    whole = NamedSharding(x.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))
