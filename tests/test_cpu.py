"""What a CPU is asked for before JAX starts."""

import os
import subprocess
import sys

import pytest

from ringworld.cpu import widen_vectors


def test_wide_vectors_are_asked_for_beside_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    widen_vectors()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2 --xla_cpu_prefer_vector_width=512"


def test_a_width_that_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=128")
    widen_vectors()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=128"


@pytest.mark.parametrize(("asked", "count"), [("4", 2), ("1, devices=1", 1)])
def test_processes_share_the_virtual_devices_unless_the_environment_says_how_many(
    asked: str, count: int
) -> None:
    program = (
        "import jax; from ringworld.cpu import use_virtual_devices; "
        f"use_virtual_devices({asked}); print(jax.device_count())"
    )
    for said, found in ((None, count), ("5", 5)):
        env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
        env |= {} if said is None else {"JAX_NUM_CPU_DEVICES": said}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True
        )
        assert int(done.stdout) == found, done.stderr


def test_many_programs_in_flight_on_eight_devices_do_not_lock_each_other_up() -> None:
    program = (
        "import sys; from ringworld.cpu import use_virtual_devices; use_virtual_devices()\n"
        "import jax, jax.numpy as jnp\n"
        "from jax.sharding import NamedSharding, PartitionSpec as P\n"
        "mesh = jax.make_mesh((8,), ('seq',))\n"
        "around = [(i, (i + 1) % 8) for i in range(8)]\n"
        "def turn(x):\n"
        "    for _ in range(3):\n"
        "        x = jax.lax.ppermute(jnp.sin(x @ x), 'seq', around)\n"
        "    return x\n"
        "turn = jax.shard_map(turn, mesh=mesh, in_specs=P('seq'), out_specs=P('seq'))\n"
        "turn = jax.jit(turn, donate_argnums=0)\n"
        "x = jax.device_put(jnp.ones((512, 64)), NamedSharding(mesh, P('seq')))\n"
        "for _ in range(1000):\n"
        "    x = turn(x)\n"
        "print(x.shape)\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "XLA_FLAGS")}
    # A lock-up ends the process after 20 seconds, instead of 600.
    env["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=20"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.stdout == "(512, 64)\n", done.stderr[:2000]
