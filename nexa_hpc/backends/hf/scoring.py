"""A classifier's predictions, the figures drawn from them, and a linear baseline beside it.

Called by evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from sklearn.pipeline import make_pipeline

CALIBRATION_BINS = 10

Text = tuple[str, ...]
"""One row's text, or the two texts of a pair."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about each row, beside what is true; arrays as long as the rows."""

    labels: Sequence[str]
    """The label names; the arrays hold their numbers."""
    texts: Sequence[Text]
    true: Any
    probabilities: Any
    """Rows by labels."""

    @property
    def predicted(self) -> Any:
        """The most probable label of each row."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> Any:
        """The probability of the predicted label of each row."""
        return self.probabilities.max(axis=1)

    @property
    def correct(self) -> Any:
        """Whether each row's prediction is true."""
        return self.predicted == self.true


@dataclass(frozen=True)
class ClassFigures:
    """How well one class is recognised."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Calibration:
    """Stated confidence against accuracy, in bins of equal width that hold rows."""

    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean distance, weighted by rows."""
        total = sum(self.counts)
        bins = zip(self.confidence, self.accuracy, self.counts, strict=True)
        return float(sum(abs(stated - seen) * count for stated, seen, count in bins) / total)


def predict(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    *,
    max_length: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> Any:
    """Return the probability of each label for each of `texts`, as a rows-by-labels array."""
    probabilities = numpy.zeros((len(texts), model.config.num_labels))
    model.eval()
    # Rows of like length together: a batch is padded to its longest row.
    order = sorted(range(len(texts)), key=lambda row: sum(map(len, texts[row])))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        encoded = tokenizer(
            *zip(*(texts[row] for row in rows), strict=True),
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            logits = model(**encoded).logits
        probabilities[rows] = torch.softmax(logits.float(), dim=-1).cpu().numpy()
        on_batch(start + len(rows))
    return probabilities


def fit_baseline(train_texts: Sequence[Text], train_labels: Sequence[int]) -> Any:
    """Return TF-IDF over words and word pairs with logistic regression, fitted on these rows."""
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=2000),
    )
    return pipeline.fit([" ".join(text) for text in train_texts], train_labels)


def baseline_predictions(pipeline: Any, like: Predictions) -> Predictions:
    """Return what the baseline says about the same rows as `like`."""
    found = pipeline.predict_proba([" ".join(text) for text in like.texts])
    probabilities = numpy.zeros((len(like.texts), len(like.labels)))
    probabilities[:, pipeline.classes_] = found  # It knows only the labels it was shown.
    return Predictions(like.labels, like.texts, like.true, probabilities)


def accuracy(predictions: Predictions) -> float:
    """Return the part of the rows that is predicted right."""
    return float(predictions.correct.mean())


def macro_f1(predictions: Predictions) -> float:
    """Return the mean F1 of the classes, each counting the same."""
    numbers = range(len(predictions.labels))
    return float(
        f1_score(
            predictions.true,
            predictions.predicted,
            labels=list(numbers),
            average="macro",
            zero_division=0,
        )
    )


def per_class(predictions: Predictions) -> list[ClassFigures]:
    """Return the figures of each class, in the order of the labels."""
    numbers = list(range(len(predictions.labels)))
    figures = precision_recall_fscore_support(
        predictions.true, predictions.predicted, labels=numbers, zero_division=0
    )
    return [
        ClassFigures(label, float(precision), float(recall), float(f1), int(support))
        for label, precision, recall, f1, support in zip(predictions.labels, *figures, strict=True)
    ]


def confusion(predictions: Predictions) -> Any:
    """Return how often each true label (row) was predicted as each label (column)."""
    numbers = list(range(len(predictions.labels)))
    return confusion_matrix(predictions.true, predictions.predicted, labels=numbers)


def calibration(predictions: Predictions) -> Calibration:
    """Return how accurate the predictions of each level of confidence are."""
    bins = numpy.minimum(
        (predictions.confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1
    )
    used = [number for number in range(CALIBRATION_BINS) if (bins == number).any()]
    return Calibration(
        confidence=[float(predictions.confidence[bins == number].mean()) for number in used],
        accuracy=[float(predictions.correct[bins == number].mean()) for number in used],
        counts=[int((bins == number).sum()) for number in used],
    )


def interval_95(part: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion `part` seen in `n` rows."""
    z = 1.96
    middle = (part + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def margin_interval_95(model: Predictions, baseline: Predictions) -> tuple[float, float]:
    """Return the 95 % interval of the difference in accuracy on the same rows (paired, normal)."""
    return mean_interval_95(model.correct.astype(float) - baseline.correct.astype(float))


def mean_interval_95(values: Any) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` (normal)."""
    array = numpy.asarray(values, dtype=float)
    half = 1.96 * float(array.std()) / math.sqrt(len(array))
    mean = float(array.mean())
    return mean - half, mean + half


def summarise(
    predictions: Predictions, baseline: Predictions | None, wanted: Sequence[str] | None
) -> dict[str, float]:
    """Return the figures for metrics.json: the groups named in `wanted`, or all; the baseline's."""
    groups: dict[str, dict[str, float]] = {
        "accuracy": {"accuracy": accuracy(predictions)},
        "macro_f1": {"macro_f1": macro_f1(predictions)},
        "calibration_error": {"calibration_error": calibration(predictions).error},
        "per_class": {
            f"{name}_{metric_name(figures.label)}": getattr(figures, name)
            for figures in per_class(predictions)
            for name in ("f1", "precision", "recall", "support")
        },
    }
    metrics: dict[str, float] = {}
    for group in wanted or groups:
        metrics.update(groups.get(group, {}))
    if baseline is not None:
        metrics["baseline_accuracy"] = accuracy(baseline)
        metrics["baseline_macro_f1"] = macro_f1(baseline)
        metrics["margin"] = accuracy(predictions) - accuracy(baseline)
    return {**metrics, "n": len(predictions.texts)}


def metric_name(label: str) -> str:
    """Return `label` as a part of a metric's name."""
    return re.sub(r"\W+", "_", label).strip("_").lower() or "label"
