"""Planning: from a pipeline document to instances with keys and decisions, before anything is
written.

`make_plan` checks everything that can be checked and reports all problems at once; it computes
every key in graph order and decides for each step whether it runs, and why. The points of a sweep
are planned together. Called by `pipeline` (which records the plan) and by `plan`, `why` and `viz`
(which only show it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nexa_hpc.core.checks import PlanRequest
from nexa_hpc.core.decisions import Decider
from nexa_hpc.core.endpoints import readers_of
from nexa_hpc.core.graph import Graph, graph_of
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.hub_cache import HubName, missing, names_of
from nexa_hpc.core.instances import RUN, Instance, read_steps
from nexa_hpc.core.keying import Keying
from nexa_hpc.core.names import named, unvaried
from nexa_hpc.core.nodes import Node, nodes_of
from nexa_hpc.core.points import Point
from nexa_hpc.core.server_elements import with_elements
from nexa_hpc.core.tasks import steps_above
from nexa_hpc.errors import Problem, SpecError, UnsupportedError


@dataclass(frozen=True)
class Plan:
    """What a run would do: instances in graph order, and what the user should know."""

    pipeline: str
    instances: Mapping[str, Instance]
    warnings: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    """Of a sweep; empty for a plain run."""
    reruns: Mapping[str, int] = field(default_factory=dict)
    """How often `rerun --from` has reached what, this plan's own included."""

    @cached_property
    def graph(self) -> Graph:
        """Of the instances; made when it is asked for, which to run them nobody does."""
        parents = {name: instance.parents for name, instance in self.instances.items()}
        read = {
            name: (step for handed in i.inputs.values() for step in read_steps(handed))
            for name, i in self.instances.items()
        }
        return graph_of(parents, {name: tuple(dict.fromkeys(of)) for name, of in read.items()})

    def to_run(self) -> list[Instance]:
        """Return the instances that are not skipped."""
        return [instance for instance in self.instances.values() if instance.action == "RUN"]


def make_plan(request: PlanRequest) -> Plan:
    """Check everything, compute the keys and decide; writes nothing but the digest memory.

    Raises SpecError with every problem found, UnsupportedError when what is left is only what this
    version does not do.
    """
    found = nodes_of(request)
    _raise_problems(found.problems, found.unsupported)
    keying = Keying(request)
    keyed = keying.instances(found.nodes)
    _raise_problems(keying.problems, ())
    handlers = {node.step.id: node.handler for node in found.nodes}
    whole, misplaced = with_elements(named(keyed, request.points))
    places = {node.step.id: node for node in found.nodes}
    problems = [
        places[instance.step_id].request.problem(places[instance.step_id].step, key, message)
        for instance, key, message in (*misplaced, *_problems_above(handlers, whole))
    ]
    _raise_problems(list(dict.fromkeys(problems)), ())
    instances = _decided(request, whole, handlers)
    warnings = [*found.warnings, *keying.warnings, *unvaried(instances, request.points)]
    warnings += _not_fetched(request, found.nodes, instances)
    return Plan(
        request.spec.name,
        instances,
        tuple(dict.fromkeys(warnings)),
        request.points,
        request.reruns,
    )


def _raise_problems(problems: Sequence[Problem], unsupported: Sequence[Problem]) -> None:
    if problems:
        raise SpecError([*problems, *unsupported])
    if unsupported:
        raise UnsupportedError("\n".join(str(problem) for problem in unsupported))


def _problems_above(
    handlers: Mapping[str, Handler], instances: Mapping[str, Instance]
) -> Iterator[tuple[Instance, str, str]]:
    """Yield where, at which key, and what is wrong with the steps above others."""
    for instance in instances.values():
        if handlers[instance.step_id].looks_above:
            above = steps_above(instance, instances)
            problem = handlers[instance.step_id].above_problem(instance.params, above)
            if problem is not None:
                yield instance, *problem


def _decided(
    request: PlanRequest, instances: Mapping[str, Instance], handlers: Mapping[str, Handler]
) -> dict[str, Instance]:
    decider = Decider(request.spec.name, request.paths, handlers, glance=request.glance)
    readers = readers_of(instances)
    found: dict[str, Instance] = {}
    for name, instance in instances.items():
        found[name] = instance.decided(*decider.decide(instance, found, readers.get(name, ())))
    return found


def _not_fetched(
    request: PlanRequest, nodes: Sequence[Node], instances: Mapping[str, Instance]
) -> list[str]:
    """Return in words what steps that are to run in Slurm will not find in `paths.hub`."""
    hub = request.paths.hub
    if hub is None:
        return []
    running = {i.step_id for i in instances.values() if (i.action, i.scheduler) == (RUN, "slurm")}
    wanted: dict[str, list[HubName]] = {}
    for node in nodes:
        if node.step.id in running:
            found = names_of(node.handler, node.view, node.references)
            wanted.setdefault(node.step.id, []).extend(found)
    return list(missing(hub, wanted, request.document.name))
