"""`nexa-hpc sweep show`: what is printed, exported and refused, over runs as they lie on disk."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, child_environment
from swept import SweptStep, results, sweep

from nexa_hpc.cli.sweep_choice import Asked, choose

ALL = ("learning_rate", "seed")
GRID = [{"learning_rate": lr, "seed": s} for lr in (1e-5, 3e-5, 1e-4) for s in (1, 2, 3)]


def accuracy(point: Mapping[str, Any]) -> float:
    best = {1e-5: 0.7, 3e-5: 0.9, 1e-4: 0.8}[point["learning_rate"]]
    return float(best + point["seed"] / 100)


def metrics(point: Mapping[str, Any]) -> Any:
    right = accuracy(point)
    return {
        "accuracy": right,
        "loss": 1 - right,
        "by_class": {"good": right, "bad": right / 2},
        "history": [1, 2, 3],
        "verdict": "fine",
    }


PREPARE = SweptStep("prepare", metrics=lambda _: {"rows": 1200})
TRAIN = SweptStep("train", ALL, metrics=lambda p: {"loss": p["seed"] / 10}, after=("prepare",))
EVAL = SweptStep("eval", ALL, metrics=metrics, after=("train",))


def failing(point: Mapping[str, Any]) -> str:
    return "failed" if point == {"learning_rate": 3e-5, "seed": 3} else "done"


def not_after_failing(point: Mapping[str, Any]) -> str:
    return "waiting" if failing(point) == "failed" else "done"


def broken(root: Path) -> None:
    """Record a sweep of nine points in which one failed."""
    train = SweptStep("train", ALL, TRAIN.metrics, failing, after=("prepare",))
    evaluate = SweptStep("eval", ALL, metrics, not_after_failing, after=("train",))
    sweep(root, GRID, PREPARE, train, evaluate)


def test_a_row_shows_what_a_point_overrides_where_it_stands_and_its_metrics(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, PREPARE, TRAIN, EVAL)
    lines = run_cli("sweep", "show", "--no-pictures").stdout.splitlines()
    assert lines[0] == "run demo-1: 9 points: 9 whole"
    header = lines[1].split()
    assert header[:3] == ["learning_rate", "seed", "status"]
    assert {"train.loss", "eval.accuracy", "eval.by_class.good"} <= {*header}
    assert "prepare.rows" not in header, "it is the same everywhere"
    row = dict(zip(header, lines[2].split(), strict=True))
    assert row["learning_rate"] == "1e-05"
    assert (row["status"], row["eval.accuracy"], row["train.loss"]) == ("COMPLETED", "0.71", "0.1")
    assert sum("COMPLETED" in line for line in lines) == 9


def test_the_best_point_is_told_and_how_it_was_judged(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, PREPARE, TRAIN, EVAL)
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "best: learning_rate=3e-05,seed=3  eval.accuracy 0.93 (of 9 whole points)" in told
    assert "higher is better, judging by the name; --metric and --mode min choose" in told
    told = run_cli("sweep", "show", "--no-pictures", "--metric", "eval.loss").stdout
    assert "best: learning_rate=3e-05,seed=3  eval.loss 0.07 (" in told
    assert "lower is better" in told
    told = run_cli(
        "sweep", "show", "--no-pictures", "--metric", "eval.loss", "--mode", "max"
    ).stdout
    assert "best: learning_rate=1e-05,seed=1  eval.loss 0.29 (" in told
    assert "judging by the name" not in told


def test_failed_points_stand_below_with_their_reasons_and_the_next_commands(
    project: Path, run_cli: RunCli
) -> None:
    broken(project)
    done = run_cli("sweep", "show", "--no-pictures")
    table, below = done.stdout.split("\nfailed:\n")
    assert "9 points: 8 whole, 1 failed" in table
    assert "best: learning_rate=3e-05,seed=2  eval.accuracy 0.92 (of 8 whole points; 1 failed)" in (
        table
    )
    (row,) = [line for line in below.splitlines() if line.startswith("learning_rate=")]
    assert row.split() == [
        "learning_rate=3e-05,seed=3", "train", "FAILED", "out_of_memory", "no", "luck",
    ]  # fmt: skip
    assert "nexa-hpc logs train@learning_rate=3e-05,seed=3 demo-1" in below
    assert "nexa-hpc resume demo-1" in below


def test_of_many_failed_points_some_commands_stand_for_all(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, SweptStep("train", ALL, fate=lambda _: "failed"))
    told = run_cli("sweep", "show").stdout
    assert sum("out_of_memory" in line for line in told.splitlines()) == 9
    assert told.count("nexa-hpc logs") == 3
    assert "and 6 more: logs STEP demo-1 --point POINT" in told


def test_points_that_have_not_finished_are_counted_and_take_no_part(
    project: Path, run_cli: RunCli
) -> None:
    evaluate = SweptStep("eval", ALL, metrics, lambda p: "waiting" if p["seed"] > 1 else "done")
    sweep(project, GRID, TRAIN, evaluate)
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "9 points: 3 whole, 6 not finished" in told
    assert "(of 3 whole points; 6 not finished)" in told
    assert "failed" not in told


def test_a_failed_step_that_many_points_share_fails_each_of_them(
    project: Path, run_cli: RunCli
) -> None:
    prepare = SweptStep("prepare", fate=lambda _: "failed")
    train = SweptStep("train", ALL, fate=lambda _: "waiting", after=("prepare",))
    sweep(project, GRID, prepare, train)
    told = run_cli("sweep", "show").stdout
    assert "9 points: 0 whole, 9 failed" in told
    assert "no step has written metrics.json" in told
    assert len([line for line in told.splitlines() if "out_of_memory" in line]) == 9
    assert told.count("nexa-hpc logs") == 1
    assert not (project / "multirun").exists()


def test_a_failed_step_of_the_whole_sweep_is_told_and_fails_no_point(
    project: Path, run_cli: RunCli
) -> None:
    choose = SweptStep("choose", fate=lambda _: "failed", after=("eval",), whole=True)
    sweep(project, GRID, TRAIN, EVAL, choose)
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "9 points: 9 whole\n" in told
    assert "(the whole sweep)  choose" in told


def test_metrics_of_a_step_of_the_whole_sweep_belong_to_no_point(
    project: Path, run_cli: RunCli
) -> None:
    choose = SweptStep("choose", (), lambda _: {"accuracy": 0.95}, after=("eval",), whole=True)
    sweep(project, GRID, TRAIN, EVAL, choose)
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "\nof the whole sweep: choose.accuracy 0.95\n" in told
    assert "choose" not in told.splitlines()[1]


def test_a_table_is_as_wide_as_the_terminal_and_says_what_is_left_out(
    project: Path, run_cli: RunCli
) -> None:
    found = results(sweep(project, GRID, PREPARE, TRAIN, EVAL)).table
    wide = choose(found, Asked()).shown
    narrow = choose(found, Asked(), width=60).shown
    tiny = choose(found, Asked(), width=10).shown
    assert narrow == ("learning_rate", "seed", "status", "eval.accuracy", "eval.loss")
    assert {*tiny} < {*narrow} < {*wide} < {*choose(found, Asked(all_columns=True), 10).shown}
    assert tiny[-1] == "eval.accuracy", "what the best is judged by is always shown"
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert "(2 more columns: --all; --metrics 'PATTERN' chooses)" in told
    assert "more columns" not in run_cli("sweep", "show", "--no-pictures", "--all").stdout


def test_rows_are_sorted_by_any_column(project: Path, run_cli: RunCli) -> None:
    broken(project)

    def seeds(*arguments: str) -> list[str]:
        done = run_cli("sweep", "show", "--format", "csv", *arguments)
        return [row["seed"] for row in csv.DictReader(io.StringIO(done.stdout))]

    assert seeds("--sort", "seed") == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    down = seeds("--sort", "eval.accuracy", "--descending")
    assert down[0] == "2"
    assert down[-1] == "3", "the failed point has no accuracy, and comes last either way"
    assert seeds("--sort", "eval.accuracy")[-1] == "3"


def test_over_the_seed_there_is_one_row_for_the_rest(project: Path, run_cli: RunCli) -> None:
    broken(project)
    done = run_cli("sweep", "show", "--over", "seed", "--format", "json")
    rows = json.loads(done.stdout)
    assert [row["label"] for row in rows] == [
        "learning_rate=1e-05",
        "learning_rate=3e-05",
        "learning_rate=0.0001",
    ]
    assert "seed" not in rows[0]
    assert [(row["points"], row["whole"], row["eval.accuracy.n"]) for row in rows] == [
        (3, 3, 3),
        (3, 2, 2),
        (3, 3, 3),
    ]
    assert rows[0]["eval.accuracy.mean"] == pytest.approx(0.72)
    assert rows[0]["eval.accuracy.std"] == pytest.approx(0.01)
    told = run_cli("sweep", "show", "--over", "seed", "--no-pictures").stdout
    best = "best: learning_rate=3e-05  eval.accuracy.mean 0.915 ± 0.007071, n 2 (of 3 groups of"
    assert best in told


def test_columns_are_called_the_same_in_the_table_and_in_every_export(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, PREPARE, TRAIN, EVAL)
    table = run_cli("sweep", "show", "--all", "--no-pictures").stdout.splitlines()[1].split()
    as_csv = run_cli("sweep", "show", "--format", "csv").stdout.splitlines()[0].split(",")
    as_json = list(json.loads(run_cli("sweep", "show", "--format", "json").stdout)[0])
    as_md = run_cli("sweep", "show", "--format", "md", "--all").stdout.splitlines()[0]
    assert table == as_csv == as_json == as_md.strip("| ").split(" | ")
    assert table == [
        "label", "name", "learning_rate", "seed", "status", "reason", "prepare.rows", "train.loss",
        "eval.accuracy", "eval.loss", "eval.by_class.good", "eval.by_class.bad", "eval.verdict",
    ]  # fmt: skip


def test_an_export_goes_to_a_file_in_the_format_of_its_ending(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, TRAIN, EVAL)
    told = run_cli("sweep", "show", "--output", "out/points.csv").stdout
    assert told.startswith("wrote out/points.csv: 9 rows\n")
    assert "best: " in told
    assert len((project / "out/points.csv").read_text().splitlines()) == 10
    run_cli("sweep", "show", "--output", "points.md")
    assert (project / "points.md").read_text().splitlines()[1].startswith("| ---:")
    run_cli("sweep", "show", "--output", "points.txt")
    assert (project / "points.txt").read_text().startswith("learning_rate")
    assert not (project / "multirun").exists(), "nothing is drawn for a file"


def test_parquet_is_read_by_others(project: Path, run_cli: RunCli) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    broken(project)
    run_cli("sweep", "show", "--output", "points.parquet")
    table = parquet.read_table(project / "points.parquet")
    assert table.num_rows == 9
    rows = table.to_pylist()
    assert rows[0]["eval.accuracy"] == pytest.approx(0.71)
    assert rows[5]["eval.accuracy"] is None
    assert rows[5]["reason"] == "train@learning_rate=3e-05,seed=3: out_of_memory: no luck"


def test_without_pyarrow_it_is_told_what_to_install(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, EVAL)
    (project / "pyarrow.py").write_text("raise ModuleNotFoundError('pyarrow')\n")
    path = os.pathsep.join([str(project), child_environment()["PYTHONPATH"]])
    done = run_cli("sweep", "show", "--format", "parquet", env={"PYTHONPATH": path}, expect=2)
    assert "error: Parquet needs pyarrow, which is not installed here" in done.stderr
    assert "--format csv needs nothing" in done.stderr


def test_metrics_are_chosen_by_a_pattern(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, TRAIN, EVAL)
    header = run_cli("sweep", "show", "--metrics", "*.loss", "--no-pictures").stdout.splitlines()[1]
    assert header.split() == ["learning_rate", "seed", "status", "train.loss", "eval.loss"]
    header = run_cli("sweep", "show", "--metrics", "eval.*", "--no-pictures").stdout.splitlines()[1]
    assert header.split()[-1] == "eval.verdict", "what is asked for is shown, of whatever kind"
    done = run_cli("sweep", "show", "--metrics", "evl.loss", expect=2)
    assert "no metric matches evl.loss; did you mean 'eval.loss'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metric", "eval.acuracy"], "no metric 'eval.acuracy'; did you mean 'eval.accuracy'?"),
        (["--metric", "acuracy"], "no metric 'acuracy'; did you mean 'eval.accuracy'?"),
        (["--metric", "loss"], "'loss' names 2 of the run's: train.loss, eval.loss"),
        (["--metric", "eval.verdict"], "metric 'eval.verdict' is a number in no point"),
        (["--over", "sed"], "no swept parameter 'sed'; did you mean 'seed'?"),
        (["--sort", "learning_rat"], "no column 'learning_rat'; did you mean 'learning_rate'?"),
        (["--descending"], "--descending says how --sort sorts"),
        (["--pictures", "x", "--no-pictures"], "exclude each other"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(
    project: Path, run_cli: RunCli, arguments: list[str], told: str
) -> None:
    sweep(project, GRID, TRAIN, EVAL)
    done = run_cli("sweep", "show", *arguments, expect=2)
    assert told in done.stderr
    assert done.stdout == ""


def test_names_may_be_short_or_whole_paths(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, TRAIN, EVAL)
    arguments = ["--metric", "accuracy", "--over", "steps.train.params.seed", "--sort", "accuracy"]
    told = run_cli("sweep", "show", "--no-pictures", *arguments).stdout
    assert told.splitlines()[2].startswith("1e-05"), "sorted by the mean"
    assert "eval.accuracy.mean 0.92 ± 0.01, n 3" in told


def test_a_metrics_file_that_cannot_be_read_is_told_and_stops_nothing(
    project: Path, run_cli: RunCli
) -> None:
    def torn(point: Mapping[str, Any]) -> Any:
        return "{" if point["seed"] == 2 else metrics(point)

    sweep(project, GRID, TRAIN, SweptStep("eval", ALL, torn))
    done = run_cli("sweep", "show", "--no-pictures")
    assert done.stderr.count("warning: eval@") == 3
    assert "(of 6 whole points)" in done.stdout


def test_a_plain_run_is_one_row(project: Path, run_cli: RunCli) -> None:
    step = "{id: eval, uses: runners.command, params: {command: COMMAND}}"
    command = '\'echo "{\\"accuracy\\": 0.5}" > $OUT/metrics.json\''
    text = f"pipeline: {{name: own, steps: [{step}]}}".replace("COMMAND", command)
    (project / "p.yaml").write_text(text)
    run_cli("run", "p.yaml")
    lines = run_cli("sweep", "show", "p.yaml").stdout.splitlines()
    assert lines[0] == "run own-1: one point, COMPLETED"
    assert lines[1].split() == ["label", "status", "eval.accuracy"]
    assert lines[2].split() == ["own-1", "COMPLETED", "0.5"]


@pytest.mark.slow
def test_a_thousand_points_of_three_steps_take_about_a_second(
    project: Path, run_cli: RunCli
) -> None:
    points = [{"learning_rate": 1e-5 * lr, "seed": s} for lr in range(1, 101) for s in range(10)]
    figure = {"accuracy": 0.5, "loss": 0.5}
    steps = [SweptStep(name, ALL, lambda _: figure) for name in ("train", "eval", "test")]
    sweep(project, points, *steps)
    began = time.monotonic()
    told = run_cli("sweep", "show", "--no-pictures").stdout
    assert time.monotonic() - began < 5, "about one second on a machine with nothing else to do"
    assert "1000 points: 1000 whole" in told
