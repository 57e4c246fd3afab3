"""/v1/images/generations: pictures drawn from words, as PNG."""

import asyncio
import base64
import io
import secrets

import numpy as np
from PIL import Image

from ringworld.errors import InputError
from ringworld.inference.request import Request
from ringworld.serve.answers import JSON
from ringworld.serve.conversation import Prompt
from ringworld.serve.front import SEEDS, Front, RequestProgress
from ringworld.serve.protocol import ImageBody
from ringworld.settings import Sampling
from ringworld.tasks.clips import unconditional_prompt, video_prompt


async def draw_images(front: Front, body: ImageBody, job: RequestProgress) -> list[JSON]:
    """The pictures of a request, each the first frame of a clip of what its words say.

    Raises InputError when the model draws nothing, or nothing of the size that is asked for.
    """
    served, codec = front.served, front.served.model.codec
    side, words = codec.config.size, served.words
    if body.size not in (None, "auto", f"{side}x{side}"):
        raise InputError(f"this model draws {side}x{side} only: ask for this size", setting="size")
    prompt = video_prompt(body.prompt, words)
    guided = body.guidance_scale != 1
    request = Request(
        prompt=prompt,
        max_new_tokens=served.config.vocabulary.codes_per_frame,
        codes=True,
        guided_from=unconditional_prompt(words) if guided else None,
        guidance=body.guidance_scale,
        sampling=Sampling(temperature=body.temperature, top_k=body.top_k),
        seed=secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS,
        samples=body.n,
    )
    asked = await front.submit(job, [request], [Prompt(prompt)])
    drawn: list[list[int]] = [[] for _ in range(body.n)]
    updates = front.follow(asked)
    try:
        async for update in updates:
            for piece in update.pieces:
                drawn[piece.sample] += piece.ids
    finally:
        await updates.aclose()
    codes = np.asarray(drawn, np.int32)
    frames = await asyncio.wrap_future(front.thread.call(lambda: codec.decode(codes)))
    return [{"b64_json": await asyncio.to_thread(_write_png, frame)} for frame in frames]


def _write_png(frame: np.ndarray) -> str:
    """A frame as PNG in base64."""
    held = io.BytesIO()
    Image.fromarray(frame).save(held, format="PNG")
    return base64.b64encode(held.getvalue()).decode()
