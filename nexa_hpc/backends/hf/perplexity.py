"""How well a language model predicts texts: loss, perplexity and bits per byte, row by row.

Called by evaluation. A row longer than the model reads is cut into pieces; the first token of each
piece has nothing before it and is not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nexa_hpc.backends.hf import recipes


@dataclass(frozen=True)
class TextLoss:
    """The summed negative log-likelihood of one text, in nats, over its predicted tokens."""

    text: str
    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """The loss for each token; 0 for a text too short to predict anything of."""
        return self.total / self.tokens if self.tokens else 0.0

    @property
    def perplexity(self) -> float:
        """e to the mean loss."""
        return recipes.perplexity(self.mean)

    def to_json(self) -> dict[str, str | float]:
        """Return the line of predictions.jsonl for this text."""
        return {
            "text": self.text,
            "loss": self.mean,
            "perplexity": self.perplexity,
            "tokens": self.tokens,
        }


def text_losses(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> list[TextLoss]:
    """Return the loss of each of `texts`; `on_batch` is told how many pieces of all are done."""
    pieces = [
        (row, ids[start : start + max_length])
        for row, ids in enumerate(tokenizer(list(texts))["input_ids"])
        for start in range(0, len(ids), max_length)
    ]
    pieces = sorted((piece for piece in pieces if len(piece[1]) > 1), key=lambda p: len(p[1]))
    totals, counts = [0.0] * len(texts), [0] * len(texts)
    model.eval()
    for start in range(0, len(pieces), batch_size):
        batch = pieces[start : start + batch_size]
        losses = _piece_losses(model, [ids for _, ids in batch])
        for (row, ids), loss in zip(batch, losses, strict=True):
            totals[row] += loss
            counts[row] += len(ids) - 1
        on_batch(round(len(texts) * (start + len(batch)) / len(pieces)))
    return [TextLoss(*found) for found in zip(texts, totals, counts, strict=True)]


def _piece_losses(model: Any, pieces: Sequence[Sequence[int]]) -> list[float]:
    """Return the summed loss of each piece; padded on the right, where no real token looks."""
    longest = max(map(len, pieces))
    ids = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in pieces])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in pieces])
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return [float(loss) for loss in (losses * mask[:, 1:]).sum(dim=1)]


def summarise(losses: Sequence[TextLoss], wanted: Sequence[str] | None = None) -> dict[str, float]:
    """Return the figures over all texts, each token counting the same: those `wanted`, or all."""
    tokens = sum(loss.tokens for loss in losses)
    total = sum(loss.total for loss in losses)
    size_bytes = sum(len(loss.text.encode()) for loss in losses)
    mean = total / max(1, tokens)
    figures = {
        "perplexity": recipes.perplexity(mean),
        "loss": mean,
        "bits_per_byte": total / math.log(2) / max(1, size_bytes),
    }
    chosen = {name: value for name, value in figures.items() if wanted is None or name in wanted}
    return {**chosen, "n": len(losses), "tokens": tokens}
