"""Batches of rows of like length, in an order that seed and epoch decide.

With `train_sampling_strategy: group_by_length` fewer positions are spent on padding. transformers
draws that order from torch's global random state, which a training resumed in its second epoch no
longer has as it was. Called by training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class SeededLengthSampler(torch.utils.data.Sampler):
    """The rows of one epoch, grouped by length; the Trainer names the epoch through `set_epoch`."""

    def __init__(self, like: Any, seed: int) -> None:
        self._like = like
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._like)

    def __iter__(self) -> Iterator[int]:
        """Yield the rows' numbers, always the same ones for the same seed and epoch."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        like = self._like
        return iter(get_length_grouped_indices(like.lengths, like.batch_size, generator=generator))


class Trainer(transformers.Trainer):
    """transformers' Trainer, whose grouped batches come in the same order after a resume."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthSampler(sampler, seed)
