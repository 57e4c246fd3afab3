"""Many prompts through the engine at once: the text, the frames or the scores of each.

Frames are image codes with classifier-free guidance: each is drawn from uncond + scale (cond -
uncond). Every (Q + 1)-th token is the end of a frame, and inside a frame only codes can be drawn.
Source: LWM (arXiv 2402.08268); guidance: Ho and Salimans (arXiv 2207.12598).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ringworld.data.example import Example, text
from ringworld.inference.config import EngineConfig
from ringworld.inference.engine import Engine
from ringworld.inference.pool import count_page_bytes
from ringworld.inference.request import Output, Request
from ringworld.mesh import axis_size
from ringworld.models.world import World, WorldWeights
from ringworld.settings import Sampling

# Tokens of a page on a device: what is shared, and read as a chunk. A prompt of 2,048 is read
# in 0.8 of the time that pages of 128 take, and pages of 512 are no faster than these.
PAGE = 256
# Rows that decode together.
DECODE_ROWS = 8


def make_engine(
    weights: WorldWeights, c: World, tokens: Sequence[int], rows: int, *, int8: bool = False
) -> Engine:
    """An engine of `rows` rows, with a cache for the longest so many of rows of these lengths."""
    whole = PAGE * axis_size("seq")
    longest = sorted(tokens, reverse=True)[:rows]
    pages = 1 + sum(-(-length // whole) for length in longest)
    room = pages * count_page_bytes(c, PAGE, int8)
    return Engine(weights, c, EngineConfig(cache_bytes=room, rows=rows, page=PAGE, int8=int8))


def answer_all(
    weights: WorldWeights, c: World, requests: Sequence[Request], rows: int, *, int8: bool = False
) -> list[Output]:
    """The answers to requests, of which so many rows run together; `int8` is of keys and values.

    Raises InputError when one of them does not fit the model's context.
    """
    tokens = [
        len(prompt) + request.max_new_tokens
        for request in requests
        for prompt in (request.prompt, request.guided_from)
        if prompt is not None
    ]
    engine = make_engine(weights, c, tokens, rows, int8=int8)
    answers = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return answers


def write_text(
    weights: WorldWeights,
    prompts: Sequence[Example],
    c: World,
    *,
    steps: int,
    sampling: Sampling,
    seed: int,
    int8: bool = False,
) -> list[list[int]]:
    """The ids that the model writes after each prompt, at most `steps`, up to the end of the text.

    The i-th prompt draws with `seed + i`.
    Raises InputError when a prompt and `steps` tokens do not fit the model's context.
    """
    requests = [
        Request(
            prompt=prompt,
            max_new_tokens=steps,
            sampling=sampling,
            seed=seed + i,
            stops=(c.vocabulary.eos,),
        )
        for i, prompt in enumerate(prompts)
    ]
    return [answer.ids for answer in answer_all(weights, c, requests, DECODE_ROWS, int8=int8)]


def draw_frames(
    weights: WorldWeights,
    prompts: Sequence[Example],
    guided_from: Sequence[Example],
    c: World,
    *,
    frames: int,
    guidance: float,
    sampling: Sampling,
    seed: int,
) -> Int[np.ndarray, "B Z Q"]:
    """The codes of `frames` frames after each prompt; the i-th draws with `seed + i`.

    `guided_from[i]` is what the i-th prompt is guided away from, such as a bare `<s><vision>`;
    there may be none, and then nothing is guided.
    Raises InputError when the model has no vision or the frames do not fit its context.
    """
    length = c.vocabulary.frame_length
    requests = [
        Request(
            prompt=prompt,
            max_new_tokens=frames * length - 1,  # the last end of a frame is known
            codes=True,
            guided_from=guided_from[i] if guided_from else None,
            guidance=guidance,
            sampling=sampling,
            seed=seed + i,
        )
        for i, prompt in enumerate(prompts)
    ]
    drawn = [[*answer.ids, 0] for answer in answer_all(weights, c, requests, DECODE_ROWS)]
    return np.asarray(drawn, np.int32).reshape(len(prompts), frames, length)[:, :, :-1]


def score_texts(
    weights: WorldWeights, rows: Int[np.ndarray, "B T"], c: World, *, int8: bool = False
) -> Float[np.ndarray, "B T-1"]:
    """The log-probability in nats of each token of each row but the first; one row at a time."""
    requests = [
        Request(prompt=text(row, 0.0), max_new_tokens=0, prompt_logprobs=True) for row in rows
    ]
    answers = answer_all(weights, c, requests, 1, int8=int8)
    return np.asarray([[score.logprob for score in answer.prompt_scores] for answer in answers])
