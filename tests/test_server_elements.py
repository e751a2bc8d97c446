"""Which steps share the element of a server in Slurm, and how their graph then lies; no cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from flows import StepDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_steps import Site, site

from nexa_hpc import Pipeline
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.planning import Plan, make_plan
from nexa_hpc.errors import SpecError
from nexa_hpc.schedulers.slurm.shapes import Limits, shape
from nexa_hpc.schedulers.slurm.units import Job, Units, fuse

__all__ = ["site"]


def plan(site: Site, *steps: StepDict, scheduler: str | None = "slurm") -> Plan:
    """Plan a pipeline of `steps` for Slurm, which this machine need not have."""
    pipeline = Pipeline.from_yaml(site.flow.write(*steps), project=site.project)
    request = replace(pipeline.plan_request(None, {}), find_scheduler=lambda _: None)
    return make_plan(replace(request, scheduler=scheduler))


def told(site: Site, *steps: StepDict, scheduler: str | None = "slurm") -> str:
    """Return what is wrong with a pipeline of `steps`; nothing is written."""
    with pytest.raises(SpecError) as found:
        plan(site, *steps, scheduler=scheduler)
    assert not (site.project / ".nexa_state").exists()
    return str(found.value)


def jobs_of(instances: Mapping[str, Instance]) -> list[Job]:
    """Return the instances as they are handed over, all of them asking for the same."""
    return [
        Job(i.step, "request", 10, i.parents, element=i.element or None, limit_min=25)
        for i in instances.values()
    ]


def elements_of(instances: Mapping[str, Instance]) -> dict[str, str]:
    """Return step -> the server in whose element it runs."""
    return {step: i.element for step, i in instances.items() if i.element}


def test_an_element_waits_for_what_its_readers_need_and_its_server_for_its_own(site: Site) -> None:
    data = site.flow.step("data", out="out/data", after=[])
    ask = site.ask(**{"in": {"endpoint": "serve", "data": "out/data"}})
    found = plan(site, {**site.serve(), "after": []}, data, ask).instances
    assert found["serve"].parents == ()
    units = Units(fuse(jobs_of(found)))
    assert [[job.step for job in unit] for unit in units.units] == [["data"], ["serve", "ask"]]
    assert units.parents == [(), (0,)]
    here = plan(site, {**site.serve(), "after": []}, data, ask, scheduler=None).instances
    assert [found[step].key for step in found] == [here[step].key for step in found]
    assert elements_of(here) == {}


def test_what_comes_between_a_server_and_a_reader_is_in_its_element(site: Site) -> None:
    between, below = site.flow.step("between"), site.flow.step("below")
    found = plan(site, site.serve(), between, site.ask(), below).instances
    assert elements_of(found) == dict.fromkeys(("serve", "between", "ask"), "serve")
    units = [[job.step for job in unit] for unit in fuse(jobs_of(found))]
    assert units == [["serve", "between", "ask"], ["below"]]
    (shared, _) = shape(jobs_of(found), Limits(100, 10))
    assert shared.time_min == 25, "a partition allows no more"


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ("serve", "it runs in Slurm, and reads the server of 'serve', which runs where"),
        ("ask", "step 'ask': scheduler: it runs in the element of the server 'serve': say"),
        ("between", "what the steps really wait for: it comes between"),
    ],
)
def test_what_shares_an_element_runs_in_slurm(site: Site, here: str, words: str) -> None:
    steps = [site.serve(), site.flow.step("between"), site.ask()]
    for step in steps:
        step["scheduler"] = "local" if step["id"] == here else "slurm"
    assert words in told(site, *steps, scheduler=None)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpus_per_task": 3}, "which asks for another cpus_per_task: leave it away here"),
        ({"timeout_min": 3, "cpus_per_task": 2}, None),
    ],
)
def test_what_shares_an_element_asks_for_what_its_server_does(
    site: Site, resources: dict[str, Any], words: str | None
) -> None:
    steps = {**site.serve(), "resources": {"cpus_per_task": 2}}, site.ask(resources=resources)
    if words is None:
        plan(site, *steps)
    else:
        assert words in told(site, *steps)


@pytest.mark.parametrize("scheduler", ["slurm", "local"])
def test_two_servers_of_the_same_are_one_too_many(site: Site, scheduler: str) -> None:
    again = site.ask("again", **{"in": {"endpoint": "twin"}})
    said = told(site, site.serve(), site.ask(), site.serve("twin"), again, scheduler=scheduler)
    assert "step 'twin': params: it serves what 'serve' serves" in said


def test_a_server_in_slurm_has_one_task(site: Site) -> None:
    wide = {**site.serve(), "resources": {"nodes": 2}}
    assert "has one task on one node" in told(site, wide, site.ask())


def test_a_step_reads_one_server_and_servers_do_not_wait_for_each_other(site: Site) -> None:
    both = site.ask(**{"in": {"endpoint": "serve", "other": "judge"}})
    said = told(site, site.serve(), site.serve("judge", max_batch=2), both)
    assert "of the server 'serve' and 'judge': there is one in an element" in said
    chain = [site.serve(), site.serve("judge", max_batch=2), site.ask()]
    said = told(site, *chain, site.ask("last", **{"in": {"endpoint": "judge"}}))
    assert said.count("step 'ask'") == 1 and "name in `after` what the steps really wait" in said
    first = site.ask("first", after=["above_second"])
    second = site.ask("second", after=["above_first"], **{"in": {"endpoint": "judge"}})
    servers = [{**step, "after": []} for step in (site.serve(), site.serve("judge", max_batch=2))]
    above = [
        site.flow.step("above_first", after=["serve"]),
        site.flow.step("above_second", after=["judge"]),
    ]
    assert "would wait for each other" in told(site, *servers, *above, first, second)


def test_nothing_waits_for_a_job_that_stays_for_its_server(site: Site) -> None:
    kept = site.serve(keep=True)
    said = told(site, kept, site.ask(), site.flow.step("later"))
    assert "step 'later'" in said and "whose job stays for the server of 'serve'" in said
    plan(site, kept, site.ask(), site.flow.step("later", after=[]))
    plan(site, kept, site.ask(), site.flow.step("later"), scheduler=None)


def test_servers_of_points_that_turn_out_to_be_one_are_planned_once(site: Site) -> None:
    prepare = site.flow.step("prepare", out="out/data", after=[], params={"x": 1})
    ask = site.ask(after=[], **{"in": {"endpoint": "serve", "data": "out/data"}})
    file = site.flow.write({**site.serve(start_timeout_s=1), "after": []}, prepare, ask)
    over = ["steps.prepare.params.x=1,2", "steps.serve.params.start_timeout_s=100,200"]
    sweep = Pipeline.from_yaml(file, project=site.project).sweep(over)
    request = replace(sweep.plan_request(None, {}), find_scheduler=lambda _: None)
    found = make_plan(replace(request, scheduler="slurm")).instances
    servers = {step for step, i in found.items() if i.serves}
    assert len(servers) == 1 and set(elements_of(found).values()) == servers
    assert sum(i.step_id == "ask" for i in found.values()) == 2


@st.composite
def documents(draw: st.DrawFn) -> list[tuple[str, list[int], int | None]]:
    """Draw steps: what each does, the steps it waits for, and the server it reads."""
    steps: list[tuple[str, list[int], int | None]] = []
    for n in range(draw(st.integers(2, 9))):
        servers = [m for m, (what, _, _) in enumerate(steps) if what == "serve"]
        after = draw(st.lists(st.integers(0, n - 1), max_size=2, unique=True)) if n else []
        what = draw(st.sampled_from(("serve", "step", "read") if servers else ("serve", "step")))
        steps.append((what, after, draw(st.sampled_from(servers)) if what == "read" else None))
    return steps


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(documents())
def test_elements_of_servers_are_whole_and_wait_for_none_that_waits_for_them(
    site: Site, drawn: list[tuple[str, list[int], int | None]]
) -> None:
    steps = []
    read = {server for _, _, server in drawn}
    for n, (what, after, server) in enumerate(drawn):
        is_server = what == "serve" and n in read
        step = site.serve(f"s{n}", max_batch=n + 1) if is_server else site.flow.step(f"s{n}")
        step["after"] = [f"s{m}" for m in after]
        if server is not None:
            step["in"] = {"endpoint": f"s{server}"}
        steps.append(step)
    try:
        found = plan(site, *steps).instances
    except SpecError as error:
        known = ("for each other", "there is one in an element")
        assert all(any(k in line for k in known) for line in str(error).splitlines() if line)
        return
    elements = elements_of(found)
    for server in elements.values():
        assert found[server].serves and elements[server] == server
    units = Units(fuse(jobs_of(found)))
    for n, unit in enumerate(units.units):
        assert all(above < n for above in units.parents[n])
        order = [job.step for job in unit]
        for job in unit:
            inside = [order.index(p) for p in job.parents if p in order]
            assert all(place < order.index(job.step) for place in inside)
    of = {job.step: n for n, unit in enumerate(units.units) for job in unit}
    assert all(of[step] == of[server] for step, server in elements.items())
    for instance in found.values():
        for handed in instance.inputs.values():
            if "server" in handed:
                assert elements[instance.step] == handed["server"]
