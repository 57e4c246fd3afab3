"""Generation: what the cache gives is what a full forward gives, on any mesh."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention.mask import Where
from ringworld.data.example import Example, frames, join, text
from ringworld.errors import InputError
from ringworld.inference.config import EngineConfig
from ringworld.inference.engine import Engine
from ringworld.inference.generate import draw_frames, write_text
from ringworld.inference.pool import count_page_bytes, make_pages
from ringworld.inference.programs import decode_rows
from ringworld.inference.request import Request
from ringworld.inference.rows import lay_rows
from ringworld.inference.sampling import Settings, draw_tokens, guide, keep_likeliest
from ringworld.mesh import make_mesh
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


def settings_of(rows: int, **given: float) -> Settings:
    """The same settings for every row, each with a seed of its own."""
    values = {
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **given,
    }
    floats = {name: jnp.full(rows, value, jnp.float32) for name, value in values.items()}
    floats["top_k"] = floats.get("top_k", jnp.zeros(rows)).astype(jnp.int32)
    seed = jnp.arange(rows, dtype=jnp.uint32)
    return Settings(**floats, seed=seed, sample=jnp.zeros(rows, jnp.int32))


def test_top_k_top_p_and_min_p_keep_the_likeliest() -> None:
    logits = jnp.log(jnp.asarray([[0.15, 0.5, 0.05, 0.3]]))

    def kept(**given: float) -> list[bool]:
        return jnp.isfinite(keep_likeliest(logits, settings_of(1, **given)))[0].tolist()

    assert kept(top_k=2.0) == [False, True, False, True]
    assert kept(top_p=0.75) == [False, True, False, True]
    assert kept(top_p=1e-6) == [False, True, False, False]
    assert kept(min_p=0.25) == [True, True, False, True]
    assert kept(top_k=3.0, min_p=0.5) == [False, True, False, True]
    assert kept() == [True] * 4


def test_temperature_zero_is_greedy_and_draws_follow_the_odds() -> None:
    logits = jnp.log(jnp.asarray([[0.7, 0.2, 0.1]] * 4000))
    positions = jnp.zeros(4000, jnp.int32)
    assert draw_tokens(logits, settings_of(4000, temperature=0.0), positions).sum() == 0
    drawn = draw_tokens(logits, settings_of(4000), positions)
    # 4000 draws: three standard deviations of a share of 0.7 are 0.022.
    assert abs(float((drawn == 0).mean()) - 0.7) < 0.022


def test_sampling_that_cannot_be_is_refused() -> None:
    for bad in (
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
    ):
        with pytest.raises(InputError):
            Sampling(**bad)


# ---- one layout for life

LIFE_MESHES = [None, {"seq": 4}, {"data": 2, "seq": 2, "tensor": 2}, {"data": 2}]


@pytest.mark.parametrize("shape", LIFE_MESHES, ids=["1", "ring4", "2x1x2x2", "2x1x1x1"])
def test_training_chunked_prefill_and_decoding_give_the_same_logits(
    weights: WorldWeights, shape: dict[str, int] | None
) -> None:
    """Rows of 37 and 50 tokens in pages of 16: log-probabilities of the prompt and the answer."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 64, n) for n in (37, 50)]
    weights = jax.tree.map(lambda x: x / 4, weights)  # as they start: nothing to be clear of
    mesh = nullcontext() if shape is None else jax.set_mesh(make_mesh(**shape))
    with mesh:
        placed = weights
        if shape is not None:
            placed = jax.device_put(weights, shardings(specs(TINY), jax.sharding.get_mesh()))
        page = 16 // (shape or {}).get("seq", 1)
        room = 20 * count_page_bytes(TINY, page, False)
        engine = Engine(placed, TINY, EngineConfig(cache_bytes=room, rows=2, page=page))
        answers = [
            engine.submit(
                Request(
                    prompt=text(prompt, 0.0), max_new_tokens=6, prompt_logprobs=True, logprobs=1
                )
            )
            for prompt in prompts
        ]
        while engine.step():
            pass
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = np.append(prompt, answer.ids)
        whole = whole_logprobs(weights, tokens)
        found = [score.logprob for score in answer.prompt_scores + answer.samples[0].scores]
        wanted = whole[np.arange(len(tokens) - 1), tokens[1:]]
        # Two layers of float32 sums in another order, against the largest number.
        assert np.abs(np.subtract(found, wanted)).max() <= 1e-5 * np.abs(whole).max()


def whole_logprobs(weights: WorldWeights, tokens: np.ndarray) -> np.ndarray:
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    positions = np.arange(64, dtype=np.int32)[None]
    where = Where(positions, (positions < len(tokens)).astype(np.int32))
    x = jax.jit(forward, static_argnums=4)(weights, row, row < 0, where, TINY)
    return np.asarray(jax.nn.log_softmax((x @ weights.heads.text)[0]))


def test_a_written_token_copies_no_page(weights: WorldWeights) -> None:
    pages = make_pages(64, 128, TINY, False)
    table, rows = np.zeros((2, 4), np.int32), lay_rows([], [], 2, TINY.vocabulary.text)
    args = (weights, pages, table, rows, np.int32(1), TINY)
    memory = decode_rows.lower(*args).compile().memory_analysis()
    assert memory is not None
    # A few pages of one layer at a time.
    assert memory.temp_size_in_bytes < pages.k.nbytes / 4
