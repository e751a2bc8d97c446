"""What training needs for each task: tokenized rows, a model with its head, a collator, metrics.

`prepare` is called by training once the datasets are read. What it decided (columns, labels,
lengths) becomes `training.json` in the checkpoint, from which evaluation takes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import sklearn.metrics
import transformers

from nexa_hpc.backends.hf import models, rows
from nexa_hpc.backends.hf.models import CAUSAL_LM, CLASSIFICATION, Trust
from nexa_hpc.backends.hf.sources import Source
from nexa_hpc.errors import StepError

DEFAULT_MAX_LENGTH: Mapping[str, int] = {CLASSIFICATION: 128, CAUSAL_LM: 512}
_UNLIMITED = 10**9
"""Tokenizers that know no limit say 10^30."""


@dataclass(frozen=True)
class Recipe:
    """All that transformers' Trainer is given besides its arguments."""

    task: str
    model: Any
    tokenizer: Any
    train_rows: Any
    eval_rows: Any | None
    collator: Any
    compute_metrics: Callable[[Any], dict[str, float]] | None
    decided: Mapping[str, Any]
    """Columns, labels and lengths, for `training.json`."""


def prepare(
    settings: Mapping[str, Any], model: Source, dataset: Source, splits: Mapping[str, Any]
) -> Recipe:
    """Return the recipe for the task that `settings` name, or that the dataset's columns imply."""
    title = dataset.title
    train = rows.split_named(splits, "train", title)
    texts = settings.get("text_columns", settings.get("text_column"))
    columns = rows.find_columns(train, texts, settings.get("label_column"), title)
    task = settings.get("task") or (CAUSAL_LM if columns.label is None else CLASSIFICATION)
    validation = rows.validation_split(splits)
    if task == CLASSIFICATION:
        if columns.label is None:
            raise StepError(
                f"the dataset {title} has no column 'label'; it has: "
                + ", ".join(train.column_names),
                hint="say with `label_column` which one it is",
            )
        train = rows.labelled(train, columns.label)
        validation = validation and rows.labelled(validation, columns.label)
    train = rows.first_rows(train, settings.get("max_train_rows"))
    if not len(train):
        raise StepError(f"the dataset {title} has no row to train on")
    if validation is not None:
        validation = rows.first_rows(validation, settings.get("max_eval_rows")) or None
    make = _classification if task == CLASSIFICATION else _causal_lm
    return make(settings, model, train, validation, columns, title)


def _classification(
    settings: Mapping[str, Any],
    source: Source,
    train: Any,
    validation: Any | None,
    columns: rows.Columns,
    title: str,
) -> Recipe:
    assert columns.label is not None
    label = columns.label
    names = rows.label_names(train, label, title)
    trust = Trust.from_settings(settings)
    tokenizer = models.load_tokenizer(source, trust)
    model = models.load_model(
        source,
        CLASSIFICATION,
        trust,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        # A head for another number of classes is replaced by a new one, as for a bare encoder.
        ignore_mismatched_sizes=True,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    max_length = length_limit(settings, CLASSIFICATION, tokenizer, model.config)

    def encode(part: Any) -> Any:
        numbers = rows.label_numbers(part, label, names, title)
        encoded = part.map(
            lambda batch: tokenizer(
                *(batch[name] for name in columns.texts), truncation=True, max_length=max_length
            ),
            batched=True,
            remove_columns=part.column_names,
        )
        return encoded.add_column("labels", numbers)

    return Recipe(
        task=CLASSIFICATION,
        model=model,
        tokenizer=tokenizer,
        train_rows=encode(train),
        eval_rows=None if validation is None else encode(validation),
        collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy_and_f1,
        decided={
            "text_columns": list(columns.texts),
            "label_column": label,
            "labels": names,
            "max_length": max_length,
        },
    )


def _causal_lm(
    settings: Mapping[str, Any],
    source: Source,
    train: Any,
    validation: Any | None,
    columns: rows.Columns,
    _: str,
) -> Recipe:
    trust = Trust.from_settings(settings)
    tokenizer = models.load_tokenizer(source, trust)
    model = models.load_model(source, CAUSAL_LM, trust)
    max_length = length_limit(settings, CAUSAL_LM, tokenizer, model.config)

    def encode(part: Any) -> Any:
        return part.map(
            lambda batch: _blocks(batch, columns.texts, tokenizer, max_length),
            batched=True,
            remove_columns=part.column_names,
        )

    return Recipe(
        task=CAUSAL_LM,
        model=model,
        tokenizer=tokenizer,
        train_rows=encode(train),
        eval_rows=None if validation is None else encode(validation),
        # This collator pads the labels with -100. The one for language models would mask every
        # token equal to the padding token, and so the end of each text where the two are the same.
        collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        compute_metrics=None,
        decided={"text_columns": list(columns.texts), "max_length": max_length},
    )


def _blocks(
    batch: Mapping[str, Sequence[str]], texts: Sequence[str], tokenizer: Any, length: int
) -> dict[str, list[list[int]]]:
    """Return the texts of `batch`, each with an end token, joined and cut into blocks."""
    joined = ["\n".join(parts) for parts in zip(*(batch[name] for name in texts), strict=True)]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(joined, return_attention_mask=False)["input_ids"]
    tokens = list(itertools.chain.from_iterable([*ids, *end] for ids in encoded))
    blocks = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    return {
        "input_ids": blocks,
        "attention_mask": [[1] * len(block) for block in blocks],
        "labels": [list(block) for block in blocks],
    }


def length_limit(settings: Mapping[str, Any], task: str, tokenizer: Any, config: Any) -> int:
    """Return `max_length`, or the task's default, no longer than the model's positions reach."""
    wanted = settings.get("max_length", DEFAULT_MAX_LENGTH[task])
    return int(min([wanted, *_limits(tokenizer, config)]))


def positions(tokenizer: Any, config: Any) -> int | None:
    """Return how many tokens a model reads; None where neither it nor its tokenizer says."""
    return min(_limits(tokenizer, config), default=None)


def _limits(tokenizer: Any, config: Any) -> list[int]:
    said = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return [int(limit) for limit in said if limit is not None and 0 < limit < _UNLIMITED]


def _accuracy_and_f1(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions
    if isinstance(logits, tuple):  # Some models return hidden states beside the logits.
        logits = logits[0]
    predicted = numpy.argmax(logits, axis=-1)
    return {
        "accuracy": float(sklearn.metrics.accuracy_score(prediction.label_ids, predicted)),
        "macro_f1": float(
            sklearn.metrics.f1_score(
                prediction.label_ids, predicted, average="macro", zero_division=0
            )
        ),
    }


def perplexity(loss: float) -> float:
    """Return e to the `loss`, as large as a float can be where that overflows."""
    return math.exp(min(loss, 700.0))
