"""Steps at points, before their keys are known: a plain pipeline's, or those of a whole sweep.

A sweep's points are pipelines of their own; what they have in common becomes one `Node`, so that
the work behind it is checked, keyed and done once. Two points share a node where the step says the
same at both and reads the same nodes. Whether nodes turn out to have one key nevertheless (they
differ in what no key holds) is for `planning` to find. Steps with `scope: sweep` follow once, when
all points are done. Called by `planning`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nexa_hpc.core import spec as documents
from nexa_hpc.core.checks import Drafts, Memory, PlanRequest, check_steps
from nexa_hpc.core.graph import Graph, build_graph, check_graph
from nexa_hpc.core.handlers import Handler, StepView
from nexa_hpc.core.inputs import Candidate, Choice, Reference
from nexa_hpc.core.outs import check_outs
from nexa_hpc.core.points import Point
from nexa_hpc.errors import Problem, nearest

Shape = tuple[object, ...]
"""What the graph of a pipeline, and where its results go, depend on."""


@dataclass(slots=True)
class Node:
    """One step at the points that share it."""

    name: str
    """Unique; a step's id in a plain run, else of no meaning."""
    step: documents.Step
    handler: Handler
    view: StepView
    references: list[Reference]
    """What it reads, of nodes by their names."""
    request: PlanRequest
    """The pipeline of its first point: where problems have their places."""
    rerun: int = 0
    parents: dict[str, None] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


@dataclass
class Nodes:
    """All nodes, parents first, and what was found out on the way."""

    nodes: list[Node] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, drafts: Drafts, label: str = "") -> None:
        """Add what is wrong at one point, but for what others have said."""
        known = {(p.message, p.step, p.key) for p in self.problems + self.unsupported}
        for found, noted in (
            (drafts.problems, self.problems),
            (drafts.unsupported, self.unsupported),
        ):
            for problem in found:
                if (problem.message, problem.step, problem.key) not in known:
                    at = f"{problem.message} (at the point {label})" if label else problem.message
                    noted.append(replace(problem, message=at))
        self.warnings += [w for w in drafts.warnings if w not in self.warnings]


def nodes_of(request: PlanRequest) -> Nodes:
    """Return the nodes of the pipeline, or of the sweep, that `request` is about.

    With problems among what it returns, there are no nodes.
    """
    found = Nodes()
    points = request.points or (Point("", "", {}),)
    expansion = _Expansion(found)
    for number, (point, spec) in enumerate(
        zip(points, request.specs or (request.spec,), strict=True)
    ):
        asked = request if number == 0 else request.at(number)
        expansion.add(point, spec, asked, is_sweep=bool(request.points))
    if not found.problems:
        expansion.add_steps_of_the_sweep(request)
    found.nodes = [] if found.problems else expansion.in_order()
    return found


def implied(drafts: Drafts) -> dict[str, list[str]]:
    """Return step -> the steps whose results it reads."""
    return {
        step: [above for reference in references for above in reference.steps]
        for step, references in drafts.references.items()
    }


class _Expansion:
    """Takes in one point after the other."""

    def __init__(self, found: Nodes) -> None:
        self._found = found
        self._memory = Memory()
        self._graphs: dict[Shape, Graph | None] = {}
        self._nodes: dict[tuple[object, ...], Node] = {}
        self._at: list[dict[str, Node]] = []
        """For each point, step -> its node."""
        self._first: tuple[Drafts, Graph] | None = None

    def add(
        self, point: Point, spec: documents.PipelineSpec, request: PlanRequest, *, is_sweep: bool
    ) -> None:
        """Take in `spec`, the pipeline at `point`."""
        drafts = check_steps(request, self._memory)
        graph = self._graph(request, drafts)
        drafts.problems += _misplaced(request, drafts, graph, is_sweep=is_sweep)
        drafts.problems += _not_above(request, drafts, graph)
        self._found.note(drafts, point.label)
        if self._found.problems or graph is None:
            return
        self._first = self._first or (drafts, graph)
        steps = {step.id: step for step in spec.steps}
        here: dict[str, Node] = {}
        for step_id in graph.order:
            step = steps[step_id]
            if is_sweep and step.scope == "sweep":
                continue
            node = self._node(step, drafts, graph, request, here, point)
            here[step_id] = node
            node.parents.update((here[parent].name, None) for parent in graph.parents[step_id])
            if point.name:
                node.points.append(point.name)
        self._at.append(here)

    def _graph(self, request: PlanRequest, drafts: Drafts) -> Graph | None:
        """Return the graph at a point, or None where something is wrong with it."""
        edges = implied(drafts)
        steps = request.spec.steps
        shape: Shape = tuple(
            (s.id, tuple(s.after or ()), s.after is None, tuple(edges[s.id])) for s in steps
        )
        shape += tuple(tuple(s.outputs.items()) for s in steps)
        if shape not in self._graphs:
            absolute = request.settings.allow_absolute_out
            problems = check_outs(request.spec, request.document, request.paths, absolute)
            problems += check_graph(steps, edges, request.document)
            drafts.problems += problems
            self._graphs[shape] = None if problems else build_graph(steps, edges)
        return self._graphs[shape]

    def _node(
        self,
        step: documents.Step,
        drafts: Drafts,
        graph: Graph,
        request: PlanRequest,
        here: Mapping[str, Node],
        point: Point,
    ) -> Node:
        read = tuple(here[parent].name for parent in graph.data_parents[step.id])
        rerun = request.rerun_count(step.id, point.name)
        signature = (id(step), read, rerun)
        known = self._nodes.get(signature)
        if known is not None:
            return known
        node = Node(
            name=f"{step.id}#{len(self._nodes)}" if point.name else step.id,
            step=step,
            handler=drafts.handlers[step.id],
            view=drafts.views[step.id],
            references=[_here(reference, here) for reference in drafts.references[step.id]],
            request=request,
            rerun=rerun,
        )
        self._nodes[signature] = node
        return node

    def add_steps_of_the_sweep(self, request: PlanRequest) -> None:
        """Add the steps with `scope: sweep`, behind all points."""
        if not request.points or self._first is None:
            return
        drafts, graph = self._first
        steps = {step.id: step for step in request.spec.steps}
        once: dict[str, Node] = {}
        for step_id in (s for s in graph.order if steps[s].scope == "sweep"):
            step = steps[step_id]
            if any(s is not step for spec in request.specs for s in spec.steps if s.id == step_id):
                message = "a step of the whole sweep has nothing that the sweep could vary"
                self._found.problems.append(request.problem(step, "scope", message))
            node = Node(
                name=f"{step_id}#sweep",
                step=step,
                handler=drafts.handlers[step_id],
                view=drafts.views[step_id],
                references=[],
                request=request,
                rerun=request.rerun_count(step_id, ""),
            )
            for reference in drafts.references[step_id]:
                self._refer(node, reference, once)
            for parent in graph.parents[step_id]:
                node.parents.update((above.name, None) for above in self._all(parent, once))
            once[step_id] = self._nodes[(step_id,)] = node

    def _refer(self, node: Node, reference: Reference, once: Mapping[str, Node]) -> None:
        if reference.choice is not None and reference.step is not None:
            node.references.append(_among(reference, reference.choice, self._at))
            return
        above = self._all(reference.step, once) if reference.step is not None else []
        if len(above) > 1:
            message = (
                f"step '{reference.step}' has {len(above)} results in this sweep; say which: "
                f"{{step: {reference.step}, metric: …, mode: max | min}}"
            )
            if reference.kind == "server":
                message = f"step '{reference.step}' is {len(above)} servers in this sweep; {_ONCE}"
            problem = node.request.problem(node.step, reference.place, message)
            self._found.problems.append(problem)
            return
        node.references.append(replace(reference, step=above[0].name) if above else reference)

    def _all(self, step: str, once: Mapping[str, Node]) -> list[Node]:
        """Return the nodes of `step`, at all points."""
        if step in once:
            return [once[step]]
        return list({id(at[step]): at[step] for at in self._at}.values())

    def in_order(self) -> list[Node]:
        """Return all nodes, parents first, and where possible those of one step together."""
        nodes = list(self._nodes.values())
        if len([graph for graph in self._graphs.values() if graph is not None]) > 1:
            return nodes
        assert self._first is not None
        number = {step: number for number, step in enumerate(self._first[1].order)}
        return sorted(nodes, key=lambda node: number[node.step.id])


def _here(reference: Reference, here: Mapping[str, Node]) -> Reference:
    """Return `reference` with the name of the node at a point in the place of the step's."""
    if reference.choice is not None:
        return _among(reference, reference.choice, [here])
    if reference.step is None:
        return reference
    return replace(reference, step=here[reference.step].name)


def _among(reference: Reference, choice: Choice, points: Sequence[Mapping[str, Node]]) -> Reference:
    """Return `reference` to the best, with the candidates at all `points`."""
    assert reference.step is not None
    pairs = [Candidate(at[reference.step].name, at[choice.step].name) for at in points]
    return replace(reference, choice=replace(choice, candidates=tuple(dict.fromkeys(pairs))))


def _misplaced(
    request: PlanRequest, drafts: Drafts, graph: Graph | None, *, is_sweep: bool
) -> Iterator[Problem]:
    """Yield what is not for a step of each point, but for one of the whole sweep."""
    steps = {step.id: step for step in request.spec.steps}
    for step in request.spec.steps:
        handler = drafts.handlers.get(step.id)
        if step.scope == "sweep" or handler is None:
            continue
        yield from _chosen_too_early(request, step, drafts)
        if not is_sweep:
            continue
        if handler.once:
            message = f"{step.uses} at every point would leave what the last one did; " + _ONCE
            yield request.problem(step, "scope", message)
        above = graph.parents[step.id] if graph is not None else ()
        late = next((parent for parent in above if steps[parent].scope == "sweep"), None)
        if late is not None:
            message = f"it comes after '{late}', a step of the whole sweep; " + _ONCE
            yield request.problem(step, "after", message)


_ONCE = "give it `scope: sweep`"


def _not_above(request: PlanRequest, drafts: Drafts, graph: Graph | None) -> Iterator[Problem]:
    """Yield the steps whose metrics are read though they have none, or not yet."""
    for step in request.spec.steps if graph is not None else ():
        handler = drafts.handlers.get(step.id)
        named = handler.metric_of(drafts.views[step.id]) if handler is not None else None
        if graph is None or named is None:
            continue
        key, judged = named
        above = graph.ancestors(step.id)
        if judged not in graph.parents:
            # It may be the name of a group of figures, unless it comes close to a step's.
            if near := nearest(judged, above):
                yield request.problem(step, key, f"there is no step '{judged}'{near}")
        elif judged not in above:
            message = f"step '{judged}' need not have run by then; name it in `after`"
            yield request.problem(step, key, message)
        elif judged in drafts.handlers and drafts.handlers[judged].effect:
            message = f"step '{judged}' changes something elsewhere; it has no metrics"
            yield request.problem(step, key, message)


def _chosen_too_early(
    request: PlanRequest, step: documents.Step, drafts: Drafts
) -> Iterator[Problem]:
    for reference in drafts.references.get(step.id, ()):
        if reference.choice is not None:
            message = f"the best point is known when all are done; {_ONCE}"
            yield request.problem(step, reference.place, message)
