"""Worker: the product of two matrices in JAX, the most that this machine's cores can do."""

from typing import Any

import jax
import numpy as np

from benchmarks.protocol import Prepared, serve
from benchmarks.work import GEMM_SIDE


def prepare(request: dict[str, Any]) -> Prepared:
    """Two float32 matrices, square and large enough to fill the cores."""
    a, b = np.random.default_rng(0).standard_normal((2, GEMM_SIDE, GEMM_SIDE), np.float32)
    a, b = jax.device_put(a), jax.device_put(b)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(a, b).block_until_ready()
    return Prepared(lambda: multiply(a, b).block_until_ready(), [])


if __name__ == "__main__":
    serve(prepare)
