"""The running softmax: attention over part of the keys, kept so that parts can be merged.

    max = m,  sum = sum_s 2^(x_s - m),  value = sum_s 2^(x_s - m) v_s        for scores x_s

Scores are in bits (scaled by log2 e), because 2^x costs less than e^x; so is the log-sum-exp. A
query that has seen nothing has max = -inf, sum = 0 and value = 0; it comes out as 0, never NaN.
Everything is float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ringworld.params import Leaf, pytree_dataclass


@pytree_dataclass
class Partial:
    """Attention so far: `max` and `sum` `[..., T]`, `value` `[..., T, H]`, all float32."""

    max: Leaf
    sum: Leaf
    value: Leaf


def empty_partial(queries: Float[Array, "*rows H"]) -> Partial:
    """The partial result of these queries before any key; it lives where they live."""
    value = jnp.zeros_like(queries, jnp.float32)
    return Partial(value[..., 0] - jnp.inf, value[..., 0], value)


def finite(maximum: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """The maximum, and 0 where nothing was seen: -inf - -inf is NaN."""
    return jnp.where(jnp.isneginf(maximum), 0.0, maximum)


def merge(a: Partial, b: Partial) -> Partial:
    """The attention over the keys of both."""
    top = jnp.maximum(a.max, b.max)
    keep_a, keep_b = jnp.exp2(a.max - finite(top)), jnp.exp2(b.max - finite(top))
    return Partial(
        top,
        a.sum * keep_a + b.sum * keep_b,
        a.value * keep_a[..., None] + b.value * keep_b[..., None],
    )


def finish(partial: Partial) -> tuple[Float[Array, "*rows H"], Float[Array, "*rows"]]:
    """The attention output and the log-sum-exp in bits (-inf where nothing was seen)."""
    seen = partial.sum > 0
    total = jnp.where(seen, partial.sum, 1.0)
    lse = jnp.where(seen, finite(partial.max) + jnp.log2(total), -jnp.inf)
    return partial.value / total[..., None], lse
