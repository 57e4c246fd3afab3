"""One frame after another of a world with actions, each in a few passes instead of one a code.

A frame mostly repeats the one before, so that one is the first guess. A pass reads a whole guess at
one time and finds the likeliest code at each place, after what the guess has before it; these codes
are the next guess. Each pass puts at least one more code right, and a guess that is what it finds
is the frame that greedy decoding draws, code by code. Source: Santilli et al., "Accelerating
Transformer Inference for Translation via Parallel Decoding" (arXiv 2305.10427).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ringworld.attention.paged import PAGES_AT_ONCE, Pages
from ringworld.data.example import Example, join, on_grid, open_frames, text
from ringworld.errors import InputError
from ringworld.inference.pool import make_pages
from ringworld.inference.programs import read_chunk
from ringworld.mesh import axis_size, replicate
from ringworld.models.world import World, WorldWeights, gather_heads, read_head

PAGES = 2  # of the pool: one for what belongs to no row, and page 1 for the whole row
TABLE = (1, *[0] * (PAGES_AT_ONCE - 1))


class FrameWriter:
    """A row of frames with a text token before each but the first, written on greedily.

    The row begins with `opening`. When the context is full it begins again with the newest frame
    alone, which is all that a world needs that shows its whole state.
    """

    def __init__(self, weights: WorldWeights, c: World, opening: Example) -> None:
        if axis_size("seq") > 1:
            raise InputError("frames are written on one device: use a mesh with seq 1")
        self._weights, self._c, self._opening = weights, c, opening
        self._step = c.vocabulary.frame_length + 1
        first = len(opening) + c.vocabulary.frame_length
        if c.llama.context < first + self._step:
            raise InputError(
                f"the context of {c.llama.context} tokens has no room for two frames: use a model "
                f"of at least {first + self._step}"
            )
        self._room = first + (c.llama.context - first) // self._step * self._step
        self._pages = make_pages(PAGES, self._room, c, False)
        self._codes = np.zeros(c.vocabulary.codes_per_frame, np.int32)
        self._length = self._before = 0
        self.passes = 0

    def begin(self, codes: Int[np.ndarray, "Q"]) -> None:
        """Begin the row anew with a frame."""
        given = open_frames(codes[None], self._c.vocabulary, 0.0)
        self._length = 0
        self._read(join([self._opening, given]), codes)

    def write(self, before: int) -> Int[np.ndarray, "Q"]:
        """The codes of the next frame, after the text id `before`; they are part of the row now."""
        if self._length + self._step > self._room:
            self.begin(self._codes)
        codes, passes, self._pages = write_frame(
            self._weights,
            self._pages,
            np.int32(before),
            self._codes,
            np.int32(self._length),
            self._c,
        )
        self._codes, self._before = np.asarray(codes), before
        self._length += self._step
        self.passes += int(passes)
        return self._codes

    def correct(self, codes: Int[np.ndarray, "Q"]) -> None:
        """Put another frame in the place of the one that was written last."""
        self._length -= self._step
        given = open_frames(codes[None], self._c.vocabulary, 0.0)
        self._read(join([text([self._before], 0.0), given]), codes)

    def _read(self, given: Example, codes: Int[np.ndarray, "Q"]) -> None:
        """Read what comes next in the row, a frame of these codes at its end."""
        given = on_grid(given, self._c.vocabulary)
        _, _, self._pages = read_chunk(
            self._weights,
            self._pages,
            given.tokens[None],
            given.vision[None],
            np.array(TABLE, np.int32),
            np.int32(self._length),
            np.int32(0),
            self._c,
        )
        self._codes = codes.astype(np.int32)
        self._length += len(given)


@partial(jax.jit, static_argnames="c", donate_argnames="pages")
def write_frame(
    weights: WorldWeights,
    pages: Pages,
    before: Int[Array, ""],
    guess: Int[Array, "Q"],
    start: Int[Array, ""],
    c: World,
) -> tuple[Int[Array, "Q"], Int[Array, ""], Pages]:
    """The greedy frame after the text id `before`, which stands at position `start`.

    Returns its codes, how many passes it took, and the pool with the id, the codes and `eof` in it.
    """
    words = c.vocabulary
    head = gather_heads(weights, c).vision
    is_code = jnp.arange(words.vision_rows) < words.codes
    vision = jnp.arange(words.frame_length + 1) > 0
    table = jnp.array(TABLE, jnp.int32)

    def unsettled(carry: tuple) -> Array:
        return ~carry[2]

    def look(carry: tuple) -> tuple:
        guess, passes, _, pages = carry
        frame = guess + words.grid_offsets
        tokens = jnp.concatenate([before[None], frame, jnp.array([words.eof], jnp.int32)])
        x, _, pages = read_chunk(
            weights, pages, tokens[None], vision[None], table, start, jnp.int32(0), c
        )
        logits = read_head(replicate(x)[0, : words.codes_per_frame], head)
        found = jnp.argmax(jnp.where(is_code, logits, -jnp.inf), -1).astype(jnp.int32)
        return found, passes + 1, (found == guess).all(), pages

    start_of_loop = (guess.astype(jnp.int32), jnp.int32(0), jnp.bool_(False), pages)
    codes, passes, _, pages = jax.lax.while_loop(unsettled, look, start_of_loop)
    return codes, passes, pages
