"""The world model: two vocabularies, text and image codes, in one stream through one decoder.

Each token looks up the table of its own kind; each position can be read by either head. Text alone
is the case without vision tokens, and without the vision table. A tied model reads text with the
table that it looks up. Source: LWM (arXiv 2402.08268).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Where
from ringworld.layers import contract, embed, product, rms_norm, token_axes
from ringworld.mesh import platform, replicate, shard
from ringworld.models import llama
from ringworld.models.llama import COMPUTE, Block, Llama
from ringworld.params import Int8, Matrix, Param, Weight, constant, dense, gather, pytree_dataclass
from ringworld.vocab import Vocabulary

# A token's own vector outweighs what fresh layers add (about 0.2), so that copying is learned.
TABLE_SCALE = 0.5
# Outputs of an int8 head that a CPU casts at one time: 1024 x 576 in float32 are 2.4 MB.
HEAD_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class World:
    """A decoder and its vocabularies; `tied` when the text table is the text head too."""

    llama: Llama
    """the decoder"""
    vocabulary: Vocabulary
    """the ids of text and vision"""
    tied: bool = False
    """use the text table as the text head too"""

    def at(self, context: int, rope_theta: float, rope_context: int | None = None) -> "World":
        """The same model for another context length and RoPE base, chosen for `rope_context`."""
        llama = replace(
            self.llama, context=context, rope_theta=rope_theta, rope_context=rope_context
        )
        return replace(self, llama=llama)


@pytree_dataclass
class Heads:
    """What turns the residual stream into logits: `text` `[D, V]`, `vision` `[D, U]`; or None."""

    norm: Weight
    text: Weight
    vision: Weight


@pytree_dataclass
class WorldWeights:
    """All weights: the vision entries are None without vision, `heads.text` in a tied model."""

    text_embed: Weight
    vision_embed: Weight
    blocks: Block
    heads: Heads


def specs(c: World) -> WorldWeights:
    """The spec table: the one source of every shape, axis, start and name."""
    D, V, U = c.llama.model, c.vocabulary.text, c.vocabulary.vision_rows
    return WorldWeights(
        text_embed=_table(V, D),
        vision_embed=_table(U, D) if U else None,
        blocks=llama.blocks_specs(c.llama),
        heads=Heads(
            norm=constant((D,), (None,), 1.0),
            text=None if c.tied else _head(D, V),
            vision=_head(D, U) if U else None,
        ),
    )


def _table(rows: int, width: int) -> Param:
    return Param((rows, width), ("vocab", "embed"), scale=TABLE_SCALE, inputs=(-1,))


def _head(width: int, rows: int) -> Param:
    return dense((width, rows), ("embed", "vocab"), fan_in=width, inputs=(-2,))


def embed_tokens(
    weights: WorldWeights, tokens: Int[Array, "B T"], vision: Bool[Array, "B T"], c: World
) -> Float[Array, "B T D"]:
    """Each token's row of the table of its kind, in the model's compute dtype."""
    tables = gather(
        (weights.text_embed, weights.vision_embed),
        (specs(c).text_embed, specs(c).vision_embed),
        token_axes(tokens),
    )
    x = embed(tables[0], tokens, ~vision)
    if tables[1] is not None:
        x = x + _embed_vision(tables[1], tokens, vision, c.vocabulary)
    return x.astype(COMPUTE[c.llama.dtype])


def _embed_vision(
    table: Array | Int8, ids: Int[Array, "B T"], vision: Bool[Array, "B T"], words: Vocabulary
) -> Float[Array, "B T D"]:
    """The rows of vision ids; on a grid those of a code are its own, its row's and its column's."""
    if not words.grid:
        return embed(table, ids, vision)
    code, place = ids % words.vision_rows, ids // words.vision_rows
    is_code, row = vision & (code < words.codes), words.first_grid_row + place // words.side
    column = words.first_grid_row + words.side + place % words.side
    grid = embed(table, row, is_code) + embed(table, column, is_code)
    return embed(table, code, vision) + grid


def forward(
    weights: WorldWeights,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    where: Where,
    c: World,
) -> Float[Array, "B T D"]:
    """The residual stream after the last layer and the final norm, ready for a head."""
    tokens, vision, where = jax.tree.map(
        lambda x: shard(x, "batch", "seq"), (tokens, vision, where)
    )
    x = embed_tokens(weights, tokens, vision, c)
    x = llama.run_layers(x, weights.blocks, where, c.llama)
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps)


def gather_heads(weights: WorldWeights, c: World, over: tuple[str, ...] = ()) -> Heads:
    """The heads, gathered for tokens that are divided `over` mesh axes (`params.gather`).

    In a tied model the text table is the text head.
    """
    heads = gather(weights.heads, specs(c).heads, over)
    if c.tied:
        heads = replace(heads, text=gather(weights.text_embed, specs(c).text_embed, over).T)
    return heads


def read_head(x: Float[Array, "B D"], head: Matrix) -> Float[Array, "B V"]:
    """Float32 logits of a gathered head [D, V] for one token a row; all of it on every device."""
    return _read_blocks("bd,dv->bv", x.astype(jnp.float32), replicate(head), axis=1)


def read_text_head(x: Float[Array, "B D"], weights: WorldWeights, c: World) -> Float[Array, "B V"]:
    """`read_head` of the text head; a tied table is read as it lies, where `.T` copies it."""
    if not c.tied:
        return read_head(x, gather_heads(weights, c).text)
    return _read_blocks("bd,vd->bv", x.astype(jnp.float32), replicate(weights.text_embed), axis=0)


def _read_blocks(
    subscripts: str, x: Float[Array, "B D"], head: Matrix, axis: int
) -> Float[Array, "B V"]:
    """`product(x, head)`, of which a CPU casts the outputs of an int8 head some at a time.

    A CPU writes the cast values to memory and reads them again, and XLA would cast all of them
    before the loop over tokens. `axis` is that of the outputs.
    """
    small = not isinstance(head, Int8) or head.values.shape[axis] <= HEAD_BLOCK
    if small or platform() != "cpu":
        return product(subscripts, x, head)
    size = head.values.shape[axis]
    blocks, rest = divmod(size, HEAD_BLOCK)

    def read(first: Array, count: int) -> Array:
        values = lax.dynamic_slice_in_dim(head.values, first, count, axis)
        scales = lax.dynamic_slice_in_dim(head.scales, first, count)
        return product(subscripts, x, Int8(values, scales))

    starts = HEAD_BLOCK * jnp.arange(blocks, dtype=jnp.int32)
    found = lax.map(lambda first: read(first, HEAD_BLOCK), starts)
    logits = found.swapaxes(0, 1).reshape(len(x), -1)
    last = [read(jnp.int32(size - rest), rest)] if rest else []
    return jnp.concatenate([logits, *last], axis=1)


class Logits(NamedTuple):
    """What both heads read at every position; `vision` is None in a model of text alone."""

    text: Float[Array, "B T V"]
    vision: Float[Array, "B T U"] | None


def read_heads(x: Float[Array, "B T D"], weights: WorldWeights, c: World) -> Logits:
    """The float32 logits of every position, the vocabulary divided over `tensor`.

    They are larger than anything else in the model: this is for looking, not for training.
    """
    heads, wide = gather_heads(weights, c), x.astype(jnp.float32)

    def read(head: Matrix) -> Array:
        return contract("btd,dv->btv", wide, head, "vocab")

    return Logits(read(heads.text), None if heads.vision is None else read(heads.vision))


def token_losses(
    x: Float[Array, "T D"], head: Matrix, targets: Int[Array, "T"], axis: str | None
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
    """-log softmax(x head)[target] and log_z of each token, in nats and float32.

    log_z is the log-sum-exp of the logits, which exist at once. `head` [D, V] is this device's part
    of the vocabulary where a mesh axis `axis` divides it, else all.
    """
    logits = product("td,dv->tv", x, head, dtype=jnp.float32)
    rows = logits.shape[1]
    local = targets - (0 if axis is None else lax.axis_index(axis) * rows)
    held = (local >= 0) & (local < rows)
    picked = jnp.take_along_axis(logits, jnp.where(held, local, 0)[:, None], axis=1)[:, 0]
    picked = jnp.where(held, picked, 0.0)
    top = lax.stop_gradient(logits.max(-1))
    if axis is None:
        log_z = top + jnp.log(jnp.exp(logits - top[:, None]).sum(-1))
        return log_z - picked, log_z
    top = lax.pmax(top, axis)
    log_z = top + jnp.log(lax.psum(jnp.exp(logits - top[:, None]).sum(-1), axis))
    return log_z - lax.psum(picked, axis), log_z


def token_nll(
    x: Float[Array, "T D"], head: Matrix, targets: Int[Array, "T"], axis: str | None
) -> Float[Array, "T"]:
    """The first of `token_losses`."""
    return token_losses(x, head, targets, axis)[0]
