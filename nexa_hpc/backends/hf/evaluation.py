"""Evaluation: from a `Task` to a folder with metrics, predictions, plots and a report.

The one entry is `evaluate`, called by `runners/evaluate.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import transformers

from nexa_hpc.backends.hf import chats, generation, perplexity, plots, report, rows, scoring
from nexa_hpc.backends.hf.chats import Decoding
from nexa_hpc.backends.hf.local_model import LocalModel
from nexa_hpc.backends.hf.models import CLASSIFICATION
from nexa_hpc.backends.hf.opening import GENERATION, Evaluation, open_evaluation
from nexa_hpc.backends.hf.scoring import Predictions
from nexa_hpc.core.handlers import Task
from nexa_hpc.errors import StepError, UserError


def evaluate(task: Task) -> None:
    """Fill `task.out_dir`; raises StepError or UserError when that cannot be done."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with ExitStack() as at_end:
        _evaluate(open_evaluation(task, at_end))


def _evaluate(evaluation: Evaluation) -> None:
    print(
        f"evaluating {evaluation.model.title} on {len(evaluation.rows):,} rows of "
        f"{evaluation.dataset.title}, split {evaluation.split}",
        flush=True,
    )
    if evaluation.kind == CLASSIFICATION:
        _evaluate_classifier(evaluation)
    elif evaluation.kind == GENERATION:
        _evaluate_answers(evaluation)
    else:
        _evaluate_language_model(evaluation)


def _evaluate_classifier(evaluation: Evaluation) -> None:
    out_dir, settings = evaluation.task.out_dir, evaluation.settings
    predictions = _predictions(evaluation)
    baseline = _baseline(evaluation, predictions) if settings.get("baseline") else None
    metrics = scoring.summarise(predictions, baseline, settings.get("metrics"))
    plots.draw_confusion(
        scoring.confusion(predictions), predictions.labels, out_dir / "confusion_matrix.png"
    )
    plots.draw_calibration(scoring.calibration(predictions), out_dir / "calibration.png")
    _write_lines(out_dir / "predictions.jsonl", _prediction_lines(predictions))
    _write_metrics(out_dir, metrics)
    report.write_classifier_report(out_dir, _facts(evaluation), predictions, baseline)


def _predictions(evaluation: Evaluation) -> Predictions:
    label, local = evaluation.columns.label, evaluation.model
    if label is None or not isinstance(local, LocalModel):
        raise StepError("a classifier is judged here, on labelled rows; not behind an endpoint")
    id2label = local.model.config.id2label
    names = [str(id2label[number]) for number in range(len(id2label))]
    texts = evaluation.texts(evaluation.rows)
    true = rows.label_numbers(evaluation.rows, label, names, evaluation.dataset.title)
    probabilities = scoring.predict(
        local.model,
        local.tokenizer,
        texts,
        max_length=evaluation.max_length,
        batch_size=local.batch_size,
        on_batch=evaluation.tell,
    )
    return Predictions(names, texts, numpy.asarray(true), probabilities)


def _baseline(evaluation: Evaluation, predictions: Predictions) -> Predictions:
    """Fit the baseline on the rows that the model was trained on, and return what it says."""
    title, label = evaluation.dataset.title, evaluation.columns.label
    assert label is not None
    if "train" not in evaluation.splits:
        raise StepError(
            f"the dataset {title} has no train split to fit the baseline on",
            hint="leave `baseline` out, or give the folder that also holds train.jsonl",
        )
    train = rows.labelled(evaluation.splits["train"], label)
    train = rows.first_rows(train, evaluation.settings.get("max_train_rows"))
    numbers = rows.label_numbers(train, label, predictions.labels, title)
    pipeline = scoring.fit_baseline(evaluation.texts(train), numbers)
    print(f"fitted TF-IDF with logistic regression on the same {len(train):,} rows", flush=True)
    return scoring.baseline_predictions(pipeline, predictions)


def _prediction_lines(predictions: Predictions) -> Iterable[Mapping[str, Any]]:
    labels = predictions.labels
    for row, texts in enumerate(predictions.texts):
        pair = {"text_pair": texts[1]} if len(texts) > 1 else {}
        yield {
            "text": texts[0],
            **pair,
            "label": labels[predictions.true[row]],
            "predicted": labels[predictions.predicted[row]],
            "probability": round(float(predictions.confidence[row]), 6),
        }


def _evaluate_language_model(evaluation: Evaluation) -> None:
    out_dir, settings = evaluation.task.out_dir, evaluation.settings
    if settings.get("baseline"):
        raise UserError("`baseline: tfidf_logreg` is for text classification")
    texts = ["\n".join(parts) for parts in evaluation.texts(evaluation.rows)]
    losses = perplexity.text_losses(
        texts,
        evaluation.model.token_ids(texts),
        evaluation.model.piece_losses,
        max_length=evaluation.max_length,
        tell=evaluation.tell,
    )
    if not any(loss.tokens for loss in losses):
        raise StepError("no text is long enough to predict any of it")
    plots.draw_losses([loss.mean for loss in losses if loss.tokens], out_dir / "losses.png")
    _write_lines(out_dir / "predictions.jsonl", (loss.to_json() for loss in losses))
    _write_metrics(out_dir, perplexity.summarise(losses, settings.get("metrics")))
    report.write_language_model_report(out_dir, _facts(evaluation), losses)


def _evaluate_answers(evaluation: Evaluation) -> None:
    out_dir, settings = evaluation.task.out_dir, evaluation.settings
    examples = chats.read_examples(evaluation.rows, settings, evaluation.dataset.title)
    if not examples:
        raise StepError("no row has both a prompt and the answer that is expected")
    began = time.monotonic()
    answers = {}
    for place, answer in evaluation.model.answers(examples, Decoding.from_settings(settings)):
        answers[place] = answer
        evaluation.tell(len(answers))
    seconds = time.monotonic() - began
    scored = generation.score(examples, [answers[place] for place in range(len(examples))])
    plots.draw_scores([row.scores["rougeL"] for row in scored], "ROUGE-L", out_dir / "scores.png")
    _write_lines(out_dir / "predictions.jsonl", (row.to_json() for row in scored))
    _write_metrics(out_dir, generation.summarise(scored, seconds, settings.get("metrics")))
    figures = generation.summarise(scored, seconds, None)
    report.write_generation_report(out_dir, _facts(evaluation), scored, figures)


def _facts(evaluation: Evaluation) -> report.Facts:
    settings = evaluation.settings
    shown = {"title", "model", "dataset", "split", "config"}
    return report.Facts(
        title=settings.get("title") or f"Evaluation on {evaluation.dataset.title}",
        model=evaluation.model.title,
        dataset=evaluation.dataset.title,
        split=evaluation.split,
        settings={
            **{name: value for name, value in settings.items() if name not in shown},
            **_reach(evaluation),
            **evaluation.model.pace,
        },
    )


def _reach(evaluation: Evaluation) -> dict[str, Any]:
    if evaluation.kind == GENERATION:
        return asdict(Decoding.from_settings(evaluation.settings))
    return {"max_length": evaluation.max_length}


def _write_metrics(out_dir: Path, metrics: Mapping[str, float]) -> None:
    text = json.dumps(metrics, indent=1, ensure_ascii=False)
    (out_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
