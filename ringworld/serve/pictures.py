"""/v1/images/generations: pictures drawn from words, as PNG."""

import asyncio
from contextlib import aclosing

import numpy as np

from ringworld.errors import InputError
from ringworld.serve.answers import JSON
from ringworld.serve.conversation import Prompt
from ringworld.serve.drawing import ask_for_frames, decode_frames, write_png
from ringworld.serve.front import Front, RequestProgress
from ringworld.serve.protocol import ImageBody
from ringworld.tasks.stills import image_prompt


async def draw_images(front: Front, body: ImageBody, job: RequestProgress) -> list[JSON]:
    """The pictures of a request, asked for in the form of `ringworld generate image`.

    Raises InputError when the model draws nothing, or nothing of the size that is asked for.
    """
    request = ask_for_frames(front.served, image_prompt, body, 1, job.tenant, body.n)
    side = front.served.model.codec.config.size
    if body.size not in (None, "auto", f"{side}x{side}"):
        raise InputError(f"this model draws {side}x{side} only: ask for this size", setting="size")
    asked = await front.submit(job, [request], [Prompt(request.prompt)])
    drawn: list[list[int]] = [[] for _ in range(body.n)]
    async with aclosing(front.follow(asked)) as updates:
        async for update in updates:
            for piece in update.pieces:
                drawn[piece.sample] += piece.ids
    frames = await decode_frames(front, np.asarray(drawn, np.int32))
    return [{"b64_json": await asyncio.to_thread(write_png, frame)} for frame in frames]
