"""The HTTP interface, on FastAPI: OpenAI's endpoints, `/classify`, `/tokenize` and `/health`.

    401 wrong token   404 another model   400 what cannot be asked   413 too large   429 queue full

Errors have OpenAI's form. `/health` needs no token, as it says nothing but that the server lives.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nexa_hpc.backends.hf import chats
from nexa_hpc.backends.hf_runtime import exchange, reading
from nexa_hpc.backends.hf_runtime.batching import Work
from nexa_hpc.backends.hf_runtime.bodies import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    TokenizeBody,
)
from nexa_hpc.backends.hf_runtime.exchange import Refusal, Served
from nexa_hpc.backends.hf_runtime.generating import Piece, Prompt, Sampling

MAX_BODY_BYTES = 4 << 20
Next = Callable[[Request], Awaitable[Response]]
_CHAT_TOKENS = 1024


def make_app(served: Served) -> FastAPI:
    """Return the application that serves one model."""
    app = FastAPI(title="hf_runtime", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.middleware("http")(_guard(served.token))
    began = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"id": served.name, "object": "model", "created": began, "owned_by": "nexa_hpc"}
        return {"object": "list", "data": [{**about, "max_model_len": served.max_model_len}]}

    @app.post("/classify")
    async def classify(body: ClassifyBody, request: Request) -> Any:
        return await _classify(served, body, request)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Any:
        _check_model(served, body.model)
        return reading.tokenize(served, body)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Any:
        _check(served, body.model, generates=True)
        prompts = [exchange.prompt_ids(served, text) for text in body.prompts]
        if body.echo:
            read = await reading.read_prompts(served, body.prompts, prompts, request)
            return {**_Completion(served.name).head(), **read}
        wanted = [_prompt(served, ids, body, body.max_tokens) for ids in prompts]
        return await _answer(served, _Completion(served.name), body, wanted, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Any:
        _check(served, body.model, generates=True)
        ids = _chat_ids(served, body)
        asked = body.max_completion_tokens or body.max_tokens
        room = max(1, served.max_model_len - len(ids))
        prompt = _prompt(served, ids, body, asked or min(_CHAT_TOKENS, room))
        return await _answer(served, _Chat(served.name), body, [prompt], request)

    return app


# ------------------------------------------------------------------------------ what is refused


def _guard(token: str | None) -> Callable[..., Awaitable[Response]]:
    async def guard(request: Request, call_next: Next) -> Response:
        if request.url.path == "/health":
            return await call_next(request)
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if token is not None and not hmac.compare_digest(given, token.encode()):
            error = Refusal(401, "a wrong token, or none", "invalid_api_key")
            response = _refused(request, error)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        length = request.headers.get("content-length", "")
        if request.method == "POST" and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
            message = f"a body has a Content-Length of at most {MAX_BODY_BYTES} bytes"
            return _refused(request, Refusal(413, message, "too_large"))
        return await call_next(request)

    return guard


def _refused(_: Request, error: Any) -> JSONResponse:
    content = {"message": str(error), "type": error.kind, "param": None, "code": error.code}
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse({"error": content}, error.status, headers)


def _invalid(request: Request, error: Any) -> JSONResponse:
    told = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}".lstrip(": ")
        for problem in error.errors()
    )
    return _refused(request, Refusal(400, told, "invalid_request"))


def _check_model(served: Served, model: str) -> None:
    if model != served.name:
        message = f"no model '{model}' here; there is '{served.name}'"
        raise Refusal(404, message, "model_not_found")


def _check(served: Served, model: str, *, generates: bool) -> None:
    _check_model(served, model)
    if generates == served.is_classifier:
        other = "/classify" if served.is_classifier else "/v1/completions"
        raise Refusal(400, f"this model answers to {other}", "wrong_endpoint")


def _chat_ids(served: Served, body: ChatBody) -> tuple[int, ...]:
    try:
        messages = [message.plain() for message in body.messages]
        return tuple(chats.chat_ids(served.tokenizer, messages))
    except Exception as error:
        # A template is the model's own program: whatever it says of the messages is the answer.
        raise Refusal(400, f"the chat template: {error}", "chat_template") from error


def _prompt(served: Served, ids: tuple[int, ...], body: Any, max_tokens: int) -> Prompt:
    exchange.check_fits(served, len(ids) + max_tokens)
    sampling = Sampling(body.temperature, body.top_p, body.seed)
    return Prompt(ids, max_tokens, sampling, body.stops, body.stream)


# ------------------------------------------------------------------------------- what is answered


class _Form(ABC):
    """How an answer is written."""

    kind = chunk_kind = prefix = ""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def head(self, *, chunk: bool = False) -> dict[str, Any]:
        """Return what every answer begins with."""
        kind = self.chunk_kind if chunk else self.kind
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    @abstractmethod
    def whole(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a choice."""

    @abstractmethod
    def part(self, index: int, text: str, finish: str | None, *, first: bool) -> dict[str, Any]:
        """Return a choice of a stream's chunk."""


class _Completion(_Form):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def whole(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": None}

    def part(self, index: int, text: str, finish: str | None, *, first: bool) -> dict[str, Any]:
        return self.whole(index, text, finish)


class _Chat(_Form):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def whole(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "finish_reason": finish, "logprobs": None}

    def part(self, index: int, text: str, finish: str | None, *, first: bool) -> dict[str, Any]:
        delta = {**({"role": "assistant"} if first else {}), "content": text}
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}


async def _answer(
    served: Served, form: _Form, body: Any, prompts: Sequence[Prompt], request: Request
) -> Any:
    # A seed is for one request alone: others in its batch would change what it draws.
    alone = object() if body.seed is not None else None
    works, pieces = exchange.works_for(prompts, (prompts[0].sampling, alone))
    exchange.submit(served, works)
    if body.stream:
        events = _events(form, works, pieces, body)
        return StreamingResponse(events, media_type="text/event-stream")
    texts = ["" for _ in works]
    ends: list[Piece] = [Piece("") for _ in works]
    async for index, piece in exchange.watched(works, pieces, request):
        texts[index] += piece.text
        ends[index] = piece
    usage = _usage(works, ends)
    choices = [form.whole(n, text, ends[n].finish) for n, text in enumerate(texts)]
    return {**form.head(), "choices": choices, "usage": usage}


async def _events(
    form: _Form, works: Sequence[Work], pieces: asyncio.Queue[Any], body: Any
) -> AsyncIterator[str]:
    begun: set[int] = set()
    ends: list[Piece] = [Piece("") for _ in works]
    try:
        async for index, piece in exchange.each(len(works), pieces):
            ends[index] = piece
            choice = form.part(index, piece.text, piece.finish, first=index not in begun)
            begun.add(index)
            yield _event({**form.head(chunk=True), "choices": [choice]})
        if body.stream_options is not None and body.stream_options.include_usage:
            usage = {"choices": [], "usage": _usage(works, ends)}
            yield _event({**form.head(chunk=True), **usage})
    except Refusal as error:
        yield _event({"error": {"message": str(error), "type": error.kind, "code": error.code}})
    finally:
        # Also when the client has gone: what is left of its rows is not computed.
        for work in works:
            work.cancelled = True
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _usage(works: Sequence[Work], ends: Sequence[Piece]) -> dict[str, int]:
    given = sum(len(work.payload.ids) for work in works)
    made = sum(piece.tokens for piece in ends)
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


async def _classify(served: Served, body: ClassifyBody, request: Request) -> dict[str, Any]:
    _check(served, body.model, generates=False)
    texts = [exchange.prompt_ids(served, text) for text in body.texts]
    for ids in texts:
        exchange.check_fits(served, len(ids))
    works, pieces = exchange.works_for(texts, None)
    exchange.submit(served, works)
    data: list[dict[str, Any]] = [{} for _ in works]
    async for index, found in exchange.watched(works, pieces, request):
        data[index] = {"index": index, **found}
    used = sum(map(len, texts))
    usage = {"prompt_tokens": used, "completion_tokens": 0, "total_tokens": used}
    about = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return {**about, "model": served.name, "data": data, "usage": usage}
