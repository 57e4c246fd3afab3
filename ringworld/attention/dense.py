"""Attention as it is defined: every score at once. The oracle of every other implementation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ringworld.attention.mask import Where, reach, sees


def attend_dense(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    where: Where,
    is_causal: bool,
) -> Float[Array, "B T N H"]:
    """softmax(q k / sqrt(H)) v over the keys that each query sees; 0 where it sees none.

    Query head n reads key head n // (N / K). Scores and softmax are at least float32.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(B, T, K, N // K, H).astype(wide) * H**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k.astype(wide))
    mask = sees(reach(where, is_causal), where)[:, None, None]
    scores = jnp.where(mask, scores, -jnp.inf)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - jnp.where(jnp.isneginf(top), 0.0, top)), 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v.astype(wide))
    return out.reshape(B, T, N, H).astype(q.dtype)
