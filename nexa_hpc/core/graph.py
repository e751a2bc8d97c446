"""The graph of a pipeline's steps: who waits for whom, in which order they run, and what is wrong.

A step waits for those in `after` (absent: the step before it in the document) and, whatever `after`
says, for the steps whose results it reads (`implied`, found by planning from `in`). Linear in steps
and edges. Standard library alone. Called by `spec`, planning and `viz`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, nearest

if TYPE_CHECKING:
    from nexa_hpc.core.document import Document

_MAX_CYCLES = 10


class Ordered(Protocol):
    """What the graph needs to know of a step."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def after(self) -> Sequence[str] | None:
        """The ids it is declared to wait for; None: the step before it."""


class Node(NamedTuple):
    """The least that is `Ordered`: a step that is known by nothing else."""

    id: str
    after: Sequence[str] | None


@dataclass(frozen=True)
class Graph:
    """Who waits for whom; every id is a key of each mapping."""

    order: tuple[str, ...]
    """All ids, parents first; the document's own order wherever that does."""
    parents: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]]
    data_parents: Mapping[str, tuple[str, ...]]
    """The parents whose results the step reads."""

    def ancestors(self, step_id: str) -> frozenset[str]:
        """Return the ids of all steps that `step_id` waits for, directly or not."""
        return _reachable(step_id, self.parents)

    def descendants(self, step_id: str) -> frozenset[str]:
        """Return the ids of all steps that wait for `step_id`, directly or not."""
        return _reachable(step_id, self.children)


def build_graph(steps: Sequence[Ordered], implied: Mapping[str, Iterable[str]]) -> Graph:
    """Return the graph of `steps`, in which `check_graph` has found nothing wrong."""
    return graph_of(*_parents(steps, implied))


def graph_of(
    parents: Mapping[str, tuple[str, ...]], data_parents: Mapping[str, tuple[str, ...]]
) -> Graph:
    """Return the graph with these edges, which have no cycles."""
    children: dict[str, list[str]] = {step_id: [] for step_id in parents}
    for step_id, above in parents.items():
        for parent in above:
            children[parent].append(step_id)
    order, _ = _walk(parents)
    return Graph(
        order=tuple(order),
        parents=parents,
        children={step_id: tuple(below) for step_id, below in children.items()},
        data_parents=data_parents,
    )


def check_graph(
    steps: Sequence[Ordered],
    implied: Mapping[str, Iterable[str]],
    document: Document | None = None,
) -> list[Problem]:
    """Return what is wrong: ids used twice, unknown ids in `after`, steps that wait for themselves.

    `steps` are all steps of `document`, in its order.
    """
    first = {step.id: number for number, step in reversed(list(enumerate(steps)))}
    place = _Place(document, first)
    problems: list[Problem] = []
    for number, step in enumerate(steps):
        if first[step.id] != number:
            line = place.line(first[step.id], "id")
            where = f" (first in line {line})" if line is not None else ""
            message = f"the id '{shown(step.id)}' is given to two steps{where}"
            problems.append(place.problem(number, step.id, "id", message))
        for parent in step.after or ():
            if parent not in first:
                message = f"unknown step '{shown(parent)}'" + nearest(parent, first)
                problems.append(place.problem(number, step.id, "after", message))
    if len(first) == len(steps):  # with ids given twice, who waits for whom is not known
        parents = {
            step_id: [parent for parent in above if parent in first]
            for step_id, above in _parents(steps, implied)[0].items()
        }
        implicit = {step.id for step in steps if step.after is None}
        problems += [_cycle_problem(cycle, implicit, place) for cycle in _walk(parents)[1]]
    return problems


class _Place:
    """Where the steps stand in their document, if there is one."""

    def __init__(self, document: Document | None, numbers: Mapping[str, int]) -> None:
        self._document = document
        self.numbers = numbers

    def line(self, number: int, key: str) -> int | None:
        """Return the line of `key` in the step with this number."""
        if self._document is None:
            return None
        return self._document.line_of(("pipeline", "steps", number, key))

    def problem(self, number: int, step_id: str, key: str, message: str) -> Problem:
        """Return `message` as a Problem at `key` of the step with this number."""
        name = self._document.name if self._document is not None else None
        return Problem(
            message, file=name, line=self.line(number, key), step=shown(step_id), key=key
        )


def _cycle_problem(cycle: list[str], implicit: set[str], place: _Place) -> Problem:
    """Say who waits for whom, where that stands, and how it may have come about unasked."""
    names = [shown(step_id) for step_id in cycle]
    if len(cycle) == 1:
        message = "the step waits for itself"
    else:
        lines = [place.line(place.numbers[step_id], "id") for step_id in cycle]
        where = f" (lines {', '.join(map(str, lines))})" if None not in lines else ""
        message = f"a cycle, each waits for the next: {' → '.join([*names, names[0]])}{where}"
    unasked = [step_id for step_id in cycle if step_id in implicit]
    if unasked:
        message += f"; '{shown(unasked[0])}' has no `after`, so it waits for the step before it"
    return place.problem(place.numbers[cycle[0]], cycle[0], "after", message)


def _parents(
    steps: Sequence[Ordered], implied: Mapping[str, Iterable[str]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the parents of each step, and those of them whose results it reads."""
    parents: dict[str, tuple[str, ...]] = {}
    data_parents: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for step in steps:
        above = before if step.after is None else step.after
        read = data_parents[step.id] = _once(implied.get(step.id, ()))
        parents[step.id] = _once((*above, *read))
        before = (step.id,)
    return parents, data_parents


def cycles(parents: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the first few cycles of a graph, each as the steps on it."""
    return _walk(parents)[1]


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names)) if names else ()


def _walk(parents: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return all ids with parents first, and the cycles that make this impossible (the first few).

    Depth first from the document's order, which therefore is kept wherever it already is right.
    """
    order: list[str] = []
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start, above in parents.items():
        if start in done:
            continue
        if done.issuperset(above):
            # Most often all that it waits for stands before it.
            done.add(start)
            order.append(start)
            continue
        path: dict[str, Iterable[str]] = {start: iter(above)}
        while path:
            step_id, rest = next(reversed(path.items()))
            parent = next(iter(rest), None)
            if parent is None:
                del path[step_id]
                done.add(step_id)
                order.append(step_id)
            elif parent in path:
                if len(cycles) < _MAX_CYCLES:
                    on_path = list(path)
                    cycles.append(on_path[on_path.index(parent) :])
            elif parent not in done:
                path[parent] = iter(parents[parent])
    return order, cycles


def _reachable(start: str, neighbours: Mapping[str, Sequence[str]]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(neighbours[start])
    while waiting:
        step_id = waiting.pop()
        if step_id not in found:
            found.add(step_id)
            waiting += neighbours[step_id]
    return frozenset(found)
