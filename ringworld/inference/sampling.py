"""From logits to the next token of each row, each with its own settings; and guidance.

A token is drawn with a key that is folded from the request's seed, the sample's index and the
token's position: it depends on nothing that runs beside it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt16

from ringworld.params import Leaf, pytree_dataclass

# The marks of a text id: 1 when it stands in the prompt, and 2 for each time in the answer, up to
# MOST_MARKS.
IN_PROMPT, IN_ANSWER, MOST_MARKS = 1, 2, 65534


@pytree_dataclass
class Settings:
    """How each row samples: `Sampling`'s numbers, the seed and the sample's index, all `[B]`."""

    temperature: Leaf
    top_k: Leaf
    top_p: Leaf
    min_p: Leaf
    repetition_penalty: Leaf
    presence_penalty: Leaf
    frequency_penalty: Leaf
    seed: Leaf
    sample: Leaf


def guide(
    cond: Float[Array, "B V"],
    uncond: Float[Array, "B V"],
    scale: Float[Array, "B 1"] | float,
) -> Float[Array, "B V"]:
    """Classifier-free guidance: uncond + scale (cond - uncond)."""
    return uncond + scale * (cond - uncond)


def penalize(
    logits: Float[Array, "B V"], marks: UInt16[Array, "B V"], settings: Settings
) -> Float[Array, "B V"]:
    """Logits with the penalties of the ids that a row's prompt and answer hold.

    Repetition (Keskar et al., arXiv 1909.05858) divides a positive logit of any id that is there,
    and multiplies a negative one. Presence is subtracted for ids of the answer, and frequency as
    often as they are there, as OpenAI has it.
    """
    rate = settings.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / rate, logits * rate)
    logits = jnp.where(marks > 0, repeated, logits)
    count = marks // IN_ANSWER
    logits = logits - jnp.where(count > 0, settings.presence_penalty[:, None], 0.0)
    return logits - settings.frequency_penalty[:, None] * count.astype(jnp.float32)


def mark_tokens(
    marks: UInt16[Array, "B V"], tokens: Int[Array, "B"], is_text: Bool[Array, "B"]
) -> UInt16[Array, "B V"]:
    """The marks with one more text id in the answer of each row that has one."""
    row = jnp.arange(marks.shape[0], dtype=jnp.int32)
    ids = jnp.where(is_text, tokens, marks.shape[1])  # the others fall off the end
    held = marks.at[row, ids].get(mode="fill", fill_value=0)
    more = jnp.where(held < MOST_MARKS, held + jnp.uint16(IN_ANSWER), held)
    return marks.at[row, ids].set(more, mode="drop")


def bias_logits(
    logits: Float[Array, "B V"], ids: Int[Array, "B N"], bias: Float[Array, "B N"]
) -> Float[Array, "B V"]:
    """The logits with what is added to single ids of each row; -1 is no id."""
    row = jnp.arange(len(logits), dtype=jnp.int32)[:, None]
    return logits.at[row, jnp.where(ids < 0, logits.shape[1], ids)].add(bias, mode="drop")


def keep_likeliest(logits: Float[Array, "B V"], settings: Settings) -> Float[Array, "B V"]:
    """The logits that top-k, then top-p, then min-p leave to each row; the others are -inf."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    most = jnp.where(settings.top_k > 0, settings.top_k, logits.shape[-1])[:, None]
    kept = jnp.where(rank < most, ordered, -jnp.inf)
    odds = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(odds, axis=-1) - odds
    kept = jnp.where(before < settings.top_p[:, None], kept, -jnp.inf)
    kept = jnp.where(odds >= settings.min_p[:, None] * odds[:, :1], kept, -jnp.inf)
    least = jnp.where(jnp.isneginf(kept), jnp.inf, kept).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def draw_tokens(
    logits: Float[Array, "B V"], settings: Settings, positions: Int[Array, "B"]
) -> Int[Array, "B"]:
    """One token for each row, to stand at `positions`; the likeliest where temperature is 0."""
    likeliest = jnp.argmax(logits, -1).astype(jnp.int32)
    drawn, cut = settings.temperature > 0, settings.top_k > 0
    cut |= (settings.top_p < 1) | (settings.min_p > 0)

    def one(seed: Array, sample: Array, position: Array, logits: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    def draw() -> Array:
        warm = logits / jnp.where(drawn, settings.temperature, 1.0)[:, None]
        warm = lax.cond((drawn & cut).any(), lambda: keep_likeliest(warm, settings), lambda: warm)
        tokens = jax.vmap(one)(settings.seed, settings.sample, positions, warm)
        return jnp.where(drawn, tokens, likeliest)

    return lax.cond(drawn.any(), draw, lambda: likeliest)


def restrict(logits: Float[Array, "B V"], allowed: Bool[Array, "B V"]) -> Float[Array, "B V"]:
    """The logits of the allowed tokens; the others are -inf."""
    return jnp.where(allowed, logits, -jnp.inf)
