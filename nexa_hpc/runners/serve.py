"""`runners.serve`: a model served while other steps of the pipeline read it.

    uses: runners.serve
    backend: hf_runtime                # or vllm, the default
    params: {model: train, max_batch: 16, keep: false}

`model` is a step's result, a folder or `models:name@tag`. The params are those of `serve start`;
`keep: true` leaves the server up when the last step that reads it has ended, and `dry_run: true`
prints its command. It is an effect: skipped while its server answers, or nothing that reads it has
to run. The server is its supervisor's (`supervising`), and not this attempt's. Light: the library
is the server's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nexa_hpc.backends.hf import checks
from nexa_hpc.core.answering import is_loopback, where
from nexa_hpc.core.endpoints import DRY_RUN, KEEP
from nexa_hpc.core.environments import path_of
from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.core.leases import Leases
from nexa_hpc.core.servers import (
    EVERYWHERE,
    Condition,
    Handle,
    Servers,
    is_here,
)
from nexa_hpc.errors import StepError
from nexa_hpc.runners import gpus, serving

DEFAULT_BACKEND = "vllm"


class Serve:
    """The handler."""

    effect = True
    serves = True
    input_params: ClassVar[Mapping[str, str]] = {"model": "path"}
    keyless = ("host", "port", "python", "start_timeout_s", "token", KEEP)

    def validate(self, step: StepView) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the step."""
        params = _asked(step.params, step.project)
        if "model" not in step.params and "model" not in step.inputs:
            yield "params.model", "is missing: a step, a folder or models:name@tag"
        for name in step.inputs:
            if name != "model":
                yield f"in.{name}", "a server reads its `model` alone"
        if "name" in params:
            yield "params.name", "the server of a step is called after the step and its key"
        if step.env.get("container"):
            yield "env.container", "a server would have to outlive it; take a venv or a module"
        yield from _server_problems(step, params)
        keep = {KEEP: step.params[KEEP]} if KEEP in step.params else {}
        yield from checks.check(keep, {KEEP: checks.FLAG}, "params")
        yield from _gpu_problems(step)

    def resolve(self, step: StepView) -> Mapping[str, Any]:
        """Return the params with the name that requests give: the model's, or else the step's."""
        named = serving.model_name(str(step.param_or_input("model") or "")) or step.id
        return {"served_model_name": named, **step.params}

    def holds(self, task: Task) -> str | None:
        """Say that its server answers already."""
        leases = Leases(Servers(task.servers))
        ready = leases.healthy(task.server) if task.server else None
        if ready is None or (task.params.get(KEEP) and not leases.is_kept(ready)):
            return None
        if _lacks_token(ready, task):
            return None
        return f"server '{ready.name}' answers at {ready.url}"

    def run(self, task: Task) -> None:
        """Start the server, and return when it answers; or print its command."""
        handle = _handle(task)
        if task.params.get(DRY_RUN):
            print(serving.shown_command(handle))
            return
        servers = Servers(task.servers)
        leases = Leases(servers)
        # One that was about to end may have seen that it is held again.
        ready = leases.healthy(handle.name)
        if ready is not None and _lacks_token(ready, task):
            raise StepError(
                f"server '{ready.name}' was started without the token that is asked for now",
                hint=f"nexa-hpc serve stop {ready.name}",
            )
        if ready is None:
            _make_way(servers, handle.name)
            ready = serving.start(servers, handle, lambda text: print(text, flush=True))
        elif task.params.get(KEEP):
            leases.keep(ready)
        print(f"server '{ready.name}' serves '{ready.served_as}' at {ready.url}")


handler = Serve()


def _server_problems(step: StepView, params: dict[str, Any]) -> Iterator[tuple[str, str]]:
    backend = step.backend or DEFAULT_BACKEND
    is_elsewhere = step.is_elsewhere and "python" not in params
    if is_elsewhere and step.python is not None and step.python.is_file():
        params, is_elsewhere = {**params, "python": str(step.python)}, False
    # Which release is elsewhere is known where it starts, and asked there.
    yield from serving.problems(backend, params, is_elsewhere=is_elsewhere)


def _asked(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return what is asked of `serving`: all params but `keep`, and `python` wherever it is."""
    asked = {name: value for name, value in params.items() if name != KEEP}
    if "/" in str(asked.get("python")):
        asked["python"] = str(path_of(str(asked["python"]), project))
    return asked


def _asked_by(task: Task) -> dict[str, Any]:
    asked = _asked(task.params, task.project)
    if task.params.get(KEEP) and task.scheduler == "slurm":
        # It stays for others, who are on other machines.
        asked.setdefault("host", EVERYWHERE)
    return asked


def _lacks_token(ready: Handle, task: Task) -> bool:
    params = _asked_by(task)
    asked = params.get("token", not is_loopback(str(params.get("host", serving.LOOPBACK))))
    return bool(asked) and not ready.token_variable


def _make_way(servers: Servers, name: str) -> None:
    """End what is left of an earlier server of this step, such as one that was still starting.

    Raises StepError for one on another machine, which may be of use there.
    """
    before = servers.find(name)
    if before is None:
        return
    condition, _ = servers.condition(before)
    is_elsewhere = before.supervisor is not None and not is_here(before)
    if condition is Condition.HEALTHY or (condition.lives and is_elsewhere):
        # Others may be served by it, and wait for it to find the time.
        raise StepError(
            f"server '{name}' was started on {where(before)}, and does not answer here",
            hint=f"nexa-hpc serve stop {name}",
        )
    servers.stop(before)


def _handle(task: Task) -> Handle:
    params = _asked_by(task)
    return serving.make_handle(
        task.server or task.step_id,
        task.inputs["model"],
        str(params.get("model") or params["served_model_name"]),
        task.backend or DEFAULT_BACKEND,
        params,
        task.project,
        leased=not task.params.get(KEEP),
        secrets=task.secrets,
    )


def _gpu_problems(step: StepView) -> Iterator[tuple[str, str]]:
    """Yield where the GPUs that are asked for are not as many as the model is spread over."""
    asked, spread = gpus.asked(step.resources), gpus.spread(step.params)
    if max(asked, spread) > 1 and asked != spread:
        yield (
            "params.tensor_parallel",
            f"the model is spread over {spread} GPUs, and `resources` asks for {asked}: "
            f"say `gpus_per_node: {spread}`, or spread it over as many",
        )
