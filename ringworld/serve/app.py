"""The routes of the server: bodies in, answers of the front out, errors in OpenAI's form."""

import asyncio
import json
import time
from collections.abc import Coroutine
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from ringworld.errors import InputError, TooLargeError
from ringworld.serve.completions import ApiReply, ChatReply, CompletionReply
from ringworld.serve.config import ServeConfig
from ringworld.serve.conversation import make_prompt
from ringworld.serve.drawing import add_drawing
from ringworld.serve.engine_thread import EngineFailedError, EngineThread
from ringworld.serve.events import EventStream, GoneError, while_connected
from ringworld.serve.front import Asked, BusyError, Front, RequestProgress, UnknownModelError
from ringworld.serve.guard import RequestGuard, refusal
from ringworld.serve.pictures import draw_images
from ringworld.serve.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ImageBody,
    TokenizeBody,
)
from ringworld.serve.reports import add_reports
from ringworld.serve.served import Served

VERSION = installed_version("ringworld")
PAGE_FOLDER = Path(__file__).with_name("page")
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# A stream that is not accepted after so many seconds begins, to tell how far it is.
PATIENCE = 1.0
# Seconds after which a client that was refused for the queue may ask again.
RETRY_AFTER = 5
# What a client that has gone away is told, in nginx's way.
CLIENT_GONE = 499


def make_app(config: ServeConfig, served: Served, thread: EngineThread) -> RequestGuard:
    """The application of a model whose engine runs."""
    app = FastAPI(title="ringworld", version=VERSION, docs_url=None, redoc_url=None)
    front = Front(config, served, thread)
    _add_errors(app)
    _add_answers(app, front)
    add_drawing(app, front, _event)
    _add_tokens(app, front)
    _add_state(app, front)
    add_reports(app, config.model, config.reports, served.model.about)
    _add_page(app)
    return RequestGuard(app, config)


def explain_error(error: Exception) -> JSONResponse:
    """An error in OpenAI's form. One that nobody foresaw is told without its text."""
    if isinstance(error, TooLargeError):
        return refusal(400, str(error), code="context_length_exceeded", setting=error.setting)
    if isinstance(error, InputError):
        return refusal(400, str(error), setting=error.setting)
    if isinstance(error, BusyError):
        sentence = "as many requests wait as the server lets wait: try again later"
        return refusal(503, sentence, code="queue_full", retry_after=RETRY_AFTER)
    if isinstance(error, UnknownModelError):
        sentence = "this server has no model of that name: GET /v1/models lists it"
        return refusal(404, sentence, code="model_not_found", setting="model")
    if isinstance(error, EngineFailedError):
        return refusal(500, "the engine failed and was started anew: send the request again")
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal(400, f"{place or 'the body'}: {first['msg']}", setting=place or None)
    if isinstance(error, HTTPException):
        return refusal(error.status_code, str(error.detail))
    if isinstance(error, GoneError):
        return refusal(CLIENT_GONE, "the client has closed the connection")
    return refusal(500, "the server failed: try again")


def _add_errors(app: FastAPI) -> None:
    async def tell(request: Request, error: Exception) -> JSONResponse:
        return explain_error(error)

    kinds = (InputError, BusyError, UnknownModelError, EngineFailedError, GoneError)
    for kind in (*kinds, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, tell)


def _event(error: Exception) -> dict[str, Any]:
    """An error as an event of a stream that has begun."""
    return json.loads(bytes(explain_error(error).body))


def _add_answers(app: FastAPI, front: Front) -> None:
    async def answer(
        request: Request,
        body: Any,
        reply: ApiReply,
        accept: Coroutine[Any, Any, Asked],
        job: RequestProgress,
    ) -> Response:
        """One whole answer; or events, which begin when it is accepted or takes long to be."""
        if not body.stream:

            async def complete() -> dict[str, Any]:
                return await reply.whole(await accept)

            return JSONResponse(await while_connected(request, complete()))
        accepted = asyncio.ensure_future(accept)
        try:
            await while_connected(request, _wait(accepted))
            if accepted.done():
                accepted.result()
        except BaseException:
            accepted.cancel()
            raise
        return EventStream(reply.events(accepted), lambda: job.note, _event)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, with pictures and films in it."""
        body.refuse_unsupported()
        front.check(body.model)
        job = RequestProgress()
        return await answer(request, body, ChatReply(front, body), front.ask_chat(body, job), job)

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue prompts, or score them: `echo` with `logprobs`."""
        body.refuse_unsupported()
        front.check(body.model)
        if body.stream and body.echo and body.logprobs is not None:
            raise InputError("a stream has no log-probabilities of its prompt: leave stream out")
        job, reply = RequestProgress(), CompletionReply(front, body)
        return await answer(request, body, reply, front.ask_completion(body, job), job)

    @app.post("/v1/images/generations")
    async def draw(body: ImageBody, request: Request) -> dict[str, Any]:
        """Draw pictures from words."""
        body.refuse_unsupported()
        front.check(body.model)
        drawn = await while_connected(request, draw_images(front, body, RequestProgress()))
        return {"created": int(time.time()), "data": drawn}


async def _wait(accepted: asyncio.Future[Asked]) -> None:
    await asyncio.wait({accepted}, timeout=PATIENCE)


def _add_tokens(app: FastAPI, front: Front) -> None:
    words, context = front.served.words, front.served.context

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The ids of a text, or of messages as the chat template shows them."""
        ids = await asyncio.to_thread(_tokenize, body, front.served)
        return {"count": len(ids), "max_model_len": context, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        """The text of ids, special tokens left out."""
        front.check_ids(body.tokens)
        return {"prompt": await asyncio.to_thread(words.decode, body.tokens)}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """The names of the first and the last token, and the chat template."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": words.bos_name,
            "eos_token": words.eos_name,
            "chat_template": front.served.template,
        }


def _tokenize(body: TokenizeBody, served: Served) -> list[int]:
    if body.messages is not None:
        if any(part.type != "text" for message in body.messages for part in message.parts):
            raise InputError("pictures and films have no text ids: leave them out")
        prompt = make_prompt(body.messages, [], b"", served)
        return [int(i) for i in prompt.example.tokens]
    if body.prompt is None:
        raise InputError("there is nothing to tokenize: give prompt or messages", setting="prompt")
    opening = served.words.opening if body.add_special_tokens else []
    return [*opening, *served.words.encode(body.prompt)]


def _add_state(app: FastAPI, front: Front) -> None:
    name, began = front.config.name, int(time.time())
    model = {
        "id": name,
        "object": "model",
        "created": began,
        "owned_by": "ringworld",
        "root": name,
        "max_model_len": front.served.context,
        "vision": front.media.reads,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, with its context as `max_model_len`."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{wanted}")
    async def one_model(wanted: str) -> dict[str, Any]:
        """The model by its name."""
        if wanted != name:
            raise UnknownModelError
        return model

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of the server."""
        return {"version": VERSION}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return PlainTextResponse(front.metrics.expose(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    async def health() -> Response:
        """200 while the engine's thread runs, which is not asked."""
        return Response(status_code=200 if front.thread.alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """200 when a request would be accepted now."""
        front.check(None)
        return Response(status_code=200 if front.thread.alive else 503)


def _add_page(app: FastAPI) -> None:
    names = {path.name for path in PAGE_FOLDER.iterdir() if path.suffix in PAGE_TYPES}

    def send(name: str) -> Response:
        kind = PAGE_TYPES[Path(name).suffix]
        headers = {"Cache-Control": "no-cache"}
        return FileResponse(PAGE_FOLDER / name, media_type=kind, headers=headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page."""
        return send("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        """A file of the page."""
        if name not in names:
            raise HTTPException(404, "there is no such file")
        return send(name)
