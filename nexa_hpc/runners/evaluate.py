"""`runners.eval`: a model and a dataset in, a report on how good the model is out.

    in:      config (a YAML file of the settings below), checkpoint, dataset, model, endpoint
    params:  the same settings; they win over the config
    out:     metrics.json, predictions.jsonl, plots, report.html

Which model: `in: {checkpoint: …}`, else `model`, else `endpoint`: a URL, the name of a server that
`nexa-hpc serve start` made here, or in `in` a step that serves. A checkpoint that `runners.train`
made brings its own columns, lengths and number of training rows; settings win over them. `in:
{dataset: …}` wins over the config's `dataset`. What either names is part of the step's key, but for
what another step makes: name that in `in`. Of an endpoint the key knows the name alone.

    task: text_classification   accuracy and the like; `baseline: tfidf_logreg` beside it, fitted on
                                the rows that the model was trained on
    task: causal_lm             perplexity of texts
    task: generation            answers to prompts or chats beside references: exact match, ROUGE

This module is light: the work is done in `backends/hf/evaluation.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.backends.hf import addresses, checks, gentle, hub, installed, sources
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.ranks import declared_tasks
from nexa_hpc.errors import SpecError, UserError, nearest
from nexa_hpc.runners import evaluate_checks
from nexa_hpc.runners.evaluate_checks import METRICS

BACKENDS = ("hf",)
BASELINES = ("tfidf_logreg",)
_ALL_METRICS = [name for names in METRICS.values() for name in names]


def _is_metrics(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(name in _ALL_METRICS for name in value)


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", value))


def _is_stop(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)


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
    "endpoint": checks.Kind(
        "a URL such as http://host:8000 without credentials, or the name of a server",
        lambda value: addresses.problem(value) is None,
    ),
    "endpoint_model": checks.TEXT,
    "token_variable": checks.Kind("the name of an environment variable", _is_variable),
    "concurrency": checks.COUNT,
    "prompt_column": checks.TEXT,
    "reference_column": checks.TEXT,
    "max_new_tokens": checks.COUNT,
    "temperature": checks.Kind(
        "a number from 0 to 5", lambda value: type(value) in (int, float) and 0 <= value <= 5
    ),
    "seed": checks.Kind("a whole number", lambda value: type(value) is int),
    "stop": checks.Kind("a list of texts", _is_stop),
}
_INPUTS = ("config", "checkpoint", "model", "dataset", "endpoint")


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

    def warn(self, step: StepView) -> Iterator[str]:
        """Yield that the key does not know what answers at an endpoint."""
        try:
            endpoint = sources.declared_settings(step).get("endpoint")
        except SpecError:
            return
        if endpoint is not None:
            yield (
                f"the key knows the endpoint '{endpoint}' by that text alone, not the model that "
                "answers; when it is another one, change `cache_hint`"
            )

    def revision(self, kind: str, name: str, at: str | None = None) -> str | None:
        """Return the commit that a hub name stands for now, or its branch or tag `at`; or None."""
        return hub.revision(kind, name, at)

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
    yield from evaluate_checks.missing(step, settings)
    sound = {
        n: value for n, value in settings.items() if n in SETTINGS and SETTINGS[n].admits(value)
    }
    yield from evaluate_checks.combined(step, sound)
    yield from evaluate_checks.packages(step, sound)


handler = EvalHandler()
