"""Sweeps on the real cluster: shared work is done once, and what is hurt is one point's own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from flows import Process
from slurm_fixtures import wait_until
from slurm_flows import SlurmFlow

pytestmark = pytest.mark.slurm

PATIENCE_S = 240.0
TELL = 'echo "{\\"acc\\": $(cat $IN_model/lr)$PARAM_k}" > $OUT/metrics.json'


def three(flow: SlurmFlow, *, train: str = "true", hold: bool = False) -> None:
    """Write prepare, train (of lr), eval (of k), and the registration of the best."""
    held = {"resources": {"slurm": {"extra": {"hold": True}}}} if hold else {}
    reads: dict[str, Any] = {"in": {"data": "prepare"}}
    flow.write(
        flow.step("prepare", "echo 1 > $OUT/rows", **held),
        flow.step("train", f"{train}; echo $PARAM_lr > $OUT/lr", params={"lr": 0.1}, **reads),
        flow.step("eval", TELL, params={"k": 1}, **{"in": {"model": "train"}}),
        {
            "id": "register",
            "uses": "core.registry.register",
            "scope": "sweep",
            "in": {"best": {"step": "train", "metric": "eval.acc", "mode": "max"}},
            "params": {"name": "m"},
        },
    )


def sweep(flow: SlurmFlow, lrs: str, ks: str, *args: str) -> str:
    """Hand the sweep over all combinations over, and return what was printed."""
    return flow.submit("-m", f"steps.train.params.lr={lrs}", f"steps.eval.params.k={ks}", *args)


def registered_lr(flow: SlurmFlow, version: int) -> str:
    """Return the lr of the point that was registered."""
    registry = flow.project / "artifacts/.registry"
    entry = json.loads((registry / f"m/versions/{version}.json").read_text())
    return (registry / entry["path"] / "lr").read_text().strip()


@pytest.mark.slow
def test_24_points_are_1_and_4_and_24_jobs_and_grown_to_30_only_what_is_new(
    slurm_flow: SlurmFlow,
) -> None:
    three(slurm_flow)
    told = sweep(slurm_flow, "0.1,0.2,0.3,0.4", "range(0,6)")
    assert "24 points: prepare ×1, train ×4, eval ×24, register ×1; 0 cached (30 to run)" in told
    states = slurm_flow.settle(PATIENCE_S)
    assert set(states.values()) == {"COMPLETED"}
    assert Counter(slurm_flow.executed()) == {"prepare": 1, "train": 4, "eval": 24}
    assert registered_lr(slurm_flow, 1) == "0.4"
    told = sweep(slurm_flow, "0.1,0.2,0.3,0.4,0.5", "range(0,6)")
    assert "30 points: prepare ×1, train ×5, eval ×30, register ×1; 29 cached (8 to run)" in told
    slurm_flow.settle(PATIENCE_S)
    assert Counter(slurm_flow.executed()) == {"train": 1, "eval": 6}
    assert registered_lr(slurm_flow, 2) == "0.5"


def test_a_poisoned_point_blocks_only_its_own_and_resume_runs_just_that_one(
    slurm_flow: SlurmFlow,
) -> None:
    flag = slurm_flow.project.parent / "mended"
    three(slurm_flow, train=f"test $PARAM_lr != 0.3 || test -e {flag} || exit 3")
    sweep(slurm_flow, "0.1,0.3", "1,2")
    states = slurm_flow.settle(PATIENCE_S)
    assert states["train@lr=0.3"] == "FAILED"
    assert {s for s, state in states.items() if state == "COMPLETED"} == {
        "prepare", "train@lr=0.1", "eval@lr=0.1,k=1", "eval@lr=0.1,k=2",
    }  # fmt: skip
    told = slurm_flow.cli("status", "flow").stdout
    assert "4 points" in told and "train@lr=0.3" in told and "exit" in told
    told = slurm_flow.cli("sweep", "show", "flow", "--no-pictures").stdout
    assert "lr=0.3,k=1" in told and "logs train@lr=0.3" in told
    slurm_flow.executed()
    flag.touch()
    slurm_flow.cli("resume", "flow")
    slurm_flow.until(lambda now: set(now.values()) == {"COMPLETED"}, PATIENCE_S)
    assert Counter(slurm_flow.executed()) == {"train": 1, "eval": 2}
    assert registered_lr(slurm_flow, 1) == "0.3"


def test_a_sweep_that_overlaps_a_queued_one_adopts_what_that_has(slurm_flow: SlurmFlow) -> None:
    three(slurm_flow, hold=True)
    sweep(slurm_flow, "0.1,0.2", "1,2")
    sweep(slurm_flow, "0.2,0.5", "1,2")
    job = slurm_flow.jobs("flow-1")["prepare"]
    assert slurm_flow.jobs("flow-2")["prepare"] == job
    slurm_flow.cluster.ask("scontrol", "release", job)
    for run in ("flow-1", "flow-2"):
        slurm_flow.until(lambda now: set(now.values()) <= {"COMPLETED", "SKIPPED"}, PATIENCE_S, run)
    assert Counter(slurm_flow.executed()) == {"prepare": 1, "train": 3, "eval": 6}


def test_a_sweep_whose_command_was_killed_while_it_submitted_goes_on(
    slurm_flow: SlurmFlow,
) -> None:
    three(slurm_flow)
    overrides = ("steps.train.params.lr=0.1,0.2,0.3", "steps.eval.params.k=1,2")
    process = Process(
        slurm_flow.project, "run", slurm_flow.file, "--scheduler", "slurm", "-m", *overrides
    )
    batches = slurm_flow.project / ".nexa_state/flow/runs/flow-1/batches"
    wait_until(lambda: list(batches.glob("*.answer.json")), 60, "the first array")
    process.kill()
    slurm_flow.cli("resume", "flow")
    slurm_flow.until(lambda now: set(now.values()) == {"COMPLETED"}, PATIENCE_S)
    assert Counter(slurm_flow.executed()) == {"prepare": 1, "train": 3, "eval": 6}


def test_each_point_of_a_sweep_is_asked_about_by_its_label(slurm_flow: SlurmFlow) -> None:
    three(slurm_flow)
    sweep(slurm_flow, "0.1,0.2", "1", "--points-per-element", "2")
    slurm_flow.settle(PATIENCE_S)
    told = slurm_flow.cli("status", "flow", "--point", "lr=0.2").stdout
    assert "train@lr=0.2" in told and "train@lr=0.1" not in told
    log = slurm_flow.cli("logs", "register", "flow").stdout
    assert "input best: train@lr=0.2 has the max of acc: 0.21" in log


@pytest.mark.slow
def test_200_points_go_in_arrays_that_the_cluster_takes(slurm_flow: SlurmFlow) -> None:
    slurm_flow.configure("max_array_size: 101")
    slurm_flow.write(slurm_flow.step("a", params={"n": 0}))
    points = "steps.a.params.n=range(0,200)"
    planned = slurm_flow.cli(
        "plan", slurm_flow.file, "-m", points, "--scheduler", "slurm", "--json"
    ).stdout
    widths = [array["elements"] for array in json.loads(planned)["arrays"]]
    assert sum(widths) == 200
    assert max(widths) <= 101
    slurm_flow.submit("-m", points, "--max-running", "40")
    states = slurm_flow.settle(600)
    assert Counter(states.values()) == {"COMPLETED": 200}
    assert len(slurm_flow.executed()) == 200
