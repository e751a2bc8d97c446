"""Text from causal models, in batches: transformers' `generate`, with each row's text as it comes.

A batch runs until its longest row has ended. Rows that reach their own limit, a stop text or nobody
who waits are padded from then on. Texts that are there are read as well. Called by `batching`, in
its thread, and by evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from nexa_hpc.backends.hf.losses import token_losses
from nexa_hpc.backends.hf_runtime.batching import Work

MOST_READ = 4096
"""As many tokens are read at once: each takes a number for every word that the model knows."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; requests that agree on it share batches."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        """Return it as `generate` takes it, past what the model's own configuration says."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        chosen = {"temperature": self.temperature, "top_p": self.top_p}
        return {"do_sample": True, "top_k": 0, **chosen}


@dataclass(frozen=True)
class Prompt:
    """One text to go on with."""

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    streams: bool = False


@dataclass(frozen=True)
class Reading:
    """One text to read: it becomes the log-probabilities of its tokens but the first."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A part of what is generated; the last one has a `finish`: stop or length."""

    text: str
    finish: str | None = None
    tokens: int = 0


class _Row:
    """What has been generated for one piece of work."""

    def __init__(self, work: Work, tokenizer: Any, ends: frozenset[int]) -> None:
        self.work, self.prompt = work, work.payload
        self.ids: list[int] = []
        self.done = False
        self._tokenizer, self._ends = tokenizer, ends
        self._said = ""
        """What was delivered."""
        self._begun = self._read = 0
        self._text = ""

    def take(self, token: int) -> bool:
        """Take the next token; return whether the row has ended."""
        if self.done:
            return True
        if self.work.cancelled:
            self.done = True
        elif token in self._ends:
            self._finish("stop")
        else:
            self.ids.append(token)
            if not self._stopped() and len(self.ids) >= self.prompt.max_tokens:
                self._finish("length")
        return self.done

    def end(self) -> None:
        """Deliver the rest of a row that `generate` ended."""
        if not self.done:
            self._finish("length")

    def _stopped(self) -> bool:
        """Deliver what can be delivered; return whether a stop text came up."""
        if not self.prompt.stops and not self.prompt.streams:
            return False
        self._decode()
        found = [at for stop in self.prompt.stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._say(len(self._text), "stop")
            return True
        if self.prompt.streams:
            # What may be the beginning of a stop text is held back.
            longest = max((len(stop) for stop in self.prompt.stops), default=1)
            self._say(len(self._text) - longest + 1)
        return False

    def _finish(self, how: str) -> None:
        self._text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for stop in self.prompt.stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, how = self._text[: min(found)], "stop"
        self._say(len(self._text), how)

    def _decode(self) -> None:
        # Only the last tokens anew: a whole text at each token takes the square of its length.
        def text(ids: list[int]) -> str:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))

        before, now = text(self.ids[self._begun : self._read]), text(self.ids[self._begun :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._text += now[len(before) :]
            self._begun, self._read = self._read, len(self.ids)

    def _say(self, upto: int, finish: str | None = None) -> None:
        new = self._text[len(self._said) : upto]
        self.done = finish is not None
        if self.done or new:
            self._said += new
            self.work.deliver(Piece(new, finish, len(self.ids)))


def _fitting(batch: Sequence[Work], positions: int | None) -> list[list[Work]]:
    """Return `batch` in as few parts as have room, each row alone having it.

    A row that has ended goes on in its place until the last one has, past its own length and, with
    a long one that is short of tokens beside it, past what the model has positions for.
    """
    parts: list[list[Work]] = []
    for work in batch:
        for part in parts:
            if positions is None or _length([*part, work]) <= positions:
                part.append(work)
                break
        else:
            parts.append([work])
    return parts


def _length(works: Sequence[Work]) -> int:
    prompts: list[Prompt] = [work.payload for work in works]
    return max(len(p.ids) for p in prompts) + max(p.max_tokens for p in prompts)


class _Taken(StoppingCriteria):  # Called by `generate` after each token.
    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        last = input_ids[:, -1].tolist()
        done = [row.take(token) for row, token in zip(self._rows, last, strict=True)]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class Generator:
    """A causal model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        config = model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else next(iter(self._ends), 0)
        said = getattr(model.config, "max_position_embeddings", None)
        self._positions = said if isinstance(said, int) and said > 0 else None

    def compute(self, batch: Sequence[Work]) -> None:
        """Read a batch, or generate for one whose rows share their sampling."""
        if isinstance(batch[0].payload, Reading):
            self._read(batch)
        else:
            for works in _fitting(batch, self._positions):
                self._generate(works)

    def _read(self, batch: Sequence[Work]) -> None:
        together = max(1, MOST_READ // max(len(work.payload.ids) for work in batch))
        for start in range(0, len(batch), together):
            works = batch[start : start + together]
            losses = token_losses(self.model, [work.payload.ids for work in works]).tolist()
            for work, row in zip(works, losses, strict=True):
                work.deliver([-loss for loss in row[: len(work.payload.ids) - 1]])

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Work]) -> None:
        rows = [_Row(work, self.tokenizer, self._ends) for work in batch]
        prompts = [row.prompt for row in rows]
        width = max(len(prompt.ids) for prompt in prompts)
        gaps = [width - len(prompt.ids) for prompt in prompts]
        device = self.model.device
        ids = [[self._pad] * gap + list(p.ids) for gap, p in zip(gaps, prompts, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        sampling = prompts[0].sampling
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=max(prompt.max_tokens for prompt in prompts),
            pad_token_id=self._pad,
            stopping_criteria=StoppingCriteriaList([_Taken(rows)]),
            **sampling.options(),
        )
        for row in rows:
            row.end()
