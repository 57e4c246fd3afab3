"""Batched generation: prompts of different lengths as rows, and the text or frames after them.

Text is decoded row by row to the end of the text. Frames are image codes with classifier-free
guidance: each step draws a code from uncond + scale (cond - uncond) and gives it to both halves of
the batch. Every (Q + 1)-th token is the end of a frame, and inside a frame only codes can be drawn.
Source: LWM (arXiv 2402.08268); guidance: Ho and Salimans (arXiv 2207.12598).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.layout import STRIPE, deal, dealt_length, invert, striped_order
from ringworld.attention.mask import Where
from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.inference.cache import Cache, decode_step, prefill_rows
from ringworld.inference.sampling import draw_token, guide
from ringworld.mesh import axis_size, place, shard, spec
from ringworld.models.world import World, WorldWeights, gather_heads, read_head
from ringworld.params import Leaf, pytree_dataclass
from ringworld.settings import Sampling

# Tokens of a prompt that are read at one time: enough work for a device between two transfers, and
# little memory: 8192 x 4096 bfloat16 activations are 64 MiB.
PROMPT_CHUNK = 8192


def chunk_length(places: int, ring: int) -> int:
    """How many of a row's places are read at one time: whole rounds of stripes, or all of them."""
    rounds = max(PROMPT_CHUNK // (ring * STRIPE), 1) * ring * STRIPE
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

    def deal_rows(x: np.ndarray) -> jax.Array:
        return place(deal(x, order), "batch", "seq")

    return Prompts(
        deal_rows(rows[0]),
        deal_rows(rows[1].astype(np.bool_)),
        Where(deal_rows(positions), deal_rows(segments)),
        place(np.array([len(prompt) for prompt in prompts], np.int32), "batch"),
        place(invert(order, capacity).astype(np.int32), None),
    )


def prefill_prompts(
    weights: WorldWeights, prompts: Prompts, c: World
) -> tuple[Float[Array, "B D"], Cache]:
    """The residual stream of each row's last prompt token, on every device, and the cache."""
    last = prompts.lengths - 1
    chunk = chunk_length(prompts.tokens.shape[1], axis_size("seq"))
    return prefill_rows(weights, prompts.tokens, prompts.vision, prompts.where, last, chunk, c)


def decode_prompts(
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
    places = prompts.places.at[positions].get(out_sharding=spec("batch", None))
    x, cache = decode_step(weights, cache, tokens[:, None], vision[:, None], where, places, c)
    return shard(x[:, 0], None, None), cache


@partial(jax.jit, static_argnames=("c", "steps", "sampling"))
def _decode_text(
    weights: WorldWeights,
    prompts: Prompts,
    seed: Int[Array, ""],
    c: World,
    steps: int,
    sampling: Sampling,
) -> Int[Array, "B T"]:
    head = gather_heads(weights, c).text
    root = jax.random.key(seed)

    def step(carry: tuple, i: Array) -> tuple[tuple, Array]:
        x, cache = carry
        tokens = draw_token(jax.random.fold_in(root, i), read_head(x, head), sampling)
        coming = decode_prompts(weights, cache, prompts, tokens, jnp.zeros_like(tokens, bool), i, c)
        return coming, tokens

    _, tokens = lax.scan(
        step, prefill_prompts(weights, prompts, c), jnp.arange(steps, dtype=jnp.int32)
    )
    return tokens.swapaxes(0, 1)


def write_text(
    weights: WorldWeights,
    prompts: Sequence[Example],
    c: World,
    *,
    steps: int,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """The ids that the model writes after each prompt, at most `steps`, up to the end of the text.

    Raises InputError when a prompt and `steps` tokens do not fit the model's context.
    """
    capacity = max(len(prompt) for prompt in prompts) + steps
    rows = make_prompts(prompts, capacity, c)
    written = jax.device_get(_decode_text(weights, rows, seed, c, steps, sampling)).tolist()
    ends = [row.index(c.vocabulary.eos) if c.vocabulary.eos in row else steps for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]


@partial(jax.jit, static_argnames=("c", "drawn", "frames", "sampling"))
def _decode_frames(
    weights: WorldWeights,
    prompts: Prompts,
    scale: Float[Array, ""],
    seed: Int[Array, ""],
    c: World,
    drawn: int,
    frames: int,
    sampling: Sampling,
) -> Int[Array, "drawn T"]:
    """The first `drawn` rows' codes; the last so many, which may be the same, are the guide's."""
    words = c.vocabulary
    head = gather_heads(weights, c).vision
    root = jax.random.key(seed)
    is_code = jnp.arange(words.vision_rows) < words.codes

    def step(carry: tuple, i: Array) -> tuple[tuple, Array]:
        x, cache = carry
        logits = read_head(x, head)
        guided = jnp.where(is_code, guide(logits[:drawn], logits[-drawn:], scale), -jnp.inf)
        codes = draw_token(jax.random.fold_in(root, i), guided, sampling)
        ends = (i + 1) % words.frame_length == 0
        tokens = jnp.tile(jnp.where(ends, words.eof, codes), len(logits) // drawn)
        return decode_prompts(
            weights, cache, prompts, tokens, jnp.ones_like(tokens, bool), i, c
        ), codes

    steps = jnp.arange(frames * words.frame_length - 1, dtype=jnp.int32)
    _, tokens = lax.scan(step, prefill_prompts(weights, prompts, c), steps)
    return tokens.swapaxes(0, 1)


def draw_frames(
    weights: WorldWeights,
    conditional: Sequence[Example],
    unconditional: Sequence[Example],
    c: World,
    *,
    frames: int,
    guidance: float,
    sampling: Sampling,
    seed: int,
) -> Int[np.ndarray, "B Z Q"]:
    """The codes of `frames` frames after each prompt.

    `unconditional[i]` is what the i-th prompt is guided away from, such as a bare `<s><vision>`;
    there may be none, and then nothing is guided.
    Raises InputError when the model has no vision or the frames do not fit its context.
    """
    words = c.vocabulary
    if not words.codes:
        raise InputError("this model has no image codes: use a world model to draw")
    prompts = [*conditional, *unconditional]
    steps = frames * words.frame_length
    rows = make_prompts(prompts, max(len(prompt) for prompt in prompts) + steps, c)
    drawn = len(conditional)
    tokens = jax.device_get(
        _decode_frames(weights, rows, guidance, seed, c, drawn, frames, sampling)
    )
    ended = np.pad(tokens, ((0, 0), (0, 1))).reshape(drawn, frames, words.frame_length)
    return ended[:, :, :-1]
