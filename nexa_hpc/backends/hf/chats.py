"""Chats as language models read them, and prompts with the answers that are expected.

Called by evaluation and by `hf_runtime`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_hpc.errors import StepError, nearest

Chat = list[dict[str, str]]
"""Messages: each with its role and its content."""

CHATS = "messages"
"""The column that chats are looked for in, as training does."""
PROMPTS, REFERENCES = "prompt", "reference"


@dataclass(frozen=True)
class Example:
    """What is asked, and the answer that is expected."""

    prompt: str | Chat
    reference: str


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; at temperature 0 the most probable token is always taken."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Decoding:
        """Return what `settings` say."""
        given = {name: settings[name] for name in cls.__dataclass_fields__ if name in settings}
        return cls(**{**given, "stop": tuple(given.get("stop", ()))})


@dataclass(frozen=True)
class Answer:
    """What a model generated."""

    text: str
    tokens: int
    finish: str
    """`stop`: it ended by itself or at a stop text; `length`: `max_new_tokens` were reached."""


def chat_ids(tokenizer: Any, messages: Chat) -> list[int]:
    """Return the tokens of a chat, up to where the next answer begins; the template may raise."""
    # As text first: the template itself says where special tokens are.
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def read_examples(part: Any, settings: Mapping[str, Any], title: str) -> list[Example]:
    """Return the examples in the rows `part`; those without an answer are left out, and counted.

    A prompt is text or a chat. The reference is a column, or else the chat's last message, by the
    assistant. Raises StepError for columns that are not there or hold something else.
    """
    prompts = _column(part, settings.get("prompt_column"), (CHATS, PROMPTS), title)
    holds_chats = _holds_chats(part, prompts)
    if "reference_column" in settings or not holds_chats:
        references = _column(part, settings.get("reference_column"), (REFERENCES,), title)
        pairs = list(zip(part[prompts], part[references], strict=True))
    else:
        pairs = [_divided(chat) for chat in part[prompts]]
    found = [
        Example(_chat(prompt) if holds_chats else str(prompt), str(reference))
        for prompt, reference in pairs
        if prompt and reference is not None
    ]
    if len(found) < len(pairs):
        left_out = len(pairs) - len(found)
        print(f"{left_out} of {len(pairs)} rows have no prompt, or no answer, and are left out")
    return found


def _column(part: Any, named: str | None, usual: Sequence[str], title: str) -> str:
    names = part.column_names
    if named is None:
        found = next((name for name in usual if name in names), None)
        if found is not None:
            return found
        what = "reference" if REFERENCES in usual else "prompt"
        raise StepError(
            f"which column of the dataset {title} is the {what}? It has: {', '.join(names)}",
            hint=f"say it with `{what}_column`",
        )
    if named not in names:
        raise StepError(
            f"the dataset {title} has no column '{named}'"
            + (nearest(named, names) or f"; it has: {', '.join(names)}")
        )
    return named


def _holds_chats(part: Any, column: str) -> bool:
    first = next((value for value in part[column] if value), "")
    return isinstance(first, list)


def _divided(chat: Sequence[Mapping[str, Any]] | None) -> tuple[Any, str | None]:
    """Return a chat without its last message, and that, where the assistant said it."""
    if not chat or chat[-1].get("role") != "assistant":
        return None, None
    return chat[:-1], chat[-1].get("content")


def _chat(messages: Sequence[Mapping[str, Any]]) -> Chat:
    return [{"role": str(m["role"]), "content": str(m.get("content") or "")} for m in messages]
