"""What the compiler of TPUs makes of the training step, on a machine without one."""

import importlib.util
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from lwm_7b import LWM_7B

from ringworld.attention import attend
from ringworld.attention.mask import Where
from ringworld.errors import InputError
from ringworld.mesh import RULES, Rules, named_sharding
from ringworld.models.llama import Llama
from ringworld.models.world import World
from ringworld.plan.aot import Report, compile_step, describe_mesh, report
from ringworld.settings import MeshShape
from ringworld.vocab import Vocabulary

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


OVER_RING = Rules(embed=("fsdp", "seq"))


@cache
def step_report(c: World, topology: str, shape: MeshShape, rules: Rules = RULES) -> Report:
    """The step as a training run compiles it: no test's strict precision."""
    with jax.default_matmul_precision("default"):
        return report(*compile_step(c, describe_mesh(topology, shape), rules=rules))


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
@pytest.mark.parametrize("kv_heads", [4, 1], ids=["mha", "mqa"])
def test_the_kernel_compiles_and_keys_travel_behind_it(kv_heads: int) -> None:
    mesh = describe_mesh("v5p:2x2x2", MeshShape(seq=8))
    context = 16 * 1024

    def array(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        sharding = named_sharding(mesh, "batch", "seq", *("heads", None)[: len(sizes)])
        return jax.ShapeDtypeStruct((1, context, *sizes), dtype, sharding=sharding)

    def pass_both(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, where), q, k, v)
        return out, pull(dout)

    q, k = (array(jnp.bfloat16, heads, 128) for heads in (4, kv_heads))
    where = Where(array(jnp.int32), array(jnp.int32))
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        compiled = jax.jit(pass_both).lower(q, k, k, q, where).compile()
    permutes = report(compiled, 0.0).of("collective-permute")
    assert all(permute.during is not None for permute in permutes)
    # Keys and values, forward and backward: bfloat16, a shard of 2,048 tokens at each ring step.
    # (The way home of dk and dv is bfloat16 too, and hides behind nothing.)
    keys = [p for p in permutes if p.shapes[0].dtype == "bf16" and p.hidden]
    assert [p.bytes for p in keys] == 4 * [2 * 128 * kv_heads * context // 8]


@needs_libtpu
@pytest.mark.slow
def test_the_step_compiles_for_chips_that_are_not_there() -> None:
    found = step_report(SMALL, "v5p:2x2x2", MeshShape(seq=8))
    assert found.permutes > 0 and found.asynchronous == found.permutes
    assert not found.of("all-to-all")


@needs_libtpu
@pytest.mark.slow
def test_7b_at_one_million_tokens_fits_128_chips_of_v5p() -> None:
    found = step_report(LWM_7B, "v5p:4x4x8", MeshShape(fsdp=8, seq=16))
    assert found.memory.total < V5P_HBM
    # The state, 12 bytes a parameter divided by 8, is known; what a layer keeps for the backward,
    # its input and its attention, 2 x 65,536 x 4,096 bfloat16, is the least that is temporary.
    assert found.memory.arguments == pytest.approx(12 * 6_807_621_632 / 8, rel=0.01)
    assert found.memory.temporaries > 32 * 2 * 2 * 65_536 * 4_096
    assert found.asynchronous == found.permutes


@needs_libtpu
@pytest.mark.slow
def test_7b_at_one_million_tokens_fits_16_chips_with_its_weights_over_the_ring() -> None:
    found = step_report(LWM_7B, "v5p:2x2x4", MeshShape(seq=16), OVER_RING)
    assert found.memory.total < V5P_HBM
    assert found.memory.arguments == pytest.approx(12 * 6_807_621_632 / 16, rel=0.01)
    # 32.25 GiB are what the layers keep: inputs, attention's outputs and their log-sum-exp.
    assert found.memory.temporaries < 45 * GIB
    assert found.asynchronous == found.permutes


@needs_libtpu
@pytest.mark.slow
def test_7b_at_one_million_tokens_fits_8_chips_with_its_weights_over_the_ring() -> None:
    found = step_report(LWM_7B, "v5p:2x2x2", MeshShape(seq=8), OVER_RING)
    assert found.memory.total < V5P_HBM
    assert found.memory.arguments == pytest.approx(12 * 6_807_621_632 / 8, rel=0.01)


@needs_libtpu
@pytest.mark.slow
def test_a_tpu_scatters_the_sums_of_gradients() -> None:
    found = step_report(SMALL, "v5p:2x2x2", MeshShape(fsdp=2, seq=4))
    scattered = found.of("reduce-scatter")
    # Seven matrices of a layer, the table and the head.
    assert len(scattered) == 9 and all(c.shapes[0].dtype == "f32" for c in scattered)
