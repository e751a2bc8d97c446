"""Labels from classifiers, in batches. Called by `batching`, in its thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nexa_hpc.backends.hf_runtime.batching import Work


class Classifier:
    """A sequence classifier with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def compute(self, batch: Sequence[Work]) -> None:
        """Deliver, for each text as token ids, {"label", "probs", "num_classes"}."""
        rows = self.tokenizer.pad({"input_ids": [list(w.payload) for w in batch]}, padding=True)
        tensors = {
            name: torch.tensor(rows[name], device=self.model.device)
            for name in ("input_ids", "attention_mask")
        }
        found = torch.softmax(self.model(**tensors).logits.float(), dim=-1)
        labels = self.model.config.id2label
        for work, probabilities in zip(batch, found.tolist(), strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            work.deliver(
                {
                    "label": labels[best],
                    "probs": probabilities,
                    "num_classes": len(probabilities),
                }
            )
