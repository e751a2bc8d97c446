"""What a step's `uses` names: the handler protocol, what a handler is given, and how one is found.

A handler is any object (a module-level instance, or a module) with

    run(...)                 does the work; fills the folders in `task.outputs`; raises to fail
    validate(step)           optional: yields problems at planning, before anything is written
    resolve(step) -> params  optional: the params with defaults that the user should see spelt out
    version: str             optional: part of the step key; raise it when results change
    input_params: {name: kind}   optional: params that are really inputs, digested like `in`;
                             kinds: "path" (must exist), "model", "dataset" (path, `pkg://…`,
                             `models:name@tag`, or a name on a hub)
    revision(kind, name[, at]) -> str | None   optional: the revision a hub name stands for now, or
                             its branch or tag `at` (`hub_pin` and `hub_names`: see `hub_cache`)
    code_params: [name, …]   optional: params that list source files or folders, put into the key
    warn(step)               optional: yields warnings at planning
    kind: str                optional: the `kind` of the artifact it makes
    effect: bool             optional: its result is a change elsewhere, never cached by content
    holds(task) -> str | None            for effects: why nothing is left to do, or None
    serves: bool             optional: an effect that starts a server (`core.servers`) named
                             `task.server`, for other steps to read; it ends with the last of them,
                             unless its param `keep` is true; none is started where `dry_run` is
    keyless: [name, …]       optional: params that change no result, and are not in the key
    metric_of(step) -> (key, name) | None   optional: what may be the id of a step above whose
                             metrics it reads, and where that is written
    once: bool               optional: has one place to change, for which the points of a sweep
                             would fight: only for steps with `scope: sweep`
    light: bool              optional: takes seconds and hardly any memory, as notes in a registry
    resumable: bool | (params) -> bool   optional: saves when asked to stop (SIGTERM), and a later
                             attempt goes on from `task.resume`

or a plain function, which is then its `run`. `run` is called with the keyword arguments that it
names, out of the fields and properties of `Task` (`task` itself is one of them). Built-in handlers
and a user's `your.module:function` go through the same code. Called by planning and the worker.
Standard library alone.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nexa_hpc.core.checkpoints import Checkpoint
from nexa_hpc.core.endpoints import Endpoint
from nexa_hpc.core.environments import needs_process
from nexa_hpc.core.instances import NOTHING, SINGLE_OUTPUT
from nexa_hpc.core.quoting import shown
from nexa_hpc.core.ranks import ALONE, Ranks
from nexa_hpc.core.user_code import import_project_module
from nexa_hpc.errors import UserError, nearest

BUILTIN = {
    "runners.train": "nexa_hpc.runners.train:handler",
    "runners.eval": "nexa_hpc.runners.evaluate:handler",
    "runners.command": "nexa_hpc.runners.command:handler",
    "runners.serve": "nexa_hpc.runners.serve:handler",
    "core.registry.register": "nexa_hpc.runners.register:handler",
    "core.registry.promote": "nexa_hpc.runners.promote:handler",
}

ENTRY_POINT_GROUP = "nexa_hpc.handlers"


@dataclass(frozen=True)
class Progress:
    """How far the running step is; `total` None when unknown; `metrics` are the latest figures."""

    done: float
    total: float | None = None
    unit: str = "steps"
    metrics: Mapping[str, float] = field(default_factory=dict)


class StepView(NamedTuple):
    """A declared step as a handler's `validate` and `resolve` see it, before anything runs."""

    id: str
    uses: str
    backend: str | None
    scheduler: str | None
    params: Mapping[str, Any]
    inputs: Mapping[str, Any]
    """`in` as declared: name -> path text (or a mapping with `path`)."""
    outputs: Mapping[str, str]
    """`out` as declared: name -> path; empty when the step declares none."""
    resources: Mapping[str, Any]
    project: Path
    env: Mapping[str, Any] = NOTHING
    """`env` as declared; its `secrets` alone when the step is checked once more where it runs."""
    python: Path | None = None
    """The interpreter of its environment, where `env` names one as it stands; it need not be here.
    """

    @property
    def is_elsewhere(self) -> bool:
        """Whether the step runs with another Python than this one, with other libraries.

        Then only what needs none of them can be checked; where it starts, the rest is.
        """
        return needs_process(self.env)

    def param_or_input(self, name: str) -> Any:
        """Return what is declared under `name`, in `in` or in `params`, or None."""
        return self.inputs[name] if name in self.inputs else self.params.get(name)


@dataclass(frozen=True)
class Task:
    """One attempt at a step, as a handler's `run` sees it. All paths are absolute."""

    step_id: str
    uses: str
    backend: str | None
    key: str
    attempt: int
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    """Name -> file or folder: those of `in`, and the params named in `input_params` that are local
    (both `in: {model: X}` and `params: {model: X}` arrive as inputs["model"]). For the server of
    another step it is that server's name (`core.servers`); where it answers is in `endpoints`."""
    revisions: Mapping[str, str | None]
    """Name -> hub revision, for the params named in `input_params` that are names on a hub."""
    outputs: Mapping[str, Path]
    """Name -> an empty folder to fill; {"out": …} where the step declares one path or none."""
    work_dir: Path
    """Scratch of this attempt alone; kept while the step has no result, for the next attempt."""
    resume: Checkpoint | None
    """The newest sealed checkpoint of an earlier attempt."""
    resources: Mapping[str, Any]
    project: Path
    registry: Path
    """The folder of the model registry."""
    scheduler: str = "local"
    """Where it runs: `local`, or in a job of `slurm`."""
    servers: Path = Path()
    """The folder of the handles of servers."""
    server: str = ""
    """What a step that serves calls its server."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """Name of an input -> where the server that it names answers: its `url`, and its `token_file`
    or None."""
    code: Path | None = None
    """Where the project's code is found: a snapshot of it, or the project itself (None)."""
    upstream: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Every step above this one: its name in the run -> {"uses", "params", "inputs": {name: Path},
    "key", "step": its id, "distance": how many edges away, "results": {output: folder}}."""
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Of a step that serves: the variables whose values its server's log may not show."""
    on_progress: Callable[[Progress], None] = lambda _: None
    ranks: Ranks = ALONE
    """Which of several tasks this is; all of them share the outputs and `work_dir`."""

    @property
    def out_dir(self) -> Path:
        """The output folder of a step that has one; raises UserError for a step with several."""
        if SINGLE_OUTPUT not in self.outputs:
            raise UserError(
                f"step '{self.step_id}' has several outputs ({', '.join(self.outputs)})",
                hint="take `outputs` instead of `out_dir`",
            )
        return self.outputs[SINGLE_OUTPUT]

    @property
    def task(self) -> Task:
        """This task, so that `run(task)` is called like any other signature."""
        return self

    def progress(
        self,
        done: float,
        total: float | None = None,
        *,
        unit: str = "steps",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Tell whoever watches how far this attempt is; cheap, and never raises."""
        self.on_progress(Progress(done, total, unit, metrics or {}))


class Handler:
    """A handler found by name: the protocol's optional parts filled in."""

    def __init__(self, uses: str, target: Any) -> None:
        self.uses = uses
        self.target = target
        self.version = str(getattr(target, "version", "1"))
        self.effect = bool(getattr(target, "effect", False))
        self.kind = str(getattr(target, "kind", "artifact"))
        self.light = bool(getattr(target, "light", False))
        self.once = bool(getattr(target, "once", False))
        self.looks_above = hasattr(target, "above_problem")
        self.serves = bool(getattr(target, "serves", False))
        self.keyless: tuple[str, ...] = tuple(getattr(target, "keyless", ()))
        self.input_params: Mapping[str, str] = getattr(target, "input_params", {})
        self.code_params: tuple[str, ...] = tuple(getattr(target, "code_params", ()))
        self._run = target.run if hasattr(target, "run") else target

    def validate(self, step: StepView) -> list[tuple[str | None, str]]:
        """Return (key, message) for each problem of `step`; a ValueError is one problem, too, and
        so is what the disk says of a path.
        """
        validate = getattr(self.target, "validate", None)
        if validate is None:
            return []
        try:
            found: Iterable[Any] = validate(step) or ()
            return [item if isinstance(item, tuple) else (None, str(item)) for item in found]
        except ValueError as error:
            return [(None, str(error))]
        except OSError as error:
            named = f": {shown(str(error.filename))}" if error.filename else ""
            return [(None, f"{error.strerror or error}{named}")]

    def resumable(self, params: Mapping[str, Any]) -> bool:
        """Return whether a step with `params` saves when asked to stop."""
        resumable = getattr(self.target, "resumable", False)
        return bool(resumable(params) if callable(resumable) else resumable)

    def warn(self, step: StepView) -> list[str]:
        """Return what the user should know of `step`, though it is not wrong."""
        warn = getattr(self.target, "warn", None)
        return [] if warn is None else list(warn(step) or ())

    def resolve(self, step: StepView) -> Mapping[str, Any]:
        """Return the params of `step` with the handler's visible defaults filled in."""
        resolve = getattr(self.target, "resolve", None)
        return step.params if resolve is None else dict(resolve(step))

    def revision(self, kind: str, name: str, at: str | None = None) -> str | None:
        """Return the revision that a hub's name, or its `at`, stands for now; unanswered, `at`."""
        revision = getattr(self.target, "revision", None)
        if revision is None or (at and len(inspect.signature(revision).parameters) < 3):
            return at
        found: str | None = revision(kind, name, at) if at else revision(kind, name)
        return found or at

    def metric_of(self, step: StepView) -> tuple[str, str] | None:
        """Return the key among the params, and the step that it says the metrics of are read."""
        metric_of = getattr(self.target, "metric_of", None)
        found: tuple[str, str] | None = None if metric_of is None else metric_of(step)
        return found

    def above_problem(
        self, params: Mapping[str, Any], above: Mapping[str, Mapping[str, Any]]
    ) -> tuple[str, str] | None:
        """Return (key, message) for what is wrong with the steps above, as `Task.upstream` has
        them but without what is not known before they have run; None where nothing is.
        """
        found: tuple[str, str] | None = None
        if self.looks_above:
            found = self.target.above_problem(params, above)
        return found

    def holds(self, task: Task) -> str | None:
        """Return why an effect has nothing left to do, or None."""
        holds = getattr(self.target, "holds", None)
        return None if holds is None else holds(task)

    def run(self, task: Task) -> None:
        """Call the handler with the keyword arguments that its `run` names."""
        self._run(**{name: getattr(task, name) for name in self._argument_names})

    def signature_problem(self) -> str | None:
        """Return what is wrong with the signature of `run`, or None."""
        if not callable(self._run):
            return f"{self.uses}: is neither a function nor something with a `run`"
        allowed = task_argument_names()
        for name in self._argument_names:
            if name not in allowed:
                return f"{self.uses}: run() has no argument to offer for '{name}'" + (
                    nearest(name, allowed) or f" (it may take: {', '.join(sorted(allowed))})"
                )
        return None

    @cached_property
    def _argument_names(self) -> list[str]:
        parameters = inspect.signature(self._run).parameters.values()
        return [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and (p.default is p.empty or p.name in task_argument_names())
        ]


def task_argument_names() -> set[str]:
    """Return the names that a handler's `run` may take."""
    return {"out_dir", "task", "progress", *Task.__dataclass_fields__} - {"on_progress"}


def find_handler(uses: str, project: Path) -> Handler:
    """Return the handler that `uses` names; raises UserError when there is none.

    A name with a colon is imported, with the project root on `sys.path`; other names are built in
    or come from installed packages (entry points of group `nexa_hpc.handlers`).
    """
    if uses in BUILTIN:
        return _builtin(uses)
    if ":" in uses:
        return Handler(uses, _target(uses, lambda name: import_project_module(name, project)))
    offered = _entry_points()
    if uses in offered:
        return Handler(uses, offered[uses].load())
    raise UserError(
        f"unknown handler '{uses}'" + nearest(uses, [*BUILTIN, *offered]),
        hint=f"built in: {', '.join(BUILTIN)}; or your own: your.module:function",
    )


@lru_cache
def _builtin(uses: str) -> Handler:
    return Handler(uses, _target(BUILTIN[uses], importlib.import_module))


def _entry_points() -> dict[str, Any]:
    # Imported here: reading the metadata of every installed distribution costs tens of
    # milliseconds, and only names that are neither built in nor `module:function` need it.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _target(reference: str, import_module: Callable[[str], ModuleType]) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        target: Any = import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        # Whatever the module raises on import is the user's to mend; `from` keeps the place.
        raise UserError(
            f"cannot import '{module_name}': {_describe(error)}",
            hint="the module must be importable from the project root or be installed",
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UserError(f"'{module_name}' has no '{part}'" + nearest(part, vars(target)))
        target = getattr(target, part)
    return target


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
