"""Cross-entropy of two vocabularies, in chunks of tokens: logits are never [T, V].

Each modality's loss is a weighted mean over its own targets, and the two are balanced as in LWM:

    loss_m = sum_t weight_t nll_t / sum_t weight_t,    loss = (1 - b) loss_text + b loss_vision

In a batch that has targets of one modality only, the loss is that modality's. The weights come with
the batch: masked packing sets them so that each example counts alike. A z-loss adds to each nll a
share of the square of the logits' log-sum-exp, which keeps the logits from drifting. Source:
Chowdhery et al., "PaLM" (arXiv 2204.02311), section 5.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.batch import Batch
from ringworld.errors import InputError
from ringworld.layers import vary
from ringworld.mesh import shard, spec
from ringworld.models.world import (
    Heads,
    World,
    WorldWeights,
    forward,
    gather_heads,
    specs,
    token_losses,
)
from ringworld.params import Matrix, Param, partitions, paths
from ringworld.train.build import Metrics

# Tokens whose logits exist at one time on a device: 1024 x 32000 float32 logits are 125 MiB.
LOSS_CHUNK = 1024
# The mesh axes that divide tokens.
ROWS = ("data", "fsdp", "seq")


def _weighted_sum(
    x: Float[Array, "T D"],
    head: Matrix,
    targets: Int[Array, "T"],
    weights: Float[Array, "T"],
    axis: str | None,
) -> Float[Array, "2"]:
    """sum_t weight_t nll_t and sum_t weight_t log_z_t^2 of one chunk.

    A chunk without weight does not read the head.
    """

    def read() -> Array:
        nll, log_z = token_losses(x, head, targets, axis)
        return jnp.stack([jnp.sum(weights * nll), jnp.sum(weights * jnp.square(log_z))])

    return lax.cond(jnp.any(weights > 0), read, lambda: jnp.zeros_like(weights, shape=(2,)))


def _sums(
    x: Float[Array, "B T D"], heads: Heads, batch: Batch, axis: str | None
) -> Float[Array, "2 2"]:
    """The weighted sums of this device's tokens, text and vision: of nll, and of log_z^2."""
    tokens = x.shape[0] * x.shape[1]
    chunk = min(LOSS_CHUNK, tokens)

    def in_chunks(a: Array) -> Array:
        flat = a.reshape(tokens, *a.shape[2:])
        return jnp.pad(flat, ((0, -tokens % chunk),) + ((0, 0),) * (flat.ndim - 1)).reshape(
            -1, chunk, *flat.shape[1:]
        )

    @partial(jax.checkpoint, prevent_cse=False)
    def step(sums: Array, piece: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        x, targets, of_vision, weights = piece
        text = _weighted_sum(x, heads.text, targets, jnp.where(of_vision, 0.0, weights), axis)
        vision = jnp.zeros_like(text)
        if heads.vision is not None:
            weights = jnp.where(of_vision, weights, 0.0)
            vision = _weighted_sum(x, heads.vision, targets, weights, axis)
        return sums + jnp.stack([text, vision], axis=1), None

    start = jnp.zeros_like(batch.weights[0, :1], shape=(2, 2))
    arrays = (x, batch.targets, batch.target_vision, batch.weights)
    pieces = tuple(in_chunks(a) for a in arrays)
    return lax.scan(step, start, pieces)[0]


def nll_sums(x: Float[Array, "B T D"], heads: Heads, batch: Batch) -> Float[Array, "2 2"]:
    """The weighted sums of a batch, text and vision: of nll, and of log_z^2.

    The heads are gathered.
    """
    of_heads = partitions(heads)

    def everywhere(x: Array, heads: Heads, batch: Batch) -> Array:
        # Each device sums its own gradient of the heads over its chunks, and one sum over devices
        # follows. Left to autodiff it would stand in the branch that a device may skip: a deadlock.
        heads = jax.tree.map(lambda w: vary(w, ROWS), heads)
        return lax.psum(_sums(x, heads, batch, "tensor"), ROWS)

    return jax.shard_map(
        everywhere,
        in_specs=(spec("batch", "seq", None), of_heads, spec("batch", "seq")),
        out_specs=spec(None),
    )(x, heads, batch)


def check_balance(vision_share: float, z_loss: float) -> None:
    """Raise InputError for weights of the losses that cannot be."""
    if not (0 <= vision_share <= 1 and z_loss >= 0):
        raise InputError(
            f"vision_share is {vision_share} and z_loss {z_loss}: use a share from 0 to 1, and 0 "
            "or more",
            setting="z_loss" if 0 <= vision_share <= 1 else "vision_share",
        )


def loss(
    weights: WorldWeights, batch: Batch, c: World, vision_share: float, z_loss: float = 0.0
) -> tuple[Float[Array, ""], Metrics]:
    """The balanced loss, and what the record of a step has of it: see `balance`."""
    return balance(loss_sums(weights, batch, c), batch, c, vision_share, z_loss)


def loss_sums(weights: WorldWeights, batch: Batch, c: World) -> Float[Array, "2 2"]:
    """The weighted sums of a batch, or of some of its rows: what `nll_sums` returns."""
    batch = _placed(batch)
    x = forward(weights, batch.tokens, batch.vision, batch.where, c)
    if c.vocabulary.grid:  # what is predicted is a code, wherever it stands
        codes = batch.targets % c.vocabulary.vision_rows
        batch = replace(batch, targets=jnp.where(batch.target_vision, codes, batch.targets))
    return nll_sums(x, gather_heads(weights, c, ROWS), batch)


def balance(
    sums: Float[Array, "2 2"],
    batch: Batch,
    c: World,
    vision_share: float,
    z_loss: float,
    table: Any = None,
    frozen: Collection[str] = (),
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch from its sums, and what the record of a step has of it.

    `vision_share` is b above: LWM's is 0.5. `z_loss` is the weight of the z-loss: PaLM's is 1e-4.
    Metrics: `text_loss` and `vision_loss`, without the z-loss, NaN where the batch has no such
    target; `text_targets` and `vision_targets`, how many targets have a weight; `z_loss`, the
    balanced mean of log_z^2, before its weight; `flops`, what `batch_flops` counts for the spec
    table of the weights, without one the model's own, of which those named in `frozen` are not
    trained.
    """
    batch = _placed(batch)
    text_weights = jnp.where(batch.target_vision, 0.0, batch.weights)
    vision_weights = jnp.where(batch.target_vision, batch.weights, 0.0)
    total = jnp.stack([jnp.sum(text_weights), jnp.sum(vision_weights)])
    targets = jnp.stack([_count(text_weights > 0), _count(vision_weights > 0)])
    nll, squares = sums / jnp.maximum(total, 1e-9)
    shares = jnp.where(targets > 0, jnp.array([1 - vision_share, vision_share]), 0.0)
    whole = jnp.maximum(jnp.sum(shares), 1e-9)
    text, vision = jnp.where(targets > 0, nll, jnp.nan)
    return jnp.sum(shares * (nll + z_loss * squares)) / whole, {
        "text_loss": text,
        "vision_loss": vision,
        "text_targets": targets[0],
        "vision_targets": targets[1],
        "z_loss": jnp.sum(shares * squares) / whole,
        "flops": batch_flops(batch, targets[0], targets[1], c, table, frozen),
    }


def batch_flops(
    batch: Batch,
    text_targets: Float[Array, ""],
    vision_targets: Float[Array, ""],
    c: World,
    table: Any = None,
    frozen: Collection[str] = (),
) -> Float[Array, ""]:
    """The floating point operations of a training step that the batch needs, float32.

    `table` describes the weights, where they are not the model's own. 6 a weight and token, of
    which a weight named in `frozen` needs 4; 3.5 times the forward of attention, which is 4 N H a
    layer and pair of a query and a key that it sees. Where nothing but heads is trained, layers
    need their forward alone. Padding, pairs that the mask leaves out, heads at positions without a
    target, and what is computed twice do not count.
    """
    real = batch.segments > 0
    seen = batch.positions.astype(jnp.float32) + 1  # in a segment, positions count from 0
    if c.llama.window is not None:
        seen = jnp.minimum(seen, c.llama.window)
    pairs = jnp.sum(jnp.where(real, seen, 0.0))
    weights = paths(specs(c) if table is None else table)
    trained = {name for name in weights if name not in frozen}
    back = 2 if any(not name.startswith("heads.") for name in trained) else 0

    def count(of: Callable[[str], bool]) -> float:
        """The operations that a token needs for the matrices of these names."""
        sizes = {name: math.prod(p.shape) for name, p in weights.items() if is_matrix(name, p)}
        each = (
            size * (2 + back + 2 * (name in trained)) for name, size in sizes.items() if of(name)
        )
        return float(sum(each))

    layers = count(lambda name: name.startswith("blocks."))
    text = count(lambda name: name.startswith("text_embed" if c.tied else "heads.text"))
    vision = count(lambda name: name.startswith("heads.vision"))
    heads = text * text_targets + vision * vision_targets
    attention = 4.0 + 5.0 * back
    attention *= c.llama.layers * c.llama.heads * c.llama.head_width * pairs
    return layers * _count(real) + heads + attention


def is_matrix(name: str, p: Param) -> bool:
    """Whether tokens are multiplied with this weight: a matrix, or a factor of an adapter."""
    return name.endswith((".a", ".b")) or ("embed" in p.axes and not name.endswith(".scales"))


def _placed(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: shard(x, "batch", "seq"), batch)


def _count(flags: Bool[Array, "B T"]) -> Float[Array, ""]:
    return jnp.sum(flags.astype(jnp.float32))
