"""Evaluation: from a `Task` to a folder with metrics, predictions, plots and a report.

The one entry is `evaluate`, called by `runners/evaluate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from nexa_hpc.backends.hf import models, perplexity, plots, recipes, report, rows, scoring
from nexa_hpc.backends.hf.models import CLASSIFICATION, Trust
from nexa_hpc.backends.hf.scoring import Predictions
from nexa_hpc.backends.hf.sources import Source, find_source, task_settings
from nexa_hpc.backends.hf.training import TRAINING
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.errors import StepError, UserError

_BATCH_SIZE = {CLASSIFICATION: 64, models.CAUSAL_LM: 8}
_SPLITS = ("test", "validation", "validation_matched", rows.EVERYTHING)
"""Where `split` is not said, the first of these that has labelled rows."""


@dataclass(frozen=True)
class Evaluation:
    """A model, the rows to judge it on, and the settings in force."""

    task: Task
    settings: Mapping[str, Any]
    kind: str
    model: Any
    tokenizer: Any
    model_title: str
    dataset: Source
    splits: Mapping[str, Any]
    split: str
    rows: Any
    columns: rows.Columns
    max_length: int

    @property
    def batch_size(self) -> int:
        """How many rows the model is given at once."""
        return int(self.settings.get("batch_size", _BATCH_SIZE[self.kind]))

    def texts(self, part: Any) -> list[scoring.Text]:
        """Return the texts of the rows `part`."""
        return list(zip(*(part[name] for name in self.columns.texts), strict=True))

    def tell(self, done: int) -> None:
        """Tell the task how many rows are done."""
        self.task.progress(done, len(self.rows), unit="rows")


def evaluate(task: Task) -> None:
    """Fill `task.out_dir`; raises StepError or UserError when that cannot be done."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    evaluation = _open(task)
    print(
        f"evaluating {evaluation.model_title} on {len(evaluation.rows):,} rows of "
        f"{evaluation.dataset.title}, split {evaluation.split}",
        flush=True,
    )
    if evaluation.kind == CLASSIFICATION:
        _evaluate_classifier(evaluation)
    else:
        _evaluate_language_model(evaluation)


def _open(task: Task) -> Evaluation:
    settings = task_settings(task)
    checkpoint = task.inputs.get("checkpoint")
    if checkpoint is not None:
        trained = read_json_or_none(checkpoint / TRAINING) or {}
        source = Source(checkpoint, None, None, _checkpoint_title(trained))
        settings = {**_defaults_from(trained), **settings}
    else:
        source = _needed(task, settings, "model")
    dataset = _needed(task, settings, "dataset")
    trust = Trust.from_settings(settings)
    model, tokenizer, kind = models.open_checkpoint(
        source, settings.get("task"), trust, task.project
    )
    splits = rows.load_splits(dataset, settings.get("dataset_config"), task.work_dir)
    split, part, columns = _choose_rows(settings, splits, dataset.title, kind)
    return Evaluation(
        task=task,
        settings=settings,
        kind=kind,
        model=model.to("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer=tokenizer,
        model_title=source.title,
        dataset=dataset,
        splits=splits,
        split=split,
        rows=rows.first_rows(part, settings.get("max_rows")),
        columns=columns,
        max_length=recipes.length_limit(settings, kind, tokenizer, model.config),
    )


def _needed(task: Task, settings: Mapping[str, Any], name: str) -> Source:
    source = find_source(task, settings, name)
    if source is None:
        raise UserError(f"step '{task.step_id}' names no {name}, and neither does its config")
    return source


def _checkpoint_title(trained: Mapping[str, Any]) -> str:
    model = trained.get("model")
    return f"a checkpoint of {model}" if model else "a checkpoint"


def _defaults_from(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint brings: how its own training read its rows."""
    names = ("task", "text_columns", "label_column", "max_length", "max_train_rows")
    return {name: trained[name] for name in names if trained.get(name) is not None}


def _choose_rows(
    settings: Mapping[str, Any], splits: Mapping[str, Any], title: str, kind: str
) -> tuple[str, Any, rows.Columns]:
    texts = settings.get("text_column", settings.get("text_columns"))
    label = settings.get("label_column")
    wanted = settings.get("split")
    for name in [wanted] if wanted else [name for name in _SPLITS if name in splits]:
        part = rows.split_named(splits, name, title)
        columns = rows.find_columns(part, texts, label, title)
        if kind == CLASSIFICATION:
            if columns.label is None:
                raise StepError(
                    f"the dataset {title} has no column 'label'",
                    hint=f"say with `label_column` which one it is: {', '.join(part.column_names)}",
                )
            part = rows.labelled(part, columns.label)
        if len(part):
            return name, part, columns
    raise StepError(
        f"the dataset {title} has no labelled rows in "
        + (f"split '{wanted}'" if wanted else "a test or validation split"),
        hint=f"its splits: {', '.join(splits)}; choose one with `split`",
    )


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
    label = evaluation.columns.label
    assert label is not None
    id2label = evaluation.model.config.id2label
    names = [str(id2label[number]) for number in range(len(id2label))]
    texts = evaluation.texts(evaluation.rows)
    true = rows.label_numbers(evaluation.rows, label, names, evaluation.dataset.title)
    probabilities = scoring.predict(
        evaluation.model,
        evaluation.tokenizer,
        texts,
        max_length=evaluation.max_length,
        batch_size=evaluation.batch_size,
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
    losses = perplexity.text_losses(
        evaluation.model,
        evaluation.tokenizer,
        ["\n".join(texts) for texts in evaluation.texts(evaluation.rows)],
        max_length=evaluation.max_length,
        batch_size=evaluation.batch_size,
        on_batch=evaluation.tell,
    )
    if not any(loss.tokens for loss in losses):
        raise StepError("no text is long enough to predict any of it")
    plots.draw_losses([loss.mean for loss in losses if loss.tokens], out_dir / "losses.png")
    _write_lines(out_dir / "predictions.jsonl", (loss.to_json() for loss in losses))
    _write_metrics(out_dir, perplexity.summarise(losses, settings.get("metrics")))
    report.write_language_model_report(out_dir, _facts(evaluation), losses)


def _facts(evaluation: Evaluation) -> report.Facts:
    settings = evaluation.settings
    shown = {"title", "model", "dataset", "split", "config"}
    return report.Facts(
        title=settings.get("title") or f"Evaluation on {evaluation.dataset.title}",
        model=evaluation.model_title,
        dataset=evaluation.dataset.title,
        split=evaluation.split,
        settings={
            **{name: value for name, value in settings.items() if name not in shown},
            "max_length": evaluation.max_length,
            "batch_size": evaluation.batch_size,
        },
    )


def _write_metrics(out_dir: Path, metrics: Mapping[str, float]) -> None:
    text = json.dumps(metrics, indent=1, ensure_ascii=False)
    (out_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
