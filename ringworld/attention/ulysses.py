"""Ulysses: devices exchange tokens for heads, and each attends to whole rows with some heads.

    before   T/U tokens of all N heads on a device        after   T tokens of N/U heads

One all-to-all of queries, keys and values brings it about and one of the output undoes it. Inside,
any attention may follow: over a second mesh axis the ring. Heads that U does not divide are filled
up with heads of zeros; a key head that the query heads of several devices read goes to each of
them, and to no other.
Source: Jacobs et al., "DeepSpeed Ulysses" (arXiv 2309.14509); with the ring: Fang, Zhao, "USP"
(arXiv 2405.07719).
"""

from collections.abc import Callable
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.attention.mask import Where

Attend = Callable[[Array, Array, Array, Where], Array]


def key_heads(heads: int, kv_heads: int, devices: int) -> Int[np.ndarray, "U m"]:
    """The key heads that each device is sent, in the order in which its query heads read them.

    Device u holds query heads u n to (u + 1) n - 1, n = ceil(heads / devices). Runs of
    gcd(n, heads / kv_heads) query heads read one key head, so every device is sent n / gcd of them.
    """
    held = -(-heads // devices)
    run = gcd(held, heads // kv_heads)
    first = np.arange(devices * held // run) * run
    return np.minimum(first // (heads // kv_heads), kv_heads - 1).reshape(devices, -1)


def exchange(x: Float[Array, "B T N H"], axis: str) -> Float[Array, "B TU N_U H"]:
    """This device's tokens of all heads for all tokens of its share of the heads."""
    return lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)


def give_back(x: Float[Array, "B TU N_U H"], axis: str) -> Float[Array, "B T N H"]:
    """The inverse of `exchange`."""
    return lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True)


def attend_exchanged(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    where: Where,
    attend: Attend,
    axis: str,
) -> Float[Array, "B T N H"]:
    """`attend` with heads in place of tokens divided over `axis`; inside `shard_map`."""
    devices, heads = lax.axis_size(axis), q.shape[2]
    sent = key_heads(heads, k.shape[2], devices).reshape(-1)
    filled = jnp.pad(q, ((0, 0), (0, 0), (0, -heads % devices), (0, 0)))
    q, k, v = (exchange(x, axis) for x in (filled, k[:, :, sent], v[:, :, sent]))
    rows = jax.tree.map(lambda x: lax.all_gather(x, axis, axis=1, tiled=True), where)
    return give_back(attend(q, k, v, rows), axis)[:, :, :heads]
