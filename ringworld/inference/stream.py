"""One conversation on the devices: read what is new, write some tokens, keep the cache.

A `Tape` is a row that only grows. New tokens are read in chunks between which a caller can show
progress or stop; an answer is written some tokens a dispatch, so that the host is not asked for
each. The cache grows by doubling, and every step writes into the one that it was given.
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
from ringworld.inference.cache import Cache, empty_cache, extend, forget, read_on, widen
from ringworld.inference.sampling import Sampling, draw_token
from ringworld.mesh import axis_size, shard
from ringworld.models.llama import COMPUTE
from ringworld.models.world import World, WorldWeights, gather_heads, read_head

# Tokens that a device reads between two signs of progress: two seconds of a model of 135M on two
# cores. Chunks of 512 take 3 % longer for 2,048 tokens, as each lays all keys out anew.
CHUNK = 1024
# The shortest chunk of one device: a question is a few dozen tokens, and padding costs as much.
LEAST_CHUNK = 16
# Tokens of an answer that are drawn before the host looks: a short wait for a reader, and a
# hundredth of the time for the dispatch.
STEPS = 4

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Tape:
    """A cache of `length` tokens, and the residual stream of the last of them, normed `[1, D]`.

    Whoever reads or writes a tape is given a new one and must let go of the old.
    """

    cache: Cache
    x: Array
    length: int

    @property
    def places(self) -> int:
        """The tokens that the cache has room for."""
        return self.cache.where.positions.shape[1]


def start_tape(c: World) -> Tape:
    """A tape with nothing on it."""
    nothing = shard(jnp.zeros((1, c.llama.model), COMPUTE[c.llama.dtype]), None, None)
    return Tape(empty_cache(1, round_places(1, c), c), nothing, 0)


def round_places(tokens: int, c: World) -> int:
    """The places of a cache that holds `tokens` and a whole chunk behind them.

    Each size is twice the one before, and the last is that of the model's context.
    """
    chunk = axis_size("seq") * CHUNK
    places, most = 2 * chunk, c.llama.context + chunk
    while places < tokens + chunk:
        places *= 2
    return min(places, most + -most % chunk)


def _with_room(tape: Tape, tokens: int, c: World) -> Tape:
    """The tape with places for so many tokens."""
    places = round_places(tokens, c)
    return tape if places <= tape.places else replace(tape, cache=_widen(tape.cache, places=places))


def cut_chunk(start: int, tokens: int) -> tuple[int, int]:
    """(first, length) of the chunk that reads tokens from position `start` on.

    One device can begin anywhere. A ring begins with whole rounds of stripes, so that a chunk lies
    on each device in one piece.
    """
    ring = axis_size("seq")
    unit = 1 if ring == 1 else ring * STRIPE
    first, length = start - start % unit, LEAST_CHUNK if ring == 1 else unit
    while length < min(start + tokens - first, ring * CHUNK):
        length *= 2
    return first, length


def find_place(position: Int[Array, "B T"], places: int) -> Int[Array, "B T"]:
    """The place of a position in a cache of whole rounds of stripes: `striped_order`, inverted."""
    ring = axis_size("seq")
    if ring == 1:
        return position
    stripe = position // STRIPE
    return stripe % ring * (places // ring) + stripe // ring * STRIPE + position % STRIPE


_read = jax.jit(read_on, static_argnames="c", donate_argnames="cache")
_widen = jax.jit(widen, static_argnames="places")
_forget = jax.jit(forget, donate_argnames="cache")


def read_tape(
    weights: WorldWeights,
    tape: Tape,
    new: Example,
    c: World,
    *,
    on_chunk: Tick = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Tape:
    """The tape with `new` behind it, or with as much of it as was read when `stopped()`.

    `on_chunk` hears how many tokens have been read so far.
    """
    done, end = 0, tape.length + len(new)
    tape = _with_room(tape, end, c)
    while done < len(new) and not stopped():
        first, length = cut_chunk(tape.length, len(new) - done)
        past = min(first + length, end)
        chunk = _make_chunk(new, done, tape.length, past, first, length)
        own = jnp.int32(first // axis_size("seq"))
        last = shard(jnp.full((1,), past - 1, jnp.int32), "batch")
        x, cache = _read(weights, tape.cache, *chunk, own, last, c)
        done += past - tape.length
        tape = Tape(cache, x, past)
        x.block_until_ready()
        on_chunk(done)
    return tape


def _make_chunk(
    new: Example, done: int, start: int, past: int, first: int, length: int
) -> tuple[Array, Array, Where]:
    """The tokens of positions `start` to `past` as a dealt chunk of `length` from `first` on."""
    order = striped_order(length, axis_size("seq"))
    row = np.zeros((4, 1, length), np.int32)
    inside, given = slice(start - first, past - first), slice(done, done + past - start)
    row[0, 0, inside], row[1, 0, inside] = new.tokens[given], new.vision[given]
    row[2, 0, inside], row[3, 0, inside] = np.arange(start, past), 1

    def place(x: np.ndarray) -> Array:
        return shard(jnp.asarray(deal(x, order)), "batch", "seq")

    tokens, vision, positions, segments = row
    return place(tokens), place(vision.astype(np.bool_)), Where(place(positions), place(segments))


def forget_after(tape: Tape, length: int) -> Tape:
    """The tape cut to its first `length` tokens; what comes next has to be read before writing."""
    return replace(tape, cache=_forget(tape.cache, jnp.int32(length)), length=length)


def _read_text(x: Float[Array, "1 D"], weights: WorldWeights, c: World) -> Float[Array, "1 V"]:
    """Float32 logits of the text head; a tied table is read as it lies, where `.T` copies it."""
    if not c.tied:
        return read_head(x, gather_heads(weights, c).text)
    table = shard(weights.text_embed, None, None).astype(jnp.float32)
    return jnp.einsum("bd,vd->bv", x.astype(jnp.float32), table)


@partial(jax.jit, static_argnames=("c", "steps", "sampling", "stops"), donate_argnames="cache")
def _write(
    weights: WorldWeights,
    cache: Cache,
    x: Float[Array, "1 D"],
    length: Int[Array, ""],
    most: Int[Array, ""],
    seed: Int[Array, ""],
    c: World,
    steps: int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> tuple[Float[Array, "1 D"], Cache, Int[Array, "steps"], Int[Array, ""]]:
    """Up to `most` of `steps` tokens, of which -1 is none, and how many there are."""
    root = jax.random.key(seed)
    places = cache.where.positions.shape[1]
    ends = jnp.asarray(stops, jnp.int32)

    def unfinished(carry: tuple) -> Array:
        _, _, ids, i = carry
        before = ids[jnp.maximum(i - 1, 0)]
        return (i < jnp.minimum(steps, most)) & ~(before == ends).any()

    def step(carry: tuple) -> tuple:
        x, cache, ids, i = carry
        key = jax.random.fold_in(root, length + i)
        token = draw_token(key, _read_text(x, weights, c), sampling)
        ids = ids.at[i].set(token[0])
        position = shard(jnp.full((1, 1), length + i, jnp.int32), "batch", None)
        where = Where(position, jnp.ones_like(position))
        token = shard(token, "batch")[:, None]
        is_code = jnp.zeros_like(token, bool)
        place = find_place(position, places)
        x, cache = extend(weights, cache, token, is_code, where, place, c)
        return shard(x[:, 0], None, None), cache, ids, i + 1

    start = (x, cache, jnp.full((steps,), -1, jnp.int32), jnp.int32(0))
    return lax.while_loop(unfinished, step, start)


def write_tape(
    weights: WorldWeights,
    tape: Tape,
    c: World,
    *,
    most: int,
    seed: int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> tuple[list[int], Tape]:
    """The next tokens, `STEPS` or `most` or up to one of `stops`, and the tape with all of them.

    A stop is the last of the ids when it was drawn.
    """
    tape = _with_room(tape, tape.length + STEPS, c)
    x, cache, ids, count = _write(
        weights,
        tape.cache,
        tape.x,
        jnp.int32(tape.length),
        jnp.int32(most),
        jnp.int32(seed),
        c,
        STEPS,
        sampling,
        stops,
    )
    written = np.asarray(ids)[: int(count)].tolist()
    return written, Tape(cache, x, tape.length + len(written))
