"""Incremental prefill and decoding of one row: the engine below a conversation.

New tokens are prefilled in chunks, between which a caller can show progress or stop. Tokens are
decoded a few in each dispatch, so that the host does not wait for every one. The cache doubles when
it is full, and every step writes into the buffers that it was given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.attention.layout import STRIPE, deal, striped_order
from ringworld.attention.mask import Where
from ringworld.data.example import Example
from ringworld.inference.cache import (
    Cache,
    decode_step,
    empty_cache,
    grow_cache,
    prefill_chunk,
    truncate_cache,
)
from ringworld.inference.sampling import draw_token
from ringworld.mesh import axis_size, place, shard
from ringworld.models.llama import COMPUTE
from ringworld.models.world import World, WorldWeights, gather_heads, read_head
from ringworld.settings import Sampling

# Tokens that a device prefills between two reports of progress: two seconds of a model of 135M on
# two cores. Chunks of 512 take 3 % longer for 2,048 tokens, as each lays all keys out anew.
PREFILL_CHUNK = 1024
# The shortest chunk of one device: a question is a few dozen tokens, and padding costs as much.
LEAST_CHUNK = 16
# Tokens decoded in one dispatch: a reader hardly waits, and the dispatch costs 1 % of the time.
DECODE_STEPS = 4

Tick = Callable[[int], None]


@dataclass(frozen=True)
class DecodeState:
    """A cache of `length` tokens, and the residual stream of the last of them, normed `[1, D]`.

    The functions below donate its buffers: use the state that they return, not this one.
    """

    cache: Cache
    x: Array
    length: int

    @property
    def places(self) -> int:
        """The tokens that the cache has room for."""
        return self.cache.where.positions.shape[1]


def empty_state(c: World) -> DecodeState:
    """An empty state: no tokens, and a small cache."""
    nothing = shard(jnp.zeros((1, c.llama.model), COMPUTE[c.llama.dtype]), None, None)
    return DecodeState(empty_cache(1, round_places(1, c), c), nothing, 0)


def round_places(tokens: int, c: World) -> int:
    """The places of a cache that holds `tokens` and a whole chunk behind them.

    Each size is twice the one before, and the last is that of the model's context.
    """
    chunk = axis_size("seq") * PREFILL_CHUNK
    places, most = 2 * chunk, c.llama.context + chunk
    while places < tokens + chunk:
        places *= 2
    return min(places, most + -most % chunk)


def _with_room(state: DecodeState, tokens: int, c: World) -> DecodeState:
    """The state, its cache grown where it lacks places for so many tokens."""
    places = round_places(tokens, c)
    return (
        state if places <= state.places else replace(state, cache=_grow(state.cache, places=places))
    )


def cut_chunk(start: int, tokens: int) -> tuple[int, int]:
    """(first, length) of the chunk that reads tokens from position `start` on.

    One device can begin anywhere. A ring begins with whole rounds of stripes, so that a chunk lies
    on each device in one piece.
    """
    ring = axis_size("seq")
    unit = 1 if ring == 1 else ring * STRIPE
    first, length = start - start % unit, LEAST_CHUNK if ring == 1 else unit
    while length < min(start + tokens - first, ring * PREFILL_CHUNK):
        length *= 2
    return first, length


def find_place(position: Int[Array, "B T"], places: int) -> Int[Array, "B T"]:
    """The place of a position in a cache of whole rounds of stripes: `striped_order`, inverted."""
    ring = axis_size("seq")
    if ring == 1:
        return position
    stripe = position // STRIPE
    return stripe % ring * (places // ring) + stripe // ring * STRIPE + position % STRIPE


_prefill_chunk = jax.jit(prefill_chunk, static_argnames="c", donate_argnames="cache")
_grow = jax.jit(grow_cache, static_argnames="places")
_truncate = jax.jit(truncate_cache, donate_argnames="cache")


def prefill(
    weights: WorldWeights,
    state: DecodeState,
    new: Example,
    c: World,
    *,
    on_chunk: Tick = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> DecodeState:
    """The state after the tokens of `new`, or after as many whole chunks as were read when
    `stopped()` first returned true.

    `on_chunk` is called with the tokens read so far, after every chunk.
    """
    done, end = 0, state.length + len(new)
    state = _with_room(state, end, c)
    while done < len(new) and not stopped():
        first, length = cut_chunk(state.length, len(new) - done)
        stop = min(first + length, end)
        chunk = _make_chunk(new, done, state.length, stop, first, length)
        own = jnp.int32(first // axis_size("seq"))
        last = shard(jnp.full((1,), stop - 1, jnp.int32), "batch")
        x, cache = _prefill_chunk(weights, state.cache, *chunk, own, last, c)
        done += stop - state.length
        state = DecodeState(cache, x, stop)
        x.block_until_ready()
        on_chunk(done)
    return state


def _make_chunk(
    new: Example, done: int, start: int, stop: int, first: int, length: int
) -> tuple[Array, Array, Where]:
    """The tokens of positions `start` to `stop` as a dealt chunk of `length` from `first` on."""
    order = striped_order(length, axis_size("seq"))
    row = np.zeros((4, 1, length), np.int32)
    inside, given = slice(start - first, stop - first), slice(done, done + stop - start)
    row[0, 0, inside], row[1, 0, inside] = new.tokens[given], new.vision[given]
    row[2, 0, inside], row[3, 0, inside] = np.arange(start, stop), 1

    def deal_row(x: np.ndarray) -> Array:
        return place(deal(x, order), "batch", "seq")

    tokens, vision, positions, segments = map(deal_row, row)
    return tokens, vision > 0, Where(positions, segments)


def truncate_state(state: DecodeState, length: int) -> DecodeState:
    """The state of the first `length` tokens. Prefill something before decoding: `x` is stale."""
    return replace(state, cache=_truncate(state.cache, jnp.int32(length)), length=length)


def _text_logits(x: Float[Array, "1 D"], weights: WorldWeights, c: World) -> Float[Array, "1 V"]:
    """Float32 logits of the text head; a tied table is read as it lies, where `.T` copies it."""
    if not c.tied:
        return read_head(x, gather_heads(weights, c).text)
    table = shard(weights.text_embed, None, None).astype(jnp.float32)
    return jnp.einsum("bd,vd->bv", x.astype(jnp.float32), table)


@partial(jax.jit, static_argnames=("c", "steps", "sampling", "stops"), donate_argnames="cache")
def _decode(
    weights: WorldWeights,
    cache: Cache,
    x: Float[Array, "1 D"],
    length: Int[Array, ""],
    max_tokens: Int[Array, ""],
    seed: Int[Array, ""],
    c: World,
    steps: int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> tuple[Float[Array, "1 D"], Cache, Int[Array, "steps"], Int[Array, ""]]:
    """At most `max_tokens` and `steps` ids, padded with -1, and how many there are."""
    root = jax.random.key(seed)
    places = cache.where.positions.shape[1]
    ends = jnp.asarray(stops, jnp.int32)

    def unfinished(carry: tuple) -> Array:
        _, _, ids, i = carry
        before = ids[jnp.maximum(i - 1, 0)]
        return (i < jnp.minimum(steps, max_tokens)) & ~(before == ends).any()

    def step(carry: tuple) -> tuple:
        x, cache, ids, i = carry
        key = jax.random.fold_in(root, length + i)
        token = draw_token(key, _text_logits(x, weights, c), sampling)
        ids = ids.at[i].set(token[0])
        position = shard(jnp.full((1, 1), length + i, jnp.int32), "batch", None)
        where = Where(position, jnp.ones_like(position))
        token = shard(token, "batch")[:, None]
        is_code = jnp.zeros_like(token, bool)
        place = find_place(position, places)
        x, cache = decode_step(weights, cache, token, is_code, where, place, c)
        return shard(x[:, 0], None, None), cache, ids, i + 1

    start = (x, cache, jnp.full((steps,), -1, jnp.int32), jnp.int32(0))
    return lax.while_loop(unfinished, step, start)


def decode_tokens(
    weights: WorldWeights,
    state: DecodeState,
    c: World,
    *,
    max_tokens: int,
    seed: int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> tuple[list[int], DecodeState]:
    """The next ids, at most `DECODE_STEPS` and `max_tokens`, and the state with all of them.

    Decoding ends after one of `stops`, which is then the last of the ids.
    """
    state = _with_room(state, state.length + DECODE_STEPS, c)
    x, cache, ids, count = _decode(
        weights,
        state.cache,
        state.x,
        jnp.int32(state.length),
        jnp.int32(max_tokens),
        jnp.int32(seed),
        c,
        DECODE_STEPS,
        sampling,
        stops,
    )
    written = np.asarray(ids)[: int(count)].tolist()
    return written, DecodeState(cache, x, state.length + len(written))
