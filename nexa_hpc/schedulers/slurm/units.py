"""Jobs, what of them one element runs one after the other, and the graph of those units.

Pure. Called by `shapes`, which makes arrays of units, and by `caution`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from nexa_hpc.core.graph import graph_of

Step = str


@dataclass(frozen=True)
class Job:
    """One instance to be handed over."""

    step: Step
    request: Hashable
    """What it asks for, but for the time: equal requests may share an array or an element."""
    time_min: int
    parents: tuple[Step, ...]
    """Parents that are not done yet, in this hand-over or in flight."""
    light: bool = False
    """Whether it may run in whatever element its parent runs in."""
    parallel: bool = False
    """Whether it has several tasks; it is then alone in its element."""
    at_once: int | None = None
    """How many of its step's elements may run at a time."""
    throttle: Hashable = None
    """Jobs of one throttle share its total."""
    limit_min: int | None = None
    """The longest time that its partition allows."""
    element: Step | None = None
    """The first of those that share its element, however the graph lies; itself, for that one."""


Unit = tuple[Job, ...]
"""Jobs that one element runs, one after the other."""


def first_of_each(jobs: Sequence[Job], count: int) -> set[Step]:
    """Return the steps of the first `count` jobs of each kind, with all that those wait for.

    Jobs are of one kind when they ask for the same and all around them in the graph is alike.
    """
    graph = Units([(job,) for job in jobs])
    chosen: set[Step] = set()
    taken: dict[int, int] = defaultdict(int)
    for job, colour in zip(jobs, graph.colours(), strict=True):
        inside = [parent for parent in job.parents if parent in graph.number]
        if taken[colour] < count and chosen.issuperset(inside):
            taken[colour] += 1
            chosen.add(job.step)
    return chosen


def fuse(jobs: Sequence[Job]) -> list[Unit]:
    """Return `jobs` with linear chains of equal requests put into one unit each, in graph order.

    A light job joins whatever it follows. Only a parent's only child joins it: others that wait for
    the parent would wait for the whole element. Those that share an `element` are one unit, which
    waits for all that one of them waits for.
    """
    heads = {job.step for job in jobs}
    children: dict[Step, int] = defaultdict(int)
    for job in jobs:
        for parent in set(job.parents):
            children[parent] += 1
    chains: dict[Step, list[Job]] = {}
    units: list[list[Job]] = []
    for job in jobs:
        if job.element is not None and job.element != job.step and job.element in heads:
            chains[job.element].append(job)
            continue
        chain = chains.get(job.parents[0]) if len(set(job.parents)) == 1 else None
        joins = chain is not None and children[job.parents[0]] == 1
        if chain is not None and joins and _may_follow(chain, job):
            chain.append(job)
            chains[job.step] = chain
        else:
            chains[job.step] = [job]
            units.append(chains[job.step])
    made = [tuple(unit) for unit in units]
    return _in_order(made) if any(job.element is not None for job in jobs) else made


def _in_order(units: Sequence[Unit]) -> list[Unit]:
    """Return `units` so that each comes after those that one of its jobs waits for."""
    head = {job.step: unit[0].step for unit in units for job in unit}
    parents: dict[Step, tuple[Step, ...]] = {}
    for unit in units:
        own = unit[0].step
        above = dict.fromkeys(head[p] for job in unit for p in job.parents if p in head)
        parents[own] = tuple(step for step in above if step != own)
    by_head = {unit[0].step: unit for unit in units}
    return [by_head[step] for step in graph_of(parents, {}).order]


def _may_follow(chain: Sequence[Job], job: Job) -> bool:
    if any(other.parallel or other.element is not None for other in (*chain, job)):
        return False
    if not job.light and job.request != chain[0].request:
        return False
    total_min = sum(other.time_min for other in chain) + job.time_min
    limit_min = chain[0].limit_min
    return limit_min is None or total_min <= limit_min


class Units:
    """The graph of units: by number, in graph order."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.number = {job.step: n for n, unit in enumerate(units) for job in unit}
        number = self.number
        self.parents: list[tuple[int, ...]] = []
        self.foreign: list[tuple[Step, ...]] = []
        self.children: list[list[int]] = [[] for _ in units]
        for n, unit in enumerate(units):
            above = dict.fromkeys(parent for job in unit for parent in job.parents)
            own = {job.step for job in unit}
            inside = dict.fromkeys(number[p] for p in above if p in number and p not in own)
            self.parents.append(tuple(inside))
            self.foreign.append(tuple(p for p in above if p not in number))
            for parent in inside:
                self.children[parent].append(n)

    def depths(self) -> list[int]:
        """Return for each unit how many are above it in the longest chain."""
        depths: list[int] = []
        for parents in self.parents:
            depths.append(1 + max((depths[p] for p in parents), default=-1))
        return depths

    def heights(self) -> list[int]:
        """Return for each unit how many are below it in the longest chain."""
        heights = [0] * len(self.units)
        for n in reversed(range(len(self.units))):
            for parent in self.parents[n]:
                heights[parent] = max(heights[parent], heights[n] + 1)
        return heights

    def colours(self) -> list[int]:
        """Return a number for each unit: equal ones are alike, and so is all around them.

        Refined until nothing changes, up and down the graph: like points of a sweep of which the
        same steps remain get like numbers, so that their arrays are equally long.
        """
        # With its depth both ways a long chain is told apart at once, not one unit a turn.
        places = zip(self.depths(), self.heights(), self.foreign, strict=True)
        colours = _numbered((kind(u), place) for u, place in zip(self.units, places, strict=True))
        while True:
            around = [
                (
                    colours[n],
                    tuple(sorted(colours[p] for p in self.parents[n])),
                    tuple(sorted(colours[c] for c in self.children[n])),
                )
                for n in range(len(self.units))
            ]
            finer = _numbered(around)
            if len(set(finer)) == len(set(colours)):
                return finer
            colours = finer


def kind(unit: Unit) -> Hashable:
    """Return what must be equal for two units to share an array."""
    first = unit[0]
    return first.request, tuple(job.time_min for job in unit), first.at_once, first.parallel


def _numbered(values: Iterable[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
