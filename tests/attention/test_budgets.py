"""What a device sends and holds at 1M and 10M tokens, from compiled programs: never run."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from budgets import (
    Budget,
    D,
    F,
    H,
    K,
    L,
    N,
    Sent,
    V,
    budget_of_attention,
    budget_of_step,
    hops,
    read,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding

from ringworld.attention.block import TILE
from ringworld.attention.mask import Where
from ringworld.mesh import make_mesh, spec
from ringworld.train.loss import LOSS_CHUNK

MILLION = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
FLOAT = 4  # bytes, of a float32 or an int32


@cache
def compiled_for(ring: int, *contexts: int) -> dict[int, dict[str, Budget]]:
    """The budgets of attention and of a step on a ring of any size, in a process of its own."""
    program = [sys.executable, "tests/budgets.py", str(ring), *map(str, contexts)]
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(ring), "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # One document over the whole ring is the most that there is to see.
    assert found["hops"] == ring - 1
    return {
        int(context): {
            name: Budget(b["temporaries"], tuple(b["rotated"]), read_sent(b["sent"]))
            for name, b in budgets.items()
        }
        for context, budgets in found["budgets"].items()
    }


def read_sent(rows: Sequence[dict]) -> tuple[Sent, ...]:
    return tuple(Sent(**{**row, "loops": tuple(row["loops"])}) for row in rows)


# ---- the formulas, for one device with a shard of s tokens of one row


def rotated(s: int) -> tuple[int, ...]:
    """What a turn of each loop hands on, and what is handed on between two of them.

    dk and dv to the last shard; then home, on or back; the forward; the backward.
    """
    grads = 2 * s * K * H * FLOAT
    keys = 2 * s * K * H * FLOAT + 2 * s * FLOAT  # and positions, and segments
    return tuple(sorted((grads, grads, grads, keys, keys + grads)))


def memory_of_attention(s: int) -> int:
    """The arrays of attention and its gradients, and the scores of some tiles.

    q, out, dout and dq, each as rows and as tiles; k, v, dk and dv, each here and coming, and k and
    v as rows; a few numbers a head, of the softmax, and a few a token, of the mask.
    """
    token = 8 * N * H + 10 * K * H + 8 * N + 16
    return FLOAT * (s * token + 8 * N * TILE**2)


def memory_of_step(s: int, layers: int = L, model: int = D, mlp: int = F, heads: int = N) -> int:
    """What layers keep, what one layer needs, the gradients of the weights, chunks and tiles.

    A layer keeps its input, the output of its attention and the log-sum-exp. To pull one back needs
    eight arrays of the MLP's width (gate, up, silu(gate), their product, and the gradient of each),
    ten of the model's, six of the queries' and four of the keys': counted by compiling models twice
    as wide in each, and within 5 % of what those hold at a million tokens on eight devices.
    """
    kept = layers * (model + heads * H + heads)
    one = 8 * mlp + 10 * model + 6 * heads * H + 4 * K * H + 8 * heads + 16
    weights = layers * model * (2 * heads * H + 2 * K * H + 3 * mlp) + 2 * V * model
    return FLOAT * (s * (kept + one) + weights + 4 * LOSS_CHUNK * V + 8 * heads * TILE**2)


def assert_within(found: dict[str, Budget], s: int) -> None:
    for name, budget in found.items():
        assert budget.rotated == rotated(s), name
        assert_nothing_gathers_rows(budget, s)
    permutes = [x for x in found["step"].sent if x.kind == "collective-permute"]
    # In every layer, in loops that end by what they compute, `count_hops`; two stand between loops.
    turning = [x.loops for x in permutes]
    assert turning.count((L, None)) == 4 + 6 + 2 + 2 and turning.count((L,)) == 2
    assert len(permutes) == 16
    assert found["attention"].temporaries <= memory_of_attention(s)
    assert found["step"].temporaries <= memory_of_step(s)


def assert_nothing_gathers_rows(budget: Budget, s: int) -> None:
    """No device is given as many numbers of others as it has tokens."""
    for x in budget.sent:
        assert x.kind in ("all-gather", "all-reduce", "collective-permute", "reduce-scatter")
        assert x.kind != "all-gather" or x.numbers < s, f"{x} gathers rows"


# ---- a ring of eight


def test_a_step_at_a_million_tokens_on_eight_devices_is_within_its_budgets() -> None:
    mesh = make_mesh(seq=8)
    found = {
        "attention": budget_of_attention(mesh, MILLION),
        "step": budget_of_step(mesh, MILLION),
    }
    assert_within(found, MILLION // 8)
    # Nor does the ring sum what is as long as its shards: gradients of weights are all it sums.
    for x in found["step"].sent:
        assert x.alone or x.kind != "all-reduce" or x.numbers <= max(V, F) * D


def test_a_gather_of_the_rows_would_be_seen() -> None:
    mesh, rows = make_mesh(seq=8), spec("batch", "seq")
    shape = jax.ShapeDtypeStruct((1, MILLION), jnp.float32, sharding=NamedSharding(mesh, rows))
    with jax.set_mesh(mesh):
        whole = jax.shard_map(
            lambda x: x + lax.all_gather(x, "seq", axis=1, tiled=True).sum(),
            in_specs=rows,
            out_specs=rows,
        )
        budget = read(jax.jit(whole).lower(shape).compile())
    with pytest.raises(AssertionError, match="gathers rows"):
        assert_nothing_gathers_rows(budget, MILLION // 8)


@st.composite
def any_rows(draw: st.DrawFn) -> Where:
    """Sixteen tokens of any positions and segments, two to a device."""
    numbers = st.lists(st.integers(0, 3), min_size=16, max_size=16)
    return Where(*(np.array([draw(numbers)], np.int32) for _ in range(2)))


@settings(max_examples=100, deadline=None)
@given(where=any_rows())
def test_the_ring_turns_at_most_r_minus_1_times_and_no_less_than_is_seen(where: Where) -> None:
    p, segment = where.positions[0], where.segments[0]
    sees = (segment[:, None] == segment) & (segment[:, None] > 0) & (p <= p[:, None])
    queries, keys = np.nonzero(sees.reshape(8, 2, 8, 2).any((1, 3)))
    needed = ((queries - keys) % 8).max(initial=0)
    assert needed <= hops(make_mesh(seq=8), where) <= 7


# ---- other meshes, longer rows, larger rings


@pytest.mark.slow
def test_weights_are_gathered_and_rows_are_not() -> None:
    budget = budget_of_step(make_mesh(fsdp=2, seq=2, tensor=2), MILLION)
    assert_nothing_gathers_rows(budget, MILLION // 2)
    assert max(x.numbers for x in budget.sent if x.kind == "all-gather") == V * D // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{"layers": 4}, {"model": 2 * D}, {"mlp": 2 * F}, {"heads": 2 * N}],
    ids=lambda sizes: next(iter(sizes)),
)
def test_memory_of_a_step_follows_its_formula(sizes: dict[str, int]) -> None:
    budget = budget_of_step(make_mesh(seq=8), MILLION, **sizes)
    assert budget.temporaries <= memory_of_step(MILLION // 8, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("ring", [64, 512])
def test_ten_million_tokens_on_large_rings_are_within_their_budgets(ring: int) -> None:
    context = 10 * MILLION
    assert_within(compiled_for(ring, context)[context], context // ring)


@pytest.mark.slow
def test_memory_is_flat_in_the_ring_where_shards_are_as_long() -> None:
    s = 10 * MILLION // 512
    budgets = [compiled_for(ring, ring * s)[ring * s] for ring in (8, 64, 512)]
    for name in ("attention", "step"):
        held = [budget[name].temporaries for budget in budgets]
        # Seven ends of every shard are exchanged, in some arrays: 28 bytes a device each.
        assert max(held) - min(held) <= 4 * 28 * 512, f"{name}: {held}"
