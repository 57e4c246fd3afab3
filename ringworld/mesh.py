"""The four mesh axes, and which of them divides which axis of an array.

Arrays are described by *logical* axes ("batch", "seq", "heads" ...). `Rules` maps each logical axis
to the mesh axes that divide it, so a sharding is written once, by meaning:

    mesh axis   divides
    data        the batch
    fsdp        the batch, and every weight along the model width
    seq         the sequence: the ring; where a stage asks for it, every weight as fsdp does
    tensor      heads, MLP features and vocabulary rows

Meshes are *explicit*: the sharding is part of an array's type, and a wrong one is an error at trace
time. Nothing here creates devices; without a mesh every function below is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ringworld.errors import InputError
from ringworld.settings import MeshShape, WeightAxis

AXES = ("data", "fsdp", "seq", "tensor")


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


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    seq: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """An explicit mesh over the first `data * fsdp * seq * tensor` devices.

    Raises InputError when there are fewer devices than the mesh needs.
    """
    shape = MeshShape(data=data, fsdp=fsdp, seq=seq, tensor=tensor)
    available = list(jax.devices() if devices is None else devices)
    if shape.devices > len(available):
        raise InputError(
            f"the mesh {'x'.join(map(str, shape.sizes))} (data x fsdp x seq x tensor) needs "
            f"{shape.devices} devices and there are {len(available)}: make an axis smaller, or on "
            f"a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={shape.devices}"
        )
    grid = np.asarray(available[: shape.devices], dtype=object).reshape(shape.sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def spec(*logical: str | None, rules: Rules = RULES) -> PartitionSpec:
    """The partition of an array with these logical axes, `None` for an axis that is not divided."""
    return PartitionSpec(*(None if name is None else getattr(rules, name) for name in logical))


def has_mesh() -> bool:
    """Whether a mesh is set (`with jax.set_mesh(mesh)`)."""
    return not jax.sharding.get_abstract_mesh().empty


def platform() -> str:
    """What the devices of the current mesh are, or the default ones: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def axis_size(axis: str) -> int:
    """How many devices the current mesh has along `axis`; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape[axis] if has_mesh() else 1


def shard(x: jax.Array, *logical: str | None, rules: Rules = RULES) -> jax.Array:
    """`x` divided along its logical axes over the current mesh; `x` itself without a mesh."""
    return jax.sharding.reshard(x, spec(*logical, rules=rules)) if has_mesh() else x


def named_sharding(
    mesh: Mesh | AbstractMesh, *logical: str | None, rules: Rules = RULES
) -> NamedSharding:
    """Where an array with these logical axes lives on `mesh`."""
    return NamedSharding(mesh, spec(*logical, rules=rules))
