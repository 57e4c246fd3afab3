"""Prompts of different lengths as one batch of rows, with room for what will be written."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.layout import STRIPE, deal, dealt_length, invert, striped_order
from ringworld.attention.mask import Where
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.inference.cache import Cache, extend, prefill
from ringworld.mesh import axis_size, has_mesh, shard, spec
from ringworld.models.world import World, WorldWeights
from ringworld.params import Leaf, pytree_dataclass

# Tokens of a prompt that are read at one time: enough work for a device between two transfers, and
# little memory: 8192 x 4096 bfloat16 activations are 64 MiB.
CHUNK = 8192


def chunk_length(places: int, ring: int) -> int:
    """How many of a row's places are read at one time: whole rounds of stripes, or all of them."""
    rounds = max(CHUNK // (ring * STRIPE), 1) * ring * STRIPE
    return min(places, rounds)


@pytree_dataclass
class Prompts:
    """Rows `[B, S]` in the ring's order, their lengths `[B]`, the place of each position `[S]`."""

    tokens: Leaf
    vision: Leaf
    where: Where
    lengths: Leaf
    places: Leaf


def make_prompts(prompts: Sequence[Example], capacity: int, c: World) -> Prompts:
    """The prompts as rows of `capacity` tokens, rounded up to what the ring divides.

    Raises InputError when a prompt and its answer do not fit the model's context.
    """
    if capacity > c.llama.context:
        raise InputError(
            f"the prompt and its answer take {capacity} tokens and the model's context is "
            f"{c.llama.context}: shorten the prompt or use a model of longer context"
        )
    ring = axis_size("seq")
    capacity += -capacity % chunk_length(dealt_length(capacity, ring), ring)
    order = striped_order(capacity, ring)
    rows = np.zeros((2, len(prompts), capacity), np.int32)
    segments = np.zeros((len(prompts), capacity), np.int32)
    for i, prompt in enumerate(prompts):
        rows[0, i, : len(prompt)], rows[1, i, : len(prompt)] = prompt.tokens, prompt.vision
        segments[i, : len(prompt)] = 1
    positions = np.where(segments > 0, np.arange(capacity), 0).astype(np.int32)

    def place(x: np.ndarray) -> jax.Array:
        return shard(jnp.asarray(deal(x, order)), "batch", "seq")

    return Prompts(
        place(rows[0]),
        place(rows[1].astype(np.bool_)),
        Where(place(positions), place(segments)),
        shard(jnp.asarray([len(prompt) for prompt in prompts], jnp.int32), "batch"),
        jnp.asarray(invert(order, capacity), jnp.int32),
    )


def start(weights: WorldWeights, prompts: Prompts, c: World) -> tuple[Float[Array, "B D"], Cache]:
    """The residual stream of each row's last prompt token, on every device, and the cache."""
    last = prompts.lengths - 1
    chunk = chunk_length(prompts.tokens.shape[1], axis_size("seq"))
    return prefill(weights, prompts.tokens, prompts.vision, prompts.where, last, chunk, c)


def follow(
    weights: WorldWeights,
    cache: Cache,
    prompts: Prompts,
    tokens: Int[Array, "B"],
    vision: Bool[Array, "B"],
    i: Int[Array, ""],
    c: World,
) -> tuple[Float[Array, "B D"], Cache]:
    """The residual stream after the i-th written token of each row, and the cache with it.

    Tokens come from and the stream goes to every device: rows meet where a token is chosen.
    """
    tokens, vision = shard(tokens, "batch"), shard(vision, "batch")
    positions = (prompts.lengths + i)[:, None]
    where = Where(positions, jnp.ones_like(positions))
    rows = spec("batch", None) if has_mesh() else None
    places = prompts.places.at[positions].get(out_sharding=rows)
    x, cache = extend(weights, cache, tokens[:, None], vision[:, None], where, places, c)
    return shard(x[:, 0], None, None), cache
