"""Worker: one training step of a small model on one packed row of very many tokens.

Loss, gradients, clipping and AdamW, as training does them.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.protocol import Prepared, Refused, serve
from benchmarks.work import documents, make_segments
from ringworld import Batch, Llama, Vocabulary, Where, World, make_mesh
from ringworld.attention.balance import choose_layout
from ringworld.cpu import widen_vectors
from ringworld.mesh import named_sharding
from ringworld.models.world import specs
from ringworld.params import count, init
from ringworld.rope import stable_base
from ringworld.train.build import make_step, start
from ringworld.train.loss import loss
from ringworld.train.optimizer import AdamW, make_optimizer

# A step holds some 150 x width bytes a token: a width of 64 lets 2^20 tokens fit in 12 GB.
MODEL = World(
    llama=Llama(
        layers=2,
        model=64,
        mlp=128,
        heads=2,
        kv_heads=1,
        head_width=32,
        context=1 << 20,
        rope_theta=stable_base(1 << 20, 32),
    ),
    vocabulary=Vocabulary(text=2048, bos=1, eos=2),
)
# More than this would push the machine into its swap rather than measure anything.
MEMORY_BYTES = 20e9


def make_batch(tokens: int, ring: int, mesh: jax.sharding.Mesh) -> Batch:
    """A row of documents of about 1K of random tokens, dealt to the ring."""
    segments, positions = make_segments(documents(tokens))
    ids = np.random.default_rng(0).integers(
        3, MODEL.vocabulary.text, (1, tokens + 1), dtype=np.int32
    )
    order = choose_layout(Where(positions, segments), ring).order
    follows = np.diff(segments, append=0) == 0
    row = Batch(
        tokens=ids[:, :-1],
        vision=np.zeros((1, tokens), np.bool_),
        targets=ids[:, 1:],
        target_vision=np.zeros((1, tokens), np.bool_),
        weights=follows.astype(np.float32),
        positions=positions,
        segments=segments,
    )
    place = named_sharding(mesh, "batch", "seq")
    return jax.tree.map(lambda x: jax.device_put(x[:, order], place), row)


def prepare(request: dict[str, Any]) -> Prepared:
    """The step, compiled for a ring of all devices; its sample is the number of weights."""
    ring, tokens = jax.device_count(), request["tokens"]
    mesh = make_mesh(seq=ring)
    table = specs(MODEL)
    optimizer = make_optimizer(AdamW(warmup_steps=1), 10, table)
    with jax.set_mesh(mesh):
        state = start(jax.jit(lambda: init(table, 0))(), optimizer)
        batch = make_batch(tokens, ring, mesh)
        step = (
            make_step(partial(loss, c=MODEL, vision_share=0.0), optimizer)
            .lower(state, batch)
            .compile()
        )
    needs = ring * step.memory_analysis().temp_size_in_bytes  # said for one device
    if needs > MEMORY_BYTES:
        raise Refused(f"would need {needs / 1e9:.1f} GB")

    def run() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(step(state, batch))
        assert np.isfinite(metrics["loss"]), "the loss is not a number"

    return Prepared(run, [float(count(table))])


if __name__ == "__main__":
    widen_vectors()
    serve(prepare)
