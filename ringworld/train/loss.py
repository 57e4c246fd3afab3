"""Cross-entropy of two vocabularies, in chunks of tokens: logits are never [T, V].

Each modality's loss is a weighted mean over its own targets, and the two are balanced as in LWM:

    loss_m = sum_t weight_t nll_t / sum_t weight_t,    loss = (1 - b) loss_text + b loss_vision

The weights come with the batch: masked packing sets them so that each example counts alike.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.batch import Batch
from ringworld.mesh import spec
from ringworld.models.world import Heads, World, WorldWeights, forward, gather_heads

# Tokens whose logits exist at one time on a device: 1024 x 32000 float32 logits are 125 MiB.
CHUNK = 1024
# The mesh axes that divide tokens.
ROWS = ("data", "fsdp", "seq")


def nll_of_chunk(
    x: Float[Array, "T D"], head: Float[Array, "D V"], targets: Int[Array, "T"], axis: str | None
) -> Float[Array, "T"]:
    """-log softmax(x head)[target] in float32, the vocabulary divided over `axis`."""
    logits = jnp.einsum("td,dv->tv", x, head.astype(x.dtype), preferred_element_type=jnp.float32)
    rows = logits.shape[1]
    local = targets - (0 if axis is None else lax.axis_index(axis) * rows)
    held = (local >= 0) & (local < rows)
    picked = jnp.take_along_axis(logits, jnp.where(held, local, 0)[:, None], axis=1)[:, 0]
    picked = jnp.where(held, picked, 0.0)
    top = lax.stop_gradient(logits.max(-1))
    if axis is None:
        return top + jnp.log(jnp.exp(logits - top[:, None]).sum(-1)) - picked
    top = lax.pmax(top, axis)
    total = lax.psum(jnp.exp(logits - top[:, None]).sum(-1), axis)
    return top + jnp.log(total) - lax.psum(picked, axis)


def _weighted_sum(
    x: Float[Array, "T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "T"],
    weights: Float[Array, "T"],
    axis: str | None,
) -> Float[Array, ""]:
    """sum_t weight_t nll_t of one chunk; a chunk without weight does not read the head."""
    return lax.cond(
        jnp.any(weights > 0),
        lambda: jnp.sum(weights * nll_of_chunk(x, head, targets, axis)),
        lambda: jnp.zeros_like(weights[0]),
    )


def _sums(
    x: Float[Array, "B T D"], heads: Heads, batch: Batch, axis: str | None
) -> Float[Array, "2"]:
    """The weighted nll sums of this device's tokens: text, vision."""
    tokens = x.shape[0] * x.shape[1]
    chunk = min(CHUNK, tokens)

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
        return sums + jnp.stack([text, vision]), None

    start = jnp.zeros_like(batch.weights[0, :1], shape=(2,))
    arrays = (x, batch.targets, batch.target_vision, batch.weights)
    pieces = tuple(in_chunks(a) for a in arrays)
    return lax.scan(step, start, pieces)[0]


def nll_sums(x: Float[Array, "B T D"], heads: Heads, batch: Batch) -> Float[Array, "2"]:
    """The batch's weighted nll sums, text and vision; the heads are gathered."""
    table = spec(None, "vocab")
    of_heads = Heads(spec(None), table, None if heads.vision is None else table)

    def everywhere(x: Array, heads: Heads, batch: Batch) -> Array:
        # Each device sums its own gradient of the heads over its chunks, and one sum over devices
        # follows. Left to autodiff it would stand in the branch that a device may skip: a deadlock.
        heads = jax.tree.map(lambda w: lax.pcast(w, ROWS, to="varying"), heads)
        return lax.psum(_sums(x, heads, batch, "tensor"), ROWS)

    return jax.shard_map(
        everywhere,
        in_specs=(spec("batch", "seq", None), of_heads, spec("batch", "seq")),
        out_specs=spec(None),
    )(x, heads, batch)


def loss(
    weights: WorldWeights, batch: Batch, c: World, vision_share: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The balanced loss, and the loss of each modality. `vision_share` is b above: LWM's is 0.5."""
    x = forward(weights, batch.tokens, batch.vision, batch.where, c)
    sums = nll_sums(x, gather_heads(weights, c), batch)
    text_weight = jnp.sum(jnp.where(batch.target_vision, 0.0, batch.weights))
    vision_weight = jnp.sum(jnp.where(batch.target_vision, batch.weights, 0.0))
    text = sums[0] / jnp.maximum(text_weight, 1e-9)
    vision = sums[1] / jnp.maximum(vision_weight, 1e-9)
    total = (1 - vision_share) * text + vision_share * vision
    return total, {"text_loss": text, "vision_loss": vision}
