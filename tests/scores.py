"""What two models say of the same text."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ringworld.inference.generate import score_texts
from ringworld.mesh import make_mesh
from ringworld.weights.model import load_model


def assert_same_scores(folders: Sequence[Path]) -> None:
    """Both models give every token of random text the same log-probability."""
    with jax.set_mesh(make_mesh()):
        models = [load_model(folder, "float32") for folder in folders]
        rows = np.random.default_rng(0).integers(3, 2048, (2, 24))
        scores = [score_texts(model.sharded_weights(), rows, model.config) for model in models]
    # Two programs that sum in the same order; float32 has 1e-7.
    np.testing.assert_allclose(*scores, rtol=1e-6)
