"""The pictures of a sweep: which are drawn, where they go, and when there are none."""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from swept import SweptStep, sweep

pytest.importorskip("matplotlib")

from nexa_hpc.backends.sweep_axes import Scale
from nexa_hpc.backends.sweep_parallel import draw_parallel
from nexa_hpc.backends.sweep_plots import Dot, draw_against

PNG = b"\x89PNG\r\n\x1a\n"
ALL = ("learning_rate", "model", "seed")
GRID = [
    {"learning_rate": lr, "model": m, "seed": s}
    for lr in (1e-5, 1e-4, 1e-3)
    for m in ("tiny", "small")
    for s in (1, 2)
]


def accuracy(point: Mapping[str, Any]) -> Any:
    return {"accuracy": 0.9 - abs(math.log10(point["learning_rate"]) + 4) / 10 + point["seed"] / 99}


EVAL = SweptStep("eval", ALL, accuracy)


def test_the_metric_is_drawn_against_each_parameter_and_all_in_parallel(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, EVAL)
    told = run_cli("sweep", "show").stdout
    folder = project / "multirun/demo/demo-1"
    assert "pictures:   multirun/demo/demo-1/\n" in told
    names = [f"eval.accuracy-by-{p}.png" for p in ALL] + ["eval.accuracy-parallel.png"]
    assert sorted(os.listdir(folder)) == sorted(names)
    assert all(name in told for name in names)
    assert all((folder / name).read_bytes().startswith(PNG) for name in names)
    first = (folder / names[0]).read_bytes()
    run_cli("sweep", "show", "--metric", "eval.accuracy")
    assert (folder / names[0]).read_bytes() == first, "the same points give the same picture"


def test_pictures_go_where_they_are_asked_for(project: Path, run_cli: RunCli) -> None:
    sweep(project, GRID, EVAL)
    run_cli("sweep", "show", "--pictures", "elsewhere", "--over", "model", "--format", "csv")
    assert len(os.listdir(project / "elsewhere")) == 4
    assert not (project / "multirun").exists()


def test_one_swept_parameter_has_no_picture_of_all_in_parallel(
    project: Path, run_cli: RunCli
) -> None:
    points = [{"learning_rate": 10.0**-n, "model": "tiny", "seed": 1} for n in range(2, 6)]
    sweep(project, points, EVAL)
    run_cli("sweep", "show")
    assert os.listdir(project / "multirun/demo/demo-1") == ["eval.accuracy-by-learning_rate.png"]


@pytest.mark.parametrize("arguments", [["--no-pictures"], ["--format", "csv"]])
def test_nothing_is_drawn_or_loaded_where_no_picture_is_asked_for(
    project: Path, run_cli: RunCli, arguments: list[str]
) -> None:
    sweep(project, GRID, EVAL)
    (project / "matplotlib.py").write_text("raise SystemExit('loaded')\n")
    run_cli("sweep", "show", *arguments, env={"PYTHONPATH": path_with(project)})
    assert not (project / "multirun").exists()


def test_without_matplotlib_the_table_is_printed_and_it_is_told(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, EVAL)
    (project / "matplotlib.py").write_text("raise ModuleNotFoundError('matplotlib')\n")
    done = run_cli("sweep", "show", env={"PYTHONPATH": path_with(project)})
    assert "12 points: 12 whole" in done.stdout
    assert "pictures: not drawn: matplotlib is not installed here" in done.stderr
    assert not (project / "multirun").exists()


def path_with(folder: Path) -> str:
    """Return a PYTHONPATH on which `folder` comes first."""
    from conftest import child_environment

    return os.pathsep.join([str(folder), child_environment()["PYTHONPATH"]])


def test_where_pictures_cannot_be_written_the_table_is_printed_and_it_is_told(
    project: Path, run_cli: RunCli
) -> None:
    sweep(project, GRID, EVAL)
    (project / "multirun").write_text("in the way")
    done = run_cli("sweep", "show")
    assert "best: " in done.stdout
    assert "pictures: not written: " in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a run to another user")
def test_nothing_is_drawn_beside_another_users_run_unless_a_folder_is_named(
    project: Path, run_cli: RunCli
) -> None:
    run = sweep(project, GRID, EVAL)
    os.chown(run.place.folder, 12345, 12345)
    told = run_cli("sweep", "show").stdout
    assert "pictures: not drawn beside another user's run; --pictures DIR says where" in told
    assert not (project / "multirun").exists()
    run_cli("sweep", "show", "--pictures", "mine")
    assert len(os.listdir(project / "mine")) == 4


def test_a_few_whole_points_are_drawn_without_the_failed_ones(
    project: Path, run_cli: RunCli
) -> None:
    some = SweptStep("eval", ALL, accuracy, lambda p: "failed" if p["seed"] == 2 else "done")
    sweep(project, GRID, some)
    told = run_cli("sweep", "show").stdout
    assert "6 failed" in told
    assert "eval.accuracy-parallel.png" in told


ODD: list[list[Any]] = [
    [1, 2, 3],
    [1e-6, 1.0, 0.5],
    [0, 0.0, 0],
    [-1, 0, 1e9],
    ["a", "b", "a$x_{"],
    [True, False, None],
    ["模型", "\u202e", "x" * 300],
    [1, "1", None],
]


@pytest.mark.parametrize("values", ODD, ids=str)
@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3], [1e-9, 1.0, 1e9], [0.0, 0.0, 0.0]], ids=str)
def test_whatever_the_values_a_picture_comes_of_them(
    values: list[Any], scores: list[float]
) -> None:
    dots = [Dot(x, y, 0.1, str(x)) for x, y in zip(values, scores, strict=True)]
    assert draw_against("p$", "s.m$", dots, grouped_by="g$").startswith(PNG)
    axes = {"p": values, "long.name.of.a.parameter": values}
    for lowest in (True, False):
        assert draw_parallel("s.m", axes, scores, lowest=lowest).startswith(PNG)


def test_a_thousand_random_points_are_drawn() -> None:
    rnd = random.Random(0)
    dots = [Dot(10 ** rnd.uniform(-6, -1), rnd.random(), None, "") for _ in range(1000)]
    assert draw_against("lr", "s.m", dots).startswith(PNG)
    names = [Dot(f"model-{n}", rnd.random(), None, "") for n in range(200)]
    assert draw_against("model", "s.m", names).startswith(PNG)


def test_an_axis_is_logarithmic_where_positive_numbers_span_much() -> None:
    assert Scale.of([1e-5, 1e-3]).logarithmic
    assert not Scale.of([1, 30]).logarithmic
    assert not Scale.of([0, 1e-5, 1e-3]).logarithmic
    assert not Scale.of(["1e-5", "1e-3"]).logarithmic
    assert Scale.of([1e-4, 1e-2]).height(1e-3) == pytest.approx(0.5)
    assert Scale.of(["tiny", "small", "base"]).names == ("tiny", "small", "base")
    assert Scale.of(["10", "9", "11"]).names == ("9", "10", "11"), "seeds are sorted as numbers"


def test_the_list_of_modules_that_draw_is_not_loaded_by_the_table() -> None:
    import subprocess

    from conftest import child_environment

    code = "import sys, nexa_hpc.cli.sweep_show, nexa_hpc.cli.sweep_pictures as _; "
    code += "print(sorted({'matplotlib', 'numpy', 'pandas', 'pyarrow', 'pydantic', 'hydra', "
    code += "'torch', 'submitit'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
