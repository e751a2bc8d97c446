"""`nexa-hpc run` and what follows from it, as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunCli, child_environment
from flows import Flow, Process, StepDict, until


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def chain(flow: Flow, rate: float = 2e-5) -> list[StepDict]:
    """prepare → train → report, each reading the one before."""
    (flow.project / "words.txt").write_text("good\nbad\n")
    return [
        flow.step(
            "prepare", "sort $IN_words > $OUT/x", out="out/data", **{"in": {"words": "words.txt"}}
        ),
        flow.step(
            "train",
            "cp $IN_data/x $OUT/model; echo rate is $PARAM_learning_rate",
            out="out/model",
            params={"learning_rate": rate},
            **{"in": {"data": "out/data"}},
        ),
        flow.step(
            "report",
            "cat $IN_model/model > $OUT/report",
            out="out/report",
            **{"in": {"model": "out/model"}},
        ),
    ]


def test_a_pipeline_runs_once_and_is_skipped_afterwards(flow: Flow, run_cli: RunCli) -> None:
    file = flow.write(*chain(flow))
    first = run_cli("pipeline", "run", file)
    assert flow.executed() == ["prepare", "train", "report"]
    assert "3 COMPLETED" in first.stdout and "rate is 2e-05" in first.stdout
    second = run_cli("pipeline", "run", file)
    assert flow.executed() == []
    assert "3 SKIPPED" in second.stdout
    assert set(flow.states().values()) == {"SKIPPED"}


def test_out_is_a_relative_link_into_the_store(flow: Flow, run_cli: RunCli) -> None:
    run_cli("run", flow.write(*chain(flow)))
    link = flow.project / "out/report"
    assert link.is_symlink() and not os.readlink(link).startswith("/")
    assert (link / "report").read_text() == "bad\ngood\n"
    assert {"meta.json", "COMPLETE"} < set(os.listdir(link))


def test_a_parameter_changed_and_changed_back_is_a_cache_hit(flow: Flow, run_cli: RunCli) -> None:
    run_cli("run", flow.write(*chain(flow, 2e-5)))
    first = (flow.project / "out/model").resolve()
    run_cli("run", flow.write(*chain(flow, 3e-5)))
    assert flow.executed() == ["prepare", "train", "report", "train", "report"]
    assert (flow.project / "out/model").resolve() != first
    run_cli("run", flow.write(*chain(flow, 2e-5)))
    assert flow.executed() == []
    assert (flow.project / "out/model").resolve() == first


def test_the_state_file_holds_status_and_cache_key(flow: Flow, run_cli: RunCli) -> None:
    run_cli("run", flow.write(*chain(flow)))
    for step, entry in flow.steps().items():
        assert entry["status"] == "COMPLETED"
        meta = json.loads(
            (
                flow.project
                / f"artifacts/.store/{entry['cache_key'][:2]}/{entry['cache_key']}/meta.json"
            ).read_text()
        )
        assert meta["made_by"]["step"] == step


def test_a_failing_step_blocks_what_is_below_it_and_nothing_else(
    flow: Flow, run_cli: RunCli
) -> None:
    file = flow.write(
        flow.step("first"),
        flow.step("broken", "echo so far so good; exit 7", out="out/broken", after=["first"]),
        flow.step("below", **{"in": "out/broken"}, after=[]),
        flow.step("ordered", after=["below"]),
        flow.step("apart", after=["first"]),
    )
    done = run_cli("run", file, expect=1)
    assert flow.executed() == ["first", "broken", "apart"]
    assert flow.states() == {
        "first": "COMPLETED",
        "broken": "FAILED",
        "below": "BLOCKED",
        "ordered": "BLOCKED",
        "apart": "COMPLETED",
    }
    assert "step 'broken' FAILED (exception): the command exited with 7" in done.stdout
    assert "| so far so good" in done.stdout
    assert ".nexa_state/flow/runs/flow-1/logs/broken.1.log" in done.stdout
    assert "nexa-hpc pipeline rerun flow.yaml --from broken" in done.stdout
    assert not (flow.project / "out/broken").exists()


def test_a_failed_step_is_tried_again_by_run_and_by_resume(flow: Flow, run_cli: RunCli) -> None:
    file = flow.write(flow.step("flaky", "test -e ../mended"), flow.step("below"))
    run_cli("run", file, expect=1)
    run_cli("run", file, expect=1)
    (flow.project.parent / "mended").touch()
    done = run_cli("resume", file)
    assert flow.executed() == ["flaky", "flaky", "flaky", "below"]
    assert "flaky: RUNNING (attempt 3)" in done.stdout


def test_resuming_a_file_that_never_ran_runs_it(flow: Flow, run_cli: RunCli) -> None:
    run_cli("resume", flow.write(flow.step("first")))
    assert flow.executed() == ["first"]
    run_cli("resume", flow.file)
    assert flow.executed() == []
    assert "has run here: none.yaml" in run_cli("resume", "none.yaml", expect=2).stderr


def test_every_problem_is_told_at_once_and_nothing_is_written(flow: Flow, run_cli: RunCli) -> None:
    flow.file.write_text(
        """\
pipeline:
  name: flow
  steps:
    - id: a
      uses: runners.comand
      params: {command: "true"}
    - id: b
      uses: runners.command
      in: {x: nowhere.txt}
      params: {command: ""}
    - id: c
      uses: runners.command
      afterr: [a]
      out: ../escape
      params: {command: "true"}
"""
    )
    done = run_cli("run", flow.file, expect=2)
    for told in (
        "flow.yaml:5: step 'a': uses: unknown handler 'runners.comand'; did you mean",
        "flow.yaml:9: step 'b': in.x: no such file",
        "flow.yaml:10: step 'b': params.command: is missing",
        "flow.yaml:13: step 'c': afterr: unknown key 'afterr'; did you mean 'after'?",
        "flow.yaml:14: step 'c': out: '../escape' leads outside",
    ):
        assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(flow.project)) == ["flow.yaml", "nexa.yaml"]


def test_what_this_version_cannot_do_is_refused_before_anything_runs(
    flow: Flow, run_cli: RunCli
) -> None:
    done = run_cli(
        "run", flow.write(flow.step("fine"), flow.step("cloud", scheduler="k8s")), expect=2
    )
    assert "does not run on Kubernetes" in done.stderr
    assert "Traceback" not in done.stderr
    assert flow.executed() == [] and not (flow.project / ".nexa_state").exists()


def test_a_folder_of_the_users_at_out_stays_as_it_is(flow: Flow, run_cli: RunCli) -> None:
    mine = flow.project / "out/data/thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    done = run_cli("run", flow.write(*chain(flow)), expect=2)
    assert "'out/data' is a folder that nexa_hpc did not make; it is left alone" in done.stderr
    assert mine.read_text() == "years of work" and flow.executed() == []


def test_a_folder_made_at_out_while_the_step_runs_stays_as_it_is(
    flow: Flow, run_cli: RunCli
) -> None:
    file = flow.write(flow.step("a", "mkdir -p out/data; echo mine > out/data/x", out="out/data"))
    done = run_cli("run", file, expect=3)
    assert "out/data is not a link of nexa_hpc; it is left alone" in done.stderr
    assert "nexa-hpc pipeline resume flow-1" in done.stderr
    assert (flow.project / "out/data/x").read_text() == "mine\n"
    os.rename(flow.project / "out/data", flow.project / "mine")
    run_cli("resume")
    assert flow.executed() == ["a"] and (flow.project / "out/data").is_symlink()


def test_a_name_that_another_file_used_last_is_refused_unless_adopted(
    flow: Flow, run_cli: RunCli
) -> None:
    run_cli("run", flow.write(flow.step("a")))
    other = flow.project / "other.yaml"
    other.write_text(flow.file.read_text())
    done = run_cli("run", other, expect=2)
    assert "'flow' was last used by flow.yaml" in done.stderr and "--adopt" in done.stderr
    run_cli("run", other, "--adopt")
    assert flow.executed() == ["a"]


def test_rerun_from_computes_a_step_and_all_below_it_and_nothing_else(
    flow: Flow, run_cli: RunCli
) -> None:
    file = flow.write(
        flow.step("top", out="out/top"),
        flow.step("middle", "date +%N > $OUT/x", out="out/middle", after=[], **{"in": "out/top"}),
        flow.step("reads", after=[], **{"in": "out/middle"}),
        flow.step("ordered", after=["reads"]),
        flow.step("apart", after=["top"]),
    )
    run_cli("run", file)
    flow.executed()
    old = (flow.project / "out/middle").resolve()
    kept = (old / "x").read_text()
    done = run_cli("pipeline", "rerun", file, "--from", "middle")
    assert sorted(flow.executed()) == ["middle", "ordered", "reads"]
    assert "middle: RUNNING: rerun was asked for" in done.stdout
    assert (flow.project / "out/middle").resolve() != old
    assert (old / "x").read_text() == kept
    run_cli("artifacts", "show", old.name)
    run_cli("run", file)
    assert flow.executed() == []


def test_rerun_of_an_unknown_step_names_the_nearest(flow: Flow, run_cli: RunCli) -> None:
    run_cli("run", flow.write(*chain(flow)))
    done = run_cli("rerun", flow.file, "--from", "trian", expect=2)
    assert "no step 'trian'; did you mean 'train'?" in done.stderr


@pytest.mark.parametrize("edited", ["while it waits", "while it runs"])
def test_an_input_edited_meanwhile_fails_the_step_and_publishes_nothing(
    flow: Flow, run_cli: RunCli, edited: str
) -> None:
    words = flow.project / "words.txt"
    words.write_text("good\n")
    edit = f"echo worse >> {words}"
    file = flow.write(
        flow.step("before", edit if edited == "while it waits" else "true"),
        flow.step(
            "reader",
            f"cp $IN_words $OUT/x; {edit if edited == 'while it runs' else 'true'}",
            out="out/x",
            **{"in": {"words": "words.txt"}},
        ),
    )
    done = run_cli("run", file, expect=1)
    entry = flow.steps()["reader"]
    assert (entry["status"], entry["reason"]) == ("FAILED", "input_changed")
    assert "words.txt) changed after planning" in done.stdout
    assert not (flow.project / "out/x").exists()
    store = [json.loads(run_cli("artifacts", "list", "--json").stdout)]
    assert [entry["by"] for entry in store[0]] == ["flow-1/before"]
    assert flow.count("reader") == (0 if edited == "while it waits" else 1)


def test_a_purged_result_is_recomputed(flow: Flow, run_cli: RunCli) -> None:
    file = flow.write(*chain(flow))
    run_cli("run", file)
    flow.executed()
    (flow.project / "out/model/model").unlink()
    assert "its result was purged: model is gone" in run_cli("plan", file).stdout
    run_cli("run", file)
    assert flow.executed() == ["train"]
    assert (flow.project / "out/model/model").read_text() == "bad\ngood\n"


def test_a_purged_result_that_could_not_be_recomputed_is_tried_again_by_run_and_by_resume(
    flow: Flow, run_cli: RunCli
) -> None:
    run_cli("run", flow.write(flow.step("only", "test ! -e stop && echo x > $OUT/file", out="o")))
    (flow.project / "o/file").unlink()
    (flow.project / "stop").touch()
    flow.executed()
    for verb in ("run", "run", "resume"):
        run_cli(verb, flow.file, expect=1)
        assert flow.executed() == ["only"]
    (flow.project / "stop").unlink()
    run_cli("resume", flow.file)
    assert flow.executed() == ["only"]
    assert "1 COMPLETED" in run_cli("status").stdout


def test_a_result_purged_between_planning_and_running_is_recomputed(
    flow: Flow, run_cli: RunCli
) -> None:
    run_cli("run", flow.write(*chain(flow)))
    flow.executed()
    run_cli("run", flow.file)
    (flow.project / "out/data/x").unlink()
    run_cli("resume")
    assert flow.executed() == ["prepare"]


def test_it_runs_from_a_subfolder_and_from_elsewhere(
    flow: Flow, run_cli: RunCli, tmp_path: Path
) -> None:
    flow.write(*chain(flow))
    below = flow.project / "a/b"
    below.mkdir(parents=True)
    done = run_cli("run", "../../flow.yaml", cwd=below)
    assert f"project: {flow.project}" in done.stderr
    assert run_cli("status", cwd=below).stdout.startswith("run flow-1: 3 COMPLETED")
    elsewhere = run_cli("--project", flow.project, "run", flow.file, cwd=tmp_path)
    assert "3 SKIPPED" in elsewhere.stdout
    assert not (tmp_path / ".nexa_state").exists()


def test_the_original_specifications_commands_work(flow: Flow) -> None:
    file = flow.write(*chain(flow))
    for verb in ("run", "resume", "viz"):
        done = subprocess.run(
            [sys.executable, "-m", "nexa_hpc.cli.orchestrate", "pipeline", verb, file],
            cwd=flow.project,
            env=child_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert flow.executed() == ["prepare", "train", "report"]


def test_a_step_with_several_outputs_publishes_each(flow: Flow, run_cli: RunCli) -> None:
    file = flow.write(
        flow.step(
            "split",
            "echo 1 > $OUT_train/x; echo 2 > $OUT_test/x",
            out={"train": "out/train", "test": "out/test"},
        ),
        flow.step("by_path", "cp $IN_input/x $OUT", out="out/a", **{"in": "out/test"}),
        flow.step("by_id", "cp $IN_input $OUT", out="out/b", **{"in": "split/train/x"}),
    )
    run_cli("run", file)
    assert [(flow.project / f"out/{name}/x").read_text() for name in "ab"] == ["2\n", "1\n"]
    (flow.project / "out/test/x").unlink()
    flow.executed()
    run_cli("run", file)
    assert flow.executed() == ["split"]


def test_an_effect_is_skipped_while_it_holds(flow: Flow, run_cli: RunCli) -> None:
    register = {
        "id": "register",
        "uses": "core.registry.register",
        "params": {"name": "words", "uri": "train"},
    }
    promote = {
        "id": "promote",
        "uses": "core.registry.promote",
        "params": {"name": "words", "version": "latest", "tag": "production"},
    }
    file = flow.write(*chain(flow), register, promote)
    run_cli("run", file)
    assert flow.states()["promote"] == "COMPLETED"
    again = run_cli("run", file)
    assert flow.states() == dict.fromkeys(flow.states(), "SKIPPED")
    assert "register: SKIPPED: holds: " in again.stdout
    assert run_cli("models", "resolve", "words@production").stdout.strip().startswith("/")


def test_a_reader_that_goes_away_does_not_stop_the_run(flow: Flow) -> None:
    file = flow.write(
        flow.step("a", "seq 20000; sleep 0.3; echo still here"), flow.step("b", "exit 1")
    )
    shell = f"{sys.executable} -m nexa_hpc run {file} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=flow.project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert flow.executed() == ["a", "b"] and flow.states()["a"] == "COMPLETED"
    log = flow.project / ".nexa_state/flow/runs/flow-1/logs/a.1.log"
    assert log.read_text().endswith("still here\n")


def test_json_lines_tell_all_that_happens(flow: Flow, run_cli: RunCli) -> None:
    file = flow.write(flow.step("a", "printf 'é'; echo"), flow.step("b", "exit 3"))
    done = run_cli("run", file, "--json", expect=1)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0] == {"event": "run", "run": "flow-1", "pipeline": "flow", "steps": ["a", "b"]}
    settled = {e["step"]: (e["state"], e["reason"]) for e in events if e["event"] == "settled"}
    assert settled == {"a": ("COMPLETED", None), "b": ("FAILED", "exception")}
    assert "é" in "".join(e["text"] for e in events if e["event"] == "output")


def test_a_running_step_shows_its_output_as_it_comes(flow: Flow, project: Path) -> None:
    file = flow.write(flow.step("a", "echo begun; until [ -e ../go ]; do sleep 0.05; done"))
    process = Process(project, "run", file)
    try:
        until(lambda: "begun\n" in process.text(), "the step's first line")
        assert flow.states() == {"a": "RUNNING"}
        (project.parent / "go").touch()
        assert "a: COMPLETED" in process.wait()
    finally:
        if process.running():
            process.kill()
