"""A CPU made ready to develop and train on: virtual devices and wide vectors.

Both are for the whole process and have to be asked for before JAX is first used. Other platforms
take no notice.
"""

import os

import jax

VIRTUAL_DEVICES = "xla_force_host_platform_device_count"
NUM_DEVICES = "JAX_NUM_CPU_DEVICES"
DEVICES = 8
VECTOR_WIDTH = "xla_cpu_prefer_vector_width"


def use_virtual_devices(processes: int = 1) -> None:
    """Give a CPU 8 virtual devices, divided over the processes that compute together.

    What the environment says of a process's devices stays.
    """
    said = VIRTUAL_DEVICES in os.environ.get("XLA_FLAGS", "") or NUM_DEVICES in os.environ
    if not said:
        jax.config.update("jax_num_cpu_devices", max(DEVICES // processes, 1))


def widen_vectors() -> None:
    """Let programs use vectors of 512 bits where there are any; XLA takes 256 if not told.

    What is said of it in XLA_FLAGS stays. Attention is 2 to 5 % faster for it on AVX-512.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{VECTOR_WIDTH}=512".strip()
