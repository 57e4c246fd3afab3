"""Attention on a ring of any size is as exact as on one device: the certificate, and its own tests.

`benchmarks/exactness.py` measures; docs/exactness.md shows what it measured.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.exactness import (
    ARRAYS,
    BOUNDS,
    DTYPES,
    KV_HEADS,
    RINGS,
    Errors,
    batch,
    define,
    draw,
    make_masks,
    make_orders,
    measure,
    run,
    worst,
)

ROOT = Path(__file__).resolve().parents[2]


def assert_bounded(errors: Sequence[Errors]) -> None:
    for e in errors:
        error = worst([e])
        assert error <= BOUNDS[e.dtype], f"{error:.1e} in {e}"


def test_the_definition_has_the_gradients_of_its_output() -> None:
    arrays = [x[:40].astype(np.float64) for x in draw(2, "float32")]
    sees = make_masks()["packed"].sees[:40, :40]
    rng, step = np.random.default_rng(1), 1e-6
    for which, grads in enumerate(define(*arrays, sees)[1:]):
        direction = rng.standard_normal(grads.shape)
        ends = []
        for way in (-step, step):
            moved = [x + way * direction if i == which else x for i, x in enumerate(arrays)]
            ends.append((define(*moved, sees)[0] * arrays[-1]).sum())
        # The error of the difference is some step^2 + 2^-53 / step.
        assert (grads * direction).sum() == pytest.approx((ends[1] - ends[0]) / 2 / step, rel=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mask_in_every_order_is_exact_on_a_ring_of_three(dtype: str) -> None:
    errors = list(measure(3, "GQA", dtype))
    assert {(e.mask, e.order) for e in errors} == set(product(make_masks(), make_orders(3)))
    assert_bounded(errors)


def test_a_row_that_lets_the_ring_stop_early_has_the_numbers_that_it_has_among_others() -> None:
    arrays, where = batch(3, "GQA", "float32")
    together = run(3, arrays, where)
    names = list(product(make_masks(), make_orders(3)))
    for name in (("window", "contiguous"), ("packed", "contiguous")):
        row = names.index(name)
        # The other rows become padding, so that nobody needs the ring to go on.
        alone = jax.tree.map(lambda x, row=row: x * (np.arange(len(x)) == row)[:, None], where)
        for array, found, wanted in zip(ARRAYS, run(3, arrays, alone), together, strict=True):
            assert not np.delete(found, row, axis=0).any()
            error = np.abs(found[row] - wanted[row]).max() / np.abs(wanted[row]).max()
            # To the bit; dk and dv may be summed in another order.
            assert error <= (BOUNDS["float32"] if array in ("dk", "dv") else 0)


# ---- on up to 64 devices


@pytest.fixture(scope="module")
def every_error(tmp_path_factory: pytest.TempPathFactory) -> list[Errors]:
    """All that the script measures: it has devices of its own, more than these tests have."""
    out = tmp_path_factory.mktemp("exactness") / "errors.json"
    program = [sys.executable, "-m", "benchmarks.exactness", "--json-file", str(out)]
    devices = {"JAX_NUM_CPU_DEVICES": str(max(RINGS))}
    done = subprocess.run(
        program, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **devices}
    )
    assert done.returncode == 0, done.stderr
    return [Errors(**fields) for fields in json.loads(out.read_text(encoding="utf-8"))]


@pytest.mark.slow
def test_errors_stay_below_the_bound_and_do_not_grow_with_the_ring(
    every_error: list[Errors],
) -> None:
    kept = [e for e in every_error if e.sums == "float32"]
    measured = {(e.ring, e.dtype, e.heads, e.mask, e.order) for e in kept}
    assert measured == set(product(RINGS, DTYPES, KV_HEADS, make_masks(), make_orders(1)))
    assert_bounded(kept)
    for dtype in DTYPES:
        one, most = (worst(kept, dtype=dtype, ring=ring) for ring in (1, max(RINGS)))
        # The same terms summed in another order: the greatest of some million roundings moves
        # little, and by no more than half where nothing is rounded on the way.
        assert most <= 1.5 * one, f"{dtype}: {most:.1e} on {max(RINGS)} devices, {one:.1e} on one"
        for array in ARRAYS:
            alone = worst(kept, [array], dtype=dtype, ring=1)
            for ring in RINGS:
                assert worst(kept, [array], dtype=dtype, ring=ring) <= 2 * alone


@pytest.mark.slow
def test_gradients_that_travel_in_bfloat16_would_be_seen(every_error: list[Errors]) -> None:
    rounded = [e for e in every_error if e.sums == "bfloat16"]
    one, most = (worst(rounded, ["dk", "dv"], ring=ring) for ring in (1, max(RINGS)))
    assert most > 2 * one and most > BOUNDS["bfloat16"]
