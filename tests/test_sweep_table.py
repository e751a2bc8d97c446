"""The table of a sweep: which instance serves which point, what its columns are called, figures."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import command, run
from swept import PATH, SweptStep, results, sweep

from nexa_hpc.core.best import number
from nexa_hpc.core.points import make_points
from nexa_hpc.core.sweep_figures import (
    best,
    by_interest,
    find_metric,
    find_parameter,
    guess_mode,
    ordered,
    over,
)
from nexa_hpc.core.sweep_table import Table
from nexa_hpc.core.table_formats import cell_text, to_csv, to_json, to_markdown, typed_columns
from nexa_hpc.errors import UnknownNameError, UserError


def table(rows: list[dict[str, Any]], parameters: list[str], metrics: list[str]) -> Table:
    """A table of whole points."""
    full = [
        {"label": str(n), "name": str(n), "status": "COMPLETED", "reason": None, **row}
        for n, row in enumerate(rows)
    ]
    return Table({p: PATH + p for p in parameters}, tuple(metrics), tuple(full))


# ------------------------------------------------------------------------------------- from a run


def test_points_that_share_an_instance_share_its_metrics(project: Path) -> None:
    asked: list[Mapping[str, Any]] = []

    def loss(point: Mapping[str, Any]) -> Any:
        asked.append(point)
        return {"loss": point["lr"]}

    points = [{"lr": lr, "k": k} for lr in (0.1, 0.2) for k in (1, 2)]
    train = SweptStep("train", ("lr",), loss)
    evaluate = SweptStep("eval", ("lr", "k"), lambda p: {"accuracy": p["lr"] * p["k"]})
    found = results(sweep(project, points, train, evaluate)).table
    assert len(asked) == 2
    assert [row["train.loss"] for row in found.rows] == [0.1, 0.1, 0.2, 0.2]
    assert [row["eval.accuracy"] for row in found.rows] == [0.1, 0.2, 0.2, 0.4]


def test_each_metrics_file_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nexa_hpc.core import best as reading

    read = []
    inner = reading.read_json_or_none
    monkeypatch.setattr(
        reading, "read_json_or_none", lambda path: (read.append(path), inner(path))[1]
    )
    points = [{"lr": lr} for lr in range(20)]
    shared = SweptStep("prepare", metrics=lambda _: {"rows": 3})
    found = results(sweep(project, points, shared)).table
    assert len(read) == 1
    assert {row["prepare.rows"] for row in found.rows} == {3}


def test_a_metric_keeps_its_place_where_a_parameter_has_its_name(project: Path) -> None:
    metrics = {"seed": 7, "loss": 1.0}
    overrides = [{"train.seed": s, "other.seed": 0, "status": s, "x.y": s} for s in (1, 2)]
    found = results(sweep(project, overrides, SweptStep("train", (), lambda _: metrics))).table
    assert list(found.parameters) == ["seed", f"{PATH}status", "y"]
    overrides = [{"train.seed": s, "other.seed": 3 - s} for s in (1, 2)]
    root = project / "second"
    root.mkdir()
    found = results(sweep(root, overrides, SweptStep("train", (), lambda _: metrics))).table
    assert list(found.parameters) == [f"{PATH}train.seed", "other.seed"]
    assert [row["train.seed"] for row in found.rows] == [7, 7]


def test_what_is_nested_is_joined_by_dots_and_lists_and_long_texts_are_left_out(
    project: Path,
) -> None:
    content = {
        "a": {"b": {"c": 1}, "d": True},
        "list": [1],
        "none": None,
        "short": "yes",
        "long": "x" * 81,
        "nan": math.nan,
    }
    found = results(sweep(project, [{"x": 1}], SweptStep("s", (), lambda _: content))).table
    (row,) = found.rows
    assert found.metrics == ("s.a.b.c", "s.a.d", "s.short", "s.nan")
    assert (row["s.a.b.c"], row["s.a.d"], row["s.short"]) == (1, True, "yes")
    assert by_interest(found) == ["s.a.b.c", "s.a.d"]


@pytest.mark.parametrize("content", [[1, 2], 3, '"text"', None, {}])
def test_metrics_that_are_no_mapping_are_no_metrics(project: Path, content: Any) -> None:
    found = results(sweep(project, [{"x": 1}], SweptStep("s", (), lambda _: content)))
    assert found.table.metrics == ()
    assert found.unread == ()


def test_the_worst_instance_says_how_a_point_stands(project: Path) -> None:
    points = [{"x": x} for x in range(3)]
    train = SweptStep("train", ("x",), fate=lambda p: "failed" if p["x"] == 1 else "done")
    ends = {0: "done", 1: "waiting", 2: "waiting"}
    last = SweptStep("eval", ("x",), fate=lambda p: ends[p["x"]], after=("train",))
    found = results(sweep(project, points, train, last))
    assert [row["status"] for row in found.table.rows] == ["COMPLETED", "FAILED", "PENDING"]
    assert [row["reason"] for row in found.table.rows] == [
        None,
        "train@x=1: out_of_memory: no luck",
        None,
    ]
    assert [(t.label, t.step) for t in found.troubles] == [("x=1", "train@x=1")]


def test_a_run_in_python_has_the_same_rows_as_dicts(project: Path) -> None:
    pandas = pytest.importorskip("pandas")
    text = 'echo "{\\"n\\": {\\"words\\": 3}}" > $OUT/metrics.json'
    done = run(project, command("count", text))
    found = done.wait().results()
    assert found == [
        {
            "label": "demo-1",
            "name": "demo-1",
            "status": "COMPLETED",
            "reason": None,
            "count.n.words": 3,
        }
    ]
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(found.columns) == list(found[0])
    assert frame["count.n.words"].tolist() == [3]


def test_without_pandas_it_is_told_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    found = run(project, command("one")).results()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="needs pandas") as caught:
        found.to_pandas()
    assert caught.value.hint == "pip install pandas"


# ---------------------------------------------------------------------------------------- figures

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
values = st.one_of(st.none(), finite, st.just(math.nan), st.integers(-1000, 1000))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), values), min_size=1))
def test_figures_over_a_parameter_are_those_of_the_statistics_module(
    rows: list[tuple[str, int, float | None]],
) -> None:
    found = over(
        table([{"k": k, "seed": s, "e.m": v} for k, s, v in rows], ["k", "seed"], ["e.m"]), ["seed"]
    )
    assert list(found.parameters) == ["k"]
    assert [row["k"] for row in found.rows] == list(dict.fromkeys(k for k, _, _ in rows))
    for row in found.rows:
        numbers = [v for k, _, v in rows if k == row["k"] and v is not None and math.isfinite(v)]
        assert row["points"] == row["whole"] == sum(k == row["k"] for k, _, _ in rows)
        if not found.metrics:
            continue
        assert row["e.m.n"] == len(numbers)
        if numbers:
            assert row["e.m.mean"] == pytest.approx(statistics.fmean(numbers))
        else:
            assert row["e.m.mean"] is None
        if len(numbers) > 1:
            assert row["e.m.std"] == pytest.approx(statistics.stdev(map(float, numbers)))
        else:
            assert row["e.m.std"] is None


def test_points_that_are_not_whole_take_no_part_in_a_figure() -> None:
    rows = [{"seed": s, "e.m": float(s)} for s in (1, 2, 9)]
    whole = table(rows, ["seed"], ["e.m"])
    failed = Table(
        whole.parameters, whole.metrics, (*whole.rows[:2], {**whole.rows[2], "status": "FAILED"})
    )
    (row,) = over(failed, ["seed"]).rows
    assert (row["points"], row["whole"], row["e.m.mean"], row["e.m.n"]) == (3, 2, 1.5, 2)
    assert row["label"] == "all"
    found = best(failed, "e.m").row
    assert found is not None
    assert found["seed"] == 2


def test_values_too_large_for_a_float_are_no_numbers() -> None:
    assert number(10**400) is None
    huge = table([{"seed": s, "e.m": v} for s, v in ((1, 1e308), (2, 1e308), (3, -1e308))],
                 ["seed"], ["e.m"])  # fmt: skip
    (row,) = over(huge, ["seed"]).rows
    assert row["e.m.n"] == 3


@given(st.lists(values, min_size=1), st.sampled_from(["max", "min"]))
def test_the_best_is_the_first_of_the_extreme_numbers(found: list[float | None], mode: str) -> None:
    rows = table([{"x": n, "e.m": value} for n, value in enumerate(found)], ["x"], ["e.m"])
    numbers = [v for v in found if v is not None and math.isfinite(v)]
    chosen = best(rows, "e.m", mode)
    assert chosen.of == len(numbers)
    if not numbers:
        assert chosen.row is None
        return
    assert chosen.row is not None
    extreme = max(numbers) if mode == "max" else min(numbers)
    assert chosen.row["x"] == found.index(extreme)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("eval.accuracy", "max"), ("eval.loss", "min"), ("train.eval_loss", "min"),
        ("eval.perplexity", "min"), ("eval.brier", "min"), ("eval.ece", "min"),
        ("train.time_s", "min"), ("eval.error", "min"), ("eval.error_analysis.accuracy", "max"),
        ("time_series.score", "max"), ("eval.sentiment", "max"), ("eval.loss.mean", "min"),
        ("eval.whatever", "max"), ("eval.glossary", "max"),
    ],
)  # fmt: skip
def test_whether_less_is_better_is_guessed_from_the_name(metric: str, mode: str) -> None:
    assert guess_mode(metric) == mode


@given(st.lists(st.one_of(values, st.text(max_size=3), st.booleans())), st.booleans())
def test_sorting_puts_numbers_before_texts_and_what_is_missing_last(
    column: list[Any], descending: bool
) -> None:
    rows = table([{"x": value} for value in column], ["x"], [])
    found = [row["x"] for row in ordered(rows, "x", descending=descending).rows]
    there = [v for v in found if v is not None and not (isinstance(v, float) and math.isnan(v))]
    assert found[: len(there)] == there, "what is missing comes last"
    figures = [v for v in there if not isinstance(v, str)]
    texts = [v for v in there if isinstance(v, str)]
    assert figures == sorted(figures, reverse=descending)
    assert texts == sorted(texts, reverse=descending)
    assert there == (texts + figures if descending else figures + texts)


def test_the_metric_that_is_judged_by_is_a_figure_of_merit_that_differs() -> None:
    metrics = ["prepare.rows", "train.loss", "eval.seconds", "eval.accuracy", "eval.f1"]
    rows = [{"x": x, **dict.fromkeys(metrics, x)} | {"eval.accuracy": 1} for x in (1, 2)]
    assert by_interest(table(rows, ["x"], metrics))[0] == "eval.f1"
    assert by_interest(table(rows[:1], ["x"], metrics))[0] == "eval.accuracy"


def test_names_are_found_by_their_end_and_else_refused() -> None:
    rows = table([{"a.seed": 1, "b.seed": 1, "e.m": 1, "f.m": 1}], ["a.seed", "b.seed"],
                 ["e.m", "f.m"])  # fmt: skip
    assert find_metric(rows, "e.m") == "e.m"
    assert find_parameter(rows, f"{PATH}b.seed") == "b.seed"
    for find, word in ((find_metric, "m"), (find_parameter, "seed"), (find_metric, "x")):
        with pytest.raises(UnknownNameError):
            find(rows, word)


# ---------------------------------------------------------------------------------------- exports

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
cells = st.one_of(st.none(), st.booleans(), st.integers(), finite, texts.filter(bool))
COLUMNS = ("label", "x.y", "e,m")
tables = st.lists(st.tuples(cells, cells, cells))


def rows_of(found: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in found]


@given(tables)
def test_json_gives_every_value_back(found: list[tuple[Any, ...]]) -> None:
    assert json.loads(to_json(COLUMNS, rows_of(found))) == rows_of(found)


@given(tables)
def test_csv_gives_every_value_back_as_text(found: list[tuple[Any, ...]]) -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(COLUMNS, rows_of(found)), newline="")))
    for row, (_, *asked) in zip(read, found, strict=True):
        assert list(row) == list(COLUMNS)
        for text, value in zip(list(row.values())[1:], asked, strict=True):
            if value is None:
                assert text == ""
            elif isinstance(value, str):
                assert text == value
            elif isinstance(value, bool):
                assert text == json.dumps(value)
            else:
                assert type(value)(text) == value


@given(tables)
def test_parquet_gives_every_value_back_in_columns_of_one_type(
    found: list[tuple[Any, ...]],
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from nexa_hpc.backends.frames import to_parquet

    columns = typed_columns(COLUMNS, rows_of(found))
    read = parquet.read_table(io.BytesIO(to_parquet(columns))).to_pydict()
    assert read == columns
    for name, asked in zip(COLUMNS, zip(*found, strict=True), strict=False):
        for value, kept in zip(asked, read[name], strict=True):
            mixed = isinstance(kept, str) and not isinstance(value, str)
            assert kept == (json.dumps(value) if mixed else value)


def test_a_column_is_of_numbers_truth_values_or_else_of_texts() -> None:
    rows = [{"a": 1, "b": True, "c": 1, "d": [1]}, {"a": 2.5, "b": None, "c": "x", "d": {"k": 2}}]
    assert typed_columns("abcd", rows) == {
        "a": [1.0, 2.5],
        "b": [True, None],
        "c": ["1", "x"],
        "d": ["[1]", '{"k": 2}'],
    }
    assert typed_columns("a", [{"a": 2**63}]) == {"a": [str(2**63)]}


def test_what_would_break_a_format_does_not() -> None:
    rows = [{"a|b": "x|y\nz", "n": math.nan}, {"a|b": "\ud800", "n": math.inf}]
    assert to_markdown(["a|b", "n"], rows).splitlines()[2] == r"| x\|y\\nz | nan |"
    assert [row["n"] for row in json.loads(to_json(["n"], rows))] == [None, None]
    assert to_csv(["a|b"], rows).encode().decode().splitlines()[-1] == r"\ud800"
    assert cell_text(1 / 3) == "0.3333"
    assert make_points([{"a": 1}])[0].label == make_points([{"a": 1}])[0].name
