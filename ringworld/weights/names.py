"""One row a weight: its name in ours, Hugging Face's, GGUF's and LWM's files, and its axes.

A layer's number stands where `{}` is; in ours, layers are stacked on a leading axis. Hugging Face
writes a matrix [out, in] and joins axes that we keep apart: wq `[D, N, H]` is `[N H, D]` there.
The page docs/checkpoints.md shows this table.
"""

import math
from dataclasses import dataclass

import numpy as np

Axes = tuple[tuple[int, ...], ...]

VECTOR: Axes = ((0,),)
TABLE: Axes = ((0,), (1,))  # one row a token
MATRIX: Axes = ((1,), (0,))  # [in, out] here, [out, in] there
TO_HEADS: Axes = ((1, 2), (0,))  # [D, N, H] here, [N H, D] there
FROM_HEADS: Axes = ((2,), (0, 1))  # [N, H, D] here, [D, N H] there
OF_HEADS: Axes = ((0, 1),)  # [N, H] here, [N H] there


@dataclass(frozen=True)
class Name:
    """A weight on all sides. `axes` says which axes of ours make up each axis of Hugging Face's."""

    ours: str
    hugging_face: str
    gguf: str
    lwm: str
    axes: Axes

    @property
    def layered(self) -> bool:
        """Whether each layer has one."""
        return "{}" in self.hugging_face

    def theirs(self, w: np.ndarray) -> np.ndarray:
        """One layer's weight of ours, as Hugging Face lays it out."""
        order = [axis for group in self.axes for axis in group]
        shape = [math.prod(w.shape[axis] for axis in group) for group in self.axes]
        return w.transpose(order).reshape(shape)

    def ours_from(self, w: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A weight of Hugging Face's as ours, of this shape; a view where numpy can give one."""
        order = [axis for group in self.axes for axis in group]
        return w.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that Hugging Face gives a weight of this shape of ours."""
        return tuple(math.prod(shape[axis] for axis in group) for group in self.axes)


LAYER, GGUF_LAYER, SCAN = "model.layers.{}.", "blk.{}.", "transformer/h/{}/"
WEIGHT_NAMES = (
    Name(
        "text_embed",
        "model.embed_tokens.weight",
        "token_embd.weight",
        "transformer/wte/embedding",
        TABLE,
    ),
    Name("vision_embed", "model.embed_vision.weight", "", "transformer/vte/embedding", TABLE),
    Name(
        "blocks.attn_norm",
        f"{LAYER}input_layernorm.weight",
        f"{GGUF_LAYER}attn_norm.weight",
        f"{SCAN}attention_norm/kernel",
        VECTOR,
    ),
    Name(
        "blocks.wq",
        f"{LAYER}self_attn.q_proj.weight",
        f"{GGUF_LAYER}attn_q.weight",
        f"{SCAN}attention/wq/kernel",
        TO_HEADS,
    ),
    Name(
        "blocks.wk",
        f"{LAYER}self_attn.k_proj.weight",
        f"{GGUF_LAYER}attn_k.weight",
        f"{SCAN}attention/wk/kernel",
        TO_HEADS,
    ),
    Name(
        "blocks.wv",
        f"{LAYER}self_attn.v_proj.weight",
        f"{GGUF_LAYER}attn_v.weight",
        f"{SCAN}attention/wv/kernel",
        TO_HEADS,
    ),
    Name("blocks.bq", f"{LAYER}self_attn.q_proj.bias", f"{GGUF_LAYER}attn_q.bias", "", OF_HEADS),
    Name("blocks.bk", f"{LAYER}self_attn.k_proj.bias", f"{GGUF_LAYER}attn_k.bias", "", OF_HEADS),
    Name("blocks.bv", f"{LAYER}self_attn.v_proj.bias", f"{GGUF_LAYER}attn_v.bias", "", OF_HEADS),
    Name(
        "blocks.q_norm",
        f"{LAYER}self_attn.q_norm.weight",
        f"{GGUF_LAYER}attn_q_norm.weight",
        "",
        VECTOR,
    ),
    Name(
        "blocks.k_norm",
        f"{LAYER}self_attn.k_norm.weight",
        f"{GGUF_LAYER}attn_k_norm.weight",
        "",
        VECTOR,
    ),
    Name(
        "blocks.wo",
        f"{LAYER}self_attn.o_proj.weight",
        f"{GGUF_LAYER}attn_output.weight",
        f"{SCAN}attention/wo/kernel",
        FROM_HEADS,
    ),
    Name(
        "blocks.mlp_norm",
        f"{LAYER}post_attention_layernorm.weight",
        f"{GGUF_LAYER}ffn_norm.weight",
        f"{SCAN}ffn_norm/kernel",
        VECTOR,
    ),
    Name(
        "blocks.w_gate",
        f"{LAYER}mlp.gate_proj.weight",
        f"{GGUF_LAYER}ffn_gate.weight",
        f"{SCAN}feed_forward/w1/kernel",
        MATRIX,
    ),
    Name(
        "blocks.w_up",
        f"{LAYER}mlp.up_proj.weight",
        f"{GGUF_LAYER}ffn_up.weight",
        f"{SCAN}feed_forward/w3/kernel",
        MATRIX,
    ),
    Name(
        "blocks.w_down",
        f"{LAYER}mlp.down_proj.weight",
        f"{GGUF_LAYER}ffn_down.weight",
        f"{SCAN}feed_forward/w2/kernel",
        MATRIX,
    ),
    Name(
        "heads.norm",
        "model.norm.weight",
        "output_norm.weight",
        "transformer/ln_f/kernel",
        VECTOR,
    ),
    Name("heads.text", "lm_head.weight", "output.weight", "lm_head/kernel", MATRIX),
    Name("heads.vision", "vision_head.weight", "", "vision_head/kernel", MATRIX),
)
BY_OURS: dict[str, Name] = {name.ours: name for name in WEIGHT_NAMES}
