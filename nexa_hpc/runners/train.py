"""`runners.train`: a dataset and a model in, a checkpoint folder out.

    in:      model, dataset, config (all optional here; each may stand in `params` as well)
    params:  `OWN_PARAMS` below, and every field of transformers' TrainingArguments
    out:     model.safetensors (or a LoRA adapter), config and tokenizer files, training.json,
             trainer_state.json, metrics.json, curve.png, README.md

`config` is a YAML file of params; those of the step win over it. Without `task`, a dataset with
labels (a `label_column`, or a column named label or labels) means text classification, one without
means a causal language model. This module is light: the work is done in `backends/hf/training.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexa_hpc.backends.hf import checks, gentle, hub, installed, sources
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.errors import SpecError, UserError, nearest
from nexa_hpc.runners import train_axolotl

AXOLOTL = "axolotl"
BACKENDS = ("hf", AXOLOTL)
TASKS = ("text_classification", "causal_lm")

OWN_PARAMS: Mapping[str, checks.Kind] = {
    "task": checks.one_of(*TASKS),
    "model": checks.TEXT,
    "model_revision": checks.TEXT,
    "model_sha256": checks.SHA256,
    "dataset": checks.TEXT,
    "dataset_config": checks.TEXT,
    "dataset_revision": checks.TEXT,
    "text_column": checks.COLUMNS,
    "text_columns": checks.COLUMNS,
    "label_column": checks.TEXT,
    "max_length": checks.COUNT,
    "max_train_rows": checks.COUNT,
    "max_eval_rows": checks.COUNT,
    "lora": checks.MAPPING,
    "global_batch_size": checks.COUNT,
    "world_size": checks.COUNT,
    "trust_remote_code": checks.FLAG,
    "allow_pickle": checks.FLAG,
}
"""The params that are not TrainingArguments."""

LORA_OWN_PARAMS = {"merge": checks.FLAG}
"""`lora` takes the fields of peft's LoraConfig and these."""

_DECIDED_HERE = {
    "output_dir": "the step's `out` says where the result goes",
    "resume_from_checkpoint": "an interrupted step resumes by itself",
}
_INPUTS = ("model", "dataset", "config")


class TrainHandler:
    """Validates and resolves the params of a training step, and hands it to its backend."""

    version = "1"
    kind = "checkpoint"
    resumable = True
    input_params: Mapping[str, str] = {
        "model": "model",
        "base_model": "model",
        "dataset": "dataset",
        "test_dataset": "dataset",
        "config": "path",
    }

    def validate(self, step: StepView) -> Iterator[tuple[str | None, str]]:
        """Yield the problems of `step`; imports neither torch nor transformers."""
        if step.backend == AXOLOTL:
            yield from train_axolotl.validate(step, declared_world_size(step.resources))
            return
        yield from _backend_problems(step)
        try:
            settings = sources.declared_settings(step)
            known = {**_known_training_arguments(step), **OWN_PARAMS, "config": checks.TEXT}
        except SpecError as error:
            yield from (("in.config", str(problem)) for problem in error.problems)
            return
        except UserError as error:
            yield "backend", str(error)
            return
        below = {name: value for name, value in settings.items() if name not in step.params}
        yield from checks.check(step.params, known, "params", complete=not step.is_elsewhere)
        yield from checks.check(below, known, "in.config", complete=not step.is_elsewhere)
        yield from _missing(step, settings)
        yield from _contradictions(step, settings)
        yield from _lora_problems(step, settings)

    def warn(self, step: StepView) -> Iterator[str]:
        """Yield what the user should know of `step`, though it is not wrong."""
        if step.backend == AXOLOTL:
            yield from train_axolotl.warn(step, declared_world_size(step.resources))

    def resolve(self, step: StepView) -> Mapping[str, Any]:
        """Return the params with the config file's, the GLUE task and the world size spelt out."""
        if step.backend == AXOLOTL:
            return train_axolotl.resolve(step, declared_world_size(step.resources))
        try:
            settings = sources.declared_settings(step)
        except SpecError:
            return step.params  # `validate` reports it.
        world_size = declared_world_size(step.resources)
        if world_size > 1 and "global_batch_size" not in settings:
            settings.setdefault("world_size", world_size)
        return settings

    def revision(self, kind: str, name: str, at: str | None = None) -> str | None:
        """Return the commit that a hub name stands for now, or its branch or tag `at`; or None."""
        return hub.revision(kind, name, at)

    def hub_pin(self, step: StepView, name: str) -> tuple[str, str | None] | None:
        """Return what pins a hub's name, where that is not called as usual."""
        return train_axolotl.hub_pin(step, name) if step.backend == AXOLOTL else None

    def hub_names(self, step: StepView) -> Iterator[tuple[str, str, str | None]]:
        """Yield what an axolotl config takes from a hub beside the inputs."""
        if step.backend == AXOLOTL:
            yield from train_axolotl.hub_names(step)

    def run(self, task: Task) -> None:
        """Train; raises StepError when it fails, Interrupted on SIGTERM once the work is sealed."""
        if task.backend == AXOLOTL:
            train_axolotl.run(task)
            return
        gentle.load_torch()
        from nexa_hpc.backends.hf.training import train

        train(task)


def declared_world_size(resources: Mapping[str, Any]) -> int:
    """Return how many devices `resources` asks for: one process for each, on every node."""

    def count(name: str) -> int:
        value = resources.get(name)
        return value if isinstance(value, int) and value > 0 else 1

    return count("nodes") * max(count("tasks_per_node"), count("gpus_per_node"))


def _known_training_arguments(step: StepView) -> dict[str, checks.Kind]:
    if step.is_elsewhere:
        return {}
    return {
        name: checks.annotated(annotation)
        for name, annotation in installed.training_arguments().items()
    }


def _backend_problems(step: StepView) -> Iterator[tuple[str, str]]:
    if step.backend not in (None, *BACKENDS):
        yield (
            "backend",
            f"runners.train has no backend '{step.backend}' in this version"
            + (nearest(step.backend, BACKENDS) or f"; it has: {', '.join(BACKENDS)}"),
        )


def _missing(step: StepView, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("model", "dataset"):
        if name not in step.inputs and name not in settings:
            yield f"params.{name}", f"missing: say in `params` or `in` which {name} to train on"
    for name in step.inputs:
        if name not in _INPUTS:
            yield (
                f"in.{name}",
                f"unknown input '{name}'"
                + (nearest(name, _INPUTS) or f" (it takes: {', '.join(_INPUTS)})"),
            )


def _contradictions(step: StepView, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, reason in _DECIDED_HERE.items():
        if name in settings:
            yield f"params.{name}", f"cannot be set: {reason}"
    if "text_column" in settings and "text_columns" in settings:
        yield "params.text_columns", "`text_column` is given as well; keep one"
    yield from _batch_problems(step, settings)


def _batch_problems(step: StepView, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wanted = settings.get("global_batch_size")
    if not checks.COUNT.admits(wanted):
        return
    if "gradient_accumulation_steps" in settings:
        yield (
            "params.global_batch_size",
            "decides gradient_accumulation_steps, which is given as well; keep one",
        )
    per_device = settings.get("per_device_train_batch_size", 1)
    devices = settings.get("world_size", declared_world_size(step.resources))
    if checks.COUNT.admits(per_device) and checks.COUNT.admits(devices):
        smallest = devices * per_device
        if wanted % smallest:
            yield (
                "params.global_batch_size",
                f"{wanted} is not divisible by {smallest} "
                f"({devices} devices x {per_device} rows on each)",
            )


def _lora_problems(step: StepView, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    lora = settings.get("lora")
    if not isinstance(lora, Mapping) or step.is_elsewhere:
        return
    try:
        fields = installed.lora_arguments()
    except UserError as error:
        yield "params.lora", str(error)
        return
    known = {name: checks.annotated(annotation) for name, annotation in fields.items()}
    yield from checks.check(lora, {**known, **LORA_OWN_PARAMS}, "params.lora")


handler = TrainHandler()
