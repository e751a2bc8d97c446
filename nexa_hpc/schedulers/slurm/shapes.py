"""From the graph of instances to arrays: what is fused, what goes side by side, what waits.

    instances ──fuse──▶ units ──group──▶ arrays of like units ──cut──▶ sheets, one sbatch call each

Pure: nothing is read or written, and nothing of Slurm is imported. Why arrays with element-wise
dependencies are cut short, and why a lone element is no array, is in `Cluster.aftercorr_chunk` and
`batches.Batch.width`. Called by `handover`; tested by properties.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nexa_hpc.schedulers.slurm.units import Job, Step, Unit, Units, fuse

WHOLE_RUN = "the whole run"
"""The throttle of all jobs of a run together."""


@dataclass(frozen=True)
class Limits:
    """What a cluster sets, and the policy of the run."""

    max_array: int
    """The most elements of one array."""
    chunk: int
    """The most elements of an array that others follow element by element."""
    per_element: int = 1
    """How many units one element runs, one after the other."""
    at_once: int | None = None
    """How many elements of the run may run at a time."""


NOTHING: Mapping[Hashable, int] = {}


@dataclass
class Sheet:
    """One sbatch call: units of equal request, and what they wait for."""

    units: list[list[Unit]]
    """For each element the units that it runs."""
    whole: list[tuple[int, int | None]] = field(default_factory=list)
    """Sheets that must have succeeded first: number, and element or None for all of it."""
    one_to_one: list[int] = field(default_factory=list)
    """Sheets whose element i must have succeeded before element i of this one starts."""
    after_any: list[int] = field(default_factory=list)
    """Sheets that must have ended, however: a throttle."""
    foreign: list[Step] = field(default_factory=list)
    """Steps in flight elsewhere, whose jobs must have succeeded first."""
    at_once: int | None = None
    """How many of its elements may run at a time; 0: its throttle has no room for it now."""

    @property
    def time_min(self) -> int:
        """The time that an element asks for."""
        asked = max(sum(job.time_min for unit in units for job in unit) for units in self.units)
        # Of many steps that share an element, those whose turn does not come are tried again.
        limit_min = self.first.limit_min
        is_shared = self.first.element is not None
        return min(asked, limit_min) if is_shared and limit_min is not None else asked

    @property
    def first(self) -> Job:
        """The job whose request holds for all of the sheet."""
        return self.units[0][0][0]


def shape(
    jobs: Sequence[Job], limits: Limits, busy: Mapping[Hashable, int] = NOTHING
) -> list[Sheet]:
    """Return the sbatch calls for `jobs`, which are in graph order; each waits for earlier ones.

    Steps named as parents that are not among `jobs` are in flight elsewhere. `busy` says for each
    throttle how many elements in flight it counts already.
    """
    graph = Units(fuse(jobs))
    groups = _groups(graph)
    followed = {number for group in groups for number in group.follows}
    sheets: list[Sheet] = []
    placed: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(groups):
        for numbers in _cut(group, graph, limits, is_followed=number in followed):
            sheet = _sheet(group, numbers, graph, placed, sheets)
            for index, units in enumerate(numbers):
                placed.update(dict.fromkeys(units, (len(sheets), index)))
            sheets.append(sheet)
    _throttle(sheets, limits, busy)
    return sheets


@dataclass(frozen=True)
class _Group:
    """Units that go into arrays together, in the order of their elements."""

    members: list[int]
    shared: tuple[int, ...]
    """Parents that all of the members wait for."""
    follows: tuple[int, ...] = ()
    """Groups that it follows element by element: its i-th unit waits for their i-th."""


def _groups(graph: Units) -> list[_Group]:
    """Return the groups so that each comes after those it waits for."""
    by_colour: dict[int, list[int]] = defaultdict(list)
    for n, colour in enumerate(graph.colours()):
        by_colour[colour].append(n)
    depth = graph.depths()
    groups: list[_Group] = []
    group_of: dict[int, int] = {}
    # Units of one colour are at one depth.
    for members in sorted(by_colour.values(), key=lambda members: depth[members[0]]):
        for group in _split(members, graph, groups, group_of):
            group_of.update(dict.fromkeys(group.members, len(groups)))
            groups.append(group)
    return groups


def _split(
    members: list[int], graph: Units, groups: Sequence[_Group], group_of: Mapping[int, int]
) -> list[_Group]:
    """Return the members of one colour as groups: one to one behind others, or by equal parents."""
    shared = set(graph.parents[members[0]]).intersection(*(graph.parents[n] for n in members))
    own = {n: [p for p in graph.parents[n] if p not in shared] for n in members}
    if len(members) == 1 or not any(own.values()):
        return [_Group(members, tuple(sorted(set(graph.parents[members[0]]))))]
    followed: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n in members:
        followed[tuple(sorted(group_of[p] for p in own[n]))].append(n)
    found = []
    for follows, some in followed.items():
        in_order = _in_order(some, own, [groups[g].members for g in follows])
        if in_order is not None:
            found.append(_Group(in_order, tuple(sorted(shared)), follows))
        else:
            found += _by_parents(some, graph)
    return found


def _in_order(
    members: list[int], own: Mapping[int, list[int]], columns: Sequence[list[int]]
) -> list[int] | None:
    """Return `members` so that the i-th follows the i-th unit of each column; None if none does."""
    if len(members) == 1 or any(len(column) != len(members) for column in columns):
        return None
    wanted = {frozenset(own[n]): n for n in members}
    rows = [frozenset(row) for row in zip(*columns, strict=True)]
    if len(wanted) != len(members) or set(rows) != set(wanted):
        return None
    return [wanted[row] for row in rows]


def _by_parents(members: list[int], graph: Units) -> list[_Group]:
    by_parents: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n in members:
        by_parents[tuple(sorted(graph.parents[n]))].append(n)
    return [_Group(some, parents) for parents, some in by_parents.items()]


def _cut(
    group: _Group, graph: Units, limits: Limits, *, is_followed: bool
) -> Iterator[list[list[int]]]:
    """Yield what each sheet of the group runs: for each element its units, by number."""
    one_to_one = is_followed or bool(group.follows)
    per_element = 1 if one_to_one else _per_element(graph.units[group.members[0]], limits)
    packed = [group.members[n : n + per_element] for n in range(0, len(group.members), per_element)]
    longest = min(limits.max_array, limits.chunk) if one_to_one else limits.max_array
    for first, last in _bounds(len(packed), longest):
        yield packed[first:last]


def _sheet(
    group: _Group,
    numbers: list[list[int]],
    graph: Units,
    placed: Mapping[int, tuple[int, int]],
    sheets: Sequence[Sheet],
) -> Sheet:
    sheet = Sheet([[graph.units[n] for n in element] for element in numbers])
    members = [n for element in numbers for n in element]
    sheet.whole = _whole([placed[p] for p in group.shared], sheets)
    sheet.foreign = sorted({step for n in members for step in graph.foreign[n]})
    if group.follows:
        alone = set(graph.parents[members[0]]) - set(group.shared)
        above = sorted({placed[p][0] for p in alone})
        if len(numbers) > 1:
            sheet.one_to_one = above
        else:
            # A lone element is no array, and has no index to follow.
            sheet.whole = sorted([*sheet.whole, *((n, None) for n in above)], key=_order)
    sheet.at_once = sheet.first.at_once
    return sheet


def _order(wait: tuple[int, int | None]) -> tuple[int, int]:
    return wait[0], -1 if wait[1] is None else wait[1]


def _whole(
    places: Sequence[tuple[int, int]], sheets: Sequence[Sheet]
) -> list[tuple[int, int | None]]:
    """Return `places`, with all elements of one sheet said in one."""
    by_sheet: dict[int, set[int]] = defaultdict(set)
    for sheet, element in places:
        by_sheet[sheet].add(element)
    found: list[tuple[int, int | None]] = []
    for sheet, elements in sorted(by_sheet.items()):
        if len(elements) == len(sheets[sheet].units):
            found.append((sheet, None))
        else:
            found += [(sheet, element) for element in sorted(elements)]
    return found


def _per_element(unit: Unit, limits: Limits) -> int:
    """Return how many units like `unit` one element runs, as far as its time allows."""
    if any(job.parallel or job.element is not None for job in unit):
        return 1
    limit_min = unit[0].limit_min
    if limit_min is None:
        return limits.per_element
    return max(1, min(limits.per_element, limit_min // sum(job.time_min for job in unit)))


def _bounds(count: int, longest: int) -> list[tuple[int, int]]:
    """Return the bounds of pieces of `count` that are at most `longest`, and about equally long.

    The same for equal arguments: groups that follow each other are cut at the same places.
    """
    pieces = -(-count // longest)
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return list(itertools.pairwise(bounds))


def _throttle(sheets: list[Sheet], limits: Limits, busy: Mapping[Hashable, int]) -> None:
    """Share each total among the sheets that it is a total of; sheets beyond it queue up."""
    by_throttle: dict[Hashable, list[int]] = defaultdict(list)
    for number, sheet in enumerate(sheets):
        if sheet.at_once is not None:
            by_throttle[sheet.first.throttle].append(number)
    for throttle, numbers in by_throttle.items():
        total = min(sheets[number].at_once or 1 for number in numbers)
        _share(sheets, numbers, total - busy.get(throttle, 0))
    if limits.at_once is not None:
        _share(sheets, list(range(len(sheets))), limits.at_once - busy.get(WHOLE_RUN, 0))


def _share(sheets: list[Sheet], numbers: list[int], total: int) -> None:
    if total < 1:
        for number in numbers:
            sheets[number].at_once = 0
        return
    lanes = min(total, len(numbers))
    for position, number in enumerate(numbers):
        share = total // lanes + (1 if position % lanes < total % lanes else 0)
        sheet = sheets[number]
        sheet.at_once = share if sheet.at_once is None else min(share, sheet.at_once)
        if position >= lanes:
            before = numbers[position - lanes]
            sheet.after_any = sorted({*sheet.after_any, before})
