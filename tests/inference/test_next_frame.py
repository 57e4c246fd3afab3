"""Frames by guesses are the frames of greedy decoding, code by code, in fewer passes."""

import jax
import numpy as np
import pytest

from ringworld.attention.mask import Where
from ringworld.data.example import Example, join, open_frames, text
from ringworld.errors import InputError
from ringworld.inference.next_frame import FrameWriter
from ringworld.mesh import local_mesh, make_mesh
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import init
from ringworld.vocab import Vocabulary

WORDS = Vocabulary(text=64, bos=1, eos=2, codes=16, codes_per_frame=6, vision_rows=24)
SIZES = dict(layers=2, model=32, mlp=64, heads=4, kv_heads=2, head_width=8, rope_theta=1e4)
OPENING = text([1, 3], 0.0)
ACTIONS = (5, 9, 7, 5, 6)


def world(context: int) -> World:
    """A small model of some context."""
    return World(llama=Llama(**SIZES, context=context), vocabulary=WORDS)


@pytest.fixture(scope="module")
def weights() -> WorldWeights:
    # Four times the usual start, so that the greatest logit is clear of rounding.
    return jax.tree.map(lambda x: 4 * x, init(specs(world(64)), 0))


def write_slowly(
    weights: WorldWeights, row: Example, before: int, c: World
) -> tuple[list[int], Example]:
    """A greedy frame from a whole forward a code, and the row with it."""
    codes: list[int] = []
    for _ in range(WORDS.codes_per_frame):
        given = join([row, text([before], 0.0), _open(codes)])
        logits = whole_logits(weights, given, c)
        codes.append(int(logits[len(given) - 1, : WORDS.codes].argmax()))
    whole = open_frames(np.array([codes]), WORDS, 0.0)
    return codes, join([row, text([before], 0.0), whole])


def whole_logits(weights: WorldWeights, given: Example, c: World) -> np.ndarray:
    """The vision logits of a row, and of the padding behind it: one program for every length."""
    n, room = len(given), c.llama.context
    tokens, vision = np.zeros((1, room), np.int32), np.zeros((1, room), np.bool_)
    tokens[0, :n], vision[0, :n] = given.tokens, given.vision
    positions = np.arange(room, dtype=np.int32)[None]
    where = Where(positions, (positions < n).astype(np.int32))
    x = jax.jit(forward, static_argnums=4)(weights, tokens, vision, where, c)
    return np.asarray(x[0] @ weights.heads.vision)


def _open(codes: list[int]) -> Example:
    """The beginning of a frame."""
    ids = np.array(codes, np.int32)
    return Example(ids, np.ones(len(ids), np.bool_), np.zeros(len(ids), np.float32))


def test_guessed_frames_are_those_of_whole_forwards(weights: WorldWeights) -> None:
    c, first = world(64), np.arange(6)
    row = join([OPENING, open_frames(first[None], WORDS, 0.0)])
    with jax.set_mesh(local_mesh()):
        writer = FrameWriter(weights, c, OPENING)
        writer.begin(first)
        for before in ACTIONS:
            slow, row = write_slowly(weights, row, before, c)
            assert writer.write(before).tolist() == slow
    assert len(ACTIONS) <= writer.passes <= len(ACTIONS) * (WORDS.codes_per_frame + 1)


def test_a_frame_that_is_corrected_is_what_the_next_one_follows(weights: WorldWeights) -> None:
    c, first, other = world(64), np.arange(6), np.arange(6)[::-1].copy()
    row = join([OPENING, *(open_frames(first[None], WORDS, 0.0), text([5], 0.0))])
    row = join([row, open_frames(other[None], WORDS, 0.0)])
    with jax.set_mesh(local_mesh()):
        writer = FrameWriter(weights, c, OPENING)
        writer.begin(first)
        writer.write(5)
        writer.correct(other)
        assert writer.write(9).tolist() == write_slowly(weights, row, 9, c)[0]


def test_a_full_context_goes_on_from_the_newest_frame(weights: WorldWeights) -> None:
    c, first = world(2 + 7 + 2 * 8), np.arange(6)  # room for three frames
    with jax.set_mesh(local_mesh()):
        writer = FrameWriter(weights, c, OPENING)
        writer.begin(first)
        writer.write(5)
        second = writer.write(9)
        third = writer.write(7)
        row = join([OPENING, open_frames(second[None], WORDS, 0.0)])
        assert third.tolist() == write_slowly(weights, row, 7, c)[0]
        with pytest.raises(InputError, match="no room for two frames"):
            FrameWriter(weights, world(16), OPENING)
    with jax.set_mesh(make_mesh(seq=2)), pytest.raises(InputError, match="seq 1"):
        FrameWriter(weights, c, OPENING)
