"""The commands around a run: plan, why, status, logs, list, viz, artifacts, help and completion."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import RunCli, child_environment
from flows import Flow, Process, StepDict, until

VERBS = ["run", "plan", "resume", "rerun", "status", "logs", "why", "viz", "cancel", "list"]
ARTIFACT_VERBS = ["list", "show", "verify"]
WAIT = "until [ -e ../go ]; do sleep 0.05; done"


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def steps(flow: Flow, rate: float = 2e-5) -> list[StepDict]:
    """train → report, and eval beside report."""
    train = "echo learning at $PARAM_learning_rate; echo 123456 > $OUT/weights"
    return [
        flow.step("train", train, out="out/model", params={"learning_rate": rate}),
        flow.step("report", **{"in": "out/model"}),
        flow.step("eval", after=["train"]),
    ]


@pytest.fixture
def done(flow: Flow, run_cli: RunCli) -> Flow:
    """A pipeline that has run."""
    run_cli("run", flow.write(*steps(flow)))
    return flow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """A pipeline that has run, in a project that several tests read and none changes."""
    project = tmp_path_factory.mktemp("finished") / "project"
    project.mkdir()
    (project / "nexa.yaml").touch()
    flow = Flow(project)
    Process(project, "run", flow.write(*steps(flow))).wait()
    return flow


@pytest.fixture
def process(flow: Flow) -> Iterator[Process]:
    """A run in the background, whose step has printed `begun` and waits for `../go`."""
    file = flow.write(
        flow.step("slow", f"echo begun; {WAIT}; echo ended"),
        flow.step("last", "echo the last step"),
    )
    started = Process(flow.project, "run", file)
    until(lambda: "begun" in started.text(), "the step's first line")
    yield started
    if started.running():
        started.kill()


def test_plan_says_for_each_step_what_and_why_and_writes_nothing(
    flow: Flow, run_cli: RunCli
) -> None:
    file = flow.write(*steps(flow))
    before = sorted(os.listdir(flow.project))
    assert re.search(r"train +RUN +[0-9a-f]{8} +no result yet", run_cli("plan", file).stdout)
    assert run_cli("run", "--dry-run", file).stdout == run_cli("plan", file).stdout
    assert sorted(os.listdir(flow.project)) == before
    run_cli("run", file)
    assert re.search(r"train +SKIP +[0-9a-f]{8} +cached: flow-1", run_cli("plan", file).stdout)
    flow.write(*steps(flow, 3e-5))
    told = run_cli("plan", file, "--json").stdout
    planned = {step["step"]: step for step in json.loads(told)["steps"]}
    assert planned["train"]["action"] == "RUN"
    assert "learning_rate" in planned["train"]["reason"]
    assert planned["report"]["reason"] == "input input: step 'train' has another result"
    assert planned["eval"]["action"] == "SKIP"


def test_why_shows_each_field_that_differs(done: Flow, run_cli: RunCli) -> None:
    assert "train: SKIP: cached: flow-1" in run_cli("why", "train").stdout
    changed = steps(done, 3e-5)
    changed[0] |= {"cache_hint": "v2", "resources": {"mem_gb": 8.0}}
    done.write(*changed)
    told = run_cli("why", "train").stdout
    assert re.search(r"params\.learning_rate: 2e-0?5 → 3e-0?5", told)
    assert "cache_hint: null → v2" in told
    assert "not in the key: resources.mem_gb: added, 8" in told
    assert run_cli("why", "train", "--key").stdout.count('"learning_rate"') == 1
    missed = run_cli("why", "trian", expect=2)
    assert "no step 'trian'; did you mean 'train'?" in missed.stderr


def test_status_tells_a_person_and_a_script(done: Flow, run_cli: RunCli) -> None:
    told = run_cli("status")
    assert f"project: {done.project}" in told.stderr
    assert told.stdout.startswith("run flow-1: 3 COMPLETED\n")
    assert re.search(r"^train +COMPLETED +1 +\d+\.\d s$", told.stdout, re.MULTILINE)
    for name in ("flow", "flow-1", "flow.yaml"):
        assert json.loads(run_cli("status", name, "--json").stdout)["run"] == "flow-1"
    assert json.loads(run_cli("status", "--json").stdout)["steps"] == done.steps()


def test_status_watches_until_the_run_has_settled(process: Process, flow: Flow) -> None:
    watch = Process(flow.project, "status", "--watch")
    until(lambda: re.search(r"slow +RUNNING", watch.text()), "the first table")
    (flow.project.parent / "go").touch()
    assert watch.wait().rstrip().splitlines()[-1].startswith("last  COMPLETED")


def test_logs_follow_a_step_to_its_end(process: Process, flow: Flow) -> None:
    follow = Process(flow.project, "logs", "slow", "-f")
    until(lambda: "begun" in follow.text(), "the first line")
    assert follow.running()
    (flow.project.parent / "go").touch()
    assert follow.wait().endswith("begun\nended\n")


def test_logs_follow_a_step_that_has_not_started(process: Process, flow: Flow) -> None:
    follow = Process(flow.project, "logs", "last", "-f")
    until(lambda: "waiting until step 'last' starts" in follow.text(), "that it waits")
    (flow.project.parent / "go").touch()
    assert follow.wait().endswith("the last step\n")


def test_logs_of_every_attempt_stay(flow: Flow, run_cli: RunCli) -> None:
    count = "echo x >> ../count; echo attempt $(wc -l < ../count); test $(wc -l < ../count) = 2"
    run_cli("run", flow.write(flow.step("a", count), flow.step("b")), expect=1)
    assert "has not been started" in run_cli("logs", "b", expect=2).stderr
    run_cli("resume")
    assert run_cli("logs", "a").stdout == "attempt 2\n"
    assert "attempt 1\n" in run_cli("logs", "a", "flow-1", "--attempt", "1").stdout
    path = Path(run_cli("logs", "a", "--path").stdout.strip())
    assert path.read_text() == "attempt 2\n"
    missed = run_cli("logs", "a", "--attempt", "9", expect=2)
    assert "has no attempt 9" in missed.stderr
    # A cached step shows the log of the run that made it.
    run_cli("run", flow.file)
    assert run_cli("logs", "a").stdout == "attempt 2\n"


def test_list_names_every_run(done: Flow, run_cli: RunCli) -> None:
    run_cli("run", done.file)
    told = run_cli("list").stdout.splitlines()
    assert [line.split()[0] for line in told] == ["RUN", "flow-1", "flow-2"]
    assert "3 SKIPPED" in told[2]
    assert [run["run"] for run in json.loads(run_cli("list", "--json").stdout)] == [
        "flow-1",
        "flow-2",
    ]


def test_commands_in_an_empty_project_say_what_to_do(run_cli: RunCli) -> None:
    assert "nothing has run here yet" in run_cli("list").stdout
    assert "the store is empty" in run_cli("artifacts", "list").stdout
    for verb in ("status", "resume", "cancel", "viz"):
        assert "hint: nexa-hpc pipeline run FILE" in run_cli(verb, expect=2).stderr


def test_viz_draws_the_graph_in_four_ways(finished: Flow, run_cli: RunCli) -> None:
    def viz(*args: str) -> str:
        return run_cli("viz", *args, cwd=finished.project).stdout

    tree = viz().splitlines()
    assert tree[0].startswith("train  [runners.command]  SKIP")
    assert tree[1].startswith("├─ report") and tree[2].startswith("└─ eval")
    mermaid = viz("--format", "mermaid")
    assert mermaid.startswith("flowchart TD\n") and "s0 --> s1" in mermaid
    dot = viz("flow.yaml", "--format", "dot")
    assert dot.startswith("digraph") and '"train" -> "report";' in dot
    svg = ElementTree.fromstring(viz("--format", "svg"))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"train", "report", "eval"} < set(texts)
    assert len([*svg.iter("{http://www.w3.org/2000/svg}path")]) == 2


def test_artifacts_are_listed_shown_and_verified(done: Flow, run_cli: RunCli) -> None:
    listed = json.loads(run_cli("artifacts", "list", "--json").stdout)
    assert {entry["by"] for entry in listed} == {f"flow-1/{s}" for s in ("train", "report", "eval")}
    key = done.steps()["train"]["cache_key"]
    for name in (key, key[:8], "out/model"):
        shown = json.loads(run_cli("artifacts", "show", name).stdout)
        assert shown["step_key"] == key and shown["key"]["params"]["learning_rate"] == 2e-5
    assert "3 whole, 0 damaged" in run_cli("artifacts", "verify").stdout
    weights = done.project / "out/model/weights"
    weights.chmod(0o600)
    weights.write_text("123457\n")
    damaged = run_cli("artifacts", "verify", expect=3)
    assert "weights: its content is not what was published" in damaged.stdout
    assert "2 whole, 1 damaged" in damaged.stdout
    missed = run_cli("artifacts", "show", "nothing", expect=2)
    assert "hint: nexa-hpc artifacts list" in missed.stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["pipeline"],
        ["artifacts"],
        ["models"],
        *[["pipeline", verb] for verb in VERBS],
        *[["artifacts", verb] for verb in ARTIFACT_VERBS],
    ],
    ids=" ".join,
)
def test_every_command_has_an_example_in_its_help(run_cli: RunCli, command: list[str]) -> None:
    told = run_cli(*command, "--help").stdout
    assert re.search(r"Example:\n +nexa-hpc ", told)


def test_the_exit_codes_are_documented(run_cli: RunCli) -> None:
    told = run_cli("--help").stdout
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"^ +{code} +\w", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["statu"], "No such command 'statu'; did you mean 'status'?"),
        (["pipeline", "rum"], "did you mean 'run'?"),
        (["run"], "Missing argument 'FILE'"),
        (["run", "nowhere.yaml"], "no such pipeline file: nowhere.yaml"),
        (["status", "--jsn"], "No such option"),
        (["status", "flw"], "did you mean 'flow'?"),
        (["logs", "trian"], "no step 'trian'; did you mean 'train'?"),
        (["--project", "nowhere", "list"], "--project nowhere: no such folder"),
    ],
)
def test_mistakes_on_the_command_line_exit_with_2(
    finished: Flow, run_cli: RunCli, args: list[str], told: str
) -> None:
    failed = run_cli(*args, cwd=finished.project, expect=2)
    assert told in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], ["status"]),
        (["pipeline", "re"], ["resume", "rerun"]),
        (["status", "flow-"], ["flow-1"]),
        (["logs", "tr"], ["train"]),
        (["pipeline", "rerun", "flow.yaml", "--from", "re"], ["report"]),
        (["viz", "--format", "m"], ["mermaid"]),
        (["artifacts", "v"], ["verify"]),
    ],
    ids=" ".join,
)
def test_the_shell_completes(
    finished: Flow, run_cli: RunCli, words: list[str], offered: list[str]
) -> None:
    env = {
        "_NEXA_HPC_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["nexa-hpc", *words]),
        "COMP_CWORD": str(len(words)),
    }
    lines = run_cli(cwd=finished.project, env=env, expect=None).stdout.split()
    found = [line.partition(",")[2] for line in lines if line.startswith("plain,")]
    assert found == offered


def test_a_reader_that_has_seen_enough_is_no_failure(finished: Flow) -> None:
    shell = f"{sys.executable} -m nexa_hpc status | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", shell], cwd=finished.project, env=child_environment(), capture_output=True
    )
    assert ended.returncode == 0 and ended.stderr.count(b"\n") == 1


def on_a_terminal(flow: Flow, *args: str) -> tuple[int, str]:
    """Run `nexa-hpc ARGS` on a terminal of its own; return its exit code and what it showed."""
    terminal, inside = pty.openpty()
    env = child_environment(TERM="xterm", COLUMNS="100", LINES="40")
    process = subprocess.Popen(
        [sys.executable, "-m", "nexa_hpc", *args],
        cwd=flow.project,
        env=env,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
    except OSError:
        pass  # Linux says EIO when the last process has closed the terminal.
    os.close(terminal)
    return process.wait(120), shown.decode()


def test_a_terminal_shows_a_live_table_and_ends_with_it(flow: Flow) -> None:
    slow = r"echo from the step; printf '10 %%\r20 %%\r'; sleep 0.6; printf '30 %%\n'"
    file = flow.write(flow.step("first", slow), flow.step("broken", "exit 4"), flow.step("below"))
    code, shown = on_a_terminal(flow, "run", str(file))
    assert code == 1
    assert "first │ " in shown and "from the step" in shown
    assert "0 of 3 steps done" in shown
    assert re.search(r"first +\S*RUNNING.*20 %", shown), "a progress bar is the step's note"
    assert "10 %" not in shown and "30 %" in shown
    end = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown[shown.rindex("3 of 3 steps done") :])
    assert re.search(r"first +COMPLETED +0\.\d s", end)
    assert re.search(r"broken +FAILED +0\.\d s +the command exited with 4", end)
    assert re.search(r"below +BLOCKED +step 'broken' failed", end)
    assert "run flow-1: 1 COMPLETED, 1 FAILED, 1 BLOCKED" in end
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is given back"


def test_a_terminal_shows_status_in_colours(finished: Flow) -> None:
    code, shown = on_a_terminal(finished, "status")
    assert code == 0 and "\x1b[32mCOMPLETED" in shown
