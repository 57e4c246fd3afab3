"""Generation: what the cache gives is what a full forward gives, on any mesh."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention import attend_new
from ringworld.attention import decode as decoding
from ringworld.attention.dense import attend_dense
from ringworld.attention.layout import deal, invert, striped_order
from ringworld.attention.mask import Where, window
from ringworld.data.example import Example, frames, join, text
from ringworld.errors import InputError
from ringworld.inference import stream
from ringworld.inference.cache import Cache, decode_step, empty_cache, prefill_rows
from ringworld.inference.generate import draw_frames, write_text
from ringworld.inference.sampling import draw_token, guide, keep_top_k, keep_top_p
from ringworld.mesh import make_mesh, shard
from ringworld.models.llama import Llama
from ringworld.models.world import World, WorldWeights, forward, specs
from ringworld.params import init, shardings
from ringworld.settings import Sampling
from ringworld.vocab import Vocabulary

TINY = World(
    llama=Llama(
        layers=2,
        model=32,
        mlp=64,
        heads=4,
        kv_heads=2,
        head_width=8,
        context=128,
        rope_theta=1e4,
    ),
    vocabulary=Vocabulary(text=64, bos=1, eos=2, codes=16, codes_per_frame=4, vision_rows=24),
)
STEPS = 5


@pytest.fixture(scope="module")
def weights() -> WorldWeights:
    # Four times the usual start, so that the greatest logit is clear of rounding.
    return jax.tree.map(lambda x: 4 * x, init(specs(TINY), 0))


@pytest.fixture(scope="module")
def prompts() -> list[Example]:
    rng = np.random.default_rng(0)
    words = [text(rng.integers(3, 64, n).tolist(), 0.0) for n in (7, 12)]
    codes = rng.integers(0, 16, (2, 4))
    return [words[0], join([words[1], frames(codes, TINY.vocabulary, 0.0), words[0]])]


def write_slowly(weights: WorldWeights, prompt: Example) -> list[int]:
    """Greedy text from a whole forward a token, without a cache."""
    tokens, vision = prompt.tokens.tolist(), prompt.vision.tolist()
    for _ in range(STEPS):
        n = len(tokens)
        where = Where(jnp.arange(n, dtype=jnp.int32)[None], jnp.ones((1, n), jnp.int32))
        x = forward(weights, jnp.asarray([tokens]), jnp.asarray([vision]), where, TINY)
        tokens.append(int((x[0, -1] @ weights.heads.text).argmax()))
        vision.append(False)
    written = tokens[len(prompt.tokens) :]
    return written[: written.index(2)] if 2 in written else written


def test_cached_text_is_what_whole_forwards_write(
    weights: WorldWeights, prompts: list[Example]
) -> None:
    slow = [write_slowly(weights, prompt) for prompt in prompts]
    assert write_text(weights, prompts, TINY, steps=STEPS, sampling=Sampling(), seed=0) == slow


@pytest.mark.parametrize("shape", [{"seq": 4}, {"fsdp": 2, "seq": 2, "tensor": 2}])
def test_every_mesh_writes_and_draws_the_same(
    weights: WorldWeights, prompts: list[Example], shape: dict[str, int]
) -> None:
    drawing = Sampling(temperature=1.0, top_k=8)

    def both(weights: WorldWeights) -> tuple[list[list[int]], np.ndarray]:
        written = write_text(weights, prompts, TINY, steps=STEPS, sampling=Sampling(), seed=0)
        drawn = draw_frames(
            weights,
            prompts[:1],
            prompts[1:],
            TINY,
            frames=2,
            guidance=2.0,
            sampling=drawing,
            seed=1,
        )
        return written, drawn

    written, drawn = both(weights)
    with jax.set_mesh(make_mesh(**shape)):
        placed = jax.device_put(weights, shardings(specs(TINY), jax.sharding.get_mesh()))
        written_there, drawn_there = both(placed)
    assert written_there == written
    np.testing.assert_array_equal(drawn_there, drawn)


def test_drawn_frames_hold_codes_only(weights: WorldWeights, prompts: list[Example]) -> None:
    drawn = draw_frames(
        weights,
        prompts[:1],
        prompts[:1],
        TINY,
        frames=3,
        guidance=1.0,
        sampling=Sampling(temperature=5.0),
        seed=3,
    )
    assert drawn.shape == (1, 3, 4)
    assert drawn.min() >= 0 and drawn.max() < TINY.vocabulary.codes


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(weights: WorldWeights) -> None:
    long = text([5] * 125, 0.0)
    with pytest.raises(InputError, match=r"130 tokens .* context is 128"):
        write_text(weights, [long], TINY, steps=STEPS, sampling=Sampling(), seed=0)


def test_guidance_of_one_is_the_conditional_model() -> None:
    cond, uncond = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[5.0, -3.0]])
    np.testing.assert_array_equal(guide(cond, uncond, 1.0), cond)
    np.testing.assert_array_equal(guide(cond, uncond, 2.0), [[-3.0, 7.0]])


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    assert jnp.isfinite(keep_top_k(logits, 2)).tolist() == [[True, True, False, False]]
    assert jnp.isfinite(keep_top_p(logits, 0.75)).tolist() == [[True, True, False, False]]
    assert jnp.isfinite(keep_top_p(logits, 1e-6)).tolist() == [[True, False, False, False]]


def test_temperature_zero_is_greedy_and_draws_follow_the_odds() -> None:
    logits = jnp.log(jnp.asarray([[0.7, 0.2, 0.1]] * 4000))
    assert draw_token(jax.random.key(0), logits, Sampling()).sum() == 0
    drawn = draw_token(jax.random.key(0), logits, Sampling(temperature=1.0))
    # 4000 draws: three standard deviations of a share of 0.7 are 0.022.
    assert abs(float((drawn == 0).mean()) - 0.7) < 0.022


def test_sampling_that_cannot_be_is_refused() -> None:
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(InputError):
            Sampling(**bad)


# ---- one layout for life

LIFE_MESHES = [None, {"seq": 4}, {"data": 2, "seq": 2, "tensor": 2}, {"data": 2}]


@pytest.mark.parametrize("shape", LIFE_MESHES, ids=["1", "ring4", "2x1x2x2", "2x1x1x1"])
def test_training_chunked_prefill_and_decoding_give_the_same_logits(
    weights: WorldWeights, shape: dict[str, int] | None
) -> None:
    """Two rows of 37 and 50 tokens: whole; in chunks of 16; in chunks to 30, then 3 at a time."""
    lengths, rng = np.array([37, 50]), np.random.default_rng(1)
    tokens = rng.integers(3, 64, (2, 64))
    whole = whole_logits(weights, tokens, lengths)
    mesh = nullcontext() if shape is None else jax.set_mesh(make_mesh(**shape))
    with mesh:
        placed = weights
        if shape is not None:
            placed = jax.device_put(weights, shardings(specs(TINY), jax.sharding.get_mesh()))
        ring = 1 if shape is None else shape.get("seq", 1)
        picked, _ = read_in_chunks(placed, tokens, lengths, ring)
        assert_logits(picked @ np.asarray(weights.heads.text), whole[[0, 1], lengths - 1])
        _, cache = read_in_chunks(placed, tokens, np.minimum(lengths, 30), ring)
        order = striped_order(64, ring, 4)
        for start in range(30, 36, 3):
            x, cache = decode(placed, cache, tokens[:, start : start + 3], start, order)
            found = np.asarray(x) @ np.asarray(weights.heads.text)
            assert_logits(found, whole[:, start : start + 3])


def assert_logits(found: np.ndarray, wanted: np.ndarray) -> None:
    # Two layers of float32 sums in another order, against the largest logit.
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def stand(tokens: np.ndarray, lengths: np.ndarray) -> Where:
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    return Where(np.where(inside, np.arange(tokens.shape[1]), 0), inside.astype(np.int64))


def whole_logits(weights: WorldWeights, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    where = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), stand(tokens, lengths))
    text_only = jnp.zeros(tokens.shape, bool)
    run = jax.jit(forward, static_argnums=4)
    x = run(weights, jnp.asarray(tokens, jnp.int32), text_only, where, TINY)
    return np.asarray(x @ weights.heads.text)


def read_in_chunks(
    weights: WorldWeights, tokens: np.ndarray, lengths: np.ndarray, ring: int
) -> tuple[np.ndarray, Cache]:
    order = striped_order(64, ring, 4)
    rows = jax.tree.map(
        lambda x: shard(jnp.asarray(deal(x, order), jnp.int32), "batch", "seq"),
        (tokens, stand(tokens, lengths)),
    )
    last = shard(jnp.asarray(lengths - 1, jnp.int32), "batch")
    read = jax.jit(prefill_rows, static_argnames=("chunk", "c"))
    dealt, where = rows
    picked, cache = read(weights, dealt, dealt < 0, where, last, chunk=16, c=TINY)
    return np.asarray(picked), cache


def decode(
    weights: WorldWeights, cache: Cache, tokens: np.ndarray, start: int, order: np.ndarray
) -> tuple[jax.Array, Cache]:
    positions = np.tile(np.arange(start, start + tokens.shape[1]), (2, 1))
    places = invert(order, 64)[positions]
    new, stands, places = (
        shard(jnp.asarray(x, jnp.int32), "batch", None) for x in (tokens, positions, places)
    )
    where = Where(stands, stands * 0 + 1)
    return jax.jit(decode_step, static_argnums=6)(weights, cache, new, new < 0, where, places, TINY)


# ---- a few tokens against a cache, and layers cut apart


def test_a_few_tokens_read_one_layer_from_the_first_place_seen_to_the_last(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Two rows of 13 tokens in a window of 9, the last 3 of them new; 32 places in runs of 4."""
    monkeypatch.setattr(decoding, "PLACES", 4)
    q, k, v = (rng.standard_normal((2, 13, n, 8), np.float32) for n in (4, 2, 2))
    where = Where(np.tile(np.arange(13, dtype=np.int32), (2, 1)), np.ones((2, 13), np.int32))
    where = Where(where.positions, where.segments, window(where, 9))
    where = jax.tree.map(jnp.asarray, where)
    wanted = attend_dense(*map(jnp.asarray, (q, k, v)), where, is_causal=True)[:, -3:]
    # Token 2 is the first that is seen; 0 to 9 lie from place 8 on.
    cached, stands = (
        np.full((2, 2, 2, 32, 2, 8), np.nan, np.float32),
        np.zeros((2, 2, 32), np.int32),
    )
    cached[:, 1, :, 8:20] = 0
    cached[0, 1, :, 8:18], cached[1, 1, :, 8:18] = k[:, :10], v[:, :10]
    stands[0, :, 8:18], stands[1, :, 8:18] = where.positions[:, :10], 1
    new, keys = ("batch", None, "kv_heads", None), ("layers", "batch", "seq", "kv_heads", None)
    found = attend_new(
        shard(jnp.asarray(q[:, -3:]), "batch", None, "heads", None),
        (shard(jnp.asarray(k[:, -3:]), *new), shard(jnp.asarray(v[:, -3:]), *new)),
        jax.tree.map(lambda x: shard(x[:, -3:], "batch", None), where),
        (shard(jnp.asarray(cached[0]), *keys), shard(jnp.asarray(cached[1]), *keys)),
        Where(*(shard(jnp.asarray(x), "batch", "seq") for x in stands)),
        layer=jnp.int32(1),
    )
    # Sums of 16 products of numbers near 1, in float32, in another order.
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_written_token_copies_no_cache(weights: WorldWeights) -> None:
    cache, x, number = empty_cache(1, 8192, TINY), jnp.zeros((1, 32)), jnp.int32(0)
    args = (weights, cache, x, number, number, number, TINY, 4, Sampling(), ())
    memory = stream._decode.lower(*args).compile().memory_analysis()
    assert memory is not None
    # A few runs of places at a time, and the positions and segments of all.
    assert memory.temp_size_in_bytes < cache.k.nbytes / 4
