"""Worker: the loss and the gradients of one row as LWM computes them, on JAX 0.4.29.

LWM's modules are in no package registry. What it trains with is: ring attention and the
feed-forward in chunks are those of `ringattention` 0.1.2. The Llama around them is written again
here after LWM's (commit f45d2b7), with the choices that decide its speed: layers in a scan, weights
divided over the ring, the MLP recomputed and its result gathered along the sequence, rotary angles
from a table of complex numbers, the logits of all tokens at once, rows in their order.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.shard_map import shard_map
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ringattention import blockwise_feedforward, ringattention

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

# Its attention is fastest here with blocks of 512; its feed-forward has LWM's default.
BLOCK, MLP_BLOCK = 512, 1024
ROW, EVERYWHERE = PartitionSpec(None, "seq"), PartitionSpec()
POLICY = jax.checkpoint_policies.nothing_saveable


def project(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, use_bias=False, name=name)


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.param("kernel", nn.initializers.ones, (x.shape[-1],))
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS) * gain


class Attention(nn.Module):
    mesh: Mesh

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array) -> jax.Array:
        place = NamedSharding(self.mesh, ROW)
        q, k, v = (
            jax.lax.with_sharding_constraint(project(HEADS * HEAD_WIDTH, name)(x), place)
            for name in ("wq", "wk", "wv")
        )
        q, k, v = (a.reshape(*a.shape[:2], HEADS, HEAD_WIDTH) for a in (q, k, v))
        q, k = turn(q, angles), turn(k, angles)

        def ring(q: Any, k: Any, v: Any, bias: Any, segments: Any) -> jax.Array:
            return ringattention(
                q,
                k,
                v,
                bias,
                segments,
                None,
                "seq",
                True,
                dict(
                    causal_block_size=1,
                    query_chunk_size=BLOCK,
                    key_chunk_size=BLOCK,
                    deterministic=True,
                    dropout_rng=None,
                    attn_pdrop=0.0,
                    dtype=jnp.float32,
                    policy=POLICY,
                    precision=None,
                    prevent_cse=False,
                ),
            )

        attend = shard_map(
            ring,
            self.mesh,
            in_specs=(ROW, ROW, ROW, EVERYWHERE, EVERYWHERE),
            out_specs=ROW,
            check_rep=False,
        )
        bias = jnp.zeros((x.shape[0], 1, 1, x.shape[1]))
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        out = attend(q, k, v, bias, segments).reshape(x.shape[:2] + (HEADS * HEAD_WIDTH,))
        return project(WIDTH, "wo")(out)


class FeedForward(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = project(FEATURES, "gate")(x), project(FEATURES, "up")(x)
        return project(WIDTH, "down")(nn.silu(gate) * up)


class Block(nn.Module):
    mesh: Mesh

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, None]:
        x = x + Attention(self.mesh, name="attention")(Norm(name="attention_norm")(x), angles)
        feed = nn.remat(FeedForward, policy=POLICY, prevent_cse=False)(name="feed_forward")
        added = blockwise_feedforward(feed, Norm(name="ffn_norm")(x), MLP_BLOCK, pre_remat=True)
        whole = NamedSharding(self.mesh, EVERYWHERE)
        return x + jax.lax.with_sharding_constraint(added, whole), None


class Model(nn.Module):
    mesh: Mesh

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(ids)
        angles = jnp.asarray(angle_table(ids.shape[1]))[None]
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=LAYERS,
        )
        x, _ = layers(self.mesh, name="layers")(x, angles)
        return project(VOCABULARY, "head")(Norm(name="norm")(x))


def angle_table(length: int) -> np.ndarray:
    """cos + i sin of every position and pair, `[T, H/2]` complex64."""
    speeds = THETA ** (-np.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
    return np.exp(1j * np.outer(np.arange(length), speeds)).astype(np.complex64)


def turn(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Neighbouring columns of each head, turned as one complex number."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * angles[:, :, None]
    return jnp.stack([turned.real, turned.imag], -1).reshape(x.shape)


def arrange_weights(w: dict[str, np.ndarray]) -> dict[str, Any]:
    """The weights as the tree of the modules."""
    ones = np.ones((LAYERS, WIDTH), np.float32)
    named = {name: {"kernel": x} for name, x in w.items()}
    return {
        "embed": {"embedding": w["embed"]},
        "layers": {
            "attention": {name: named[name] for name in ("wq", "wk", "wv", "wo")},
            "feed_forward": {name: named[name] for name in ("gate", "up", "down")},
            "attention_norm": {"kernel": ones},
            "ffn_norm": {"kernel": ones},
        },
        "norm": {"kernel": ones[0]},
        "head": named["head"],
    }


def name_grads(grads: dict[str, Any]) -> dict[str, np.ndarray]:
    """The gradients under the names of `make_weights`."""
    layers = {**grads["layers"]["attention"], **grads["layers"]["feed_forward"]}
    named = {name: x["kernel"] for name, x in layers.items()}
    named |= {"embed": grads["embed"]["embedding"], "head": grads["head"]["kernel"]}
    return {name: np.asarray(x) for name, x in named.items()}


def place_weight(path: tuple[Any, ...], x: np.ndarray) -> PartitionSpec:
    """LWM's rules: the side of a matrix that is as wide as the residual stream is divided."""
    names = {key.key for key in path}
    if names & {"embed", "wo", "down"}:
        return PartitionSpec(*(None,) * (x.ndim - 1), "seq")
    if names & {"wq", "wk", "wv", "gate", "up", "head"}:
        return PartitionSpec(*(None,) * (x.ndim - 2), "seq", None)
    return EVERYWHERE


def prepare(request: dict[str, Any]) -> Prepared:
    """The step of a row, compiled for a ring of all devices."""
    mesh = Mesh(np.asarray(jax.devices()), ("seq",))
    model = Model(mesh)
    weights = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(x, NamedSharding(mesh, place_weight(path, x))),
        arrange_weights(make_weights()),
    )
    ids, targets = (
        jax.device_put(x, NamedSharding(mesh, ROW)) for x in make_tokens(request["tokens"])
    )

    def loss(weights: Any, ids: jax.Array, targets: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(model.apply({"params": weights}, ids), axis=-1)
        return -jnp.take_along_axis(logs, targets[..., None], -1).mean()

    step = jax.jit(jax.value_and_grad(loss)).lower(weights, ids, targets).compile()
    value, grads = step(weights, ids, targets)
    sample = sample_step(float(value), name_grads(grads))
    return Prepared(lambda: jax.block_until_ready(step(weights, ids, targets)), sample)


if __name__ == "__main__":
    serve(prepare)
