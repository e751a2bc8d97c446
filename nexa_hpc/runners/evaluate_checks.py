"""What of an evaluation is refused at planning, beyond the form of each single setting.

Which settings go together; which metrics a task has; which columns a dataset has, as far as that is
seen in its files. Called by `evaluate`. Light.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.backends.hf import addresses, peeking, sources
from nexa_hpc.core.handlers import StepView
from nexa_hpc.errors import nearest

Found = Iterator[tuple[str, str]]
"""(key, message) of each problem."""

METRICS: Mapping[str, Sequence[str]] = {
    "text_classification": ("accuracy", "macro_f1", "per_class", "calibration_error"),
    "causal_lm": ("perplexity", "loss", "bits_per_byte"),
    "generation": ("exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"),
}
"""What `metrics` may list for each task; without it, all."""

_GENERATION = (
    "prompt_column", "reference_column", "max_new_tokens", "temperature", "seed", "stop",
)  # fmt: skip
_NOT_GENERATION = (
    "text_column", "text_columns", "label_column", "max_length", "max_train_rows", "baseline",
)  # fmt: skip
_ENDPOINT = ("endpoint_model", "token_variable", "concurrency")
_NOT_ENDPOINT = ("batch_size", "model_revision", "trust_remote_code", "allow_pickle")
_COLUMNS = ("text_column", "text_columns", "label_column", "prompt_column", "reference_column")
_MODELS = ("checkpoint", "model", "endpoint")


def combined(step: StepView, settings: Mapping[str, Any]) -> Found:
    """Yield what is wrong with the settings of `step` taken together."""
    yield from _metrics(step, settings)
    yield from _of_the_task(step, settings)
    yield from _of_the_endpoint(step, settings)
    yield from _columns(step, settings)


def missing(step: StepView, settings: Mapping[str, Any]) -> Found:
    """Yield what is named nowhere, or twice."""
    given = {*step.inputs, *settings}
    models = [name for name in _MODELS if name in given]
    if not models:
        yield (
            "in.checkpoint",
            ("missing: name a `checkpoint` in `in`, or a `model` or an `endpoint` in the config"),
        )
    if "endpoint" in models and len(models) > 1:
        yield f"in.{models[0]}", "`endpoint` is named as well; keep one"
    if "dataset" not in given:
        yield "in.dataset", "missing: name a `dataset` in `in`, in `params` or in the config"
    if "text_column" in settings and "text_columns" in settings:
        yield "params.text_columns", "`text_column` is given as well; keep one"


def packages(step: StepView, settings: Mapping[str, Any]) -> Found:
    """Yield what has to be installed here."""
    if step.is_elsewhere:
        return
    is_asked, generates = _is_asked(step, settings), settings.get("task") == "generation"
    needed = {"openai": is_asked, "rouge_score": generates}
    for package, is_needed in needed.items():
        if is_needed and not importlib.util.find_spec(package):
            yield "backend", f"needs {package}, which is not here: pip install 'nexa-hpc[hf]'"


def _metrics(step: StepView, settings: Mapping[str, Any]) -> Found:
    wanted = settings.get("metrics", ())
    tasks = [settings["task"]] if "task" in settings else list(METRICS)
    if any({*wanted} <= {*METRICS[task]} for task in tasks):
        return
    if len(tasks) > 1:
        message = f"no task has all of {_list(wanted)}"
    else:
        known = METRICS[tasks[0]]
        strange = [name for name in wanted if name not in known]
        message = f"task {tasks[0]} has no {_list(strange)}; it has: {_list(known)}"
    yield _place(step, "metrics"), message


def _of_the_task(step: StepView, settings: Mapping[str, Any]) -> Found:
    task = settings.get("task")
    if task == "generation":
        for name in _NOT_GENERATION:
            if name in settings:
                yield (
                    _place(step, name),
                    f"is for other tasks; generation takes {_list(_GENERATION)}",
                )
    else:
        for name in _GENERATION:
            if name in settings:
                yield _place(step, name), "is for `task: generation`"


def _of_the_endpoint(step: StepView, settings: Mapping[str, Any]) -> Found:
    if not _is_asked(step, settings):
        for name in _ENDPOINT:
            if name in settings:
                yield _place(step, name), "is for an `endpoint`, and none is named"
        return
    for name in _NOT_ENDPOINT:
        if name in settings:
            yield _place(step, name), f"is for a model here; an endpoint takes {_list(_ENDPOINT)}"
    if settings.get("task") not in ("generation", "causal_lm"):
        yield (
            _place(step, "task"),
            "behind an endpoint it is `generation` or `causal_lm`; say which",
        )
    variable = settings.get("token_variable")
    if variable is None:
        return
    if "endpoint" in step.inputs or addresses.is_name(settings["endpoint"]):
        message = "is for a URL; the token of a server that was started here is found"
        yield _place(step, "token_variable"), message
    elif variable not in step.env.get("secrets", ()):
        message = (
            f"list it in the step's `env: {{secrets: [{variable}]}}`, which keeps its value out "
        )
        yield _place(step, "token_variable"), message + "of logs and records"


def _columns(step: StepView, settings: Mapping[str, Any]) -> Found:
    declared = step.inputs.get("dataset", settings.get("dataset"))
    text = declared.get("path") if isinstance(declared, Mapping) else declared
    if not isinstance(text, str) or _is_made(step.project, text):
        return
    known = peeking.columns(step.project / text)
    if known is None:
        return
    for setting in _COLUMNS:
        value = settings.get(setting, ())
        for name in [value] if isinstance(value, str) else value:
            if name not in known:
                told = nearest(name, known) or f"; it has: {_list(known)}"
                yield _place(step, setting), f"the dataset {text} has no column '{name}'{told}"


def _is_made(project: Path, text: str) -> bool:
    """Return whether a dataset is on a hub, or another step's result, which may be made anew."""
    path = project.resolve() / text
    return not path.exists() or str(path.resolve()) != os.path.normpath(path)


def _is_asked(step: StepView, settings: Mapping[str, Any]) -> bool:
    return "endpoint" in step.inputs or "endpoint" in settings


def _place(step: StepView, name: str) -> str:
    config = sources.declared_config(step) is not None and name not in step.params
    return f"in.config.{name}" if config else f"params.{name}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
