"""Between requests and the batches: work submitted, its pieces awaited, and what is refused.

Called by the app and by `reading`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from nexa_hpc.backends.hf_runtime.batching import Batcher, QueueFull, Work
from nexa_hpc.backends.hf_runtime.generating import Piece

_WATCH_S = 1.0


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status, self.code, self.kind = status, code, kind


@dataclass(frozen=True)
class Served:
    """What the app serves."""

    name: str
    batcher: Batcher
    tokenizer: Any
    max_model_len: int
    is_classifier: bool
    token: str | None


def check_fits(served: Served, tokens: int) -> None:
    """Raise Refusal where the model does not read as many tokens."""
    if tokens > served.max_model_len:
        message = f"{tokens} tokens are more than the {served.max_model_len} of this model"
        raise Refusal(400, message, "context_length_exceeded")


def prompt_ids(served: Served, prompt: Any) -> tuple[int, ...]:
    """Return the token ids of `prompt`, text or ids; raises Refusal for none, and unknown ones."""
    ids = served.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    if not ids or not all(0 <= number < len(served.tokenizer) for number in ids):
        raise Refusal(400, "a prompt has at least one token, each a known one", "bad_prompt")
    return tuple(ids)


def works_for(payloads: Sequence[Any], key: Any) -> tuple[list[Work], asyncio.Queue[Any]]:
    """Return work for each of `payloads`, and the queue that its pieces, with indices, come by."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def deliver(index: int) -> Callable[[Any], None]:
        def put(piece: Any) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

        return put

    return [Work(payload, key, deliver(n)) for n, payload in enumerate(payloads)], pieces


def submit(served: Served, works: Sequence[Work]) -> None:
    """Queue all of `works`; raises Refusal where they are too many, at once or just now."""
    most = served.batcher.max_queue
    if len(works) > most:
        raise Refusal(400, f"more than {most} texts in one request", "too_many")
    try:
        served.batcher.submit(works)
    except QueueFull:
        message = f"{most} texts are waiting already; try again"
        raise Refusal(429, message, "queue_full", "rate_limit_error") from None


async def each(count: int, pieces: asyncio.Queue[Any]) -> AsyncIterator[tuple[int, Any]]:
    """Yield (index, piece) until each of `count` has had its last; raises Refusal for a failure."""
    left = count
    while left:
        index, piece = await pieces.get()
        if isinstance(piece, Exception):
            raise Refusal(500, f"{type(piece).__name__}: {piece}", "failed", "server_error")
        if not isinstance(piece, Piece) or piece.finish is not None:
            left -= 1
        yield index, piece


async def watched(
    works: Sequence[Work], pieces: asyncio.Queue[Any], request: Request
) -> AsyncIterator[tuple[int, Any]]:
    """The same, and nothing more is computed once the client has gone."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_WATCH_S)
        for work in works:
            work.cancelled = True
            work.deliver(ConnectionResetError("the client has gone"))

    watcher = asyncio.create_task(watch())
    try:
        async for found in each(len(works), pieces):
            yield found
    finally:
        watcher.cancel()
