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


def test_processes_share_eight_virtual_devices_unless_the_environment_says_how_many() -> None:
    program = (
        "import jax; from ringworld.cpu import use_virtual_devices; use_virtual_devices(4); "
        "print(jax.device_count())"
    )
    for said, count in ((None, 2), ("5", 5)):
        env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
        env |= {} if said is None else {"JAX_NUM_CPU_DEVICES": said}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True
        )
        assert int(done.stdout) == count, done.stderr
