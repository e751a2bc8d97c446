"""What can be wrong with a step once its document is well formed: its handler, inputs, environment.

Also what planning starts from (`PlanRequest`) and what checking finds out (`Drafts`). Called by
`planning.make_plan`; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core import environments, named_environments
from nexa_hpc.core import spec as specification
from nexa_hpc.core.document import Document
from nexa_hpc.core.handlers import Handler, StepView
from nexa_hpc.core.inputs import Reference, References, StepPlace
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.points import Point
from nexa_hpc.core.server_checks import check_servers
from nexa_hpc.core.settings import Settings
from nexa_hpc.core.spec_sections import NO_ENV, NO_RESOURCES
from nexa_hpc.errors import NexaError, Problem, UnsupportedError


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made from."""

    spec: specification.PipelineSpec
    document: Document
    paths: ProjectPaths
    settings: Settings
    find_handler: Callable[[str, Path], Handler]
    find_scheduler: Callable[[str], object]
    """Raises UnsupportedError for a scheduler that this version does not have."""
    scheduler: str | None = None
    default_scheduler: str = "local"
    """Of steps that declare none, where `scheduler` is None."""
    """Overrides every step's; changes no key."""
    check_request: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] | None = None
    """Yields (key, message) for resources that Slurm would refuse; None where it is not asked."""
    reruns: Mapping[str, int] = field(default_factory=dict)
    """Step id, or `rerun_name` of one at a point, -> how often `rerun --from` reached it."""
    glance: bool = False
    """Whether whoever asks looks at all results again, so that a COMPLETE is enough here."""
    points: tuple[Point, ...] = ()
    """Of a sweep; empty for a plain run."""
    specs: tuple[specification.PipelineSpec, ...] = ()
    """The pipeline at each point; steps that say the same are one object."""
    documents: tuple[Document, ...] = ()

    def scheduler_of(self, step: specification.Step) -> str:
        """Return where `step` runs."""
        return self.scheduler or step.scheduler or self.default_scheduler

    def at(self, number: int) -> PlanRequest:
        """Return the request with the pipeline at the point of this number in the place of the
        first.
        """
        return replace(self, spec=self.specs[number], document=self.documents[number])

    def rerun_count(self, step: str, point: str) -> int:
        """Return how often `rerun --from` reached `step`, everywhere or at this point alone."""
        at_point = self.reruns.get(rerun_name(step, point), 0) if point else 0
        return self.reruns.get(step, 0) + at_point

    @cached_property
    def _numbers(self) -> dict[int, int]:
        # By identity: of two steps with one id, each has its own place.
        return {id(step): number for number, step in enumerate(self.spec.steps)}

    def problem(self, step: specification.Step, key: str | None, message: str) -> Problem:
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


def rerun_name(step: str, point: str) -> str:
    """Return under which name the reruns of `step` at one point are counted."""
    return f"{step}@{point}"


class Checked(NamedTuple):
    """What was found out about a step in its surroundings."""

    view: StepView
    references: list[Reference]


@dataclass
class Memory:
    """What is known from the other points of a sweep: nothing is checked, or said, twice."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    """By `uses`."""
    surroundings: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Where all steps' results go -> a number: hashed once, and not for each step."""
    checked: dict[tuple[int, int], Checked] = field(default_factory=dict)
    """By the identity of the step, and the number of its surroundings."""


@dataclass
class Drafts:
    """What checking finds out about each step, for keys to be made of."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    views: dict[str, StepView] = field(default_factory=dict)
    references: dict[str, list[Reference]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_steps(request: PlanRequest, memory: Memory | None = None) -> Drafts:
    """Return each step's handler, view and references, and every problem found on the way."""
    drafts = Drafts()
    memory = memory or Memory()
    for step in request.spec.steps:
        if step.uses in memory.handlers:
            drafts.handlers[step.id] = memory.handlers[step.uses]
            continue
        _find_handler(request, drafts, step)
        if step.id in drafts.handlers:
            memory.handlers[step.uses] = drafts.handlers[step.id]
    references = References(request.paths.root, _places(request, drafts))
    places = tuple((step.id, *step.outputs.items()) for step in request.spec.steps)
    surroundings = memory.surroundings.setdefault(places, len(memory.surroundings))
    for step in request.spec.steps:
        drafts.references[step.id] = []
        if step.id not in drafts.handlers:
            continue
        known = memory.checked.get((id(step), surroundings))
        if known is None:
            _check_step(request, drafts, step, references)
            known = Checked(drafts.views[step.id], drafts.references[step.id])
            memory.checked[id(step), surroundings] = known
        drafts.views[step.id], drafts.references[step.id] = known
    check_servers(request, drafts)
    return drafts


def _find_handler(request: PlanRequest, drafts: Drafts, step: specification.Step) -> None:
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
    root, handlers = request.paths.root, drafts.handlers
    return [
        StepPlace(
            step.id,
            {name: _absolute(root, path) for name, path in step.outputs.items()},
            effect=step.id in handlers and handlers[step.id].effect,
            serves=step.id in handlers and handlers[step.id].serves,
        )
        for step in request.spec.steps
    ]


def _absolute(root: Path, path: str) -> Path:
    return Path(os.path.abspath(root / path))


def _check_step(
    request: PlanRequest, drafts: Drafts, step: specification.Step, references: References
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
    view = drafts.views[step.id] = _view(step, request.paths)
    known = len(drafts.problems)
    try:
        for key, message in handler.validate(view):
            drafts.problems.append(request.problem(step, key, message))
    except UnsupportedError as error:
        drafts.unsupported.append(request.problem(step, "uses", str(error)))
    if len(drafts.problems) == known:
        # What is wrong with a step may be what keeps it from being looked at.
        drafts.warnings += [f"step '{step.id}': {warning}" for warning in handler.warn(view)]
    _check_environment(request, drafts, step)
    _check_scheduler(request, drafts, step)


def _view(step: specification.Step, paths: ProjectPaths) -> StepView:
    env = {} if step.env is NO_ENV else step.env.model_dump(exclude_defaults=True)
    return StepView(
        id=step.id,
        uses=step.uses,
        backend=step.backend,
        scheduler=step.scheduler,
        params=step.params,
        inputs={name: declared.path for name, declared in step.inputs.items()},
        outputs=step.outputs,
        resources=(
            {}
            if step.resources is NO_RESOURCES
            else step.resources.model_dump(exclude_defaults=True)
        ),
        project=paths.root,
        env=env,
        python=named_environments.interpreter_of(env, paths.envs, paths.root) if env else None,
    )


def _check_environment(request: PlanRequest, drafts: Drafts, step: specification.Step) -> None:
    if step.env is NO_ENV:
        return
    env = drafts.views[step.id].env
    for key, message in environments.contradictions(env):
        drafts.problems.append(request.problem(step, key, message))
    for key, message in named_environments.missing(
        env, request.paths.envs, step.uses, step.backend
    ):
        drafts.problems.append(request.problem(step, key, message))
    program = environments.interpreter(env, request.paths.root)
    prefix = program.parent.parent if program is not None else None
    for words in named_environments.doubtful(env, prefix, step.uses, step.backend):
        drafts.warnings.append(f"step '{step.id}': {words}")
    is_here = request.scheduler_of(step) == "local"
    for key, message in environments.missing(env, request.paths.root):
        if is_here:
            drafts.problems.append(request.problem(step, key, message))
        else:
            drafts.warnings.append(f"step '{step.id}': {key}: {message}; the nodes must have it")
    for name in step.env.secrets:
        if name not in os.environ:
            message = f"the environment variable {name} is not set"
            drafts.problems.append(request.problem(step, "env.secrets", message))


def _check_scheduler(request: PlanRequest, drafts: Drafts, step: specification.Step) -> None:
    name = request.scheduler_of(step)
    try:
        request.find_scheduler(name)
    except UnsupportedError as error:
        drafts.unsupported.append(request.problem(step, "scheduler", str(error)))
    if name == "slurm" and request.check_request is not None:
        for key, message in request.check_request(drafts.views[step.id].resources):
            drafts.problems.append(request.problem(step, key, message))
