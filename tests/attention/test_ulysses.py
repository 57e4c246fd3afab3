"""Heads exchanged for tokens, alone and with the ring, give what one device gives."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ringworld.attention import attend
from ringworld.attention.layout import deal, striped_order
from ringworld.attention.mask import Where
from ringworld.attention.ulysses import key_heads
from ringworld.mesh import make_mesh

B, T, H = 2, 48, 8
# Rounding in float32 sums of T = 48 terms, against the largest number: sqrt(T) 2^-23 = 8e-7.
TOLERANCE = 2e-6
HEADS = {
    "even": (8, 4),
    "shared keys": (8, 2),
    "mqa": (4, 1),
    "6 over 3": (6, 3),
    "5 alone": (5, 5),
}
MESHES = {
    "ulysses 4": {"tensor": 4},
    "ulysses 3": {"tensor": 3},
    "ring 2 x ulysses 4": {"seq": 2, "tensor": 4},
    "ring 4 x ulysses 2": {"seq": 4, "tensor": 2},
}


def rows() -> Where:
    """A long document, two short ones and padding, dealt in stripes."""
    positions, segments = np.zeros((2, B, T), np.int32)
    for segment, (start, stop) in enumerate(((0, 29), (29, 30), (30, 44)), start=1):
        positions[:, start:stop] = np.arange(stop - start)
        segments[:, start:stop] = segment
    order = striped_order(T, 4, 4)
    return Where(deal(positions, order), deal(segments, order))


def pulled(q: Any, k: Any, v: Any, dout: Any, where: Where) -> Any:
    out, pull = jax.vjp(partial(attend, where=where), q, k, v)
    return out, *pull(dout)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mesh", MESHES)
def test_exchanged_heads_give_the_output_and_gradients_of_one_device(mesh: str, heads: str) -> None:
    rng, (N, K) = np.random.default_rng(0), HEADS[heads]
    arrays = [rng.standard_normal((B, T, n, H), np.float32) for n in (N, K, K, N)]
    wanted = jax.device_get(jax.jit(pulled)(*arrays, rows()))
    on = make_mesh(**MESHES[mesh])
    tokens = PartitionSpec(("data", "fsdp"), ("seq", "tensor"))
    with jax.set_mesh(on):
        placed = jax.device_put((arrays, rows()), NamedSharding(on, tokens))
        found = jax.jit(pulled)(*placed[0], placed[1])
        assert all(jax.typeof(x).sharding.spec[1] == ("seq", "tensor") for x in found)
        found = jax.device_get(found)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1.0)
        assert error <= TOLERANCE, f"{name} is off by {error:.1e}"


def test_every_device_is_sent_the_key_heads_that_its_query_heads_read() -> None:
    for heads, kv_heads, devices in ((8, 4, 4), (8, 2, 4), (6, 3, 4), (5, 5, 3), (12, 4, 5)):
        sent = key_heads(heads, kv_heads, devices)
        held = -(-heads // devices)
        run = held // sent.shape[1]
        for head in range(heads):
            device, place = divmod(head, held)
            assert sent[device, place // run] == head // (heads // kv_heads)


def test_no_key_head_is_sent_twice_where_heads_divide() -> None:
    assert key_heads(32, 8, 8).shape == (8, 1)
    assert key_heads(32, 8, 4).shape == (4, 2)
    assert key_heads(32, 8, 16).shape == (16, 1)
