"""Sweeps composed: the product of what varies, what points share, and Hydra's own word on each."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from composing import Composing, by_hydra, composing, params_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

__all__ = ["composing"]

STEPS = """\
    - id: a
      uses: runners.command
      params: {command: x, lr: 1, n: 2, c: [1, 2]}
    - id: b
      uses: runners.command
      params: {command: x, lr: 1, n: 2, c: [1, 2]}
    - id: c
      uses: runners.command
      params: {command: x, lr: 1, n: 2, c: [1, 2]}
"""
SWEPT = f"pipeline:\n  name: s\n  steps:\n{STEPS}"


def step(found: Any, number: int, place: int) -> Any:
    return found.documents[number].value["pipeline"]["steps"][place]


def test_points_are_the_product_and_the_last_varies_fastest(composing: Composing) -> None:
    found = composing.compose(
        "plain.yaml",
        "steps.train-x.1.params.lr=range(1,3)",
        "steps.prep.params.who=a,'b c'",
        "steps.prep.params.fixed=1",
        multirun=True,
    )
    assert [dict(point.overrides) for point in found.points] == [
        {"steps.train-x.1.params.lr": lr, "steps.prep.params.who": who}
        for lr, who in itertools.product([1, 2], ["a", "b c"])
    ]
    assert [params_of(d.value)["prep"]["who"] for d in found.documents] == ["a", "b c"] * 2
    assert {params_of(d.value)["prep"]["fixed"] for d in found.documents} == {1}
    assert found.document is found.documents[0]


def test_options_of_a_group_are_swept_and_globbed(composing: Composing) -> None:
    found = composing.compose(
        "composed.yaml",
        "train=glob(*,exclude=[classify,lora,smoke])",
        "train.bs=1,2",
        multirun=True,
    )
    assert [point.label for point in found.points] == [
        f"train={name},bs={bs}" for name in ("big", "small") for bs in (1, 2)
    ]


def test_steps_that_are_equal_are_one_object_in_all_points(composing: Composing) -> None:
    composing.write("s.yaml", SWEPT)
    found = composing.compose(
        "s.yaml", "steps.b.params.lr=1,2,3", "steps.c.params.n=2,5", multirun=True
    )
    assert len(found.points) == 6
    assert len({id(step(found, n, 0)) for n in range(6)}) == 1
    assert len({id(step(found, n, 1)) for n in range(6)}) == 3
    assert len({id(step(found, n, 2)) for n in range(6)}) == 2
    assert found.documents[5].line_of(("pipeline", "steps", 1, "params", "lr")) == 9


def test_a_sweep_worth_keeping_stands_in_the_file(composing: Composing) -> None:
    sweep = "sweep:\n  steps.a.params.lr: [1, 5]\n  steps.b.params.n: range(1, 3)\n"
    composing.write("s.yaml", SWEPT + sweep)
    plain = composing.compose("s.yaml")
    assert not plain.points
    assert list(plain.document.value) == ["pipeline"]
    found = composing.compose("s.yaml", multirun=True)
    assert [dict(p.overrides) for p in found.points] == [
        {"steps.a.params.lr": lr, "steps.b.params.n": n} for lr in (1, 5) for n in (1, 2)
    ]
    again = composing.compose("s.yaml", "steps.a.params.lr=7", multirun=True)
    assert [dict(p.overrides) for p in again.points] == [{"steps.b.params.n": n} for n in (1, 2)]
    assert {params_of(d.value)["a"]["lr"] for d in again.documents} == {7}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train=glob(z*)", "an empty sweep, of no values (there: big, classify"),
        ("train.bs=range(3,3)", "an empty sweep"),
        ("train.bs=glob(*)", "glob() chooses among the options of a group"),
        ("train.bs=interval(0,1)", "interval() is for optimisers"),
        ("scheduler=local,slurm", "one for a whole run"),
        ("scheduler.max_running=1,2", "one for a whole run"),
        ("steps.eva.params.x=1,2", "did you mean 'eval'?"),
        ("~train.bs=1,2", "override '~train.bs=1,2'"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(composing: Composing, text: str, told: str) -> None:
    assert told in composing.refused("composed.yaml", text, multirun=True)


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ("[1]", "s.yaml:13: sweep: expected a mapping"),
        ("{steps.a.params.lr: 3}", "expected a list of values"),
        ("{steps.a.params.lr: []}", "expected a list of values"),
        ("{steps.a.params.lr: x}", "'x' is one value: write a list"),
        ("{steps.x.params.lr: [1, 2]}", "no step 'x'"),
    ],
)
def test_a_wrong_sweep_section_is_told_with_its_place(
    composing: Composing, sweep: str, told: str
) -> None:
    composing.write("s.yaml", f"{SWEPT}sweep: {sweep}\n")
    assert told in composing.refused("s.yaml", multirun=True)


@pytest.mark.parametrize("primary", [False, True])
def test_a_thousand_points_are_composed_quickly_and_in_little_memory(
    composing: Composing, primary: bool
) -> None:
    key = "steps.a.params.lr"
    composing.write("s.yaml", SWEPT)
    if primary:
        text = SWEPT.replace("lr: 1", "lr: '${train.lr}', z: 'a ${train.opt.name}'")
        composing.write("s.yaml", f"defaults: [train: small]\n{text}")
        key = "train.lr"
    overrides = (f"{key}=range(0,100)", "steps.c.params.n=range(0,10)")
    composing.compose("s.yaml", *overrides, multirun=True)
    begun = time.perf_counter()
    found = composing.compose("s.yaml", *overrides, multirun=True)
    took_s = time.perf_counter() - begun
    assert len(found.points) == 1000
    assert took_s < 2.0  # alone on a machine: 0.1 to 0.3 s
    tracemalloc.start()
    try:
        found = composing.compose("s.yaml", *overrides, multirun=True)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------ held against Hydra

_VALUES = some.one_of(
    some.integers(-5, 5),
    some.sampled_from([0.5, 1e-5, True, False, None, "word", "two words", "/a/b.c", "3", ""]),
    some.lists(some.integers(0, 3), max_size=2),
)


@some.composite
def _projects(draw: Any) -> tuple[dict[str, str], str, list[str], list[tuple[str, list[str]]]]:
    """Draw option files, a primary configuration, single overrides, and sweeps."""
    options = {
        f"{group}/{name}": json.dumps(
            {"x": draw(_VALUES), "y": draw(some.integers(0, 9)), "in": {"z": draw(_VALUES)}}
        )
        for group in ("one", "two")
        for name in ("p", "q")
    }
    refers = [
        "${one}",
        "${two.in}",
        "${one.y}",
        "v ${two.y} ${one.y}",
        "${x-own}",
        7,
        [1, "${one.y}"],
    ]
    steps = [
        {"id": name, "uses": "u", "params": {"k": draw(some.sampled_from(refers)), "n": {"m": 1}}}
        for name in ("a", "b")
    ]
    steps.append({"id": "c", "uses": "u", "params": draw(some.sampled_from(["${one}", "${two}"]))})
    primary = {
        "defaults": [{"one": "p"}, {"two": "q"}, "_self_"],
        "x-own": draw(_VALUES),
        "two": {"y": draw(some.integers(0, 9))},
        "pipeline": {"name": "p", "steps": steps},
    }
    values = {
        "one.y": ["1", "2e-3", "'a b'"],
        "two.in.z": ["[1,2]", "null", "abc"],
        "x-own": ["true", "5", "w"],
        "steps.a.params.n.m": ["3", "'x,y'"],
        "steps.b.params.k": ["4", "null"],
        "steps.a.params.n": ["{m: 4}"],
        "pipeline.name": ["other"],
        "+one.new": ["5"],
        "one": ["q", "p"],
        "two": ["p"],
    }
    keys = draw(some.lists(some.sampled_from(sorted(values)), unique=True, max_size=4))
    swept = draw(some.lists(some.sampled_from(keys), unique=True, max_size=2)) if keys else []
    single = [f"{key}={draw(some.sampled_from(values[key]))}" for key in keys if key not in swept]
    deleted = draw(some.sampled_from([None, "~two.in", "~steps.b.params.n"]))
    needed = "two.in" in json.dumps(primary["pipeline"]) or "two.in.z" in keys
    if deleted is not None and not (deleted == "~two.in" and needed):
        single.append(deleted)
    sweeps = [(key, values[key]) for key in swept]
    return options, json.dumps(primary), single, sweeps


def _as_hydra_takes(text: str) -> str:
    for number, name in enumerate("abc"):
        text = text.replace(f"steps.{name}.", f"pipeline.steps.{number}.")
    return text


def test_a_single_value_counts_in_its_place_among_those_that_are_swept(
    composing: Composing,
) -> None:
    step = "{id: a, uses: runners.command, params: {command: x, n: {m: 1, k: 0}}}"
    composing.write("own.yaml", f"pipeline: {{name: p, steps: [{step}]}}\n")

    def swept(*overrides: str) -> list[Any]:
        found = composing.compose("own.yaml", *overrides, multirun=True)
        assert [p.overrides for p in found.points] == [{"steps.a.params.n.m": m} for m in (3, 5)]
        return [d.value["pipeline"]["steps"][0]["params"]["n"] for d in found.documents]

    whole, part = "steps.a.params.n={m: 4, k: 1}", "steps.a.params.n.m=3,5"
    assert swept(whole, part) == [{"m": 3, "k": 1}, {"m": 5, "k": 1}]
    assert swept(part, whole) == [{"m": 4, "k": 1}, {"m": 4, "k": 1}]


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each attempt to shrink takes a second
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=_projects())
def test_each_point_is_what_hydra_itself_composes(
    composing: Composing, drawn: tuple[dict[str, str], str, list[str], Any]
) -> None:
    options, primary, single, sweeps = drawn
    for name, text in options.items():
        composing.write(f"configs/{name}.yaml", text)
    composing.write("drawn.yaml", primary)
    texts = [f"{key}={','.join(values)}" for key, values in sweeps]
    found = composing.compose("drawn.yaml", *single, *texts, multirun=True)
    combinations = itertools.product(*([f"{k}={v}" for v in values] for k, values in sweeps))
    layers: list[Path] = [composing.root / "configs"]
    expected = [
        by_hydra(composing.root, "drawn", [_as_hydra_takes(o) for o in (*single, *point)], layers)
        for point in combinations
    ]
    assert [document.value["pipeline"] for document in found.documents] == expected
