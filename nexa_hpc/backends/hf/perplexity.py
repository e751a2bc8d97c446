"""How well a language model predicts texts: loss, perplexity and bits per byte, row by row.

Called by evaluation. A row longer than the model reads is cut into pieces; the first token of each
piece has nothing before it and is not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nexa_hpc.backends.hf import recipes

Piece = Sequence[int]
"""The ids of some tokens of a text, that the model reads at once."""


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
    texts: Sequence[str],
    ids: Sequence[Piece],
    piece_losses: Callable[[Sequence[Piece]], Iterable[tuple[int, float]]],
    *,
    max_length: int,
    tell: Callable[[int], None],
) -> list[TextLoss]:
    """Return the loss of each of `texts`, whose tokens are `ids`.

    `piece_losses` yields the place and the summed loss of each piece that it is given, in any
    order; `tell` hears how many texts' worth of them are done.
    """
    pieces = [
        (row, numbers[start : start + max_length])
        for row, numbers in enumerate(ids)
        for start in range(0, len(numbers), max_length)
    ]
    # Rows of like length together: a batch is padded to its longest row.
    pieces = sorted((piece for piece in pieces if len(piece[1]) > 1), key=lambda p: len(p[1]))
    totals, counts = [0.0] * len(texts), [0] * len(texts)
    found = piece_losses([numbers for _, numbers in pieces])
    for done, (place, loss) in enumerate(found, 1):
        row, numbers = pieces[place]
        totals[row] += loss
        counts[row] += len(numbers) - 1
        tell(round(len(texts) * done / len(pieces)))
    return [TextLoss(*of_text) for of_text in zip(texts, totals, counts, strict=True)]


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
