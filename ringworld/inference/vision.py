"""Drawn frames: image codes after a prompt, with classifier-free guidance.

Each step draws a code from uncond + scale (cond - uncond) and gives it to both halves of the batch.
Every (Q + 1)-th token is the end of a frame, and inside a frame only codes can be drawn.
Source: LWM (arXiv 2402.08268); guidance: Ho and Salimans (arXiv 2207.12598).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.inference.prompt import Prompts, follow, make_prompts, start
from ringworld.inference.sampling import Sampling, draw_token, guide
from ringworld.models.world import World, WorldWeights, gather_heads, read_head


@partial(jax.jit, static_argnames=("c", "drawn", "frames", "sampling"))
def _draw(
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
        return follow(weights, cache, prompts, tokens, jnp.ones_like(tokens, bool), i, c), codes

    steps = jnp.arange(frames * words.frame_length - 1, dtype=jnp.int32)
    _, tokens = lax.scan(step, start(weights, prompts, c), steps)
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
    tokens = jax.device_get(_draw(weights, rows, guidance, seed, c, drawn, frames, sampling))
    ended = np.pad(tokens, ((0, 0), (0, 1))).reshape(drawn, frames, words.frame_length)
    return ended[:, :, :-1]
