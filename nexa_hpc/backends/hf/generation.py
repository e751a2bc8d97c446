"""How well generated answers match their references: exact match, and ROUGE by Google's library.

Exact match compares both without the white space around them, and nothing else is made alike.
ROUGE figures are F-measures, without stemming; its tokens are lower-case Latin letters and digits
alone, and rougeLsum takes each line for a sentence. Called by evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rouge_score import rouge_scorer

from nexa_hpc.backends.hf.chats import Answer, Example

EXACT_MATCH = "exact_match"
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
FIGURES = (EXACT_MATCH, *ROUGE)


@dataclass(frozen=True)
class Scored:
    """An answer beside its reference; `scores` has a number from 0 to 1 for each of FIGURES."""

    example: Example
    answer: Answer
    scores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return its line of predictions.jsonl."""
        return {
            "prompt": self.example.prompt,
            "reference": self.example.reference,
            "prediction": self.answer.text,
            **{name: round(value, 6) for name, value in self.scores.items()},
            "tokens": self.answer.tokens,
            "finish_reason": self.answer.finish,
        }


def score(examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scored]:
    """Return each answer with its scores."""
    scorer = rouge_scorer.RougeScorer(list(ROUGE))
    found = []
    for example, answer in zip(examples, answers, strict=True):
        rouge = scorer.score(example.reference, answer.text)
        same = example.reference.strip() == answer.text.strip()
        scores = {EXACT_MATCH: float(same), **{name: rouge[name].fmeasure for name in ROUGE}}
        found.append(Scored(example, answer, scores))
    return found


def mean(scored: Sequence[Scored], name: str) -> float:
    """Return the mean of one figure over all answers."""
    return fmean(row.scores[name] for row in scored)


def summarise(
    scored: Sequence[Scored], seconds: float, wanted: Sequence[str] | None
) -> dict[str, float]:
    """Return the figures for metrics.json: those `wanted`, or all; lengths and time."""
    return {
        **{name: mean(scored, name) for name in FIGURES if wanted is None or name in wanted},
        "mean_new_tokens": fmean(row.answer.tokens for row in scored),
        "seconds_per_row": seconds / len(scored),
        "n": len(scored),
    }


def without_words(scored: Sequence[Scored]) -> int:
    """Return how many references hold nothing that ROUGE reads."""
    return sum(not re.search("[a-z0-9]", row.example.reference.lower()) for row in scored)
