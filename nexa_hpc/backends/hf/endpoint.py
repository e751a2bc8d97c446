"""A model behind OpenAI's endpoints, judged by evaluation: its losses and its answers, by HTTP.

Prompts go to /v1/completions and chats to /v1/chat/completions. Losses are those of a prompt that
/v1/completions echoes, cut into pieces after vLLM's /tokenize; `hf_runtime` has it as well. Called
by evaluation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import openai

from nexa_hpc.backends.hf import addresses, recipes
from nexa_hpc.backends.hf.chats import Answer, Decoding, Example
from nexa_hpc.backends.hf.perplexity import Piece
from nexa_hpc.core.servers import Servers
from nexa_hpc.errors import StepError, nearest

CONCURRENCY = 8
PATIENCE_S = 300.0
"""For how long one request is made again to a server that is too busy for it."""
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_BUSY = (429, 503)
_RETRIES = 2
"""Of the client itself, after lost connections and errors of the server."""
_NO_TOKEN = "none"
"""Without one, the client would show whatever OPENAI_API_KEY holds."""

Asked = TypeVar("Asked")
Told = TypeVar("Told")


class Endpoint:
    """A server of models, and the one of them that is judged."""

    def __init__(self, where: str, settings: Mapping[str, Any], servers: Servers) -> None:
        """Find the server; raises StepError or UserError where it is not there."""
        self._address = addresses.find(where, settings.get("token_variable"), servers)
        self._concurrency = int(settings.get("concurrency", CONCURRENCY))
        self._given_up = threading.Event()
        self._client = openai.OpenAI(
            base_url=self._address.base_url,
            api_key=self._address.token or _NO_TOKEN,
            max_retries=_RETRIES,
            http_client=openai.DefaultHttpxClient(trust_env=not self._address.is_ours),
        )
        self._named = settings.get("endpoint_model") or self._address.model
        self._model, self._longest = "", None
        self.title = self._address.title

    def close(self) -> None:
        """Close its connections; no request is on its way any more."""
        self._client.close()

    @property
    def pace(self) -> dict[str, int]:
        """How the work is divided, for the report."""
        return {"concurrency": self._concurrency}

    def length_limit(self, settings: Mapping[str, Any], task: str) -> int:
        """Return how many tokens are read at once: a server keeps room for one of its own."""
        wanted = int(settings.get("max_length", recipes.DEFAULT_MAX_LENGTH[task]))
        return wanted if self._longest is None else min(wanted, self._longest - 1)

    def token_ids(self, texts: Sequence[str]) -> list[Piece]:
        """Return the tokens of each text."""
        found = dict(self._each(self._tokenized, texts))
        return [found[place] for place in range(len(texts))]

    def piece_losses(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, float]]:
        """Yield the place and the summed loss of each piece."""
        return self._each(self._loss, pieces)

    def answers(
        self, examples: Sequence[Example], decoding: Decoding
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the place of each example and the answer to it."""
        asked: dict[str, Any] = {
            "model": self._model,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature > 0:
            asked["seed"] = decoding.seed
        if decoding.stop:
            asked["stop"] = list(decoding.stop)
        return self._each(lambda example: self._answer(example, asked), examples)

    def _answer(self, example: Example, asked: Mapping[str, Any]) -> Answer:
        if isinstance(example.prompt, str):
            done = self._client.completions.create(prompt=example.prompt, **asked)
            text = done.choices[0].text
        else:
            messages: Any = example.prompt
            done = self._client.chat.completions.create(messages=messages, **asked)
            text = done.choices[0].message.content or ""
        tokens = done.usage.completion_tokens if done.usage else 0
        return Answer(text, tokens, str(done.choices[0].finish_reason))

    def _tokenized(self, text: str) -> Piece:
        body = {"model": self._model, "prompt": text, "add_special_tokens": True}
        url = f"{self._address.url}/tokenize"
        try:
            told: dict[str, Any] = self._client.post(url, body=body, cast_to=dict[str, Any])
        except openai.NotFoundError as error:
            raise StepError(
                f"{self._address.title} has no /tokenize, which perplexity takes: {_said(error)}",
                hint="hf_runtime and vllm have it; or evaluate the checkpoint itself",
            ) from error
        return list(told["tokens"])

    def _loss(self, piece: Piece) -> float:
        asked = {"echo": True, "max_tokens": 0, "logprobs": 0, "temperature": 0}
        done = self._client.completions.create(model=self._model, prompt=list(piece), **asked)
        told = done.choices[0].logprobs
        found = list(told.token_logprobs or []) if told else []
        if len(found) != len(piece) or any(number is None for number in found[1:]):
            raise StepError(
                f"{self._address.title} does not tell how probable the tokens of a prompt are",
                hint="hf_runtime and vllm do; or evaluate the checkpoint itself",
            )
        return -sum(float(number) for number in found[1:] if number is not None)

    def _get(self, path: str) -> Any:
        return self._client.get(path, cast_to=dict[str, Any])

    def find_model(self) -> None:
        """Ask which models are served, and take the one that is judged; raises StepError."""
        named, told = self._named, self._patiently(self._get, "/models", "to list models")
        models = told.get("data") if isinstance(told, dict) else None
        if not isinstance(models, list):
            raise StepError(
                f"{self._address.title} does not answer as OpenAI's endpoints do",
                hint="an endpoint's URL is what is before /v1/models",
            )
        known = {str(model["id"]): model for model in models}
        offered = ", ".join(known) or "none"
        if named is not None and named not in known:
            raise StepError(
                f"{self._address.title} serves no model '{named}'"
                + (nearest(named, known) or f"; it has: {offered}"),
                hint=addresses.LIST_THEM,
            )
        if named is None and len(known) != 1:
            raise StepError(
                f"{self._address.title} serves several models or none: {offered}",
                hint="say which one with `endpoint_model`",
            )
        self._model = named if named is not None else next(iter(known))
        card = known[self._model]
        # That of an adapter tells the length of its base alone.
        self._longest = card.get("max_model_len") or known.get(str(card.get("parent")), card).get(
            "max_model_len"
        )
        self.title = f"{self._model}, {self._address.title}"

    def _each(
        self, ask: Callable[[Asked], Told], things: Sequence[Asked]
    ) -> Iterator[tuple[int, Told]]:
        """Yield the place of each thing and what was told of it, as answers come."""
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            asked = {
                pool.submit(self._patiently, ask, thing, f"row {place + 1}"): place
                for place, thing in enumerate(things)
            }
            for done in as_completed(asked):
                yield asked[done], done.result()
        except BaseException:
            self._given_up.set()
            raise
        finally:
            # What is on its way is awaited: a thread that reads from a connection which another
            # one closes would wait for the client's ten minutes.
            pool.shutdown(cancel_futures=True)

    def _patiently(self, ask: Callable[[Asked], Told], thing: Asked, what: str) -> Told:
        """Return what `ask` tells, asked again while the server is too busy; raises StepError."""
        give_up_at = time.monotonic() + PATIENCE_S
        tried = 0
        while True:
            try:
                return ask(thing)
            except openai.APIStatusError as error:
                if error.status_code not in _BUSY or time.monotonic() > give_up_at:
                    raise self._failure(error, what) from error
                pause = _asked_pause(error) or _PAUSES_S[min(tried, len(_PAUSES_S) - 1)]
            except openai.APIError as error:
                raise self._failure(error, what) from error
            tried += 1
            if self._given_up.wait(pause):
                raise StepError("given up: another request has failed")

    def _failure(self, error: openai.APIError, what: str) -> StepError:
        title, status = self._address.title, getattr(error, "status_code", None)
        if isinstance(error, openai.APIConnectionError):
            message = f"{title} does not answer: {error.__cause__ or error}"
        elif status in (401, 403):
            message = f"{title} refuses the token, or the lack of one: {_said(error)}"
            if not self._address.is_ours:
                return StepError(message, hint="name the token's variable in `token_variable`")
        elif status in _BUSY:
            message = f"{title} has been too busy for {PATIENCE_S:.0f} s: {_said(error)}"
        else:
            message = f"{title} refuses {what}: {_said(error)}"
        return StepError(message, hint=addresses.LIST_THEM)


def _said(error: openai.APIError) -> str:
    body = error.body
    told = body.get("message") if isinstance(body, dict) else None
    return str(told or error)


def _asked_pause(error: openai.APIStatusError) -> float | None:
    """Return for how long the server asks to be left alone, where it says so in seconds."""
    try:
        return max(0.0, min(60.0, float(error.response.headers["retry-after"])))
    except (KeyError, ValueError):
        return None
