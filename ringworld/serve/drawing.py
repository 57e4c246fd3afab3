"""Frames drawn from words: the request to the engine, and a clip sent frame by frame.

POST /draw answers with events: each frame as PNG, and at the end the whole clip as MP4.
"""

import asyncio
import base64
import io
import secrets
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from jaxtyping import Int, UInt8
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from ringworld.data.example import Example
from ringworld.errors import InputError
from ringworld.inference.request import Request as DrawingRequest
from ringworld.media.clip import write_animation
from ringworld.serve.answers import JSON
from ringworld.serve.conversation import Prompt
from ringworld.serve.events import EventStream, while_connected
from ringworld.serve.front import Asked, Front, RequestProgress
from ringworld.serve.protocol import ClipBody, DrawingBody
from ringworld.serve.refusals import openai_failure
from ringworld.serve.served import Served
from ringworld.settings import SEEDS, Sampling
from ringworld.tasks.clips import unconditional_prompt, video_prompt
from ringworld.text.tokenizer import Tokenizer
from ringworld.vocab import Vocabulary

# Of the clip that is sent: frames a second, and the shorter side that a player shows well.
FPS, SHOWN_SIDE = 4.0, 256


def ask_for_frames(
    served: Served,
    prompt: Callable[[str, Tokenizer], Example],
    body: DrawingBody,
    frames: int,
    tenant: str,
    samples: int = 1,
) -> DrawingRequest:
    """The engine's request for so many frames of what a body says, the last without its end.

    `prompt` makes the prompt of its words, for a picture or for a clip.

    Raises InputError when the model draws nothing.
    """
    vocabulary, words = served.config.vocabulary, served.words
    if not vocabulary.codes:
        raise InputError("this model draws nothing: serve a model with vision")
    return DrawingRequest(
        prompt=prompt(body.prompt, words),
        max_new_tokens=frames * vocabulary.frame_length - 1,
        codes=True,
        guided_from=unconditional_prompt(words) if body.guidance_scale != 1 else None,
        guidance=body.guidance_scale,
        sampling=Sampling(temperature=body.temperature, top_k=body.top_k, min_p=body.min_p),
        seed=secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS,
        samples=samples,
        tenant=tenant,
    )


class FrameCutter:
    """Cuts the ids of one drawing, which come in pieces of any length, into the codes of frames."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._ids, self._cut = vocabulary, list[int](), 0

    def add(self, ids: Sequence[int]) -> list[Int[np.ndarray, "1 Q"]]:
        """The codes of each frame that is whole now and was not before."""
        self._ids += ids
        whole = []
        # The marker behind a frame's codes may come later, and is not waited for.
        while len(self._ids) >= self._cut + self._vocabulary.codes_per_frame:
            past = self._cut + self._vocabulary.codes_per_frame
            whole.append(np.asarray([self._ids[self._cut : past]], np.int32))
            self._cut += self._vocabulary.frame_length
        return whole


async def follow_frames(
    front: Front, asked: Asked
) -> AsyncGenerator[UInt8[np.ndarray, "Y X 3"], None]:
    """The frames of one drawing, each as soon as its codes are there."""
    cutter = FrameCutter(front.served.config.vocabulary)
    async with aclosing(front.follow(asked)) as updates:
        async for update in updates:
            for piece in update.pieces:
                for codes in cutter.add(piece.ids):
                    yield (await decode_frames(front, codes))[0]


async def decode_frames(front: Front, codes: np.ndarray) -> UInt8[np.ndarray, "Z Y X 3"]:
    """The frames of codes `[Z, Q]`, decoded in the thread that owns JAX."""
    codec = front.served.model.codec
    return await asyncio.wrap_future(front.thread.call(lambda: codec.decode(codes)))


def write_png(frame: UInt8[np.ndarray, "Y X 3"]) -> str:
    """A frame as PNG in base64."""
    held = io.BytesIO()
    Image.fromarray(frame).save(held, format="PNG")
    return base64.b64encode(held.getvalue()).decode()


def _write_mp4(frames: UInt8[np.ndarray, "Z Y X 3"]) -> str:
    """A clip as MP4 in base64, its pixels enlarged to squares."""
    times = max(1, SHOWN_SIDE // min(frames.shape[1:3]))
    larger = frames.repeat(times, axis=1).repeat(times, axis=2)
    return base64.b64encode(write_clip(larger, FPS, "mp4")).decode()


def write_clip(frames: UInt8[np.ndarray, "Z Y X 3"], fps: float, ending: str) -> bytes:
    """A clip as a file of the kind that its ending says: gif, mp4 or webm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{ending}")
        write_animation(path, frames, fps)
        return path.read_bytes()


async def _draw_events(front: Front, asked: Asked, count: int) -> AsyncGenerator[JSON, None]:
    shown: list[np.ndarray] = []
    async with aclosing(follow_frames(front, asked)) as frames:
        async for frame in frames:
            shown.append(frame)
            png = await asyncio.to_thread(write_png, frame)
            yield {"frame": len(shown), "frames": count, "b64_json": png}
    yield {"fps": FPS, "b64_mp4": await asyncio.to_thread(_write_mp4, np.stack(shown))}


def add_drawing(app: FastAPI, front: Front) -> None:
    """Add the route."""

    @app.post("/draw")
    async def draw(body: ClipBody, request: Request) -> Response:
        """Draw a clip from words: its frames are events, and the last one has the clip."""
        front.check(body.model)
        job = RequestProgress(tenant=request.state.tenant)
        wanted = ask_for_frames(front.served, video_prompt, body, body.frames, job.tenant)
        accepted = front.submit(job, [wanted], [Prompt(wanted.prompt)])
        asked = await while_connected(request, accepted)
        events = _draw_events(front, asked, body.frames)
        return EventStream(events, lambda: job.note, openai_failure, asked.ticket.cancel)
