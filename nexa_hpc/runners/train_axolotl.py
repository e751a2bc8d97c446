"""`runners.train` with `backend: axolotl`: an axolotl config in, a checkpoint folder out.

    in:      model, dataset, test_dataset, config (all optional; each may stand in `params` as well)
    params:  every key of an axolotl config; `base_model` is an input as `model` is; and
             merge: true         merge LoRA into full weights
             launcher            python, torchrun or accelerate; by default as `resources` want it
    out:     safetensors (an adapter, or full weights), config and tokenizer files, axolotl.yaml,
             training.json, metrics.json, curve.csv, curve.png (where matplotlib is)

Entries of `datasets` without a `path` get `dataset`, those of `test_datasets` get `test_dataset`,
or the validation split beside the other. Axolotl is the one in the step's `env`; planning asks its
schema there. What axolotl is made of is known to `backends/axolotl/`; this module checks the
params, and starts, follows and stops axolotl's command line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.backends.axolotl import checkpoints, configuring, output, publishing, schema, settings
from nexa_hpc.backends.axolotl.configuring import Prepared
from nexa_hpc.backends.hf import checks, sources
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.named_environments import create_command
from nexa_hpc.errors import SpecError, StepError, nearest
from nexa_hpc.runners import axolotl_process, gpus, launchers
from nexa_hpc.runners.process_group import failure

PYTHON = "python"
_MODEL_IN_PLANNING = "model"
_WHAT = "axolotl"


def validate(step: StepView, world_size: int) -> Iterator[tuple[str | None, str]]:
    """Yield the problems of `step`; asks axolotl's schema where its environment is on this host."""
    try:
        declared = settings.declared(step)
    except SpecError as error:
        yield from (("in.config", str(problem)) for problem in error.problems)
        return
    problems = [*_own_problems(step, declared), *_launcher_problems(declared, world_size)]
    yield from problems
    if not problems and not _waits_for_config(step):
        yield from _schema_problems(step, declared)


def resolve(step: StepView, world_size: int) -> Mapping[str, Any]:
    """Return the params over those of the config file, and how many processes train together."""
    try:
        declared = settings.declared(step)
    except SpecError:
        return step.params  # `validate` reports it.
    if world_size > 1:
        declared.setdefault("world_size", world_size)
    return declared


def warn(step: StepView, world_size: int) -> Iterator[str]:
    """Yield what was not checked, and the files that the key would not notice changing."""
    try:
        declared = settings.declared(step)
    except SpecError:
        return
    if world_size > 1 and not gpus.asked(step.resources):
        # Its `normalize_config` (0.19) puts the model of each on the accelerator of its number.
        yield (
            f"axolotl trains in {world_size} processes only where each has a GPU, and `resources` "
            "ask for none"
        )
    for name in settings.local_files(declared, step):
        yield (
            f"{name} is named in the config, and its content is not in the key; name it by "
            "`in: {model: …, dataset: …, test_dataset: …}`, or change `cache_hint` when it changes"
        )
    if _waits_for_config(step):
        yield "the axolotl config is made by another step, and is checked when this one starts"
        return
    interpreter = _interpreter(step)
    if interpreter is None:
        yield "its environment is not here to be asked; the axolotl config is checked where it runs"
        return
    answer = schema.ask(interpreter, _config_at_planning(step, declared))
    if answer.unknown is not None:
        yield f"the axolotl config was not checked: {answer.unknown}"


def hub_pin(step: StepView, name: str) -> tuple[str, str | None] | None:
    """Return which key of the config pins the hub's name of an input, and to what."""
    try:
        return settings.hub_pin(settings.declared(step), name)
    except SpecError:
        return None  # `validate` reports it.


def hub_names(step: StepView) -> Iterator[tuple[str, str, str | None]]:
    """Yield (kind, name, revision) of what the config takes from a hub beside the inputs."""
    try:
        declared = settings.declared(step)
    except SpecError:
        return
    yield from settings.hub_names(declared, step.project)


def run(task: Task) -> None:
    """Train; raises CommandError when axolotl fails, and passes on what stops it, once saved."""
    launch = _launch(task)
    if launch is None:
        return
    prepared = configuring.prepare(task)
    _check_made_config(task, prepared)
    reader = output.Reader(task)
    if "resume_from_checkpoint" in prepared.config:
        step = checkpoints.step_of(Path(prepared.config["resume_from_checkpoint"]))
        print(f"resuming from step {step}", flush=True)
    options, variables = launch
    process = axolotl_process.AxolotlProcess(task, prepared.out, reader, variables)
    code = process.run([*_axolotl(), "train", str(prepared.file), *options], saves=True)
    if code != 0:
        raise failure(code, _WHAT)
    if task.ranks.rank == 0:
        publishing.publish(task, prepared, _weights(prepared, process), reader.history)


def _weights(prepared: Prepared, process: axolotl_process.AxolotlProcess) -> Path:
    """Return the folder with the weights to publish, merged where that is asked for."""
    if not (prepared.settings.get("merge") and prepared.config.get("adapter")):
        return prepared.out
    print("merging the adapter into the model", flush=True)
    options = [f"--lora-model-dir={prepared.out}"]
    code = process.run([*_axolotl(), "merge-lora", str(prepared.file), *options])
    if code != 0:
        raise failure(code, f"{_WHAT} merge-lora")
    return prepared.out / "merged"


def _axolotl() -> list[str]:
    return [sys.executable, "-m", "axolotl.cli.main"]


def _launch(task: Task) -> tuple[list[str], dict[str, str]] | None:
    """Return the options of `axolotl train` and its variables; None where nothing is to start."""
    counts = [task.resources.get(name) for name in ("tasks_per_node", "gpus_per_node")]
    each = max([task.ranks.local_size, *filter(None, counts)])
    several = each * (task.resources.get("nodes") or 1) > 1
    launcher = task.params.get("launcher") or (launchers.TORCHRUN if several else PYTHON)
    if launcher == PYTHON:
        return ["--launcher", PYTHON], {}
    found = launchers.node_launcher(task, launcher, each)
    if found is None:
        return None
    options, variables = found
    return ["--launcher", launcher, "--", *options], variables


def _check_made_config(task: Task, prepared: Prepared) -> None:
    """Raise StepError for a config file that another step made, so that planning saw none of it."""
    if "config" not in task.inputs or set(prepared.settings) <= set(task.params):
        return
    answer = schema.ask(Path(sys.executable), prepared.config)
    problems = [*_refused(prepared.settings)]
    problems += [(".".join(map(str, place)), text) for place, text in _told(answer)]
    if problems:
        raise StepError("\n".join(f"in.config: {place}: {text}" for place, text in problems))


def _own_problems(step: StepView, declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    known = {name: kind for name, kind in settings.OWN_PARAMS.items() if name in declared}
    for name, problem in checks.check({n: declared[n] for n in known}, known, "params"):
        yield name, problem
    for name, problem in _refused(declared):
        yield f"params.{name}", problem
    for name in step.inputs:
        if name not in settings.INPUTS:
            yield (
                f"in.{name}",
                f"unknown input '{name}'"
                + (nearest(name, settings.INPUTS) or f"; it takes: {', '.join(settings.INPUTS)}"),
            )
    given = [n for n in settings.MODEL_NAMES if n in step.inputs or n in declared]
    if len(given) > 1:
        yield f"params.{given[1]}", f"`{given[0]}` names the model as well; keep one"
    if not _waits_for_config(step):
        yield from _missing(step, declared, given)
    if declared.get("merge") and not declared.get("adapter"):
        yield "params.merge", "there is nothing to merge without an `adapter`"


def _refused(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, reason in settings.DECIDED_HERE.items():
        if name in declared:
            yield name, f"cannot be set: {reason}"


def _missing(
    step: StepView, declared: Mapping[str, Any], models: list[str]
) -> Iterator[tuple[str, str]]:
    yield from _unlike_revisions(declared)
    if not models:
        yield "params.base_model", "missing: say in `in`, or in `params`, which model to train"
    for name, entries in (("dataset", "datasets"), ("test_dataset", "test_datasets")):
        given = name in step.inputs or name in declared
        if given and not isinstance(declared.get(entries), list):
            message = f"missing: how the rows of `{name}` read, as in [{{type: chat_template}}]"
            yield f"params.{entries}", message
    rows = declared.get("datasets")
    if "dataset" in step.inputs or "dataset" in declared or not isinstance(rows, list):
        return
    for number, entry in enumerate(rows):
        if isinstance(entry, Mapping) and "path" not in entry:
            yield f"params.datasets.{number}.path", "missing, and there is no `dataset` in `in`"


def _unlike_revisions(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("dataset", "test_dataset"):
        revisions = settings.row_revisions(declared, name)
        if len(set(revisions.values())) > 1:
            yield (
                f"params.{name}s.{max(revisions)}.revision",
                f"the rows of `{name}` at several revisions: give these entries a `path` each",
            )


def _launcher_problems(declared: Mapping[str, Any], world_size: int) -> Iterator[tuple[str, str]]:
    if declared.get("launcher") == PYTHON and world_size > 1:
        yield (
            "params.launcher",
            f"{world_size} processes are asked for, and `launcher: python` starts one: take "
            "torchrun or accelerate",
        )


def _schema_problems(
    step: StepView, declared: Mapping[str, Any]
) -> Iterator[tuple[str | None, str]]:
    interpreter = _interpreter(step)
    if interpreter is None:
        return  # `warn` says so.
    answer = schema.ask(interpreter, _config_at_planning(step, declared))
    if answer.missing is not None:
        where = "the step's environment" if step.is_elsewhere else "nexa-hpc's own environment"
        yield "backend", f"axolotl is not installed in {where}: {answer.missing}{_mend(step)}"
    for place, message in _told(answer):
        section = "params" if not place or place[0] in step.params else "in.config"
        yield ".".join([section, *map(str, place)]), message


def _mend(step: StepView) -> str:
    """Return what brings the step its axolotl, unless planning says it of the one by name."""
    if step.env.get("name"):
        return ""
    made = create_command(_WHAT, [_WHAT])
    return f"; make one: {made}, and name it on the step: `env: {{name: {_WHAT}}}`"


def _told(answer: schema.Answer) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the problems, with the name that may have been meant."""
    for place, message, names in answer.problems:
        known = [*names, *settings.OWN_PARAMS] if len(place) == 1 and names else names
        yield place, message + (nearest(str(place[-1]), known) if known else "")


def _config_at_planning(step: StepView, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that will be given to axolotl, with names in the place of paths."""

    def named(*names: str) -> str | None:
        found = next((n for n in names if n in step.inputs or n in declared), None)
        return None if found is None else str(declared.get(found) or _MODEL_IN_PLANNING)

    return settings.filled(
        declared,
        named(*settings.MODEL_NAMES),
        named("dataset"),
        named("test_dataset", "dataset"),
    )


def _waits_for_config(step: StepView) -> bool:
    return step.param_or_input("config") is not None and sources.declared_config(step) is None


def _interpreter(step: StepView) -> Path | None:
    """Return the Python of the step's environment, where it can be started here as it is."""
    if not step.is_elsewhere:
        return Path(sys.executable)
    return step.python if step.python is not None and step.python.is_file() else None
