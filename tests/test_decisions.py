"""Whether a step runs, and why, in the words that the user reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from planned import command, instance, pipeline, plan, run

from nexa_hpc.core import history
from nexa_hpc.core.decisions import in_words
from nexa_hpc.core.history import History
from nexa_hpc.core.keys import Difference
from nexa_hpc.core.runs import newest_run
from nexa_hpc.errors import ArtifactError
from nexa_hpc.pipeline_run import PipelineRun


def decided(project: Path, *steps: dict[str, Any], **options: Any) -> dict[str, str]:
    """Step -> what is decided and why."""
    found = plan(project, *steps, **options).instances
    return {name: f"{i.action}: {i.reason}" for name, i in found.items()}


def one(project: Path, **changes: Any) -> str:
    """What is decided for a pipeline's only step."""
    return decided(project, command("s", **changes))["s"]


def artifact(done: PipelineRun, step: str = "s") -> Path:
    return done.result(step)


def register(**params: Any) -> dict[str, Any]:
    fields = {"name": "m", "uri": "train", **params}
    return {"id": "register", "uses": "core.registry.register", "params": fields}


# ------------------------------------------------------------------------------------------ reasons


def test_a_step_that_never_ran_has_no_result_yet(project: Path) -> None:
    assert one(project) == "RUN: no result yet"


def test_a_result_that_is_there_is_skipped_and_says_which_run_made_it(project: Path) -> None:
    run(project, command("s"))
    run(project, command("s"))
    assert one(project) == "SKIP: cached: demo-1"


def test_a_result_made_by_another_pipeline_counts_as_well(project: Path) -> None:
    pipeline(project, command("other"), name="first").run()
    assert one(project) == "SKIP: cached: first-1"


def test_a_changed_param_is_shown_with_both_values(project: Path) -> None:
    run(project, command("s", params={"lr": 2e-5, "deep": {"x": 1}}))
    found = one(project, params={"lr": 3e-5, "deep": {"x": 2}})
    assert found == "RUN: params.deep.x: 1 → 2; params.lr: 2e-5 → 3e-5"


def test_changing_a_param_and_changing_it_back_is_a_hit(project: Path) -> None:
    run(project, command("s", params={"x": 1}))
    run(project, command("s", params={"x": 2}))
    assert one(project, params={"x": 1}) == "SKIP: cached: demo-1"


def test_many_changes_are_counted_beyond_the_third(project: Path) -> None:
    run(project, command("s"))
    found = one(project, params=dict.fromkeys("abcde", 1))
    added = "params.a: added, 1; params.b: added, 1; params.c: added, 1"
    assert found == f"RUN: {added}; and 2 more"
    assert one(project, params=dict.fromkeys("abcd", 1)) == f"RUN: {added}; and 1 more"


def test_three_changes_are_shown_in_full(project: Path) -> None:
    run(project, command("s"))
    assert "more" not in one(project, params=dict.fromkeys("abc", 1))


def test_a_changed_input_names_the_input(project: Path) -> None:
    (project / "data").write_text("1")
    run(project, command("s", **{"in": {"my.data": "data"}}))
    (project / "data").write_text("2")
    found = one(project, **{"in": {"my.data": "data"}})
    assert found == "RUN: input my.data: 6b86b273ff34… → d4735e3a265e…"


def test_changed_code_names_the_file(project: Path) -> None:
    (project / "run.py").write_text("1")
    run(project, command("s", params={"code": ["run.py"]}))
    (project / "run.py").write_text("2")
    assert one(project, params={"code": ["run.py"]}) == "RUN: code run.py changed"


def test_below_a_change_the_step_above_is_named(project: Path) -> None:
    below = command("below", **{"in": {"x": "s"}})
    run(project, command("s"), below)
    found = decided(project, command("s", cache_hint="v2"), below)
    assert found["s"] == "RUN: cache_hint: null → v2"
    assert found["below"] == "RUN: input x: step 's' has another result"


def test_rerun_is_said_where_it_was_asked_for_and_what_follows_below(project: Path) -> None:
    steps = [
        command("s"),
        command("reads", **{"in": {"x": "s"}}),
        command("ordered", after=["s"]),
        command("beside"),
    ]
    run(project, *steps)
    assert decided(project, *steps, rerun_from="s") == {
        "s": "RUN: rerun was asked for",
        "reads": "RUN: input x: step 's' has another result",
        "ordered": "RUN: rerun was asked for",
        "beside": "SKIP: cached: demo-1",
    }


def test_the_last_result_is_compared_with_and_not_a_failed_attempt(project: Path) -> None:
    run(project, command("s", params={"x": 1}))
    pipeline(project, command("s", "false", params={"x": 2})).run()
    assert one(project, params={"x": 3}) == "RUN: params.x: 1 → 3"


def test_the_newest_other_result_is_compared_with_also_where_older_ones_are_nearer(
    project: Path,
) -> None:
    for x in (1, 2):
        run(project, command("s", params={"x": x}))
    assert one(project, params={"x": 3}) == "RUN: params.x: 2 → 3"
    run(project, command("s", params={"x": 1}))
    assert one(project, params={"x": 3}) == "RUN: params.x: 1 → 3"


def test_a_step_that_has_only_failed_has_no_result_yet(project: Path) -> None:
    pipeline(project, command("s", "false")).run()
    assert one(project, params={"x": 3}) == "RUN: no result yet"


# ------------------------------------------------------------------------------------------- damage


def test_a_purged_result_is_computed_again_and_says_what_is_gone(project: Path) -> None:
    done = run(project, command("s", "echo x > $OUT/file"))
    (artifact(done) / "file").unlink()
    assert one(project, text="echo x > $OUT/file") == "RUN: its result was purged: file is gone"


def test_a_purged_result_still_explains_what_changed(project: Path) -> None:
    done = run(project, command("s", "echo x > $OUT/file", params={"x": 1}))
    (artifact(done) / "file").unlink()
    found = one(project, text="echo x > $OUT/file", params={"x": 2})
    assert found == "RUN: params.x: 1 → 2"


def test_a_folder_in_the_store_that_is_not_complete_is_no_result(project: Path) -> None:
    done = run(project, command("s"))
    (artifact(done) / "COMPLETE").unlink()
    found = one(project)
    assert found == "RUN: what stands in the store is not complete: a folder without COMPLETE"


def test_one_purged_output_of_two_is_enough_to_run_again(project: Path) -> None:
    step = command(
        "s", "echo 1 > $OUT_a/1; echo 2 > $OUT_b/2", out={"a": "artifacts/a", "b": "artifacts/b"}
    )
    done = run(project, step)
    assert decided(project, step)["s"] == "SKIP: cached: demo-1"
    (done.result("s", "b") / "2").unlink()
    assert decided(project, step)["s"] == "RUN: its result was purged: 2 is gone"


# ------------------------------------------------------------------------------------------ effects


def test_an_effect_waits_for_what_runs_above_it_then_holds(project: Path) -> None:
    steps = [command("train", "echo w > $OUT/model.bin"), register()]
    assert decided(project, *steps)["register"] == "RUN: after train"
    run(project, *steps)
    assert decided(project, *steps)["register"] == "SKIP: holds: m version 1 is this artifact"


def test_an_effect_that_no_longer_holds_is_done_again(project: Path) -> None:
    steps = [command("train", "echo w > $OUT/model.bin"), register()]
    run(project, *steps)
    shutil.rmtree(project / "artifacts/.registry")
    assert decided(project, *steps)["register"] == "RUN: not done yet"
    run(project, *steps)
    assert decided(project, *steps)["register"].startswith("SKIP: holds")


def test_an_effect_of_which_it_cannot_be_told_is_tried(project: Path) -> None:
    (project / "meta.json").write_text("not JSON")
    steps = [command("train", "echo w > $OUT/model.bin"), register(meta="meta.json")]
    pipeline(project, *steps).run()
    assert decided(project, *steps)["register"] == "RUN: not done yet"


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("field", "old", "new", "words"),
    [
        ("inputs.data", None, "x", "input data: absent → x"),
        ("inputs.data.sha256", "x", None, "input data: x → absent"),
        ("inputs.my.data.sha256", "x", "y", "input my.data: x → y"),
        ("inputs.my.sha256", "x", "y", "input my: x → y"),
        ("inputs.up.step_key", "x", "y", "input up: step 'above' has another result"),
        ("inputs.up.below", "x", "y", "input up: x → y"),
        ("code.lib/a.b.py", "x", "y", "code lib/a.b.py changed"),
        ("rerun", "0", "1", "rerun was asked for"),
        ("params.rerun", "0", "1", "params.rerun: 0 → 1"),
        ("backend", "hf", "null", "backend: hf → null"),
    ],
)
def test_a_difference_is_said_as_the_user_would(
    field: str, old: str | None, new: str | None, words: str
) -> None:
    inputs = {
        "up": {"step": "above"},
        "data": {"path": "x"},
        "my": {"path": "y"},
        "my.data": {"path": "y"},
    }
    assert in_words(Difference(field, old, new), instance(inputs=inputs)) == words


# ------------------------------------------------------------------------------------------ history


def test_history_reads_no_older_plan_than_it_needs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        done = run(project, command("s", params={"x": number}), command("t", params={"x": number}))
    paths = pipeline(project, command("s")).paths
    for run_id in ("demo-1", "demo-2"):
        (paths.pipeline("demo").run(run_id).plan).write_text("torn")
    found = History(paths.pipeline("demo"), paths)
    newest = newest_run(paths, "demo")
    assert newest is not None and newest.id == done.id
    for name in ("s", "t"):
        last = found.last(name, other_than=newest.instances[name].key)
        assert last is not None and last.params["x"] == 2


def test_plans_of_another_format_and_plans_that_are_gone_are_passed_over(project: Path) -> None:
    for number in range(4):
        run(project, command("s", params={"x": number}))
    home = pipeline(project, command("s")).paths.pipeline("demo")
    content = json.loads(home.run("demo-4").plan.read_text())
    home.run("demo-4").plan.write_text(json.dumps({**content, "format": 999}))
    home.run("demo-3").plan.unlink()
    home.run("demo-2").plan.write_text("{")
    assert one(project, params={"x": 9}) == "RUN: params.x: 0 → 9"


def test_an_older_result_that_may_not_be_read_does_not_stop_planning(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project, command("s", params={"x": 1}))

    def refuse(path: Path) -> None:
        raise ArtifactError(f"{path} cannot be read: Permission denied")

    monkeypatch.setattr(history, "look", refuse)
    assert one(project, params={"x": 2}) == "RUN: no result yet"


def test_a_step_that_no_earlier_plan_had_is_new(project: Path) -> None:
    run(project, command("other"))
    found = decided(project, command("other"), command("s", cache_hint="v2"))
    assert found == {"other": "SKIP: cached: demo-1", "s": "RUN: no result yet"}
