"""Worker: the loss and the gradients of one row, as a stage of training computes them.

The row has the order that `choose_layout` chooses for a ring of all devices.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.peers.step_work import (
    EPS,
    FEATURES,
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    THETA,
    VOCABULARY,
    WIDTH,
    make_tokens,
    make_weights,
    sample_step,
)
from benchmarks.protocol import Prepared, serve
from ringworld import Batch, Llama, Vocabulary, Where, World, make_mesh
from ringworld.attention.balance import choose_layout
from ringworld.cpu import widen_vectors
from ringworld.mesh import place
from ringworld.models.llama import Block
from ringworld.models.world import Heads, WorldWeights, specs
from ringworld.params import shardings
from ringworld.rope import to_halves
from ringworld.train.loss import loss


def make_model(tokens: int) -> World:
    """The model, for rows of this length."""
    return World(
        llama=Llama(
            layers=LAYERS,
            model=WIDTH,
            mlp=FEATURES,
            heads=HEADS,
            kv_heads=HEADS,
            head_width=HEAD_WIDTH,
            context=tokens,
            rope_theta=THETA,
            norm_eps=EPS,
        ),
        vocabulary=Vocabulary(text=VOCABULARY, bos=1, eos=2),
    )


def arrange_weights(w: dict[str, np.ndarray]) -> WorldWeights:
    """The weights in our form: heads on an axis of their own, halves turned by the rotary."""
    heads = (LAYERS, WIDTH, HEADS, HEAD_WIDTH)
    ones = np.ones((LAYERS, WIDTH), np.float32)
    return WorldWeights(
        text_embed=w["embed"],
        vision_embed=None,
        blocks=Block(
            attn_norm=ones,
            wq=to_halves(w["wq"].reshape(heads)),
            wk=to_halves(w["wk"].reshape(heads)),
            wv=w["wv"].reshape(heads),
            bq=None,
            bk=None,
            bv=None,
            q_norm=None,
            k_norm=None,
            wo=w["wo"].reshape(LAYERS, HEADS, HEAD_WIDTH, WIDTH),
            mlp_norm=ones,
            w_gate=w["gate"],
            w_up=w["up"],
            w_down=w["down"],
        ),
        heads=Heads(norm=ones[0], text=w["head"], vision=None),
    )


def name_grads(grads: WorldWeights) -> dict[str, np.ndarray]:
    """The gradients under the names of `make_weights`."""
    of_blocks = {"gate": "w_gate", "up": "w_up", "down": "w_down"}
    named = {"embed": grads.text_embed, "head": grads.heads.text}
    for name in ("wq", "wk", "wv", "wo", *of_blocks):
        named[name] = getattr(grads.blocks, of_blocks.get(name, name))
    return {name: np.asarray(x) for name, x in named.items()}


def make_batch(tokens: int, ring: int) -> Batch:
    """One document on the mesh that is set, dealt to a ring."""
    ids, targets = make_tokens(tokens)
    positions = np.arange(tokens, dtype=np.int32)[None]
    ones, text = np.ones_like(positions), np.zeros((1, tokens), np.bool_)
    order = choose_layout(Where(positions, ones), ring).order
    row = Batch(ids, text, targets, text, ones.astype(np.float32), positions, ones)
    return jax.tree.map(lambda x: place(x[:, order], "batch", "seq"), row)


def prepare(request: dict[str, Any]) -> Prepared:
    """The step of a row, compiled for a ring of all devices."""
    tokens, ring = request["tokens"], jax.device_count()
    mesh, c = make_mesh(seq=ring), make_model(request["tokens"])
    with jax.set_mesh(mesh):
        weights = jax.device_put(arrange_weights(make_weights()), shardings(specs(c), mesh))
        batch = make_batch(tokens, ring)
        learn = jax.jit(jax.value_and_grad(partial(loss, c=c, vision_share=0.0), has_aux=True))
        step = learn.lower(weights, batch).compile()
    (value, _), grads = step(weights, batch)
    sample = sample_step(float(value), name_grads(grads))
    return Prepared(lambda: jax.block_until_ready(step(weights, batch)), sample)


if __name__ == "__main__":
    widen_vectors()
    serve(prepare)
