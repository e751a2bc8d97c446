"""What can be wrong with a step once its document is well formed: its handler, inputs, environment.

Also what planning starts from (`PlanRequest`) and what checking finds out (`Drafts`). Called by
`planning.make_plan`; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nexa_hpc.core import spec as documents
from nexa_hpc.core.document import Document
from nexa_hpc.core.handlers import Handler, StepView
from nexa_hpc.core.inputs import Reference, References, StepPlace
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.settings import Settings
from nexa_hpc.core.spec_sections import ResourcesSpec
from nexa_hpc.errors import NexaError, Problem, UnsupportedError

_NO_RESOURCES = ResourcesSpec()
_ENV_UNSUPPORTED = ("name", "venv", "conda", "python", "modules", "container", "setup")


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made from."""

    spec: documents.PipelineSpec
    document: Document
    paths: ProjectPaths
    settings: Settings
    find_handler: Callable[[str, Path], Handler]
    find_scheduler: Callable[[str], object]
    """Raises UnsupportedError for a scheduler that this version does not have."""
    scheduler: str | None = None
    """Overrides every step's; changes no key."""
    reruns: Mapping[str, int] = field(default_factory=dict)
    """Step id -> how often `rerun --from` reached it."""
    glance: bool = False
    """Whether whoever asks looks at all results again, so that a COMPLETE is enough here."""

    @cached_property
    def _numbers(self) -> dict[int, int]:
        # By identity: of two steps with one id, each has its own place.
        return {id(step): number for number, step in enumerate(self.spec.steps)}

    def problem(self, step: documents.Step, key: str | None, message: str) -> Problem:
        """Return a problem with its place in the document."""
        index = self._numbers[id(step)]
        location = ("pipeline", "steps", index, *(key.split(".") if key else ()))
        return Problem(
            message,
            file=self.document.name,
            line=self.document.line_of(location),
            step=step.id,
            key=key,
        )


@dataclass
class Drafts:
    """What checking finds out about each step, for keys to be made of."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    views: dict[str, StepView] = field(default_factory=dict)
    references: dict[str, list[Reference]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_steps(request: PlanRequest) -> Drafts:
    """Return each step's handler, view and references, and every problem found on the way."""
    drafts = Drafts()
    by_name: dict[str, Handler] = {}
    for step in request.spec.steps:
        if step.uses in by_name:
            drafts.handlers[step.id] = by_name[step.uses]
            continue
        _find_handler(request, drafts, step)
        if step.id in drafts.handlers:
            by_name[step.uses] = drafts.handlers[step.id]
    references = References(request.paths.root, _places(request, drafts))
    for step in request.spec.steps:
        drafts.references[step.id] = []
        if step.id in drafts.handlers:
            _check_step(request, drafts, step, references)
    return drafts


def _find_handler(request: PlanRequest, drafts: Drafts, step: documents.Step) -> None:
    try:
        handler = request.find_handler(step.uses, request.paths.root)
    except NexaError as error:
        hint = f" ({error.hint})" if error.hint else ""
        drafts.problems.append(request.problem(step, "uses", f"{error}{hint}"))
        return
    drafts.handlers[step.id] = handler
    signature = handler.signature_problem()
    if signature is not None:
        drafts.problems.append(request.problem(step, "uses", signature))


def _places(request: PlanRequest, drafts: Drafts) -> list[StepPlace]:
    return [
        StepPlace(
            step.id,
            {name: _absolute(request.paths.root, path) for name, path in step.outputs.items()},
            step.id in drafts.handlers and drafts.handlers[step.id].effect,
        )
        for step in request.spec.steps
    ]


def _absolute(root: Path, path: str) -> Path:
    return Path(os.path.abspath(root / path))


def _check_step(
    request: PlanRequest, drafts: Drafts, step: documents.Step, references: References
) -> None:
    handler = drafts.handlers[step.id]
    for found in references.of_step(step, handler):
        if isinstance(found, Reference):
            drafts.references[step.id].append(found)
        else:
            drafts.problems.append(request.problem(step, *found))
    if handler.effect and step.outputs:
        message = f"{step.uses} changes something elsewhere and has no files to put there"
        drafts.problems.append(request.problem(step, "out", message))
    view = drafts.views[step.id] = _view(step, request.paths.root)
    try:
        for key, message in handler.validate(view):
            drafts.problems.append(request.problem(step, key, message))
    except UnsupportedError as error:
        drafts.unsupported.append(request.problem(step, "uses", str(error)))
    drafts.warnings += [f"step '{step.id}': {warning}" for warning in handler.warn(view)]
    _check_environment(request, drafts, step)
    _check_scheduler(request, drafts, step)


def _view(step: documents.Step, project: Path) -> StepView:
    return StepView(
        id=step.id,
        uses=step.uses,
        backend=step.backend,
        scheduler=step.scheduler,
        params=step.params,
        inputs={name: declared.path for name, declared in step.inputs.items()},
        outputs=step.outputs,
        resources=(
            step.resources.model_dump(exclude_defaults=True)
            if step.resources != _NO_RESOURCES
            else {}
        ),
        project=project,
    )


def _check_environment(request: PlanRequest, drafts: Drafts, step: documents.Step) -> None:
    for name in _ENV_UNSUPPORTED:
        if getattr(step.env, name, None):
            message = "this version runs steps in its own environment only"
            drafts.unsupported.append(request.problem(step, f"env.{name}", message))
    for name in step.env.secrets:
        if name not in os.environ:
            message = f"the environment variable {name} is not set"
            drafts.problems.append(request.problem(step, "env.secrets", message))


def _check_scheduler(request: PlanRequest, drafts: Drafts, step: documents.Step) -> None:
    name = request.scheduler or step.scheduler
    try:
        request.find_scheduler(name or "local")
    except UnsupportedError as error:
        drafts.unsupported.append(request.problem(step, "scheduler", str(error)))
