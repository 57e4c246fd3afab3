"""LWM's decoder as its code defines it, in NumPy and float64: names, order and masks are its own.

Nothing here is shared with the package: tensors keep LWM's names and layout, a rotary turns the
neighbouring features 2i and 2i + 1 as one complex number, scores are masked and summed whole.
"""

from collections.abc import Mapping

import numpy as np

Tree = Mapping[str, np.ndarray]
LAYERS = "transformer/h/scan_decoder/"


def read_logits(
    tree: Tree,
    ids: np.ndarray,
    vision: np.ndarray,
    positions: np.ndarray,
    segments: np.ndarray,
    *,
    heads: int,
    theta: float,
    eps: float,
) -> dict[str, np.ndarray]:
    """The logits of "text", and of "vision" where the tree has its head.

    All are [B, T]. A token attends to itself and to the tokens of its segment before it.
    """
    time = np.arange(ids.shape[1])
    seen = (segments[:, :, None] == segments[:, None]) & (time[:, None] >= time)
    wide = {name: array.astype(np.float64) for name, array in tree.items()}
    x = wide["transformer/wte/embedding"][np.where(vision, 0, ids)]
    if vision.any():
        codes = wide["transformer/vte/embedding"][np.where(vision, ids, 0)]
        x = np.where(vision[..., None], codes, x)
    stacks = {name.removeprefix(LAYERS): w for name, w in wide.items() if name.startswith(LAYERS)}
    for l in range(len(stacks["ffn_norm/kernel"])):
        layer = {name.removesuffix("/kernel"): stack[l] for name, stack in stacks.items()}
        x = _read_layer(x, layer, positions, seen, heads, theta, eps)
    x = _norm(x, wide["transformer/ln_f/kernel"], eps)
    named = {"text": "lm_head/kernel", "vision": "vision_head/kernel"}
    return {head: x @ wide[name] for head, name in named.items() if name in wide}


def _read_layer(
    x: np.ndarray,
    w: Tree,
    positions: np.ndarray,
    seen: np.ndarray,
    heads: int,
    theta: float,
    eps: float,
) -> np.ndarray:
    h = _norm(x, w["attention_norm"], eps)
    parts = (h @ w[f"attention/{name}"] for name in ("wq", "wk", "wv"))
    q, k, v = (part.reshape(*x.shape[:2], heads, -1) for part in parts)
    q, k = _turn(q, positions, theta), _turn(k, positions, theta)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5
    shares = np.exp(np.where(seen[:, None], scores - scores.max(-1, keepdims=True), -np.inf))
    shares /= shares.sum(-1, keepdims=True)
    x = x + np.einsum("bnts,bsnh->btnh", shares, v).reshape(x.shape) @ w["attention/wo"]
    h = _norm(x, w["ffn_norm"], eps)
    gate = h @ w["feed_forward/w1"]
    return x + gate / (1 + np.exp(-gate)) * (h @ w["feed_forward/w3"]) @ w["feed_forward/w2"]


def _norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def _turn(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Queries or keys [B, T, N, H], turned: the pair i by the position times theta^(-2i / H)."""
    speeds = theta ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[..., None] * speeds
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, :, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
