"""`runners.eval`: a model and a dataset in, a report on how good the model is out.

    in:      config (a YAML file of the settings below), checkpoint, dataset, model
    params:  the same settings; they win over the config
    out:     metrics.json, predictions.jsonl, plots, report.html

Which model: `in: {checkpoint: …}`, else `model`. A checkpoint that `runners.train` made brings its
own columns, lengths and number of training rows; settings win over them. `in: {dataset: …}` wins
over the config's `dataset`, and what it names is part of the step's key; of a file that only the
config names, the key knows the name alone. `baseline: tfidf_logreg` fits TF-IDF and logistic
regression on the rows that the model was trained on. This module is light: the work is done in
`backends/hf/evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.backends.hf import checks, gentle, hub, installed, sources
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.ranks import declared_tasks
from nexa_hpc.errors import SpecError, UserError, nearest

BACKENDS = ("hf",)
BASELINES = ("tfidf_logreg",)
METRICS = {
    "text_classification": ("accuracy", "macro_f1", "per_class", "calibration_error"),
    "causal_lm": ("perplexity", "loss", "bits_per_byte"),
}
"""What `metrics` may list for each task; without it, all."""

_ALL_METRICS = [name for names in METRICS.values() for name in names]


def _is_metrics(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(name in _ALL_METRICS for name in value)


SETTINGS: Mapping[str, checks.Kind] = {
    "title": checks.TEXT,
    "task": checks.one_of(*METRICS),
    "model": checks.TEXT,
    "model_revision": checks.TEXT,
    "dataset": checks.TEXT,
    "dataset_config": checks.TEXT,
    "dataset_revision": checks.TEXT,
    "split": checks.TEXT,
    "text_column": checks.COLUMNS,
    "text_columns": checks.COLUMNS,
    "label_column": checks.TEXT,
    "max_length": checks.COUNT,
    "max_rows": checks.COUNT,
    "max_train_rows": checks.COUNT,
    "batch_size": checks.COUNT,
    "metrics": checks.Kind(f"a list of {', '.join(_ALL_METRICS)}", _is_metrics),
    "baseline": checks.one_of(*BASELINES),
    "trust_remote_code": checks.FLAG,
    "allow_pickle": checks.FLAG,
}
_INPUTS = ("config", "checkpoint", "model", "dataset")


class EvalHandler:
    """Validates and resolves the settings of an evaluation, and hands it to its backend."""

    version = "1"
    kind = "eval_report"
    input_params: Mapping[str, str] = {
        "config": "path",
        "checkpoint": "path",
        "model": "model",
        "dataset": "dataset",
    }

    def validate(self, step: StepView) -> Iterator[tuple[str | None, str]]:
        """Yield the problems of `step` and of its config file, where that can be read already."""
        if declared_tasks(step.resources) > 1:
            yield "resources", "runners.eval runs as one task: ask for one node and one task on it"
        if step.backend not in (None, *BACKENDS):
            yield "backend", f"runners.eval has no backend '{step.backend}'; it has: hf"
        try:
            if not step.is_elsewhere:
                installed.training_arguments()
        except UserError as error:
            yield "backend", str(error)
        try:
            settings = sources.declared_settings(step)
        except SpecError as error:
            yield from (("in.config", str(problem)) for problem in error.problems)
            return
        below = {name: value for name, value in settings.items() if name not in step.params}
        given = {**SETTINGS, "config": checks.TEXT, "checkpoint": checks.TEXT}
        yield from checks.check(step.params, given, "params")
        yield from checks.check(below, SETTINGS, "in.config")
        yield from _input_problems(step, settings)

    def resolve(self, step: StepView) -> Mapping[str, Any]:
        """Return the params with those of the config file, so that what it names enters the key."""
        try:
            settings = sources.declared_settings(step)
        except SpecError:
            return step.params  # `validate` reports it.
        if step.param_or_input("checkpoint") is not None and "model" not in step.params:
            settings.pop("model", None)
        return settings

    def revision(self, kind: str, name: str) -> str | None:
        """Return the commit that a hub name stands for now, or None."""
        return hub.revision(kind, name)

    def run(self, task: Task) -> None:
        """Evaluate; raises StepError when that cannot be done."""
        gentle.load_torch()
        from nexa_hpc.backends.hf.evaluation import evaluate

        evaluate(task)


def _input_problems(step: StepView, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in step.inputs:
        if name not in _INPUTS:
            yield (
                f"in.{name}",
                f"unknown input '{name}'"
                + (nearest(name, _INPUTS) or f" (it takes: {', '.join(_INPUTS)})"),
            )
    if step.param_or_input("config") is not None and sources.declared_config(step) is None:
        return  # Another step writes it: its content is checked when this step runs.
    given = {*step.inputs, *settings}
    if not given & {"checkpoint", "model"}:
        yield "in.checkpoint", "missing: name a `checkpoint` in `in`, or a `model` in the config"
    if "dataset" not in given:
        yield "in.dataset", "missing: name a `dataset` in `in`, in `params` or in the config"
    if "text_column" in settings and "text_columns" in settings:
        yield "params.text_columns", "`text_column` is given as well; keep one"


handler = EvalHandler()
