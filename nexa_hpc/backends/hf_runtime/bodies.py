"""What requests may say: OpenAI's words for completions and chats, vLLM's for the others.

A word that this server does not know is refused, unless it asks for nothing: a client that thinks
it was obeyed is worse off than one that is told.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_WITHOUT_EFFECT = {"user", "metadata", "store", "safety_identifier", "service_tier"}
_NEUTRAL: dict[str, Any] = {
    "n": 1, "best_of": 1, "echo": False, "frequency_penalty": 0, "presence_penalty": 0,
    "logprobs": False, "logit_bias": {}, "tools": [], "response_format": {"type": "text"},
    "parallel_tool_calls": True,
}  # fmt: skip


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str

    @model_validator(mode="after")
    def _known(self) -> _Body:
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _WITHOUT_EFFECT or _NEUTRAL.get(name, self) == value:
                continue
            raise ValueError(f"this server does not support '{name}': {value!r}")
        return self


class StreamOptions(BaseModel):
    """What a stream tells at its end."""

    include_usage: bool = False


class _Generation(_Body):
    temperature: float = Field(1.0, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which it ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class CompletionBody(_Generation):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    """How probable the prompt is is asked for, and no text."""
    logprobs: int | None = None

    @model_validator(mode="after")
    def _reads_or_writes(self) -> CompletionBody:
        if self.echo:
            if self.max_tokens or self.logprobs != 0 or self.stream:
                raise ValueError("with 'echo' this server takes max_tokens 0 and logprobs 0 alone")
        elif not self.max_tokens or self.logprobs:
            raise ValueError("max_tokens 0, and logprobs, are for the tokens of a prompt: 'echo'")
        return self

    @property
    def prompts(self) -> list[Any]:
        """Each prompt: text, or token ids."""
        if isinstance(self.prompt, str) or all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]
        return list(self.prompt)


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, str]:
        """Return it as chat templates take it; raises ValueError for parts that are no text."""
        if isinstance(self.content, list):
            if any(part.get("type") != "text" for part in self.content):
                raise ValueError("this server takes text alone")
            text = "".join(str(part.get("text", "")) for part in self.content)
        else:
            text = self.content or ""
        return {"role": self.role, "content": text}


class ChatBody(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class TokenizeBody(_Body):
    """POST /tokenize."""

    prompt: str
    add_special_tokens: bool = True


class ClassifyBody(_Body):
    """POST /classify."""

    input: str | list[str]

    @property
    def texts(self) -> list[str]:
        """The texts to classify."""
        return [self.input] if isinstance(self.input, str) else self.input
