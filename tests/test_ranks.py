"""Steps of several tasks: which rank a process is, and how the ranks of one attempt end together.

The ranks are real processes with the variables that srun sets; `test_ranks_slurm.py` has srun start
them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ensembles import SRUN, Ensemble
from flows import Flow, alive, pids_in, until
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.ranks import (
    ALONE,
    Ranks,
    declared_tasks,
    first_host,
    port_of,
    tasks_on_nodes,
)

# ---------------------------------------------------------------------------------- who am I, where


def test_a_process_of_srun_knows_its_rank_and_where_the_first_is() -> None:
    ranks = Ranks.from_environment(SRUN)
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size) == (3, 4, 1, 2)
    assert (ranks.node_rank, ranks.nodes, ranks.master_address) == (1, 2, "localhost")
    assert ranks.master_port == port_of(ranks.token)
    assert Ranks.decode(ranks.encode()) == ranks
    assert ranks.variables() == {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(ranks.master_port),
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NNODES": "2",
        "NODE_RANK": "1",
    }


def test_all_ranks_agree_on_the_token_and_a_requeue_has_another() -> None:
    first = Ranks.from_environment(SRUN)
    assert Ranks.from_environment({**SRUN, "SLURM_PROCID": "0"}).token == first.token
    again = Ranks.from_environment({**SRUN, "SLURM_RESTART_COUNT": "1"})
    assert again.token != first.token


def test_one_task_or_none_is_alone() -> None:
    assert Ranks.from_environment({}) == ALONE
    assert Ranks.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == ALONE
    assert Ranks.decode(None) == ALONE


def test_a_node_whose_name_does_not_resolve_is_met_at_the_address_that_slurm_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\ntest "$*" = "show node no-such-node.invalid" || exit 1\n'
        "echo '   NodeAddr=no-such-address.invalid NodeHostName=localhost Port=17001'\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    named = {**SRUN, "SLURM_STEP_NODELIST": "no-such-node.invalid"}
    assert Ranks.from_environment(named).master_address == "localhost"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1"),
        ("n[003-010,12],m7", "n003"),
        ("a-b1,n[1-2]", "a-b1"),
        ("r[2-3]c[01,04]x,y", "r2c01x"),
        ("n[7,9-11].site", "n7.site"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_tasks_on_nodes_reads_what_slurm_writes(counts: list[int]) -> None:
    parts: list[tuple[int, int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    text = ",".join(f"{c}(x{n})" if n > 1 else str(c) for c, n in parts)
    assert tasks_on_nodes(text) == counts


@given(st.text())
def test_a_port_is_the_same_for_the_same_token_and_allowed_to_everybody(token: str) -> None:
    assert 20000 <= port_of(token) < 60000
    assert port_of(token) == port_of(token)


def test_a_port_in_use_is_not_where_ranks_meet() -> None:
    import socket

    ranks = Ranks.from_environment(SRUN)
    with socket.socket() as taken:
        taken.bind(("", ranks.master_port))
        taken.listen()
        place = ranks.meeting_place()
    assert place["master_port"] not in (0, ranks.master_port)


def test_declared_tasks_are_those_of_all_nodes() -> None:
    assert declared_tasks({}) == 1
    assert declared_tasks({"nodes": 3, "tasks_per_node": 2, "gpus_per_node": 8}) == 6


# -------------------------------------------------------------------------------- several processes


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def step(command: str, nodes: int, each: int, **params: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "uses": "runners.command",
        "out": "out/a",
        "params": {"command": command, "launcher": "srun", **params},
        "resources": {"nodes": nodes, "tasks_per_node": each},
    }


def test_each_rank_runs_the_command_and_one_result_is_published(flow: Flow) -> None:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NNODES NODE_RANK MASTER_ADDR MASTER_PORT"
    words = " ".join(f"${name}" for name in names.split())
    ensemble = Ensemble(flow, step(f"echo {words} > $OUT/$RANK", 2, 2))
    assert ensemble.wait() == [0, 0, 0, 0], ensemble.said
    lines = [(ensemble.result() / str(rank)).read_text().split() for rank in range(4)]
    assert [line[:6] for line in lines] == [
        ["0", "4", "0", "2", "2", "0"],
        ["1", "4", "1", "2", "2", "0"],
        ["2", "4", "0", "2", "2", "1"],
        ["3", "4", "1", "2", "2", "1"],
    ]
    assert {tuple(line[6:]) for line in lines} == {("localhost", lines[0][7])}
    assert ensemble.end()["state"] == "COMPLETED"
    assert not ensemble.run.paths.work_of(ensemble.instance.key).exists()


def test_a_rank_that_fails_fails_the_step_with_its_words(flow: Flow) -> None:
    ensemble = Ensemble(flow, step("test $RANK != 2 || exit 9", 2, 2))
    assert ensemble.wait() == [1, 1, 1, 1]
    end = ensemble.end()
    host = os.uname().nodename
    assert (end["state"], end["message"]) == (
        "FAILED",
        f"rank 2 on {host}: the command exited with 9",
    )
    assert not ensemble.result().exists()
    assert not list(ensemble.result().parent.glob("*.tmp.*"))


@pytest.mark.slow
def test_rank_0_that_waits_for_one_that_has_failed_is_interrupted(flow: Flow) -> None:
    ensemble = Ensemble(flow, step("if [ $RANK = 1 ]; then exit 9; fi; sleep 100", 1, 2))
    began = time.monotonic()
    assert ensemble.wait() == [1, 1]
    assert time.monotonic() - began < 40
    assert "rank 1 on" in ensemble.end()["message"]


@pytest.mark.slow
def test_when_rank_0_fails_the_others_do_not_wait_for_ever(flow: Flow) -> None:
    pids = flow.project / "pids"
    command = f"if [ $RANK = 0 ]; then exit 7; fi; echo $$ >> {pids}; sleep 100"
    ensemble = Ensemble(flow, step(command, 1, 3))
    assert ensemble.wait() == [1, 130, 130]
    assert ensemble.end()["message"] == "the command exited with 7"
    assert alive(pids_in(pids)) == []


def test_what_makes_rank_0_refuse_ends_the_others(flow: Flow) -> None:
    data = flow.project / "data"
    data.write_text("x")
    made = {**step("sleep 1; echo changed > data", 1, 2), "in": {"data": "data"}}
    ensemble = Ensemble(flow, made)
    assert ensemble.wait() == [1, 1]
    assert ensemble.end()["reason"] == "input_changed"
    made["params"]["again"] = True
    data.unlink()
    data.write_text("y")
    late = Ensemble(flow, made, before=lambda: data.write_text("changed"))
    assert late.wait() == [1, 1]
    assert late.end()["reason"] == "input_changed"


def test_a_result_that_is_there_needs_no_rank(flow: Flow) -> None:
    made = step("echo $RANK > $OUT/$RANK", 1, 2)
    assert Ensemble(flow, made).wait() == [0, 0]
    assert Ensemble(flow, made, attempt=2).wait() == [0, 0]


def test_sigterm_at_all_ranks_is_recorded_once(flow: Flow) -> None:
    ready = flow.project / "ready"
    ensemble = Ensemble(flow, step(f"echo $$ >> {ready}; sleep 100", 1, 2))
    until(lambda: len(pids_in(ready)) == 2)
    for process in ensemble.processes:
        process.send_signal(signal.SIGTERM)
    assert ensemble.wait() == [130, 130]
    assert ensemble.end()["state"] == "CANCELLED"
    assert alive(pids_in(ready)) == []


def test_a_handler_of_the_project_sees_its_ranks(flow: Flow) -> None:
    (flow.project / "steps.py").write_text(
        "import json, os\n"
        "def work(out_dir, ranks, resume):\n"
        "    (out_dir / str(ranks.rank)).write_text(json.dumps(\n"
        "        [ranks.size, os.environ['RANK'], str(resume)]))\n"
    )
    made = {"id": "a", "uses": "steps:work", "resources": {"tasks_per_node": 2}}
    ensemble = Ensemble(flow, made)
    assert ensemble.wait() == [0, 0]
    told = [json.loads((ensemble.result() / str(rank)).read_text()) for rank in range(2)]
    assert told == [[2, "0", "None"], [2, "1", "None"]]
