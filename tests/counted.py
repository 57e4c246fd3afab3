"""The operations that a batch needs, counted by the definition: every pair that the mask leaves."""

import numpy as np

from ringworld.batch import Batch
from ringworld.models.world import World


def count_operations(
    batch: Batch, c: World, frozen: float = 0, *, heads_alone: bool = False
) -> float:
    """Floating point operations of a step's loss and gradients.

    A product with a weight is 2 operations forward and 4 backward: 2 for what it is multiplied
    with, 2 for the weight, unless it is one of so many `frozen` numbers of the layers. A query and
    a key that it sees are 4 H a head forward, and 2.5 times that backward. A head works where there
    is a target. With `heads_alone` nothing else is trained, and nothing else has a backward.
    """
    here, there = (np.asarray(x)[:, :, None] for x in (batch.positions, batch.segments))
    keys, segments = np.asarray(batch.positions)[:, None], np.asarray(batch.segments)[:, None]
    sees = (there == segments) & (segments > 0) & (keys <= here)
    if c.llama.window is not None:
        sees &= here - keys < c.llama.window
    learned, of_vision = np.asarray(batch.weights) > 0, np.asarray(batch.target_vision)
    vision = np.count_nonzero(learned & of_vision)
    text = np.count_nonzero(learned) - vision
    D, F, N, K, H = c.llama.model, c.llama.mlp, c.llama.heads, c.llama.kv_heads, c.llama.head_width
    matrices = c.llama.layers * (D * N * H + 2 * D * K * H + N * H * D + 3 * D * F)
    heads = D * (c.vocabulary.text * text + c.vocabulary.vision_rows * vision)
    pairs = c.llama.layers * N * np.count_nonzero(sees)
    tokens = np.count_nonzero(batch.segments)
    if heads_alone:
        return 2 * matrices * tokens + 4 * heads + 4 * H * pairs
    return (6 * matrices - 2 * frozen) * tokens + 6 * heads + 3.5 * 4 * H * pairs
