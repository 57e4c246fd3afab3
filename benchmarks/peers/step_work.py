"""What the workers of `benchmarks.training` share: the model, its weights, its tokens, the cost.

Needs only the standard library and numpy, because peers read it in environments of their own.
"""

from collections.abc import Mapping

import numpy as np

LAYERS, WIDTH, HEADS, HEAD_WIDTH, FEATURES, VOCABULARY = 4, 256, 4, 64, 704, 512
THETA, EPS = 1e6, 1e-6
# The matrices of a layer, as [in, out]; the rotary turns neighbouring columns of a head of q and k.
MATRICES = {
    "wq": (WIDTH, HEADS * HEAD_WIDTH),
    "wk": (WIDTH, HEADS * HEAD_WIDTH),
    "wv": (WIDTH, HEADS * HEAD_WIDTH),
    "wo": (HEADS * HEAD_WIDTH, WIDTH),
    "gate": (WIDTH, FEATURES),
    "up": (WIDTH, FEATURES),
    "down": (FEATURES, WIDTH),
}


def make_weights() -> dict[str, np.ndarray]:
    """Random float32 weights, the layers of each matrix on a leading axis; norms are all ones."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.float32(shape[-2] ** 0.5)

    weights = {name: draw(LAYERS, *shape) for name, shape in MATRICES.items()}
    return {**weights, "embed": draw(VOCABULARY, WIDTH), "head": draw(WIDTH, VOCABULARY)}


def make_tokens(length: int) -> tuple[np.ndarray, np.ndarray]:
    """A row of `length` random tokens and their targets, `[1, T]` int32."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (1, length + 1), dtype=np.int32)
    return ids[:, :-1], ids[:, 1:]


def count_step_flops(length: int) -> float:
    """The operations of loss and gradients of one causal row: nothing is counted twice.

    6 a weight and token, and 3.5 times the forward of attention, 4 N H a layer and pair.
    """
    matrices = LAYERS * sum(rows * columns for rows, columns in MATRICES.values())
    pairs = length * (length + 1) / 2
    attention = 14 * LAYERS * HEADS * HEAD_WIDTH * pairs
    return 6 * (matrices + WIDTH * VOCABULARY) * length + attention


def sample_step(loss: float, grads: Mapping[str, np.ndarray]) -> list[float]:
    """The loss, and the norm of the gradient of each weight: those of `make_weights`, by name."""
    return [loss, *(float(np.linalg.norm(grads[name].ravel())) for name in sorted(grads))]
