"""Planning: everything is checked before anything is written, and the graph follows the inputs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from planned import command, pipeline, plan, tree

from nexa_hpc import Pipeline, Step, create_artifact
from nexa_hpc.core import keying
from nexa_hpc.core.code import imported_sources
from nexa_hpc.errors import SpecError, UnsupportedError, UserError


def parents(project: Path, *steps: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: i.parents for name, i in plan(project, *steps).instances.items()}


def problems(project: Path, *steps: dict[str, Any]) -> list[str]:
    """What is wrong with `steps`, as `key: message` of the step it concerns."""
    with pytest.raises(SpecError) as found:
        plan(project, *steps)
    return [f"{p.step}: {p.key}: {p.message}" for p in found.value.problems]


@pytest.fixture(autouse=True)
def _modules(project: Path) -> Iterator[None]:
    """Forget the modules of the project that planning imports."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(project)):
            del sys.modules[name]


# ---------------------------------------------------------------------------------------- the graph


def test_what_a_step_reads_is_before_it_whatever_after_says(project: Path) -> None:
    found = parents(
        project,
        command("reads", **{"in": {"x": "artifacts/late/part", "y": "bare/file", "z": "many/b"}}),
        command("late", out="artifacts/late"),
        command("many", out={"a": "artifacts/a", "b": "artifacts/b"}),
        command("bare"),
        command("last", after=["bare"], **{"in": "artifacts/a"}),
    )
    assert found["reads"] == ("late", "bare", "many")
    assert found["last"] == ("bare", "many")
    assert list(found) == ["late", "bare", "many", "reads", "last"]


def test_a_model_param_that_names_a_step_is_an_edge_as_well(project: Path) -> None:
    register = {
        "id": "register",
        "uses": "core.registry.register",
        "after": [],
        "params": {"name": "m", "uri": "train"},
    }
    found = plan(project, register, command("train")).instances
    assert found["register"].parents == ("train",)
    assert found["register"].document["params"] == {"name": "m"}
    assert found["register"].params == {"name": "m", "uri": "train"}
    assert found["register"].outputs == {}


def test_steps_that_read_each_other_are_a_cycle_with_its_place(project: Path) -> None:
    one = command("one", **{"in": {"x": "two"}})
    (problem,) = problems(project, one, command("two", **{"in": {"x": "one"}}))
    assert "cycle" in problem


def test_a_step_without_out_has_one_result_of_its_own(project: Path) -> None:
    found = plan(project, command("s")).instances["s"]
    assert found.outputs == {"out": None}


# ----------------------------------------------------------------------------------------- problems

WRONG = """\
pipeline:
  name: wrong
  steps:
    - id: one
      uses: runners.comand
    - id: two
      uses: runners.command
      params:
        command: "true"
        code: [missing.py]
      in: {data: data/trian.csv}
    - id: three
      uses: runners.command
      params: {command: "true"}
      out: ../outside
      env:
        secrets: [NEXA_NO_SUCH_SECRET]
    - id: four
      uses: core.registry.promote
      out: artifacts/four
      after: [thre]
      params: {name: m, version: 1, tag: prod}
    - id: five
      uses: runners.command
      scheduler: k8s
      params: {command: "true"}
"""


def test_all_problems_are_told_at_once_with_file_line_step_key_and_nearest(project: Path) -> None:
    file = project / "wrong.yaml"
    file.write_text(WRONG)
    with pytest.raises(SpecError) as found:
        Pipeline.from_yaml(file, project=project).plan()
    told = {(p.line, p.step, p.key): p.message for p in found.value.problems}
    assert {p.file for p in found.value.problems} == {str(file)}
    expected = {
        (5, "one", "uses"): "unknown handler 'runners.comand'; did you mean 'runners.command'?",
        (10, "two", "params.code"): "no such file or folder: missing.py",
        (11, "two", "in.data"): "no such file or folder, and no step has this `out`",
        (15, "three", "out"): "'../outside' leads outside the project root",
        (17, "three", "env.secrets"): "NEXA_NO_SUCH_SECRET is not set",
        (20, "four", "out"): "changes something elsewhere and has no files to put there",
        (21, "four", "after"): "unknown step 'thre'; did you mean 'three'?",
        (25, "five", "scheduler"): "nexa_hpc does not run on Kubernetes",
    }
    assert told.keys() == expected.keys()
    for place, words in expected.items():
        assert words in told[place]
    assert found.value.exit_code == 2


def test_problems_that_only_reading_shows_are_told_together(project: Path) -> None:
    (project / "nexa.yaml").write_text("paths: {hash_limit_gb: 1e-9}\n")
    (project / "big").write_text("xx")
    create_artifact(project / "made", lambda out: (out / "x").write_text("1"))
    (project / "made/x").unlink()
    (project / "run.py").write_text("more than one byte")
    found = problems(
        project,
        command("one", **{"in": {"x": "big", "y": "made", "z": "models:m@prod"}}),
        command("two", params={"code": ["run.py"]}),
    )
    assert [problem.split(": ")[:2] for problem in found] == [
        ["one", "in.x"],
        ["one", "in.y"],
        ["one", "in.z"],
        ["two", "params.code"],
    ]
    assert "paths.hash_limit_gb" in found[0]
    assert "digest: stat" in found[0]


def test_a_problem_above_an_effect_is_told_and_no_crash(project: Path) -> None:
    (project / "nexa.yaml").write_text("paths: {hash_limit_gb: 1e-9}\n")
    (project / "big").write_text("xx")
    register = {"id": "r", "uses": "core.registry.register", "params": {"name": "m", "uri": "a"}}
    below = command("b", after=["r"], **{"in": {"x": "a"}})
    found = problems(project, command("a", **{"in": "big"}), register, below)
    assert len(found) == 1
    assert found[0].startswith("a: in.input:")


def test_a_secret_that_is_set_is_no_problem_and_its_value_is_nowhere(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXA_SECRET", "canary-4711")
    found = plan(project, command("s", env={"secrets": ["NEXA_SECRET"]}))
    assert "canary-4711" not in repr(found)


def test_a_handler_of_the_user_that_is_wrong_is_a_problem_at_uses(project: Path) -> None:
    (project / "planning_wrong.py").write_text("def f(nonsense): ...\nx = 1\n")
    found = problems(
        project,
        {"id": "a", "uses": "planning_wrong:f"},
        {"id": "b", "uses": "planning_wrong:x"},
        {"id": "c", "uses": "planning_absent:f"},
    )
    assert "a: uses: planning_wrong:f: run() has no argument to offer for 'nonsense'" in found[0]
    assert "b: uses: planning_wrong:x: is neither a function" in found[1]
    assert "c: uses: cannot import 'planning_absent'" in found[2]
    assert "importable from the project root" in found[2]


def test_what_a_handlers_validate_yields_is_a_problem_at_its_key(project: Path) -> None:
    (found,) = problems(project, command("s", params={"checkpoint": {"glob": "x", "sginal": 1}}))
    assert found == "s: params.checkpoint.sginal: unknown key; did you mean 'signal'?"


def test_source_that_is_not_python_is_a_problem_at_uses(project: Path) -> None:
    (project / "planning_lazy.py").write_text("def f():\n    import planning_broken\n")
    (project / "planning_broken.py").write_text("def (:\n")
    (found,) = problems(project, {"id": "s", "uses": "planning_lazy:f"})
    assert re.match(r"s: uses: .*planning_broken\.py:1: not valid Python", found)


# -------------------------------------------------------------------------------------- unsupported


def test_what_this_version_does_not_do_is_a_not_implemented_error(project: Path) -> None:
    with pytest.raises(NotImplementedError) as found:
        plan(project, command("s", scheduler="k8s"))
    assert isinstance(found.value, UnsupportedError)
    assert isinstance(found.value, UserError)
    assert found.value.exit_code == 2
    assert "demo.yaml:1: step 's': " in str(found.value)
    words = "scheduler: scheduler 'k8s': nexa_hpc does not run on Kubernetes"
    assert words in str(found.value)


def test_a_scheduler_chosen_for_the_run_replaces_every_declared_one(project: Path) -> None:
    step = command("s", scheduler="slurm")
    found = plan(project, step, scheduler="local").instances["s"]
    assert found.scheduler == "local"
    assert found.document["scheduler"] == "slurm"
    with pytest.raises(UnsupportedError, match="k8s"):
        plan(project, command("s"), scheduler="k8s")


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (command("s", scheduler="k8s"), "Kubernetes"),
        (command("s", **{"in": "absent"}), "no such file or folder"),
    ],
)
def test_the_command_line_exits_with_2_and_no_traceback_and_writes_nothing(
    project: Path, run_cli: RunCli, step: dict[str, Any], told: str
) -> None:
    file = pipeline(project, step).file
    before = tree(project)
    done = run_cli("pipeline", "run", file, expect=2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(project) == before


# ------------------------------------------------------------------------------------------ writing


def test_planning_writes_nothing_but_the_memory_of_digests(project: Path) -> None:
    (project / "data").write_text("x")
    steps = [command("one", out="artifacts/one", **{"in": "data"}), command("two")]
    made = pipeline(project, *steps)
    before = tree(project)
    made.plan()
    made.plan(rerun_from="one")
    changed = {name for name in tree(project) if name not in before}
    assert all(name.startswith(".nexa_state/digests") or name == ".nexa_state" for name in changed)
    assert {name: tree(project)[name] for name in before} == before


def test_with_problems_not_even_the_memory_of_digests_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    (project / "data").write_text("x")
    create_artifact(project / "made", lambda out: (out / "x").write_text("1"))
    (project / "made/x").unlink()
    steps = [command("one", **{"in": "data"}), command("two", **{"in": "made"})]
    made = pipeline(project, *steps)
    before = tree(project)
    ahead = time.time() + 120  # so that digests would be remembered
    monkeypatch.setattr(time, "time", lambda: ahead)
    with pytest.raises(SpecError):
        made.plan()
    assert tree(project) == before
    pipeline(project, steps[0]).plan()
    assert any("digests" in name for name in tree(project))


# ---------------------------------------------------------------------------------- what is planned


def test_a_command_that_names_a_file_outside_its_key_is_warned_of(project: Path) -> None:
    for name in ("listed.py", "unlisted.py", "input.txt"):
        (project / name).write_text("")
    text = "python listed.py unlisted.py absent.py input.txt"
    found = plan(project, command("s", text, params={"code": ["listed.py"]}, **{"in": "input.txt"}))
    assert found.warnings == (
        "step 's': the command names unlisted.py, which is not in the key; list it in `code`",
    )


def test_labels_of_the_pipeline_and_the_step_are_recorded_the_steps_last(project: Path) -> None:
    steps = [Step(id="s", uses="runners.command", params={"command": "true"}, labels={"a": "2"})]
    made = Pipeline("p", steps, labels={"a": "1", "b": "1"}, project=project)
    assert made.plan().instances["s"].labels == {"a": "2", "b": "1"}


def test_what_planning_filled_in_is_recorded_for_people(project: Path) -> None:
    (project / "planning_resolves.py").write_text(
        "class Handler:\n"
        "    version, kind = 3, 'model'\n"
        "    def resolve(self, step):\n"
        "        return {**step.params, 'dataset': 'glue/sst2', 'batch': 8}\n"
        "    def run(self): ...\n"
        "handler = Handler()\n"
    )
    params = {"dataset": "glue", "epochs": 1}
    step = {"id": "s", "uses": "planning_resolves:handler", "params": params}
    found = plan(project, step).instances["s"]
    assert found.resolved == {"dataset": "glue/sst2", "batch": "8"}
    assert found.params == {"dataset": "glue/sst2", "epochs": 1, "batch": 8}
    assert found.document["params"] == found.params
    assert found.kind == "model"
    assert found.document["handler_version"] == "3"


def test_the_revision_of_a_hub_name_is_recorded_for_people_and_for_the_step(project: Path) -> None:
    (project / "planning_hub.py").write_text(
        "input_params = {'model': 'model'}\n"
        "def revision(kind, name): return f'{kind}-{name}-1'\n"
        "def run(params, revisions): ...\n"
        "import sys\n"
        "handler = sys.modules[__name__]\n"
    )
    step = {"id": "s", "uses": "planning_hub:handler", "params": {"model": "org/bert"}}
    found = plan(project, step).instances["s"]
    assert found.resolved == {"model": "revision model-org/bert-1"}
    assert found.inputs["model"] == {"revision": "model-org/bert-1"}
    assert found.document["params"] == {}
    assert found.params == {"model": "org/bert"}


def test_two_steps_of_one_module_read_its_imports_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(module: str, root: Path) -> list[Path]:
        asked.append(module)
        return imported_sources(module, root)

    monkeypatch.setattr(keying, "imported_sources", ask)
    (project / "planning_shared.py").write_text("def f(): ...\ndef g(): ...\n")
    one = {"id": "one", "uses": "planning_shared:f"}
    found = plan(project, one, {"id": "two", "uses": "planning_shared:g"}).instances
    assert found["one"].document["code"] == found["two"].document["code"] != {}
    assert found["one"].key != found["two"].key
    assert asked == ["planning_shared"]


def test_a_plan_knows_what_it_would_run(project: Path) -> None:
    made = pipeline(project, command("one"), command("two", **{"in": {"x": "one"}}))
    assert [i.step for i in made.plan().to_run()] == ["one", "two"]
    made.run()
    assert made.plan().to_run() == []
    assert [i.step for i in made.plan(rerun_from="two").to_run()] == ["two"]
