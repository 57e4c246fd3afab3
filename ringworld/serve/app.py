"""The routes of the server: bodies in, answers of the front out, errors in the form of each API."""

import asyncio
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from ringworld.errors import InputError
from ringworld.serve.bodies import BodyRoute
from ringworld.serve.completions import ChatReply, CompletionReply
from ringworld.serve.config import ServeConfig
from ringworld.serve.conversation import make_prompt, render_messages
from ringworld.serve.drawing import add_drawing
from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.events import while_connected
from ringworld.serve.front import Front, RequestProgress
from ringworld.serve.guard import RequestGuard
from ringworld.serve.messages import CountBody, MessageReply, MessagesBody
from ringworld.serve.pictures import draw_images
from ringworld.serve.play import add_play
from ringworld.serve.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ImageBody,
    TokenizeBody,
)
from ringworld.serve.refusals import EXPLAINED, UnknownModelError, explain_error
from ringworld.serve.replies import ApiReply, reply_to
from ringworld.serve.reports import add_reports
from ringworld.serve.responses import ResponseReply, ResponsesBody
from ringworld.serve.served import Served
from ringworld.serve.videos import add_videos
from ringworld.settings import DRAWING, GUIDANCE

VERSION = installed_version("ringworld")
# What every route may answer besides what it is there for.
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "what is wrong with the request"},
    "5XX": {"description": "the server is full, or has failed"},
}
PAGE_FOLDER = Path(__file__).with_name("page")
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def make_app(config: ServeConfig, served: Served, thread: EngineThread) -> RequestGuard:
    """The application of a model whose engine runs."""
    app = FastAPI(
        title="ringworld", version=VERSION, docs_url=None, redoc_url=None, responses=REFUSALS
    )
    app.router.route_class = BodyRoute
    front = Front(config, served, thread)
    _add_errors(app)
    _add_answers(app, front)
    add_drawing(app, front)
    add_videos(app, front)
    add_play(app, front)
    _add_tokens(app, front)
    _add_state(app, front)
    add_reports(app, config.model, config.reports, served.model.about)
    _add_page(app)
    return RequestGuard(app, config, lambda: front.full)


def _add_errors(app: FastAPI) -> None:
    async def tell(request: Request, error: Exception) -> JSONResponse:
        return explain_error(error).respond(request.url.path)

    for kind in (*EXPLAINED, Exception):
        app.add_exception_handler(kind, tell)


def _add_answers(app: FastAPI, front: Front) -> None:
    def begin(request: Request) -> RequestProgress:
        return RequestProgress(tenant=request.state.tenant)

    async def answer_chat(request: Request, body: ChatBody, reply: ApiReply) -> Response:
        job = begin(request)
        return await reply_to(request, reply, front.ask_chat(body, job), job, stream=body.stream)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation, with pictures and films in it."""
        body.refuse_unsupported()
        front.check(body.model)
        return await answer_chat(request, body, ChatReply(front, body))

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue prompts, or score them: `echo` with `logprobs`."""
        body.refuse_unsupported()
        front.check(body.model)
        if body.stream and body.echo and body.logprobs is not None:
            raise InputError("a stream has no log-probabilities of its prompt: leave stream out")
        job, reply = begin(request), CompletionReply(front, body)
        accept = front.ask_completion(body, job)
        return await reply_to(request, reply, accept, job, stream=body.stream)

    @app.post("/v1/responses")
    async def respond(body: ResponsesBody, request: Request) -> Response:
        """Answer a conversation in OpenAI's newer form. Nothing is stored."""
        asked = body.as_chat()
        front.check(asked.model)
        return await answer_chat(request, asked, ResponseReply(front, body, asked))

    @app.post("/v1/messages")
    async def write_message(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation in Anthropic's form."""
        asked = body.as_chat()
        front.check(asked.model)
        return await answer_chat(request, asked, MessageReply(front, asked))

    @app.post("/v1/messages/count_tokens")
    async def count(body: CountBody, request: Request) -> dict[str, int]:
        """The tokens that a conversation in Anthropic's form takes, with its pictures."""
        asked = body.as_chat()
        front.check(asked.model)
        prompt = await while_connected(request, front.read_chat(asked, begin(request)))
        return {"input_tokens": len(prompt.example)}

    @app.post("/v1/images/generations")
    async def draw(body: ImageBody, request: Request) -> dict[str, Any]:
        """Draw pictures from words."""
        body.refuse_unsupported()
        front.check(body.model)
        drawn = await while_connected(request, draw_images(front, body, begin(request)))
        return {"created": int(time.time()), "data": drawn}


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
        prompt = make_prompt(render_messages(body.messages, served), [], served)
        return [int(i) for i in prompt.example.tokens]
    if body.prompt is None:
        raise InputError("there is nothing to tokenize: give prompt or messages", setting="prompt")
    words = served.words
    if body.prompt in (words.bos_name, words.eos_name):  # lm-eval asks for their ids so
        return [words.bos if body.prompt == words.bos_name else words.eos]
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
        "actions": list(front.served.actions),
        "drawing": {
            "guidance_scale": GUIDANCE,
            "temperature": DRAWING.temperature,
            "top_k": DRAWING.top_k,
            "min_p": DRAWING.min_p,
        },
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

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return PlainTextResponse(front.metrics.expose(), media_type="text/plain; version=0.0.4")

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """200 while the engine's thread runs, which is not asked."""
        return Response(status_code=200 if front.thread.alive else 503)

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_class=Response)
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
