"""A CPU made ready to develop and train on: virtual devices, their threads, and wide vectors.

All of it is for the whole process and has to be asked for before JAX is first used. Other platforms
ignore it.
"""

import os

import jax

VIRTUAL_DEVICES = "xla_force_host_platform_device_count"
NUM_DEVICES = "JAX_NUM_CPU_DEVICES"
DEVICES = 8
VECTOR_WIDTH = "xla_cpu_prefer_vector_width"
# XLA runs programs, and starts the next ones, on one pool of as many threads as there are devices
# or cores. A start that waits takes a thread that a running transfer needs, and both wait for ever:
# with 8 devices and 40 programs ahead within seconds. Twice the threads are enough for both.
THREADS = "NPROC"
THREADS_PER_DEVICE = 2
# XLA ends a process whose devices wait this long for one another. Its own 40 s are too few for a
# long ring on a busy machine.
STUCK_AFTER = "xla_cpu_collective_call_terminate_timeout_seconds"
STUCK_AFTER_S = 600


def use_virtual_devices(processes: int = 1, devices: int = DEVICES) -> None:
    """Give a CPU some virtual devices, divided over the processes that compute together.

    What the environment says of devices, threads and waiting stays. Threads for more devices than
    compute are not free: on two cores nano reads 38,672 tokens in 36 s where there is one device,
    and in 50 s by one of eight (2026-12-01).
    """
    said = VIRTUAL_DEVICES in os.environ.get("XLA_FLAGS", "") or NUM_DEVICES in os.environ
    if not said:
        jax.config.update("jax_num_cpu_devices", max(devices // processes, 1))
    known = int(os.environ.get(NUM_DEVICES, devices))
    os.environ.setdefault(THREADS, str(max(THREADS_PER_DEVICE * known, os.cpu_count() or 1)))
    _add_flag(STUCK_AFTER, STUCK_AFTER_S)


def widen_vectors() -> None:
    """Let programs use vectors of 512 bits where there are any; XLA takes 256 if not told.

    What is said of it in XLA_FLAGS stays. Attention is 2 to 5 % faster for it on AVX-512.
    """
    _add_flag(VECTOR_WIDTH, 512)


def _add_flag(name: str, value: int) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
