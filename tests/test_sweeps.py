"""Sweeps: points that agree on a step's key share it, and the whole of them is one run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flows import Flow
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_hpc import Pipeline
from nexa_hpc.core.artifacts import open_artifact
from nexa_hpc.core.states import State
from nexa_hpc.errors import NexaError, SpecError, UnknownNameError, UserError
from nexa_hpc.pipeline_run import drive

LR, K = "steps.train.params.lr", "steps.eval.params.k"
TELL = 'echo "{\\"acc\\": $(cat $IN_model/lr)$PARAM_k}" > $OUT/metrics.json'
"""An accuracy that is greater the greater lr and then k are."""


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def grid(lrs: Iterable[float], ks: Iterable[int]) -> list[dict[str, Any]]:
    """Return the points of a product."""
    return [{LR: lr, K: k} for lr in lrs for k in ks]


def three(flow: Flow, *more: Mapping[str, Any], poison: str = "true", **fields: Any) -> Pipeline:
    """Write prepare, train (of `lr`) and eval (of `k`), and what comes after them."""
    train = f"test $PARAM_lr != 0.3 || {{ {poison}; }}; echo $PARAM_lr > $OUT/lr"
    flow.write(
        flow.step("prepare", "echo 1 > $OUT/rows", out="data"),
        flow.step("train", train, out="model", params={"lr": 0.1}, **{"in": {"data": "data"}}),
        flow.step("eval", TELL, params={"k": 1}, **{"in": {"model": "model"}}, **fields),
        *map(dict, more),
    )
    return Pipeline.from_yaml(flow.file, project=flow.project)


REGISTER = {
    "id": "register",
    "uses": "core.registry.register",
    "scope": "sweep",
    "in": {"best": {"step": "train", "metric": "eval.acc", "mode": "max"}},
    "params": {"name": "m"},
}


def test_points_share_what_they_agree_on_and_a_grown_sweep_runs_only_what_is_new(
    flow: Flow,
) -> None:
    pipeline = three(flow)
    assert pipeline.sweep(grid((0.1, 0.2, 0.3, 0.4), range(6))).run().succeeded
    assert Counter(flow.executed()) == {"prepare": 1, "train": 4, "eval": 24}
    grown = pipeline.sweep(grid((0.1, 0.2, 0.3, 0.4, 0.5), range(6))).run()
    assert Counter(flow.executed()) == {"train": 1, "eval": 6}
    assert Counter(s.state for s in grown.standings.values()) == {
        State.SKIPPED: 29,
        State.COMPLETED: 7,
    }


def test_a_point_has_the_key_of_a_plain_run_with_its_values(flow: Flow) -> None:
    pipeline = three(flow)
    pipeline.run()
    flow.executed()
    assert pipeline.sweep(grid((0.1,), (1, 2))).run().succeeded
    assert flow.executed() == ["eval"]


def test_an_instance_is_named_by_what_its_points_have_in_common(flow: Flow) -> None:
    plan = three(flow).sweep(grid((0.1, 3e-5), (1, 2))).plan()
    assert list(plan.instances) == [
        "prepare",
        "train@lr=0.1",
        "train@lr=3e-05",
        "eval@lr=0.1,k=1",
        "eval@lr=0.1,k=2",
        "eval@lr=3e-05,k=1",
        "eval@lr=3e-05,k=2",
    ]
    assert plan.instances["eval@lr=0.1,k=2"].parents == ("train@lr=0.1",)


def test_each_point_has_its_results_under_its_label(flow: Flow) -> None:
    pipeline = three(flow)
    run = pipeline.sweep(grid((0.1, 0.2), (1, 2))).run()
    views = flow.project / "multirun/flow"
    assert sorted(p.name for p in views.iterdir()) == sorted(
        f"lr={lr},k={k}" for lr in ("0.1", "0.2") for k in (1, 2)
    )
    assert (views / "lr=0.2,k=1/model/lr").read_text() == "0.2\n"
    shown = open_artifact(views / "lr=0.2,k=2/model")
    assert shown.hash == open_artifact(run.result("train@lr=0.2")).hash
    assert not (flow.project / "model").exists(), "no point is the pipeline itself"


def test_a_sweep_that_came_later_takes_no_place_of_a_plain_run(flow: Flow) -> None:
    pipeline = three(flow)
    plain, _ = pipeline.start()
    assert pipeline.sweep(grid((0.1, 0.2), (1, 2))).run().succeeded
    assert not (flow.project / "model").exists()
    assert drive(plain).succeeded
    assert (flow.project / "model/lr").read_text() == "0.1\n"


def test_a_poisoned_point_blocks_only_its_own_and_resume_runs_just_that_one(flow: Flow) -> None:
    flag = flow.project.parent / "mended"
    pipeline = three(flow, REGISTER, poison=f"test -e {flag} || exit 3")
    run = pipeline.sweep(grid((0.1, 0.3, 0.2), (1, 2))).run()
    states = {name: standing.state for name, standing in run.standings.items()}
    assert {n for n, s in states.items() if s is State.FAILED} == {"train@lr=0.3"}
    blocked = {"eval@lr=0.3,k=1", "eval@lr=0.3,k=2", "register"}
    assert {n for n, s in states.items() if s is State.BLOCKED} == blocked
    flow.executed()
    flag.touch()
    resumed = pipeline.sweep(grid((0.1, 0.3, 0.2), (1, 2))).run()
    assert resumed.succeeded
    assert Counter(flow.executed()) == {"train": 1, "eval": 2}


def test_a_step_of_the_whole_sweep_is_given_the_best_point(
    flow: Flow, capsys: pytest.CaptureFixture[str]
) -> None:
    promote = {
        "id": "promote",
        "uses": "core.registry.promote",
        "scope": "sweep",
        "params": {"name": "m", "version": "registered", "tag": "best"},
    }
    pipeline = three(flow, REGISTER, promote)
    sweep = pipeline.sweep(grid((0.1, 0.4, 0.2), (1, 2)))
    run = sweep.run()
    version = json.loads((flow.project / "artifacts/.registry/m/versions/1.json").read_text())
    assert version["artifact_hash"] == open_artifact(run.result("train@lr=0.4")).hash
    again = sweep.run()
    assert {s.state for s in again.standings.values()} == {State.SKIPPED}
    assert "input best: train@lr=0.4 has the max of acc: 0.42" in capsys.readouterr().out


def test_what_lies_in_the_best_result_can_be_handed_over_and_least_can_be_best(flow: Flow) -> None:
    best = {"step": "train", "path": "lr", "metric": "eval.acc", "mode": "min"}
    keep = flow.step("keep", "cp $IN_best $OUT/kept", scope="sweep", **{"in": {"best": best}})
    run = three(flow, keep).sweep(grid((0.4, 0.1, 0.2), (1, 2))).run()
    assert (run.result("keep") / "kept").read_text() == "0.1\n"
    plain = three(flow, keep).run()
    assert (plain.result("keep") / "kept").read_text() == "0.1\n", "a plain run has one point"


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ("{}", "its metrics.json has no number 'acc'"),
        ('{\\"loss\\": 1}', "its metrics.json has no number 'acc' (it has: loss)"),
        ('{\\"acc\\": NaN}', "acc is no number (NaN) at every point"),
    ],
)
def test_where_no_best_can_be_told_the_step_fails_and_says_why(
    flow: Flow, metrics: str, told: str
) -> None:
    pipeline = three(flow, REGISTER)
    document = json.loads(flow.file.read_text())
    command = f'echo "{metrics}" > $OUT/metrics.json'
    document["pipeline"]["steps"][2]["params"]["command"] = command
    flow.file.write_text(json.dumps(document))
    pipeline = Pipeline.from_yaml(flow.file, project=flow.project)
    standing = pipeline.sweep(grid((0.1, 0.2), (1,))).run().standings["register"]
    assert standing.state is State.FAILED
    assert told in standing.message


def refused(pipeline: Pipeline, points: Iterable[Mapping[str, Any]]) -> str:
    """Return why planning refuses a sweep."""
    with pytest.raises(NexaError) as caught:
        pipeline.sweep(points).plan()
    return str(caught.value)


def test_what_a_sweep_cannot_have_is_refused_with_the_way_out(flow: Flow) -> None:
    points = grid((0.1, 0.2), (1,))
    promote = {"uses": "core.registry.promote", "params": {"name": "m", "version": 1, "tag": "t"}}
    told = refused(three(flow, {"id": "promote", **promote}), points)
    assert "would leave what the last one did; give it `scope: sweep`" in told
    told = refused(three(flow, {**REGISTER, "scope": None}), points)
    assert "the best point is known when all are done; give it `scope: sweep`" in told
    several = {**REGISTER, "in": {"model": "train"}}
    told = refused(three(flow, several), points)
    assert "step 'train' has 2 results in this sweep; say which: {step: train" in told
    told = refused(three(flow, REGISTER, flow.step("late")), points)
    assert "it comes after 'register', a step of the whole sweep" in told
    told = refused(three(flow, REGISTER), [{"steps.register.params.name": n} for n in "ab"])
    assert "a step of the whole sweep has nothing that the sweep could vary" in told


def test_mistaken_points_are_refused_before_anything_is_written(flow: Flow) -> None:
    pipeline = three(flow)
    with pytest.raises(UserError, match="no points"):
        pipeline.sweep([])
    with pytest.raises(UserError, match="no step 'trian'; did you mean 'train'"):
        pipeline.sweep([{"steps.trian.params.lr": 1}])
    with pytest.raises(SpecError, match="scheduler: expected"):
        pipeline.sweep([{LR: 0.1}, {"steps.train.scheduler": "slrum"}])
    with pytest.raises(UserError, match="renames the pipeline"):
        pipeline.sweep([{"pipeline.name": "flow"}, {"pipeline.name": "other"}])
    assert not (flow.project / ".nexa_state").exists()


def test_a_problem_at_one_point_names_the_point(flow: Flow) -> None:
    told = refused(three(flow), [{"steps.eval.in.model": where} for where in ("model", "modle")])
    assert "no such file or folder, and no step has this `out`: modle" in told
    assert "(at the point model=modle)" in told


def test_points_that_come_twice_count_once(flow: Flow) -> None:
    plan = three(flow).sweep([{LR: 0.1, K: 1}, {K: 1, LR: 0.1}]).plan()
    assert len(plan.points) == 1


def test_a_parameter_that_changes_no_key_is_warned_of(flow: Flow) -> None:
    points = [{LR: lr, "steps.eval.labels.note": n} for lr in (0.1, 0.2) for n in ("a", "b")]
    plan = three(flow).sweep(points).plan()
    (warning,) = [w for w in plan.warnings if "is swept" in w]
    assert warning.startswith("steps.eval.labels.note is swept and changes no step's key")
    assert Counter(i.step_id for i in plan.instances.values())["eval"] == 2


def test_points_that_share_a_key_must_ask_for_the_same_or_key_their_resources(flow: Flow) -> None:
    points = [{"steps.eval.resources.mem_gb": gb} for gb in (1, 2)]
    assert "ask for different mem_gb" in refused(three(flow), points)
    plan = three(flow, key_resources=True).sweep(points).plan()
    assert Counter(i.step_id for i in plan.instances.values())["eval"] == 2


def test_one_point_of_a_step_can_be_computed_again(flow: Flow) -> None:
    sweep = three(flow).sweep(grid((0.1, 0.2), (1, 2)))
    sweep.run()
    flow.executed()
    sweep.run(rerun_from="eval@lr=0.1,k=2")
    assert flow.executed() == ["eval"]
    sweep.run(rerun_from="train@lr=0.2,k=1")
    assert Counter(flow.executed()) == {"train": 1, "eval": 2}
    sweep.run(rerun_from="train")
    assert Counter(flow.executed()) == {"train": 2, "eval": 4}
    assert {s.state for s in sweep.run().standings.values()} == {State.SKIPPED}
    with pytest.raises(UnknownNameError, match="no point 'lr=7'"):
        sweep.run(rerun_from="train@lr=7")


def test_a_sweep_of_one_step_leaves_steps_that_are_only_ordered_after_it_shared(flow: Flow) -> None:
    flow.write(
        flow.step("train", params={"lr": 1}),
        flow.step("note"),
        flow.step("eval", params={"k": 1}, **{"in": {"m": "train"}}),
    )
    pipeline = Pipeline.from_yaml(flow.file, project=flow.project)
    plan = pipeline.sweep([{LR: lr} for lr in (1, 2, 3)]).plan()
    assert plan.instances["note"].parents == ("train@lr=1", "train@lr=2", "train@lr=3")
    assert plan.instances["eval@lr=2"].parents == ("note", "train@lr=2")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                LR: st.sampled_from([0.1, 0.2, 0.3]),
                K: st.sampled_from([1, 2]),
                "steps.prepare.params.n": st.sampled_from([1, "1", None, True]),
                "steps.eval.labels.x": st.sampled_from(["a", "b"]),
                "steps.train.cache_hint": st.sampled_from(["v1", 2]),
            },
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_point_has_the_keys_of_the_plain_pipeline_with_its_overrides(
    tmp_path_factory: pytest.TempPathFactory, points: list[dict[str, Any]]
) -> None:
    flow = Flow(tmp_path_factory.mktemp("sweep"))
    pipeline = three(flow)
    plan = pipeline.sweep(points).plan()
    instances = plan.instances.values()
    assert len({(i.step_id, i.key) for i in instances}) == len(plan.instances)
    for point in plan.points:
        alone = pipeline.sweep([point.overrides]).plan()
        mine = {i.step_id: i.key for i in instances if point.name in i.points}
        assert mine == {i.step_id: i.key for i in alone.instances.values()}
