"""The decoder: a Llama whose attention goes round the ring.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

Training and decoding run the same layer; they differ in the `LayerAttention` that they pass.
Related models differ in data: biases of q, k and v (Qwen2), a norm of queries and keys before RoPE
(Qwen3), a sliding window (Mistral), scaled RoPE frequencies (Llama 3).
Source: Touvron et al., "LLaMA" (arXiv 2302.13971); grouped keys: Ainslie et al. (arXiv 2305.13245).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ringworld.attention import attend
from ringworld.attention.mask import Where, window
from ringworld.attention.ring import SAVED
from ringworld.errors import InputError
from ringworld.layers import contract, over_tokens, product, rms_norm, token_axes
from ringworld.params import Matrix, Weight, constant, dense, gather, pytree_dataclass, stacked
from ringworld.rope import Rope, turn_halves
from ringworld.rope_scaling import Scaling

Dtype = Literal["float32", "bfloat16"]
COMPUTE: dict[Dtype, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Activations = Literal["attention", "nothing", "offload"]
SIZES = ("layers", "model", "mlp", "heads", "kv_heads", "head_width", "context")
LAYER_INPUT, HOST = "layer_input", "pinned_host"
# What is kept of each layer until its backward, which recomputes the rest. Its input always is;
# "attention" adds the attention's output and log-sum-exp, so that the ring is not walked a third
# time; "nothing" adds nothing; "offload" keeps what "attention" does in the memory of the host.
KEPT: dict[Activations, Callable[..., Any]] = {
    "attention": policies.save_only_these_names(*SAVED),
    "nothing": policies.nothing_saveable,
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, *SAVED],
        offload_src="device",
        offload_dst=HOST,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Llama:
    """The sizes of a decoder. `context` is the length it was last trained at, with `rope_theta`.

    `rope_context` is the length that `rope_theta` was chosen for; None where that is `context`.
    With a `window` a token sees no more than so many positions, its own among them. `qkv_bias` and
    `qk_norm` say whether the weights of that name exist. `activations` says what is kept of each
    layer until its backward: a choice among `KEPT`.
    """

    layers: int
    """decoder layers"""
    model: int
    """the width of the residual stream"""
    mlp: int
    """features of the MLP"""
    heads: int
    """query heads"""
    kv_heads: int
    """key heads; they divide the query heads"""
    head_width: int
    """the width of a head"""
    context: int
    """the length that it was last trained at"""
    rope_theta: float
    """the RoPE base"""
    norm_eps: float = 1e-5
    """added to the mean square in every norm"""
    rope_context: int | None = None
    """the length that the RoPE base was chosen for, where that is not the context"""
    rope_scaling: Scaling | None = None
    """how the RoPE frequencies are scaled"""
    window: int | None = None
    """how many positions a token sees, its own among them"""
    qkv_bias: bool = False
    """biases of queries, keys and values"""
    qk_norm: bool = False
    """norms of queries and keys"""
    dtype: Dtype = "float32"
    """what it computes in; weights are float32"""
    activations: Activations = "attention"
    """what is kept of a layer until its backward pass"""

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: make it 1 or more")
        if not self.rope_theta > 1:
            raise InputError(f"rope_theta is {self.rope_theta}: RoPE needs a base above 1")
        if self.heads % self.kv_heads:
            raise InputError(
                f"{self.kv_heads} key heads do not divide {self.heads} heads: set kv_heads to a "
                "divisor of heads"
            )
        if self.head_width % 2:
            raise InputError(f"head_width {self.head_width} is odd: RoPE turns pairs, make it even")
        if self.window is not None and self.window < 1:
            raise InputError(f"a window of {self.window} shows a token nothing: make it 1 or more")

    @property
    def rope_reach(self) -> int:
        """The tokens of context up to which `rope_theta` needs no change."""
        return max(self.context, self.rope_context or 0)

    @property
    def rope(self) -> Rope:
        """How positions turn its queries and keys."""
        return Rope(theta=self.rope_theta, head_width=self.head_width, scaling=self.rope_scaling)


@pytree_dataclass
class Block:
    """The weights of one layer, or of all of them on a leading axis.

    The biases of queries, keys and values are None in a model without them, and so are the norms.
    """

    attn_norm: Weight
    wq: Weight
    wk: Weight
    wv: Weight
    bq: Weight
    bk: Weight
    bv: Weight
    q_norm: Weight
    k_norm: Weight
    wo: Weight
    mlp_norm: Weight
    w_gate: Weight
    w_up: Weight
    w_down: Weight


def block_specs(c: Llama) -> Block:
    """One layer's spec table."""
    D, F, N, K, H = c.model, c.mlp, c.heads, c.kv_heads, c.head_width
    return Block(
        attn_norm=constant((D,), (None,), 1.0),
        wq=dense((D, N, H), ("embed", "heads", None), fan_in=D, inputs=(-3,)),
        wk=dense((D, K, H), ("embed", "kv_heads", None), fan_in=D, inputs=(-3,)),
        wv=dense((D, K, H), ("embed", "kv_heads", None), fan_in=D, inputs=(-3,)),
        bq=constant((N, H), ("heads", None), 0.0) if c.qkv_bias else None,
        bk=constant((K, H), ("kv_heads", None), 0.0) if c.qkv_bias else None,
        bv=constant((K, H), ("kv_heads", None), 0.0) if c.qkv_bias else None,
        q_norm=constant((H,), (None,), 1.0) if c.qk_norm else None,
        k_norm=constant((H,), (None,), 1.0) if c.qk_norm else None,
        wo=dense((N, H, D), ("heads", None, "embed"), fan_in=N * H * 2 * c.layers, inputs=(-3, -2)),
        mlp_norm=constant((D,), (None,), 1.0),
        w_gate=dense((D, F), ("embed", "mlp"), fan_in=D, inputs=(-2,)),
        w_up=dense((D, F), ("embed", "mlp"), fan_in=D, inputs=(-2,)),
        w_down=dense((F, D), ("mlp", "embed"), fan_in=F * 2 * c.layers, inputs=(-2,)),
    )


def blocks_specs(c: Llama) -> Block:
    """The spec table of all layers, stacked."""
    return stacked(c.layers, block_specs(c))


# (q, k, v, where) -> the heads' outputs `[B, T, N, H]`, and a cache that goes on: None in training.
LayerAttention = Callable[[Array, Array, Array, Where], tuple[Array, Any]]


def qkv(
    h: Float[Array, "B T D"], w: Block, positions: Int[Array, "B T"], c: Llama
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries, keys and values of normed tokens; RoPE has turned queries and keys."""
    q = contract("btd,dnh->btnh", h, w.wq, "heads", None)
    k = contract("btd,dkh->btkh", h, w.wk, "kv_heads", None)
    v = contract("btd,dkh->btkh", h, w.wv, "kv_heads", None)
    if c.qkv_bias:
        q, k, v = (x + b.astype(x.dtype) for x, b in ((q, w.bq), (k, w.bk), (v, w.bv)))
    if c.qk_norm:
        q, k = rms_norm(q, w.q_norm, c.norm_eps), rms_norm(k, w.k_norm, c.norm_eps)
    turns = c.rope.at(positions)
    return turn_halves(q, turns), turn_halves(k, turns), v


def apply_window(where: Where, c: Llama) -> Where:
    """`where` with the span of the model's sliding window; unchanged in a model without one."""
    if c.window is None:
        return where
    seen = window(where, c.window)
    span = seen if where.span is None else where.span & seen
    return Where(where.positions, where.segments, span)


def attention(
    h: Float[Array, "B T D"], w: Block, where: Where, attend: LayerAttention, c: Llama
) -> tuple[Float[Array, "B T D"], Any]:
    """What attention adds to the residual stream, and the cache that `attend` returns."""
    q, k, v = qkv(h, w, where.positions, c)
    heads, cache = attend(q, k, v, apply_window(where, c))
    return contract("btnh,nhd->btd", heads, w.wo, None), cache


def mlp(
    x: Float[Array, "T D"],
    gain: Float[Array, "D"],
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    eps: float,
) -> Float[Array, "T D"]:
    """SwiGLU of normed tokens: (silu(h W_gate) * h W_up) W_down with h = norm(x).

    The matrices are [D, F], [D, F] and [F, D].
    Source: Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202).
    """
    h = rms_norm(x, gain, eps)
    gate, up = product("td,df->tf", h, w_gate), product("td,df->tf", h, w_up)
    return product("tf,fd->td", jax.nn.silu(gate) * up, w_down)


def layer(
    x: Float[Array, "B T D"], w: Block, where: Where, attend: LayerAttention, c: Llama
) -> tuple[Float[Array, "B T D"], Any]:
    """The residual stream after one layer, and the cache that `attend` returns.

    The MLP has its norm inside, so that both go through the tokens in chunks (`over_tokens`).
    """
    w = gather(w, block_specs(c), token_axes(x))
    added, cache = attention(rms_norm(x, w.attn_norm, c.norm_eps), w, where, attend, c)
    x = x + added
    weights = (w.mlp_norm, w.w_gate, w.w_up, w.w_down)
    x = x + over_tokens(partial(mlp, eps=c.norm_eps), x, weights)
    return x, cache


def run_layers(
    x: Float[Array, "B T D"], blocks: Block, where: Where, c: Llama
) -> Float[Array, "B T D"]:
    """All layers over packed rows; the backward recomputes each but for what is `KEPT`."""

    def ring(q: Array, k: Array, v: Array, where: Where) -> tuple[Array, None]:
        return attend(q, k, v, where), None

    def body(x: Array, w: Block) -> tuple[Array, None]:
        return layer(checkpoint_name(x, LAYER_INPUT), w, where, ring, c)

    body = jax.checkpoint(body, policy=KEPT[c.activations], prevent_cse=False)
    return lax.scan(body, x, blocks)[0]
