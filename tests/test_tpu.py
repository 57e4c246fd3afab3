"""What the compiler of TPUs makes of the training step, on a machine without one."""

import importlib.util
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ringworld.errors import InputError
from ringworld.mesh import MeshShape
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.plan.aot import Report, compile_step, describe_mesh, report
from ringworld.vocab import LWM, Vocabulary

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs `pip install -e .[tpu]`"
)
GIB = 2**30
V5P_HBM = 95 * GIB  # of one chip, as sold; the compiler has 95.74 GiB
SMALL = World(
    llama=Llama(
        layers=2,
        model=256,
        mlp=512,
        heads=4,
        kv_heads=2,
        head_width=128,
        context=8 * 1024,
        rope_theta=1e6,
        dtype="bfloat16",
    ),
    vocabulary=Vocabulary(text=512, bos=1, eos=2),
)
LWM_7B = World(
    llama=Llama(
        layers=32,
        model=4096,
        mlp=11008,
        heads=32,
        kv_heads=32,
        head_width=128,
        context=2**20,
        rope_theta=5e7,
        dtype="bfloat16",
    ),
    vocabulary=LWM,
)


@cache
def step_report(c: World, topology: str, shape: MeshShape) -> Report:
    """The step as a training run compiles it: no test's strict precision."""
    with jax.default_matmul_precision("default"):
        return report(*compile_step(c, describe_mesh(topology, shape)))


# ---- what is refused


def test_without_libtpu_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="libtpu is not installed"):
        describe_mesh("v5p:2x2x2", MeshShape(seq=8))


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5p:3x5x7", "v77:2x2x2", "v5p"])
def test_chips_that_do_not_exist_are_refused(topology: str) -> None:
    with pytest.raises(InputError, match="describes no chips"):
        describe_mesh(topology, MeshShape(seq=8))


@needs_libtpu
def test_a_mesh_of_more_chips_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="needs 16 devices and there are 8"):
        describe_mesh("v5p:2x2x2", MeshShape(seq=16))


# ---- what is compiled


@needs_libtpu
def test_a_rotation_travels_while_the_chip_multiplies() -> None:
    mesh = describe_mesh("v5p:2x2x2", MeshShape(seq=8))

    def ring(x: jax.Array, w: jax.Array) -> jax.Array:
        def step(carry: Any, _: None) -> Any:
            here, total = carry
            coming = lax.ppermute(here, "seq", [(i, (i + 1) % 8) for i in range(8)])
            return (coming, total + jnp.tanh(here @ w)), None

        return lax.scan(step, (x, jnp.zeros_like(x)), length=7)[0][1]

    def array(rows: int, *spec: str) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16, sharding=sharding)

    with jax.set_mesh(mesh):
        run = jax.shard_map(
            ring, in_specs=(PartitionSpec("seq"), PartitionSpec()), out_specs=PartitionSpec("seq")
        )
        compiled = jax.jit(run).lower(array(8 * 1024, "seq"), array(1024)).compile()
    found = report(compiled, 0.0)
    assert (found.permutes, found.asynchronous, found.hidden) == (1, 1, 1)
    assert found.bytes("collective-permute") == 7 * 2 * 1024 * 1024
    # The shard, the weights and what leaves; what travels is there twice.
    assert 3 * 2 * 2**20 <= found.memory.total <= 12 * 2 * 2**20


@needs_libtpu
@pytest.mark.slow
def test_the_step_compiles_for_chips_that_are_not_there() -> None:
    found = step_report(SMALL, "v5p:2x2x2", MeshShape(seq=8))
    assert found.permutes > 0 and found.asynchronous == found.permutes
    assert not found.of("all-to-all")
