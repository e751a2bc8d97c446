"""What must hold when a step starts: results above it, unchanged files and code, right params.

The files are compared once more before a result is published. Called by the worker. Standard
library alone.
"""

from __future__ import annotations

from pathlib import Path

from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.best import choose
from nexa_hpc.core.digests import Digester, signature
from nexa_hpc.core.handlers import Handler, StepView
from nexa_hpc.core.instances import Instance, read_steps
from nexa_hpc.core.results import find_result
from nexa_hpc.core.runs import Run
from nexa_hpc.core.snapshots import as_submitted, source_root
from nexa_hpc.core.tasks import step_path
from nexa_hpc.errors import BlockedError, InputChangedError, StepError


def check_upstream(run: Run, instance: Instance) -> None:
    """Raise BlockedError unless every result that the inputs name is there, whole."""
    for name, handed in instance.inputs.items():
        for step in read_steps(handed) if "server" not in handed else ():
            if find_result(run.instances[step], run.paths).artifact is None:
                raise BlockedError(f"input {name}: step '{step}' has no result")
        if "best" in handed:
            best = choose(handed, run.instances, run.paths)
            how = f"the {handed['best']['mode']} of {handed['best']['metric']}"
            print(f"input {name}: {best.step} has {how}: {best.value:g}", flush=True)
        if "step" in handed:
            path = step_path(handed, run.instances, run.paths)
            if not path.exists():
                raise StepError(f"input {name}: step '{handed['step']}' made no {handed['below']}")


def check_inputs(run: Run, instance: Instance) -> None:
    """Raise InputChangedError unless files and folders are as they were at planning.

    A copy that was taken at submission is what was planned.
    """
    for name, handed in instance.inputs.items():
        expected = handed.get("signature")
        if expected is None:
            continue
        if as_submitted(run, instance, Path(handed["path"])) != Path(handed["path"]):
            continue
        try:
            found = signature(Path(handed["path"]))
        except OSError:
            found = "gone"
        if found != expected:
            raise InputChangedError(
                f"input {name} ({handed['path']}) changed after planning; nothing was published",
                hint="run the pipeline again: it will plan with the new content",
            )


def check_code(run: Run, instance: Instance) -> None:
    """Raise InputChangedError unless the source files in the key are as they were at planning."""
    for name, expected in instance.document["code"].items():
        path = source_root(run, instance) / name
        try:
            found = sha256_file(path) if path.is_file() else Digester().digest(path).sha256
        except OSError:
            found = "gone"
        if found != expected:
            raise InputChangedError(
                f"code {name} changed after planning",
                hint="run the pipeline again: it will plan with the new code",
            )


def check_params(run: Run, instance: Instance, handler: Handler) -> None:
    """Raise StepError unless the params are right, for the libraries that this process has.

    Planning had others, and passed over what it could not know.
    """
    inputs = {
        name: handed.get("path", "")
        for name, handed in instance.inputs.items()
        if name not in instance.params
    }
    view = StepView(
        id=instance.step,
        uses=instance.uses,
        backend=instance.backend,
        scheduler=instance.scheduler,
        params=instance.params,
        inputs=inputs,
        outputs={name: path or "" for name, path in instance.outputs.items()},
        resources=instance.resources,
        project=run.paths.root,
        env={name: instance.env[name] for name in ("secrets",) if name in instance.env},
    )
    problems = [f"{key}: {text}" if key else text for key, text in handler.validate(view)]
    if problems:
        raise StepError("\n".join(problems))
