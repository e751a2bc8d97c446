"""Serving as a step of the real cluster: a server and what reads it share a job, come what may."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from conftest import RunCli
from flows import StepDict, until
from serve_steps import ASK, WAIT, Site, site
from slurm_attempts import attempts, ends, unpause, wait_for_run, wait_for_start
from slurm_fixtures import SlurmCluster, wait_until
from slurm_flows import POLICY, SlurmFlow

__all__ = ["site"]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

READ = {"in": {"endpoint": "serve"}}


@pytest.fixture
def flow(site: Site, run_cli: RunCli, slurm_cluster: SlurmCluster) -> Iterator[SlurmFlow]:
    """The pipelines of `site`, on the cluster; nothing of them goes on after a failure."""
    found = SlurmFlow(site.project, run_cli, slurm_cluster)
    yield found
    found.cli("cancel", expect=None)


def in_order(*steps: StepDict) -> list[StepDict]:
    """Return `steps` with nothing but what they read to wait for."""
    return [{"after": [], **step} for step in steps]


def test_a_server_and_what_reads_it_share_a_job_that_ends_with_them(
    site: Site, flow: SlurmFlow
) -> None:
    between = flow.step("between", after=["serve"])
    last = site.ask("last", after=["ask", "between"])
    below = flow.step("below", "test -e ../urls", after=["last"])
    first = flow.step("first", out="out/first")
    needs = {"in": {"endpoint": "serve", "data": "out/first"}, "after": []}
    flow.write(*in_order(site.serve(), first), site.ask(**needs), between, last, below)
    flow.submit("--wait")
    assert set(flow.now().values()) == {"COMPLETED"}
    jobs = flow.jobs()
    assert len({jobs[step] for step in ("serve", "ask", "between", "last")}) == 1
    assert len({jobs[step] for step in ("first", "serve", "below")}) == 3
    order = flow.executed()
    assert order[0] == "first" and order[-1] == "below"
    assert len(set(site.urls())) == 1 and site.listed() == {}
    wait_until(site.nothing_lives, 30, "the server to end")
    # No GPU waits for what its readers need.
    assert (
        attempts(flow, "serve")[0].start["started_at"] > attempts(flow, "first")[0].end["ended_at"]
    )
    flow.submit("--wait")
    assert set(flow.now().values()) == {"SKIPPED"} and len(site.stand_in.starts()) == 1


def test_a_reader_that_is_tried_again_gets_a_server_in_another_job(
    site: Site, flow: SlurmFlow
) -> None:
    fails_once = f"{ASK}\ntest -e ../again || {{ touch ../again; exit 1; }}"
    ask = site.ask("ask", fails_once, retry={"exception": 1}, after=[])
    flow.write(site.serve(), ask, site.ask("other", after=[]))
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert ends(flow, "ask") == [("FAILED", "exception"), ("COMPLETED", None)]
    assert len({attempt.job for attempt in attempts(flow, "serve")}) == 2
    assert flow.executed().count("other") == 1
    wait_until(site.nothing_lives, 30, "the server to end")


def test_a_reader_that_fails_for_good_leaves_no_server_and_resume_brings_it_along(
    site: Site, flow: SlurmFlow
) -> None:
    flow.write(site.serve(), site.ask("ask", f"{ASK}\ntest -e ../mended"))
    flow.submit()
    assert flow.settle() == {"serve": "COMPLETED", "ask": "FAILED"}
    wait_until(site.nothing_lives, 30, "the server to end")
    (site.project.parent / "mended").touch()
    flow.cli("resume", "--wait")
    assert set(flow.now().values()) == {"COMPLETED"}
    assert len(site.stand_in.starts()) == 2
    wait_until(site.nothing_lives, 30, "the server to end")


@pytest.mark.parametrize("keep", [False, True])
def test_a_reader_that_fails_for_good_blocks_the_next_and_nothing_is_started_again(
    site: Site, flow: SlurmFlow, keep: bool
) -> None:
    flow.write(site.serve(keep=keep), site.ask("a", "exit 1"), site.ask("b"))
    flow.submit()
    assert flow.settle() == {"serve": "COMPLETED", "a": "FAILED", "b": "BLOCKED"}
    flow.cli("advance", "--all")
    assert flow.settle() == {"serve": "COMPLETED", "a": "FAILED", "b": "BLOCKED"}
    assert len(site.stand_in.starts()) == 1
    if keep:
        assert list(site.listed().values()) == ["HEALTHY"]
        site.cli("serve", "stop", *site.listed())
    wait_until(site.nothing_lives, 30, "the server to end")


def test_what_one_reader_needs_and_fails_is_no_matter_of_the_others(
    site: Site, flow: SlurmFlow
) -> None:
    bad, good = flow.step("bad", "exit 1"), flow.step("good")
    ask_bad, ask_good = site.ask("ask_bad", after=["bad"]), site.ask("ask_good", after=["good"])
    flow.write(*in_order(site.serve(), bad, good), ask_bad, ask_good)
    flow.submit("--wait", expect=1)
    states = flow.now()
    assert (states["bad"], states["ask_bad"]) == ("FAILED", "BLOCKED")
    assert (states["good"], states["serve"], states["ask_good"]) == ("COMPLETED",) * 3
    assert len(site.stand_in.starts()) == 1
    wait_until(site.nothing_lives, 30, "the server to end")


def test_a_reader_behind_a_server_that_fails_needs_no_server(site: Site, flow: SlurmFlow) -> None:
    broken = {**site.serve("broken", python="/nowhere/python", max_batch=2), "after": []}
    first = site.ask("first", **{"in": {"endpoint": "broken"}})
    flow.write(broken, first, {**site.serve(), "after": []}, site.ask("last", after=["first"]))
    flow.submit("--wait", expect=1)
    expected = {"broken": "FAILED", "first": "BLOCKED", "serve": "SKIPPED", "last": "BLOCKED"}
    assert flow.now() == expected
    assert site.stand_in.starts() == []


def test_a_reader_of_a_kept_server_is_tried_again_in_another_job(
    site: Site, flow: SlurmFlow
) -> None:
    fails_once = f"{ASK}\ntest -e ../again || {{ touch ../again; exit 1; }}"
    flow.write(site.serve(keep=True), site.ask("ask", fails_once, retry={"exception": 1}))
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert len(site.stand_in.starts()) == 1
    assert len({attempt.job for attempt in attempts(flow, "ask")}) == 2
    site.cli("serve", "stop", *site.listed())
    wait_until(site.nothing_lives, 30, "the server to end")


def test_what_comes_between_and_is_tried_again_brings_the_server_along(
    site: Site, flow: SlurmFlow
) -> None:
    once = "test -e ../again || { touch ../again; exit 1; }"
    flow.write(site.serve(), flow.step("mid", once, retry={"exception": 1}), site.ask())
    flow.configure(policy="advance_job: {enabled: false}\n")
    flow.submit("--wait")
    assert set(flow.now().values()) == {"COMPLETED"}
    wait_until(site.nothing_lives, 30, "the server to end")


def test_canaries_are_whole_elements(site: Site, flow: SlurmFlow) -> None:
    flow.configure(policy=f"{POLICY}canary: 1\n")
    needed = (flow.step(f"data{n}", after=[]) for n in range(3))
    asks = (site.ask(f"ask{n}", after=[f"data{n}"]) for n in range(3))
    flow.write({**site.serve(), "after": []}, *needed, *asks)
    flow.submit("--wait")
    assert len(site.stand_in.starts()) == 1
    assert set(flow.now().values()) == {"COMPLETED"}
    wait_until(site.nothing_lives, 30, "the server to end")


def test_a_job_that_is_requeued_while_it_serves_starts_its_server_anew(
    site: Site, flow: SlurmFlow
) -> None:
    flow.write(site.serve(), site.ask("done"), site.ask("ask", f"{ASK}\n{WAIT}"))
    flow.submit()
    job = wait_for_run(flow, "ask")
    flow.cluster.ask("scontrol", "requeue", job)
    unpause(flow, job)
    wait_for_run(flow, "ask", 2)
    site.let_go()
    assert set(flow.settle().values()) == {"COMPLETED"}
    assert len({attempt.job for attempt in attempts(flow, "serve")}) == 1
    assert len(attempts(flow, "serve")) == 2 and len(attempts(flow, "done")) == 1
    assert len(site.stand_in.starts()) == 2 and len(set(site.urls())) >= 2
    wait_until(site.nothing_lives, 30, "the server to end")


def test_a_server_that_is_killed_fails_what_reads_it_and_its_job(
    site: Site, flow: SlurmFlow
) -> None:
    asks = f"{ASK}\n{WAIT}\ncurl -sf $IN_endpoint/health"
    flow.write(site.serve(), site.ask("ask", asks))
    flow.submit()
    wait_for_run(flow, "ask")
    os.kill(site.stand_in.starts()[-1], signal.SIGKILL)
    site.let_go()
    assert flow.settle() == {"serve": "COMPLETED", "ask": "FAILED"}
    assert "killed by SIGKILL" in flow.records("ask")[-1]["message"]
    wait_until(site.nothing_lives, 30, "the server to end")


def test_cancelling_the_run_leaves_nothing_of_its_server(site: Site, flow: SlurmFlow) -> None:
    flow.write(site.serve(), site.ask("ask", WAIT))
    flow.submit()
    job = wait_for_run(flow, "ask")
    flow.cli("cancel")
    flow.cluster.wait(job)
    assert flow.settle()["ask"] == "CANCELLED"
    wait_until(site.nothing_lives, 60, "the server to end")


def test_a_server_that_does_not_come_up_fails_and_blocks_what_would_read_it(
    site: Site, flow: SlurmFlow
) -> None:
    site.stand_in.python.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    flow.write(site.serve(), site.ask())
    flow.submit()
    assert flow.settle() == {"serve": "FAILED", "ask": "BLOCKED"}
    assert "no such model" in flow.cli("logs", "serve").stdout


def test_a_server_that_is_kept_has_its_job_until_it_is_stopped(site: Site, flow: SlurmFlow) -> None:
    flow.write(site.serve(keep=True), site.ask())
    flow.submit()
    assert set(flow.settle().values()) == {"COMPLETED"}
    (name,) = site.listed()
    assert site.listed()[name] == "HEALTHY"
    assert "127.0.0.1" not in site.cli("serve", "url", name).stdout
    assert site.servers.token(name)
    flow.submit()
    assert set(flow.settle().values()) <= {"COMPLETED", "SKIPPED"}
    assert len(site.stand_in.starts()) == 1
    job = flow.jobs().get("serve") or attempts(flow, "serve")[-1].job
    site.cli("serve", "stop", name)
    flow.cluster.wait(str(job))
    assert site.nothing_lives()


def test_a_server_that_is_kept_is_read_by_later_jobs_and_outlives_a_reader_that_is_stopped(
    site: Site, flow: SlurmFlow
) -> None:
    mends = f"{ASK}\ntest -e ../mended"
    flow.write(site.serve(keep=True), site.ask("ask", mends), site.ask("last", WAIT, after=["ask"]))
    flow.submit()
    assert flow.settle()["ask"] == "FAILED"
    (site.project.parent / "mended").touch()
    flow.cli("resume")
    wait_for_run(flow, "last")
    flow.cli("cancel", "--step", "last")
    assert flow.settle() == {"serve": "COMPLETED", "ask": "COMPLETED", "last": "CANCELLED"}
    assert len(site.stand_in.starts()) == 1 and list(site.listed().values()) == ["HEALTHY"]
    site.cli("serve", "stop", *site.listed())
    wait_until(site.nothing_lives, 30, "the server to end")


def test_a_server_that_a_run_here_keeps_is_read_by_later_jobs(site: Site, flow: SlurmFlow) -> None:
    serve = site.serve(keep=True, host="0.0.0.0")
    flow.write(serve, site.ask())
    flow.cli("run", flow.file)
    for round_ in (1, 2):
        flow.write(serve, site.ask(f"ask{round_}", f"{ASK}\n# {round_}"))
        flow.submit("--wait")
        assert flow.now()[f"ask{round_}"] == "COMPLETED"
    assert len(site.stand_in.starts()) == 1 and len(set(site.urls())) == 1
    site.cli("serve", "stop", *site.listed())


def test_a_run_on_this_machine_waits_for_a_server_that_is_a_jobs(
    site: Site, flow: SlurmFlow
) -> None:
    flow.write(site.serve(), site.ask("ask", f"{ASK}\n{WAIT}"))
    flow.submit()
    wait_for_run(flow, "ask")
    here = site.start("run", flow.file)
    until(lambda: "flow-2" in here.text(), "the run on this machine to begin")
    site.let_go()
    assert flow.settle(run="flow-1") == {"serve": "COMPLETED", "ask": "COMPLETED"}
    here.wait()
    assert flow.count("ask") == 1
    wait_until(site.nothing_lives, 30, "the server to end")


def test_who_waits_for_the_server_of_another_run_is_told_so(site: Site, flow: SlurmFlow) -> None:
    flow.write(site.serve(), site.ask("ask", f"{ASK}\n{WAIT}"))
    flow.submit()
    wait_for_run(flow, "ask")
    job = flow.jobs()["serve"]
    flow.write(site.serve(), site.ask("other"))
    flow.submit()
    told = f"waits for the end of job {job}, which holds the server of 'serve'"
    flow.until(lambda _: flow.status()["other"]["message"] == told)
    site.let_go()
    assert flow.settle() == {"serve": "COMPLETED", "other": "COMPLETED"}
    wait_until(site.nothing_lives, 30, "the server to end")


def test_steps_that_were_stopped_need_no_server(site: Site, flow: SlurmFlow) -> None:
    flow.write(flow.step("first", WAIT), site.serve(), site.ask(), flow.step("last", after=[]))
    flow.submit()
    wait_for_start(flow, "first")
    flow.cli("cancel", "--step", "ask")
    site.let_go()
    until(lambda: flow.now()["last"] == "COMPLETED")
    assert (flow.settle()["ask"], flow.now()["serve"]) == ("CANCELLED", "SKIPPED")
    assert site.stand_in.starts() == []


def test_points_of_a_sweep_have_servers_of_their_own(site: Site, flow: SlurmFlow) -> None:
    flow.write(site.serve(max_batch=1), site.ask())
    flow.submit("-m", "steps.serve.params.max_batch=1,2,3", "--wait")
    assert set(flow.now().values()) == {"COMPLETED"}
    jobs = flow.jobs()
    assert len(jobs) == 6 and len(set(jobs.values())) == 3
    assert len(site.stand_in.starts()) == 3
    wait_until(site.nothing_lives, 30, "the server to end")
