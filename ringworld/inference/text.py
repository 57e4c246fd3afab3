"""Written answers: text after a prompt of text and frames."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from ringworld.data.example import Example
from ringworld.inference.prompt import Prompts, follow, make_prompts, start
from ringworld.inference.sampling import Sampling, draw_token
from ringworld.models.world import World, WorldWeights, gather_heads, read_head


@partial(jax.jit, static_argnames=("c", "steps", "sampling"))
def _write(
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
        coming = follow(weights, cache, prompts, tokens, jnp.zeros_like(tokens, bool), i, c)
        return coming, tokens

    _, tokens = lax.scan(step, start(weights, prompts, c), jnp.arange(steps, dtype=jnp.int32))
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
    written = jax.device_get(_write(weights, rows, seed, c, steps, sampling)).tolist()
    ends = [row.index(c.vocabulary.eos) if c.vocabulary.eos in row else steps for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]
