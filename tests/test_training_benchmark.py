"""The benchmark of training gives both sides the same work, and counts it rightly."""

import math

import jax
import numpy as np
import pytest
from counted import count_operations
from lwm_by_hand import LAYERS as LAYERS_PATH
from lwm_by_hand import read_logits

from benchmarks.peers.step_ours import make_batch, make_model, prepare
from benchmarks.peers.step_work import (
    EPS,
    HEADS,
    LAYERS,
    THETA,
    WIDTH,
    count_step_flops,
    make_tokens,
    make_weights,
)
from benchmarks.table import Measurement
from benchmarks.training import OURS, THEIRS, list_aims, make_rows
from benchmarks.turns import AGREEMENT, GEMM
from ringworld.mesh import make_mesh


def test_what_the_step_costs_is_what_its_mask_leaves() -> None:
    with jax.set_mesh(make_mesh(seq=8)):
        batch = make_batch(512, 8)
    assert count_step_flops(512) == count_operations(batch, make_model(512))


def test_our_step_has_the_loss_of_lwms_arithmetic_written_out() -> None:
    weights = make_weights()
    loss, *norms = prepare({"tokens": 64}).sample
    assert loss == pytest.approx(loss_by_hand(weights, 64), rel=1e-5)
    # The gradients are compared by their norms, which have to stand above what counts as the same.
    assert len(norms) == len(weights) and min(norms) > 100 * AGREEMENT


def loss_by_hand(w: dict[str, np.ndarray], length: int) -> float:
    names = {"wq": "attention/wq", "wk": "attention/wk", "wv": "attention/wv"}
    names |= {"wo": "attention/wo", "gate": "feed_forward/w1", "up": "feed_forward/w3"}
    names |= {"down": "feed_forward/w2"}
    tree = {f"{LAYERS_PATH}{there}/kernel": w[here] for here, there in names.items()}
    ones = np.ones((LAYERS, WIDTH))
    tree |= {f"{LAYERS_PATH}{name}/kernel": ones for name in ("attention_norm", "ffn_norm")}
    tree |= {"transformer/wte/embedding": w["embed"], "transformer/ln_f/kernel": ones[0]}
    tree |= {"lm_head/kernel": w["head"]}
    ids, targets = make_tokens(length)
    none = np.zeros_like(ids, np.bool_)
    logits = read_logits(
        tree,
        ids,
        none,
        np.arange(length)[None],
        np.ones_like(ids),
        heads=HEADS,
        theta=THETA,
        eps=EPS,
    )["text"][0]
    logs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logs -= logits.max(-1, keepdims=True)
    return -float(np.take_along_axis(logs, targets[0, :, None], -1).mean())


def measured(peer: str, seconds: float, refused: str = "") -> Measurement:
    """A peer's best at some work of 2 GFLOP."""
    return Measurement(work="some", peer=peer, flops=2e9, seconds=(seconds,), refused=refused)


FOUND = [
    measured(GEMM.name, 0.5),
    measured(f"{THEIRS}, ring of 2", 4.0),
    measured(f"{THEIRS}, ring of 8", math.nan, refused="ended"),
    measured(f"{OURS}, ring of 2", 0.625),
    measured(f"{OURS}, ring of 8", 0.8),
]


def test_a_row_tells_the_rate_beside_that_of_the_gemm() -> None:
    rows = make_rows(FOUND, 100)
    assert rows[3] == ("some", f"{OURS}, ring of 2", "0.62", "160", "3.2", "80%", "0")
    assert rows[2] == ("some", f"{THEIRS}, ring of 8", "ended", "", "", "", "")
    assert rows[0][3] == "", "a product of matrices has no tokens"


def test_aims_are_ratios_within_the_run() -> None:
    aims = list_aims(FOUND)
    ratios = [aim.ratio for aim in aims]
    assert ratios[:4] == pytest.approx([0.8 / 0.625, 0.8, 0.625, 0.625 / 4])
    assert math.isnan(ratios[4]) and not aims[4].met
    assert [aim.met for aim in aims[:4]] == [False, False, False, True]
