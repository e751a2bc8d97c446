"""What an evaluation needs before it begins: settings, the model that is judged, and the rows.

Called by evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nexa_hpc.backends.hf import models, rows
from nexa_hpc.backends.hf.chats import Answer, Decoding, Example
from nexa_hpc.backends.hf.local_model import LocalModel
from nexa_hpc.backends.hf.models import CAUSAL_LM, CLASSIFICATION, Trust
from nexa_hpc.backends.hf.perplexity import Piece
from nexa_hpc.backends.hf.sources import Source, find_source, task_settings
from nexa_hpc.backends.hf.training import TRAINING
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.core.servers import Servers
from nexa_hpc.errors import StepError, UserError

GENERATION = "generation"
_BATCH_SIZE = {CLASSIFICATION: 64, CAUSAL_LM: 8, GENERATION: 8}
_SPLITS = ("test", "validation", "validation_matched", rows.EVERYTHING)
"""Where `split` is not said, the first of these that has rows to judge on."""


class Judged(Protocol):
    """A language model, here or behind an endpoint. All places are those in what is given."""

    @property
    def title(self) -> str:
        """How people name it."""

    @property
    def pace(self) -> Mapping[str, int]:
        """How the work is divided, for the report."""

    def length_limit(self, settings: Mapping[str, Any], task: str) -> int:
        """Return how many tokens it reads at once."""

    def token_ids(self, texts: Sequence[str]) -> list[Piece]:
        """Return the tokens of each text."""

    def piece_losses(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, float]]:
        """Yield the place and the summed loss of each piece."""

    def answers(
        self, examples: Sequence[Example], decoding: Decoding
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the place of each example and the answer to it."""


@dataclass(frozen=True)
class Evaluation:
    """A model, the rows to judge it on, and the settings in force."""

    task: Task
    settings: Mapping[str, Any]
    kind: str
    model: Judged
    dataset: Source
    splits: Mapping[str, Any]
    split: str
    rows: Any
    columns: rows.Columns

    @property
    def max_length(self) -> int:
        """How many tokens the model reads at once."""
        return self.model.length_limit(self.settings, self.kind)

    def texts(self, part: Any) -> list[tuple[str, ...]]:
        """Return the texts of the rows `part`."""
        return list(zip(*(part[name] for name in self.columns.texts), strict=True))

    def tell(self, done: int) -> None:
        """Tell the task how many rows are done."""
        self.task.progress(done, len(self.rows), unit="rows")


def open_evaluation(task: Task, at_end: ExitStack) -> Evaluation:
    """Return what `task` evaluates; what is held open for it is closed `at_end`.

    Raises StepError or UserError where it cannot be had.
    """
    settings = task_settings(task)
    checkpoint = task.inputs.get("checkpoint")
    if checkpoint is not None and settings.get("task") != GENERATION:
        trained = read_json_or_none(checkpoint / TRAINING) or {}
        settings = {**_defaults_from(trained), **settings}
    dataset = _needed(task, settings, "dataset")
    model, kind = _open_model(task, settings, at_end)
    splits = rows.load_splits(dataset, settings.get("dataset_config"), task.work_dir)
    split, part, columns = _choose_rows(settings, splits, dataset.title, kind)
    part = rows.first_rows(part, settings.get("max_rows"))
    return Evaluation(task, settings, kind, model, dataset, splits, split, part, columns)


def _open_model(task: Task, settings: Mapping[str, Any], at_end: ExitStack) -> tuple[Judged, str]:
    where = task.inputs.get("endpoint", settings.get("endpoint"))
    if where is not None:
        if "task" not in settings or {"checkpoint", "model"} & {*task.inputs, *settings}:
            raise UserError("with `endpoint` say `task`, and name neither checkpoint nor model")
        # Imported here: OpenAI's client takes a second, and few evaluations need it.
        from nexa_hpc.backends.hf.endpoint import Endpoint

        endpoint = Endpoint(str(where), settings, Servers(task.servers))
        at_end.callback(endpoint.close)
        endpoint.find_model()
        return endpoint, str(settings["task"])
    checkpoint = task.inputs.get("checkpoint")
    if checkpoint is not None:
        trained = read_json_or_none(checkpoint / TRAINING) or {}
        source = Source(checkpoint, None, None, _checkpoint_title(trained))
    else:
        source = _needed(task, settings, "model")
    wanted = settings.get("task")
    model, tokenizer, kind = models.open_checkpoint(
        source,
        CAUSAL_LM if wanted == GENERATION else wanted,
        Trust.from_settings(settings),
        task.project,
    )
    kind = wanted or kind
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = int(settings.get("batch_size", _BATCH_SIZE[kind]))
    return LocalModel(source.title, model, tokenizer, batch_size), kind


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
        if kind == GENERATION:
            columns = rows.Columns((), None)  # `chats.read_examples` finds its own.
        else:
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
