"""What changes between planning and publishing: inputs, code, results that are purged meanwhile.

A file edited while its step waits or runs is in `test_run_cli`; here is the rest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import RunCli
from flows import Flow


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def published(flow: Flow) -> list[str]:
    """Return the steps whose results are whole in the store, or were once."""
    metas = flow.project.glob("artifacts/.store/??/*/meta.json")
    return sorted(json.loads(meta.read_text())["made_by"]["step"] for meta in metas)


CHANGES = {
    "edited": "echo worse > data/one",
    "one more": "echo new > data/three",
    "one less": "rm data/two",
    "renamed": "mv data/two data/deux",
    "gone": "rm -r data",
    "below": "echo deep > data/deep/x",
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_changed_while_its_reader_runs_publishes_nothing(
    flow: Flow, run_cli: RunCli, change: str, jobs: str
) -> None:
    data = flow.project / "data"
    (data / "deep").mkdir(parents=True)
    for name in ("one", "two", "deep/x"):
        (data / name).write_text(name)
    reads = f"ls $IN_data > $OUT/x; if [ ! -e ../once ]; then touch ../once; {CHANGES[change]}; fi"
    file = flow.write(
        flow.step("reader", reads, out="out/x", **{"in": {"data": "data"}}),
        flow.step("below", "cp $IN_input/x $OUT", out="out/y", after=[], **{"in": "out/x"}),
    )
    done = run_cli("run", file, "--jobs", jobs, expect=1)
    entry = flow.steps()["reader"]
    assert (entry["status"], entry["reason"]) == ("FAILED", "input_changed")
    assert "changed after planning; nothing was published" in done.stdout
    assert published(flow) == [] and not os.path.lexists(flow.project / "out/x")
    assert flow.states()["below"] == "BLOCKED"
    data.mkdir(exist_ok=True)
    run_cli("run", file)
    assert published(flow) == ["below", "reader"]
    names = sorted(os.listdir(data))
    assert (flow.project / "out/y/x").read_text().split() == names


def test_resume_keeps_refusing_an_input_that_is_not_what_was_planned(
    flow: Flow, run_cli: RunCli
) -> None:
    words = flow.project / "words.txt"
    words.write_text("good\n")
    file = flow.write(
        flow.step("before", f"test -e ../go || echo worse >> {words}; test -e ../go"),
        flow.step("reader", "cp $IN_words $OUT/x", out="out/x", **{"in": {"words": "words.txt"}}),
    )
    run_cli("run", file, expect=1)
    (flow.project.parent / "go").touch()
    done = run_cli("resume", expect=1)
    assert "words.txt) changed after planning" in done.stdout
    assert "run the pipeline again" in done.stdout
    assert published(flow) == ["before"] and flow.count("reader") == 0
    run_cli("run", file)
    assert (flow.project / "out/x/x").read_text() == "good\nworse\n"


def test_code_edited_while_its_step_waits_is_not_run(flow: Flow, run_cli: RunCli) -> None:
    script = flow.project / "work.sh"
    script.write_text("echo 1 > $OUT/x\n")
    file = flow.write(
        flow.step("before", "test -e ../go || echo 'echo 2 > $OUT/x' > work.sh"),
        flow.step("works", "bash work.sh", out="out/x", params={"code": ["work.sh"]}),
    )
    run_cli("run", file, expect=1)
    entry = flow.steps()["works"]
    assert (entry["status"], entry["reason"]) == ("FAILED", "input_changed")
    assert "code work.sh changed after planning" in entry["message"]
    assert flow.executed() == ["before"] and published(flow) == ["before"]
    run_cli("run", file)
    assert (flow.project / "out/x/x").read_text() == "2\n"


def two_steps(flow: Flow) -> Path:
    return flow.write(
        flow.step("top", "echo 1 > $OUT/x; echo 2 > $OUT/y", out="out/top"),
        flow.step("below", "cat $IN_input/x > $OUT/z", out="out/below", after=[], **{"in": "top"}),
    )


PURGES = {
    "a file": ("rm x", "x is gone"),
    "a short file": (": > x", "x has 0 bytes, not 2"),
    "meta.json": ("rm meta.json", "meta.json is gone"),
    "another meta.json": ("echo {} > meta.json", "COMPLETE does not match meta.json"),
}


@pytest.mark.parametrize("purge", PURGES)
def test_a_purged_result_is_shown_as_purged_and_made_again(
    flow: Flow, run_cli: RunCli, purge: str
) -> None:
    file = two_steps(flow)
    run_cli("run", file)
    flow.executed()
    command, reason = PURGES[purge]
    assert os.system(f"cd {flow.project}/out/top && {command}") == 0
    told = f"its result was purged: {reason}"
    assert told in run_cli("plan", file).stdout
    assert told in run_cli("status").stdout
    run_cli("run", file)
    assert flow.executed() == ["top"]
    assert (flow.project / "out/top/x").read_text() == "1\n"
    assert "purged" not in run_cli("status").stdout


def test_a_result_purged_while_what_reads_it_waits_is_made_again_by_the_next_run(
    flow: Flow, run_cli: RunCli
) -> None:
    purge = "test -e ../once || rm out/top/x; touch ../once"
    file = flow.write(
        flow.step("top", "echo 1 > $OUT/x", out="out/top"),
        flow.step("purges", purge, after=["top"]),
        flow.step("below", "cp $IN_input/x $OUT", out="out/b", after=["purges"], **{"in": "top"}),
    )
    done = run_cli("run", file, expect=1)
    assert flow.states()["below"] == "FAILED"
    assert "input input: step 'top' has no result" in done.stdout
    assert flow.executed() == ["top", "purges"]
    run_cli("resume")
    assert flow.executed() == ["top", "below"]
    assert (flow.project / "out/b/x").read_text() == "1\n"
