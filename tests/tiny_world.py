"""A world of two layers, short texts that end with frames, and all their rows as one batch."""

import numpy as np
from tiny_models import tiny_world

from ringworld.batch import Batch
from ringworld.data import example
from ringworld.data.example import Example
from ringworld.data.packing.loader import stack
from ringworld.data.packing.rows import MASKED, PackedRows, Packing
from ringworld.vocab import Vocabulary

CONTEXT = 24
VOCABULARY = Vocabulary(text=32, bos=1, eos=2, codes=6, codes_per_frame=3, vision_rows=8)
TINY = tiny_world(VOCABULARY, CONTEXT)


def draw(weight_of_text: float, weight_of_frames: float) -> list[Example]:
    """Eight texts that end with frames."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(8):
        ids = rng.integers(3, 32, int(rng.integers(3, 12))).tolist()
        codes = rng.integers(0, 6, (int(rng.integers(1, 3)), 3))
        frames = example.frames(codes, VOCABULARY, weight_of_frames)
        examples.append(example.join([example.text(ids, weight_of_text), frames]))
    return examples


def batch_of(examples: list[Example], packing: Packing = MASKED) -> Batch:
    """All rows of some examples."""
    rows = PackedRows(examples, CONTEXT, packing)
    return stack(rows[i] for i in range(len(rows)))
