"""Sweeps that really ran, shown: what is shared, what fails, what is read in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from planned import command, pipeline

from nexa_hpc.pipeline_run import PipelineRun

RATE, SEED, K = "steps.train.params.rate", "steps.train.params.seed", "steps.eval.params.k"


def python(text: str) -> str:
    """A command that writes the value of a Python expression over R, S, K as its metrics."""
    return (
        "python - <<'EOF'\nimport json, os\n"
        "R, S, K = (float(os.environ.get('PARAM_' + n, 0)) for n in ('rate', 'seed', 'k'))\n"
        f"json.dump({text}, open(os.environ['OUT'] + '/metrics.json', 'w'))\nEOF"
    )


def swept(project: Path, *points: dict[str, Any]) -> PipelineRun:
    """Train at each rate and seed, evaluate at each k; the rate 0.3 fails."""
    train = command(
        "train",
        python("{'loss': 1 / (0 if R == 0.3 else R + S)}"),
        params={"rate": 0.1, "seed": 1},
    )
    evaluate = command(
        "eval", python("{'accuracy': K / 10, 'k': K}"), after=["train"],
        **{"in": {"model": "train"}}, params={"k": 1},
    )  # fmt: skip
    return pipeline(project, train, evaluate).sweep(points).run()


def test_a_sweep_that_ran_is_shown_with_the_metrics_of_shared_steps(
    project: Path, run_cli: RunCli
) -> None:
    swept(project, *({RATE: r, SEED: 1, K: k} for r in (0.1, 0.2) for k in (1, 2)))
    rows = json.loads(run_cli("sweep", "show", "--format", "json").stdout)
    assert [(row["rate"], row["k"]) for row in rows] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert [row["eval.accuracy"] for row in rows] == [0.1, 0.2, 0.1, 0.2]
    assert rows[0]["train.loss"] == rows[1]["train.loss"] == pytest.approx(1 / 1.1)
    assert {row["status"] for row in rows} == {"COMPLETED"}
    told = run_cli("sweep", "show").stdout
    assert "best: rate=0.1,k=2  eval.accuracy 0.2 (of 4 whole points)" in told
    drawn = sorted(path.stem for path in (project / "multirun/demo/demo-1").iterdir())
    assert drawn == [f"eval.accuracy-{of}" for of in ("by-k", "by-rate", "parallel")]


def test_a_point_that_failed_is_shown_with_its_reason_and_a_log_that_exists(
    project: Path, run_cli: RunCli
) -> None:
    done = swept(project, *({RATE: r, SEED: s} for r in (0.1, 0.3) for s in (1, 2)))
    assert not done.succeeded
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "4 points: 2 whole, 2 failed" in told
    assert "FAILED  exception" in told
    (line, _) = [line for line in told.splitlines() if line.startswith("log:")]
    log = run_cli(*line.removeprefix("log:        nexa-hpc ").split()).stdout
    assert "ZeroDivisionError" in log
    rows = done.results()
    assert [row["status"] for row in rows] == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    assert rows[2]["reason"].startswith("train@rate=0.3,seed=1: exception: ")
    assert rows[2]["train.loss"] is None


def test_a_swept_run_that_is_found_in_the_cache_shows_the_same_figures(
    project: Path, run_cli: RunCli
) -> None:
    points = [{RATE: r, SEED: s} for r in (0.1, 0.2) for s in (1, 2)]
    first = swept(project, *points).results()
    again = swept(project, *points)
    assert {row["status"] for row in again.results()} == {"SKIPPED"}
    assert [{**row, "status": ""} for row in again.wait().results()] == [
        {**row, "status": ""} for row in first
    ]
    told = run_cli("sweep", "show", "--over", "seed", "--metric", "train.loss").stdout
    assert "run demo-2: 4 points: 4 whole" in told
    assert "best: rate=0.2  train.loss.mean " in told


def test_what_a_step_of_the_whole_sweep_found_stands_below(project: Path, run_cli: RunCli) -> None:
    evaluate = command("eval", python("{'accuracy': R}"), params={"rate": 0.1})
    best = {"step": "eval", "metric": "accuracy", "mode": "max"}
    text = "cp $IN_best/metrics.json $OUT/metrics.json"
    choose = command("choose", text, scope="sweep", **{"in": {"best": best}})
    points = [{"steps.eval.params.rate": rate} for rate in (0.1, 0.4, 0.2)]
    done = pipeline(project, evaluate, choose).sweep(points).run()
    assert done.succeeded
    assert "choose.accuracy" not in done.results().columns
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "best: rate=0.4  eval.accuracy 0.4 (of 3 whole points)" in told
    assert "of the whole sweep: choose.accuracy 0.4" in told
