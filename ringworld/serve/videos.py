"""/v1/videos: clips drawn from words as jobs, in the dialect of vLLM-Omni and SGLang.

A job is kept for its tenant until it is deleted, an hour is over, or newer ones need the room.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ringworld.errors import InputError
from ringworld.serve.answers import JSON
from ringworld.serve.bodies import FormRoute
from ringworld.serve.conversation import Prompt
from ringworld.serve.drawing import FPS, ask_for_frames, follow_frames, write_clip
from ringworld.serve.events import while_connected
from ringworld.serve.front import Front, RequestProgress
from ringworld.serve.protocol import DrawingBody
from ringworld.serve.refusals import BusyError, NotFoundError, explain_error
from ringworld.tasks.clips import FRAMES_A_CLIP, video_prompt

MOST_JOBS, KEPT_BYTES, KEPT_SECONDS = 64, 256 << 20, 3600
CLIP_TYPES = {"mp4": "video/mp4", "gif": "image/gif", "webm": "video/webm"}
# What others draw from besides words: fields whose value must be one of these.
UNSUPPORTED: dict[str, tuple[object, ...]] = {"input_reference": (None, "")}


class VideoBody(DrawingBody):
    """The body of /v1/videos and /v1/videos/sync."""

    num_frames: int | None = Field(None, ge=1, le=1024)
    seconds: float | None = Field(None, gt=0, le=1024)
    fps: float = Field(FPS, ge=0.1, le=60)
    size: str | None = None
    output_format: Literal["mp4", "gif", "webm"] = "mp4"

    @property
    def frames(self) -> int:
        """How many frames are drawn."""
        if self.num_frames is not None:
            return self.num_frames
        return FRAMES_A_CLIP if self.seconds is None else max(1, round(self.seconds * self.fps))


@dataclass
class VideoJob:
    """One clip: who asked for it, how far it is, and at the end its bytes or why it has none."""

    body: VideoBody
    tenant: str
    model: str
    side: int
    name: str = field(default_factory=lambda: f"video_{token_hex(12)}")
    begun: int = field(default_factory=lambda: int(time.time()))
    ended: int | None = None
    drawn: int = 0
    content: bytes | None = None
    error: JSON | None = None
    task: asyncio.Task[None] | None = None

    def tell(self) -> JSON:
        """The job as a client sees it."""
        status = "in_progress" if self.drawn else "queued"
        if self.ended is not None:
            status = "failed" if self.content is None else "completed"
        return {
            "id": self.name,
            "object": "video",
            "model": self.model,
            "status": status,
            "progress": 100 * self.drawn // self.body.frames,
            "created_at": self.begun,
            "completed_at": self.ended,
            "expires_at": self.begun + KEPT_SECONDS,
            "prompt": self.body.prompt,
            "size": f"{self.side}x{self.side}",
            "seconds": f"{self.body.frames / self.body.fps:g}",
            "error": self.error,
        }


class VideoJobs:
    """The jobs of a server: a bounded number, of bounded size."""

    def __init__(self, front: Front) -> None:
        self._front, self._jobs = front, OrderedDict[str, VideoJob]()

    def open(self, body: VideoBody, tenant: str) -> VideoJob:
        """A job that has not begun.

        Raises InputError when the model draws nothing, or nothing of this size or from a picture,
        or the clip does not fit its context.
        """
        body.refuse_unsupported(UNSUPPORTED)
        wanted = ask_for_frames(self._front.served, video_prompt, body, body.frames, tenant)
        self._front.check_room(len(wanted.prompt), wanted.max_new_tokens)
        side = self._front.served.model.codec.config.size
        if body.size not in (None, "auto", f"{side}x{side}"):
            sentence = f"this model draws {side}x{side} only: ask for this size"
            raise InputError(sentence, setting="size")
        return VideoJob(body, tenant, self._front.config.name, side)

    def start(self, job: VideoJob) -> None:
        """Draw in the background. Raises BusyError when too many are not finished."""
        self._make_room()
        job.task = asyncio.ensure_future(self._run(job))
        self._jobs[job.name] = job

    def find(self, name: str, tenant: str) -> VideoJob:
        """A job of a tenant. Raises NotFoundError."""
        self._forget_old()
        job = self._jobs.get(name)
        if job is None or job.tenant != tenant:
            raise NotFoundError("there is no such video: it may have expired")
        return job

    def list_all(self, tenant: str) -> list[VideoJob]:
        """The jobs of a tenant, the newest first."""
        self._forget_old()
        return [job for job in reversed(self._jobs.values()) if job.tenant == tenant]

    def delete(self, job: VideoJob) -> None:
        """End a job, and forget it."""
        if job.task is not None:
            job.task.cancel()
        self._jobs.pop(job.name, None)

    async def draw(self, job: VideoJob) -> bytes:
        """The clip of a job as a file. Raises InputError when it does not fit the context."""
        wanted = ask_for_frames(
            self._front.served, video_prompt, job.body, job.body.frames, job.tenant
        )
        progress = RequestProgress(tenant=job.tenant)
        asked = await self._front.submit(progress, [wanted], [Prompt(wanted.prompt)])
        shown = []
        async for frame in follow_frames(self._front, asked):
            shown.append(frame)
            job.drawn = len(shown)
        ending = job.body.output_format
        return await asyncio.to_thread(write_clip, np.stack(shown), job.body.fps, ending)

    async def _run(self, job: VideoJob) -> None:
        try:
            job.content = await self.draw(job)
        except Exception as error:
            told = explain_error(error)
            job.error = {"code": told.code or "failed", "message": told.sentence}
        job.ended = int(time.time())

    def _make_room(self) -> None:
        self._forget_old()
        ended = [job for job in self._jobs.values() if job.ended is not None]
        while ended and not self._has_room():
            self._jobs.pop(ended.pop(0).name)
        if not self._has_room():
            raise BusyError

    def _has_room(self) -> bool:
        held = sum(len(job.content or b"") for job in self._jobs.values())
        return len(self._jobs) < MOST_JOBS and held <= KEPT_BYTES

    def _forget_old(self) -> None:
        over = time.time() - KEPT_SECONDS
        for job in [job for job in self._jobs.values() if job.begun < over]:
            self.delete(job)


def add_videos(app: FastAPI, front: Front) -> None:
    """Add the routes, which take forms as JSON: OpenAI's clients send forms."""
    jobs, routes = VideoJobs(front), APIRouter(route_class=FormRoute)

    def find(name: str, request: Request) -> VideoJob:
        return jobs.find(name, request.state.tenant)

    def send(job: VideoJob, content: bytes) -> Response:
        return Response(content, media_type=CLIP_TYPES[job.body.output_format])

    @routes.post("/v1/videos/sync")
    async def draw_now(body: VideoBody, request: Request) -> Response:
        """Draw a clip from words, and answer with the file."""
        front.check(body.model)
        job = jobs.open(body, request.state.tenant)
        return send(job, await while_connected(request, jobs.draw(job)))

    @routes.post("/v1/videos")
    async def draw_later(body: VideoBody, request: Request) -> dict[str, Any]:
        """Begin to draw a clip from words."""
        front.check(body.model)
        job = jobs.open(body, request.state.tenant)
        jobs.start(job)
        return job.tell()

    @routes.get("/v1/videos")
    async def list_videos(request: Request) -> dict[str, Any]:
        """The clips that were asked for."""
        data = [job.tell() for job in jobs.list_all(request.state.tenant)]
        return {"object": "list", "data": data, "has_more": False}

    @routes.get("/v1/videos/{name}")
    async def status(name: str, request: Request) -> dict[str, Any]:
        """How far a clip is."""
        return find(name, request).tell()

    @routes.get("/v1/videos/{name}/content")
    async def content(name: str, request: Request) -> Response:
        """The file of a clip that is finished."""
        job = find(name, request)
        if job.content is None:
            raise InputError("this video is not finished: ask for its status", setting="video_id")
        return send(job, job.content)

    @routes.delete("/v1/videos/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        """End and forget a clip."""
        jobs.delete(find(name, request))
        return {"id": name, "object": "video.deleted", "deleted": True}

    app.include_router(routes)
