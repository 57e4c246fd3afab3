"""What the devices run for the engine: a chunk of a prompt, some steps of all rows, a choice.

Each is one compiled program of fixed shapes, in which a row's numbers do not depend on the others.
A chunk is one row's alone and begins where its position says, so a page is computed the same way
whoever asks for it. All rows decode in one batch of one size; a row that is idle is computed too,
and writes to page 0.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ringworld.attention.mask import Where
from ringworld.attention.paged import Pages, attend_chunk, attend_rows
from ringworld.inference.sampling import (
    Settings,
    bias_logits,
    draw_tokens,
    guide,
    mark_tokens,
    penalize,
    restrict,
)
from ringworld.layers import product, rms_norm
from ringworld.mesh import replicate, shard, spec
from ringworld.models.llama import Block, LayerAttention, layer
from ringworld.models.world import (
    World,
    WorldWeights,
    embed_tokens,
    gather_heads,
    read_head,
    read_text_head,
    token_nll,
)
from ringworld.params import Leaf, Matrix, pytree_dataclass

# Steps of one dispatch: a reader hardly waits, and the dispatch costs 1 % of the time.
DECODE_STEPS = 4
# The alternatives that a request for log-probabilities may ask for.
MOST_ALTERNATIVES = 20
# A model without a window sees every position.
ENDLESS = 1 << 30
# Tokens of a device whose logits exist at one time: 256 x 49152 float32 are 50 MB.
LOGITS = 256


@pytree_dataclass
class RowBatch:
    """The rows of a batch before a step.

    `token`, `vision` and `position` `[B]` are the last chosen token, which is not in the pages yet;
    position -1 is no row. `begin` is the length of the prompt and `left` the tokens still to
    choose. A row takes the token of row `leader`, whose logits are guided away from those of row
    `guide` by `scale`. `stops` `[B, S]` are the ids that end a row, -1 for none. `wants` marks the
    rows whose log-probabilities are asked for. `marks` `[B, V]` uint16 say which text ids a row
    holds and how often, and `allowed` `[B, V]` which of them may follow. `bias` `[B, N]` is added
    to the logits of the ids `biased`, -1 for none.
    """

    token: Leaf
    vision: Leaf
    position: Leaf
    begin: Leaf
    left: Leaf
    leader: Leaf
    guide: Leaf
    scale: Leaf
    stops: Leaf
    wants: Leaf
    marks: Leaf
    allowed: Leaf
    biased: Leaf
    bias: Leaf
    settings: Settings


@pytree_dataclass
class Choice:
    """The next token of each row, its log-probability, and the likeliest ones with theirs."""

    token: Leaf
    logprob: Leaf
    top: Leaf
    top_logprobs: Leaf


def _through_layers(
    weights: WorldWeights,
    pages: Pages,
    tokens: Int[Array, "B T"],
    vision: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    attend: Any,
    c: World,
) -> tuple[Float[Array, "B T D"], Pages]:
    """The normed residual stream of new tokens, and the pool with them in it.

    `attend(q, k, v, pages, layer, window)` writes a layer's keys and values before it reads them,
    so XLA makes no copy of the pool.
    """
    where = Where(positions, jnp.ones_like(positions))
    window = c.llama.window or ENDLESS

    def body(carry: tuple[Array, Pages], held: tuple[Block, Array]) -> tuple[Any, None]:
        (x, pages), (w, i) = carry, held

        def attend_layer(q: Array, k: Array, v: Array, where: Where) -> tuple[Array, Pages]:
            return attend(q, k, v, pages, i, window)

        along: LayerAttention = attend_layer
        return layer(x, w, where, along, c.llama), None

    layers = jnp.arange(c.llama.layers, dtype=jnp.int32)
    start = embed_tokens(weights, tokens, vision, c), pages
    (x, pages), _ = lax.scan(body, start, (weights.blocks, layers))
    return rms_norm(x, weights.heads.norm, c.llama.norm_eps), pages


@partial(jax.jit, static_argnames="c", donate_argnames="pages")
def read_chunk(
    weights: WorldWeights,
    pages: Pages,
    tokens: Int[Array, "1 T"],
    vision: Bool[Array, "1 T"],
    table: Int[Array, "M"],
    start: Int[Array, ""],
    last: Int[Array, ""],
    c: World,
) -> tuple[Float[Array, "1 T D"], Float[Array, "1 D"], Pages]:
    """The normed residual stream of a chunk, that of its token `last`, and the pool with it.

    The chunk begins at position `start` and lies in one page; behind its end there is padding.
    """
    tokens, vision = shard(tokens, None, "seq"), shard(vision, None, "seq")
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)

    def attend(q: Array, k: Array, v: Array, pages: Pages, i: Array, window: int) -> Any:
        return attend_chunk(q, k, v, pages, i, table, start, window)

    positions = shard((start + places)[None], None, "seq")
    x, pages = _through_layers(weights, pages, tokens, vision, positions, attend, c)
    picked = shard((places == last)[None], None, "seq").astype(x.dtype)
    found = jnp.einsum("bt,btd->bd", picked, x, out_sharding=spec(None, None))
    return x, found, pages


def _step(
    weights: WorldWeights, pages: Pages, table: Int[Array, "B M"], rows: RowBatch, c: World
) -> tuple[Float[Array, "B D"], Pages]:
    """The normed residual stream of the last token of each row, and the pool with these tokens."""

    def attend(q: Array, k: Array, v: Array, pages: Pages, i: Array, window: int) -> Any:
        return attend_rows(q, k, v, pages, i, table, rows.position, window)

    words, token = c.vocabulary, rows.token
    if words.grid:
        place = (rows.position - rows.begin) % words.frame_length
        is_code = rows.vision & (token < words.codes)
        token = jnp.where(is_code, token + place * words.vision_rows, token)
    one = token[:, None], rows.vision[:, None], rows.position[:, None]
    x, pages = _through_layers(weights, pages, *one, attend, c)
    return x[:, 0], pages


def _choose_text(x: Float[Array, "B D"], weights: WorldWeights, rows: RowBatch, c: World) -> Choice:
    logits = read_text_head(x, weights, c)
    logits = guide(logits, logits[rows.guide], rows.scale[:, None])
    settings = rows.settings
    penalized = (settings.repetition_penalty != 1) | (settings.presence_penalty != 0)
    penalized |= settings.frequency_penalty != 0
    odds = bias_logits(logits, rows.biased, rows.bias)
    odds = lax.cond(penalized.any(), lambda: penalize(odds, rows.marks, settings), lambda: odds)
    odds = lax.cond(rows.allowed.all(), lambda: odds, lambda: restrict(odds, rows.allowed))
    token = draw_tokens(odds, settings, rows.position + 1)

    def measure() -> tuple[Array, Array, Array]:
        # From the model's own logits, before penalties and temperature.
        whole = jax.nn.log_softmax(logits, axis=-1)
        top, ids = lax.top_k(whole, min(MOST_ALTERNATIVES, c.vocabulary.text))
        return jnp.take_along_axis(whole, token[:, None], 1)[:, 0], ids, top

    return Choice(token, *lax.cond(rows.wants.any(), measure, lambda: _no_logprobs(len(x), c)))


def _no_logprobs(rows: int, c: World) -> tuple[Array, Array, Array]:
    count = min(MOST_ALTERNATIVES, c.vocabulary.text)
    return jnp.zeros(rows), jnp.zeros((rows, count), jnp.int32), jnp.zeros((rows, count))


def _choose_codes(
    x: Float[Array, "B D"], weights: WorldWeights, rows: RowBatch, c: World
) -> Int[Array, "B"]:
    """The next code of each row, guided; the end of a frame where one is due."""
    words = c.vocabulary
    logits = read_head(x, gather_heads(weights, c).vision)
    guided = guide(logits, logits[rows.guide], rows.scale[:, None])
    is_code = jnp.arange(words.vision_rows) < words.codes
    codes = draw_tokens(jnp.where(is_code, guided, -jnp.inf), rows.settings, rows.position + 1)
    drawn = rows.position + 1 - rows.begin
    return jnp.where((drawn + 1) % words.frame_length == 0, words.eof, codes)


def _choose(x: Float[Array, "B D"], weights: WorldWeights, rows: RowBatch, c: World) -> Choice:
    """The next token of each row, from the head of its kind, as its leader chose it."""
    x = lax.optimization_barrier(shard(x, None, None))
    real = rows.position >= 0

    if not c.vocabulary.codes:
        return _choose_text(x, weights, rows, c)
    none = jnp.zeros(len(x), jnp.int32)
    unread = Choice(none, *_no_logprobs(len(x), c))
    choice = lax.cond(
        (real & ~rows.vision).any(), lambda: _choose_text(x, weights, rows, c), lambda: unread
    )
    codes = lax.cond(
        (real & rows.vision).any(), lambda: _choose_codes(x, weights, rows, c), lambda: none
    )
    token = jnp.where(rows.vision, codes, choice.token)
    return replace(choice, token=token[rows.leader])


choose_tokens = jax.jit(_choose, static_argnames="c")


@partial(jax.jit, static_argnames="c", donate_argnames="pages")
def decode_rows(
    weights: WorldWeights,
    pages: Pages,
    table: Int[Array, "B M"],
    rows: RowBatch,
    steps: Int[Array, ""],
    c: World,
) -> tuple[Choice, Pages]:
    """The next tokens of all rows, `[steps, B]` of at most DECODE_STEPS, and the pool.

    A row ends at one of its stops or when nothing is left to choose; its tokens behind that mean
    nothing. Decoding ends when every row has.
    """
    size = rows.token.shape[0]
    nothing = Choice(jnp.zeros(size, jnp.int32), *_no_logprobs(size, c))
    found = jax.tree.map(lambda x: jnp.zeros((DECODE_STEPS, *x.shape), x.dtype), nothing)

    def unfinished(carry: tuple) -> Array:
        i, rows, *_ = carry
        return (i < steps) & (rows.position >= 0).any()

    def step(carry: tuple) -> tuple:
        i, rows, found, pages = carry
        x, pages = _step(weights, pages, table, rows, c)
        choice = _choose(x, weights, rows, c)
        found = jax.tree.map(lambda held, new: held.at[i].set(new), found, choice)
        marks = mark_tokens(rows.marks, choice.token, ~rows.vision)
        left = rows.left - 1
        ended = (choice.token[:, None] == rows.stops).any(-1) & ~rows.vision
        goes_on = (rows.position >= 0) & (left > 0) & ~ended[rows.leader]
        position = jnp.where(goes_on, rows.position + 1, -1)
        rows = replace(rows, token=choice.token, left=left, position=position, marks=marks)
        return i + 1, rows, found, pages

    start = (jnp.int32(0), rows, found, pages)
    *_, found, pages = lax.while_loop(unfinished, step, start)
    return found, pages


@partial(jax.jit, static_argnames=("alternatives", "c"))
def score_chunk(
    weights: WorldWeights,
    x: Float[Array, "1 T D"],
    targets: Int[Array, "1 T"],
    alternatives: int,
    c: World,
) -> tuple[Float[Array, "T"], Int[Array, "T n"], Float[Array, "T n"]]:
    """The log-probability of each token's target id, and so many likeliest ids with theirs."""
    head = replicate(gather_heads(weights, c).text)

    def local(x: Array, targets: Array, head: Matrix) -> tuple[Array, Array, Array]:
        def some(chunk: tuple[Array, Array]) -> tuple[Array, Array, Array]:
            x, targets = chunk
            logprob = -token_nll(x, head, targets, None)
            whole = jax.nn.log_softmax(product("td,dv->tv", x, head), axis=-1)
            top, ids = lax.top_k(whole, alternatives)
            return logprob, ids, top

        size = min(LOGITS, x.shape[1])
        parts = x[0].astype(jnp.float32).reshape(-1, size, x.shape[-1]), targets.reshape(-1, size)
        return jax.tree.map(lambda x: lax.collapse(x, 0, 2), lax.map(some, parts))

    rows, many = spec("seq"), spec("seq", None)
    return jax.shard_map(
        local,
        in_specs=(spec(None, "seq", None), spec(None, "seq"), spec()),
        out_specs=(rows, many, many),
    )(x, shard(targets, None, "seq"), head)
