"""The world every test lives in: eight virtual CPU devices, strict dtypes, float32 products.

What makes programs fast to compile goes into the environment, so that programs which a test
starts inherit it. What makes numbers strict is set for this process only. Nothing here imports
ringworld: its array functions are wrapped by the shape checker when they are first imported.
"""

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

DEVICES = 8
ROOT = Path(__file__).resolve().parent.parent
# Compiled programs are trusted code that fits one machine and one jaxlib: never share the folder.
CACHE = ROOT / ".pytest_cache" / "jax" / f"{platform.node()}-{version('jaxlib')}"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(DEVICES))
# As in ringworld/cpu.py: with fewer threads programs in flight can lock each other up.
os.environ.setdefault("NPROC", str(2 * DEVICES))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Programs here run once and are small: compiling them is the cost, not running them. A machine that
# is busy with other work may let a device wait for longer than XLA's 40 s.
for name, value in (
    ("xla_backend_optimization_level", 0),
    ("xla_cpu_collective_call_terminate_timeout_seconds", 600),
):
    if name not in os.environ.get("XLA_FLAGS", ""):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_configure() -> None:
    """Keep the folder of compiled programs to this user."""
    Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    reasons = {
        "oracle": "" if _torch_is_here() else "needs `pip install -e .[oracle]`",
        "gpu": "" if _has_gpu(items) else "needs a GPU that JAX can see",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _torch_is_here() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _has_gpu(items: list[pytest.Item]) -> bool:
    """Ask JAX only where a test needs to know: the question starts the devices."""
    asked = any(item.get_closest_marker("gpu") for item in items)
    return asked and any(device.platform == "gpu" for device in jax.devices())


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def one_device() -> Iterator[None]:
    """A mesh of one device for every test; those that divide arrays set their own within it."""
    from ringworld.mesh import make_mesh

    with jax.set_mesh(make_mesh()):
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forget compiled programs between modules before they use up the system's memory maps.

    A program takes about 20 maps. The whole suite in two processes came to 60,000 in each, and
    beyond `vm.max_map_count`, 65,530 on most machines, a process ends with a segmentation fault.
    """
    yield
    maps, most = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if maps.exists() and len(maps.read_bytes().splitlines()) > int(most.read_text()) // 3:
        jax.clear_caches()
