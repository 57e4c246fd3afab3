"""LWM's decoder as its code defines it, in NumPy and float64: names, order and masks are its own.

Nothing here is shared with the package: tensors keep LWM's names and layout, a rotary turns the
neighbouring features 2i and 2i + 1 as one complex number, scores are masked and summed whole.
"""

from collections.abc import Callable, Mapping

import numpy as np

Tree = Mapping[str, np.ndarray]
LAYERS = "transformer/h/scan_decoder"


def read_logits(
    tree: Tree,
    ids: np.ndarray,
    vision: np.ndarray,
    seen: np.ndarray,
    *,
    heads: int,
    theta: float,
    eps: float,
) -> dict[str, np.ndarray]:
    """The logits of "text", and of "vision" where the tree has its head.

    `seen[t, s]` is true where the token t attends to s; positions count from 0.
    """
    wide = {name: array.astype(np.float64) for name, array in tree.items()}
    x = wide["transformer/wte/embedding"][np.where(vision, 0, ids)]
    if vision.any():
        codes = wide["transformer/vte/embedding"][np.where(vision, ids, 0)]
        x = np.where(vision[..., None], codes, x)
    for l in range(len(wide[f"{LAYERS}/ffn_norm/kernel"])):
        x = _layer(x, lambda name, l=l: wide[f"{LAYERS}/{name}/kernel"][l], seen, heads, theta, eps)
    x = _norm(x, wide["transformer/ln_f/kernel"], eps)
    named = {"text": "lm_head/kernel", "vision": "vision_head/kernel"}
    return {head: x @ wide[name] for head, name in named.items() if name in wide}


def _layer(
    x: np.ndarray,
    weight: Callable[[str], np.ndarray],
    seen: np.ndarray,
    heads: int,
    theta: float,
    eps: float,
) -> np.ndarray:
    h = _norm(x, weight("attention_norm"), eps)
    q, k, v = (
        (h @ weight(f"attention/{name}")).reshape(*x.shape[:2], heads, -1)
        for name in ("wq", "wk", "wv")
    )
    scores = np.einsum("btnh,bsnh->bnts", _turn(q, theta), _turn(k, theta)) / q.shape[-1] ** 0.5
    shares = np.exp(np.where(seen, scores - scores.max(-1, keepdims=True), -np.inf))
    shares /= shares.sum(-1, keepdims=True)
    taken = np.einsum("bnts,bsnh->btnh", shares, v).reshape(x.shape)
    x = x + taken @ weight("attention/wo")
    h = _norm(x, weight("ffn_norm"), eps)
    gate = h @ weight("feed_forward/w1")
    gated = gate / (1 + np.exp(-gate)) * (h @ weight("feed_forward/w3"))
    return x + gated @ weight("feed_forward/w2")


def _norm(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def _turn(x: np.ndarray, theta: float) -> np.ndarray:
    """Queries or keys [B, T, N, H], turned: the pair i by the position times theta^(-2i / H)."""
    speeds = theta ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = np.arange(x.shape[1])[:, None] * speeds
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
