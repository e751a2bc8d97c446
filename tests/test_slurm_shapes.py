"""What a graph of jobs comes to in Slurm, on random graphs with random requests; no cluster."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_hpc.schedulers.slurm.shapes import WHOLE_RUN, Limits, Sheet, shape
from nexa_hpc.schedulers.slurm.units import Job

Place = tuple[int, int, int]
"""Sheet, element, position in the element."""


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    """Draw jobs in graph order: chains of like points, with shared parents and odd ones between."""
    names: list[str] = []
    jobs = []
    points = draw(st.integers(1, 14))
    columns = draw(st.lists(kinds(), min_size=1, max_size=4))
    shared = draw(st.booleans())
    if shared:
        jobs.append(Job("prepare", "small", 5, (), limit_min=60))
    for n in range(points):
        before = ("prepare",) if shared else ()
        for column, (request, time_min, light, parallel, at_once) in enumerate(columns):
            name = f"s{column}_{n}"
            odd = draw(st.integers(0, 9))
            parents = before
            if odd == 0 and names:
                parents = tuple(
                    draw(st.lists(st.sampled_from(names), unique=True, max_size=3).map(sorted))
                )
            if odd == 1:
                parents = (*parents, f"elsewhere{n}")
            throttle = (request, at_once)
            jobs.append(
                Job(name, request, time_min, parents, light, parallel, at_once, throttle, 60)
            )
            names.append(name)
            before = (name,)
    if draw(st.booleans()):
        above = tuple(names[len(columns) - 1 :: len(columns)])
        jobs.append(Job("collect", "small", 5, above, limit_min=60))
    return jobs


def kinds() -> st.SearchStrategy[tuple[str, int, bool, bool, int | None]]:
    return st.tuples(
        st.sampled_from(("small", "large")),
        st.sampled_from((5, 30, 60)),
        st.booleans(),
        st.sampled_from((False, False, True)),
        st.sampled_from((None, None, 1, 2, 5)),
    )


limits = st.builds(
    Limits,
    max_array=st.sampled_from((1, 3, 5, 1001)),
    chunk=st.sampled_from((1, 2, 10)),
    per_element=st.sampled_from((1, 1, 3)),
    at_once=st.sampled_from((None, None, 1, 3, 10)),
)


def places_of(sheets: list[Sheet]) -> dict[str, Place]:
    """Return where each job is; every job must be in exactly one place."""
    found: dict[str, Place] = {}
    for number, sheet in enumerate(sheets):
        for index, units in enumerate(sheet.units):
            for position, job in enumerate(job for unit in units for job in unit):
                assert job.step not in found
                found[job.step] = (number, index, position)
    return found


def waits_of(sheets: list[Sheet], sheet: int, element: int) -> Iterator[tuple[int, int]]:
    """Yield the elements that must have succeeded before an element starts."""
    for other, index in sheets[sheet].whole:
        indices = range(len(sheets[other].units)) if index is None else [index]
        yield from ((other, i) for i in indices)
    yield from ((other, element) for other in sheets[sheet].one_to_one)


def all_above(sheets: list[Sheet]) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return for each element all those that it waits for, directly or not."""
    above: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for number, sheet in enumerate(sheets):
        for element in range(len(sheet.units)):
            direct = set(waits_of(sheets, number, element))
            above[number, element] = direct.union(*(above[place] for place in direct))
    return above


@settings(max_examples=300, deadline=None)
@given(graphs(), limits)
def test_every_job_is_in_one_sheet_and_every_dependency_is_expressed(
    jobs: list[Job], limits: Limits
) -> None:
    sheets = shape(jobs, limits)
    places = places_of(sheets)
    assert places.keys() == {job.step for job in jobs}
    above = all_above(sheets)
    for job in jobs:
        sheet, element, position = places[job.step]
        for parent in job.parents:
            if parent not in places:
                assert parent in sheets[sheet].foreign
            elif places[parent][:2] == (sheet, element):
                assert places[parent][2] < position
            else:
                assert places[parent][:2] in above[sheet, element]


@settings(max_examples=300, deadline=None)
@given(graphs(), limits)
def test_sheets_wait_for_earlier_ones_and_keep_the_clusters_limits(
    jobs: list[Job], limits: Limits
) -> None:
    sheets = shape(jobs, limits)
    for number, sheet in enumerate(sheets):
        waits = [*(other for other, _ in sheet.whole), *sheet.one_to_one, *sheet.after_any]
        assert all(other < number for other in waits)
        assert 1 <= len(sheet.units) <= limits.max_array
        for other in sheet.one_to_one:
            assert len(sheets[other].units) == len(sheet.units) <= limits.chunk
            assert len(sheet.units) > 1, "a lone element has no index to follow"
        for other, index in sheet.whole:
            assert index is None or index < len(sheets[other].units)


@settings(max_examples=300, deadline=None)
@given(graphs(), limits)
def test_nothing_waits_for_an_element_that_it_need_not_wait_for(
    jobs: list[Job], limits: Limits
) -> None:
    # Of jobs one in an element: those packed together share their element's fate.
    limits = Limits(limits.max_array, limits.chunk, 1, None)
    sheets = shape(jobs, limits)
    places = places_of(sheets)
    needed = defaultdict(set)
    for job in jobs:
        place = places[job.step][:2]
        needed[place] |= {places[p][:2] for p in job.parents if p in places}
    for number, sheet in enumerate(sheets):
        for element in range(len(sheet.units)):
            assert set(waits_of(sheets, number, element)) <= needed[number, element]


@settings(max_examples=300, deadline=None)
@given(graphs(), limits)
def test_only_like_requests_or_light_followers_share_an_element_within_its_time(
    jobs: list[Job], limits: Limits
) -> None:
    for sheet in shape(jobs, limits):
        assert len({units[0][0].request for units in sheet.units}) == 1
        for units in sheet.units:
            inside = [job for unit in units for job in unit]
            assert sum(job.time_min for job in inside) <= 60
            assert len(units) <= limits.per_element
            assert len(inside) == 1 or not any(job.parallel for job in inside)
            for unit in units:
                assert all(job.request == unit[0].request or job.light for job in unit)


def at_a_time(sheets: list[Sheet], numbers: list[int]) -> int:
    """Return how many elements of `numbers` may run at a time, sheets behind others left out."""
    ends = {other for n in numbers for other in sheets[n].after_any}
    lanes = [n for n in numbers if not set(sheets[n].after_any) & set(numbers)]
    # Along a lane one sheet follows the other, none with a larger share than the first.
    assert all(sheets[n].after_any for n in numbers if n not in lanes)
    assert len(ends) <= len(sheets)
    return sum(sheets[n].at_once or 0 for n in lanes)


@settings(max_examples=300, deadline=None)
@given(graphs(), limits, st.integers(0, 4))
def test_throttles_are_totals_over_all_sheets_and_what_is_in_flight(
    jobs: list[Job], limits: Limits, busy: int
) -> None:
    counted = {("small", 2): busy, WHOLE_RUN: busy}
    sheets = shape(jobs, limits, counted)
    throttles = {sheet.first.throttle for sheet in sheets if sheet.first.at_once is not None}
    for throttle in throttles:
        numbers = [n for n, sheet in enumerate(sheets) if sheet.first.throttle == throttle]
        total = sheets[numbers[0]].first.at_once or 0
        assert at_a_time(sheets, numbers) <= max(0, total - counted.get(throttle, 0))
    if limits.at_once is not None:
        everything = list(range(len(sheets)))
        assert all(sheet.at_once is not None for sheet in sheets)
        assert at_a_time(sheets, everything) <= max(0, limits.at_once - busy)


def chains(points: int) -> list[Job]:
    """Return three-step chains of which no two steps can be fused."""
    return [
        Job(f"{step}{n}", step, 10, (f"{before}{n}",) if before else ())
        for n in range(points)
        for before, step in (("", "a"), ("a", "b"), ("b", "c"))
    ]


def one_long_chain(length: int) -> list[Job]:
    return [Job(f"s{n}", n % 2, 10, (f"s{n - 1}",) if n else ()) for n in range(length)]


def a_grid(side: int) -> list[Job]:
    """Return layers of which each job waits for all of the layer above."""
    return [
        Job(f"s{x}_{y}", "r", 10, tuple(f"s{x - 1}_{z}" for z in range(side)) if x else ())
        for x in range(3000 // side)
        for y in range(side)
    ]


@pytest.mark.no_cover  # Which may double the time of what computes.
@pytest.mark.parametrize(
    ("jobs", "sheets"),
    [(chains(1000), 300), (one_long_chain(3000), 3000), (a_grid(10), 300)],
    ids=["chains", "one chain", "grid"],
)
def test_three_thousand_jobs_take_well_under_a_second(jobs: list[Job], sheets: int) -> None:
    began = time.process_time()
    found = shape(jobs, Limits(max_array=1001, chunk=10))
    assert time.process_time() - began < 0.8
    assert len(found) == sheets
