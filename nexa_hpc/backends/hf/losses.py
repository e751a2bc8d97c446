"""The loss of each token of a text, as a causal model predicts it: for perplexity, here and served.

Called by `perplexity` and by `hf_runtime`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def token_losses(model: Any, pieces: Sequence[Sequence[int]]) -> Any:
    """Return the negative log-likelihood of each token but the first of each piece, in nats.

    A row for each piece, with zeros after its end: padding is on the right, where no real token
    looks.
    """
    longest = max(map(len, pieces))
    ids = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in pieces])
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in pieces])
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses * mask[:, 1:]
