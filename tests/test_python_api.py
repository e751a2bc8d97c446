"""The Python interface: pipelines made in Python or read from a file, and a user's own handlers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunCli, child_environment
from flows import Flow

PIPELINE = """\
from nexa_hpc import Pipeline, Step

COUNT = '''wc -l < $IN_words > $OUT/n
echo '{"lines": 2}' > $OUT/metrics.json'''

def pipeline(rate=2e-5):
    return Pipeline(
        "words",
        steps=[
            Step(
                id="count",
                uses="runners.command",
                inputs={"words": "words.txt"},
                out="out/count",
                params={"command": COUNT},
            ),
            Step(
                id="train",
                uses="runners.command",
                inputs={"counted": "count"},
                params={"rate": rate, "command": "echo $PARAM_rate > $OUT/model"},
            ),
        ],
    )
"""

HANDLER = '''\
"""A step of one's own: counts words."""

import json


class CountWords:
    version = "2"
    kind = "word_counts"

    def validate(self, step):
        if not isinstance(step.params.get("least"), int):
            yield "params.least", "expected a number of letters"

    def run(self, inputs, out_dir, work_dir, params, progress):
        words = inputs["text"].read_text().split()
        (work_dir / "scratch").write_text("not published")
        counts = {}
        for number, word in enumerate(words):
            if len(word) >= params["least"]:
                counts[word] = counts.get(word, 0) + 1
            progress(number + 1, len(words), unit="words")
        (out_dir / "counts.json").write_text(json.dumps(counts))
        (out_dir / "metrics.json").write_text(json.dumps({"distinct": len(counts)}))


count_words = CountWords()


def shout(inputs, out_dir):
    text = (inputs["counts"] / "counts.json").read_text()
    print("shouting")
    (out_dir / "loud.txt").write_text(text.upper())


def fail():
    raise RuntimeError("no luck today")
'''


@pytest.fixture
def flow(project: Path) -> Flow:
    (project / "words.txt").write_text("to be or not to be\nthat is\n")
    return Flow(project)


def python(flow: Flow, code: str, expect: int = 0) -> str:
    """Run a script in the project and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE + code],
        cwd=flow.project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + (done.stderr if expect else "")


def test_a_pipeline_made_in_python_is_planned_run_and_cached(flow: Flow) -> None:
    told = python(
        flow,
        """
plan = pipeline().plan()
print([(i.step, i.action) for i in plan.instances.values()])
run = pipeline().run()
print(run.id, run.succeeded, run.metrics("count"), run.metrics("train"))
print((run.result("count") / "n").read_text(), run.result("train").joinpath("model").read_text())
again = pipeline().run()
print({step: standing.state.value for step, standing in again.status().items()})
print([i.reason for i in pipeline(3e-5).plan().to_run()])
""",
    )
    lines = told.splitlines()
    assert lines[0] == "[('count', 'RUN'), ('train', 'RUN')]"
    assert lines[1] == "words-1 True {'lines': 2} {}"
    assert lines[2:5] == ["2", " 2e-05", ""]
    assert lines[5] == "{'count': 'SKIPPED', 'train': 'SKIPPED'}"
    assert "params.rate" in lines[6]


def test_the_command_line_knows_a_run_made_in_python(flow: Flow, run_cli: RunCli) -> None:
    python(flow, "pipeline().run()")
    assert "(made in Python)" in run_cli("list").stdout
    assert run_cli("status").stdout.startswith("run words-1: 2 COMPLETED")
    assert "train: SKIP: cached: words-1" in run_cli("why", "train").stdout
    assert "count  [runners.command]  SKIP" in run_cli("viz").stdout
    assert "2 COMPLETED" in run_cli("resume").stdout
    assert "train: COMPLETED" in run_cli("rerun", "--from", "train").stdout


def test_a_failed_step_is_told_by_the_result_and_mistakes_raise(flow: Flow) -> None:
    told = python(
        flow,
        """
from nexa_hpc.errors import ArtifactError, SpecError, UnknownNameError, UserError

run = Pipeline("bad", [Step(id="a", uses="runners.command", params={"command": "exit 3"})]).run()
print(run.succeeded, run.status()["a"].state.value, run.status()["a"].message)
for act in (
    lambda: run.result("a"),
    lambda: run.result("b"),
    lambda: Step(id="a b", uses="x", nonsense=1),
    lambda: Pipeline("bad", [Step(id="a", uses="runners.comand")]).plan(),
    lambda: Pipeline.from_yaml("nowhere.yaml"),
):
    try:
        act()
    except (ArtifactError, SpecError, UnknownNameError, UserError) as error:
        print(type(error).__name__, str(error).replace(chr(10), " / "))
""",
    )
    lines = told.splitlines()
    assert lines[0] == "False FAILED the command exited with 3"
    assert lines[1].startswith("ArtifactError")
    assert lines[2].startswith("UnknownNameError no step 'b'")
    assert lines[3].startswith("SpecError") and "nonsense" in lines[3] and "id" in lines[3]
    assert "did you mean 'runners.command'?" in lines[4]
    assert lines[5] == "UserError no such pipeline file: nowhere.yaml"


def own_steps(flow: Flow, **params: object) -> Path:
    """Write a pipeline of the user's own handlers, and the module that holds them."""
    (flow.project / "own").mkdir(exist_ok=True)
    (flow.project / "own/__init__.py").touch()
    (flow.project / "own/steps.py").write_text(HANDLER)
    count = {
        "id": "count",
        "uses": "own.steps:count_words",
        "in": {"text": "words.txt"},
        "out": "out/counts",
        "params": {"least": 3, **params},
    }
    shout = {
        "id": "shout",
        "uses": "own.steps:shout",
        "in": {"counts": "out/counts"},
        "out": "out/loud",
    }
    return flow.write(count, shout)


def test_a_handler_of_ones_own_runs_like_a_built_in_one(flow: Flow, run_cli: RunCli) -> None:
    done = run_cli("run", own_steps(flow))
    assert "shouting" in done.stdout and "2 COMPLETED" in done.stdout
    assert (flow.project / "out/loud/loud.txt").read_text() == '{"NOT": 1, "THAT": 1}'
    assert sorted(p.name for p in (flow.project / "out/counts").iterdir()) == [
        "COMPLETE",
        "counts.json",
        "meta.json",
        "metrics.json",
    ]
    assert "2 SKIPPED" in run_cli("run", flow.file).stdout
    module = flow.project / "own/steps.py"
    module.write_text(module.read_text().replace("upper()", "title()"))
    assert "code own/steps.py changed" in run_cli("plan", flow.file).stdout
    run_cli("run", flow.file)
    assert (flow.project / "out/loud/loud.txt").read_text() == '{"Not": 1, "That": 1}'


def test_a_handlers_own_checks_are_reported_with_the_others(flow: Flow, run_cli: RunCli) -> None:
    file = own_steps(flow, least="three")
    document = file.read_text().replace("own.steps:shout", "own.steps:shot")
    file.write_text(document)
    done = run_cli("plan", file, expect=2)
    assert "step 'count': params.least: expected a number of letters" in done.stderr
    assert "has no 'shot'; did you mean 'shout'?" in done.stderr


def test_what_a_handler_raises_is_in_the_log_with_its_traceback(
    flow: Flow, run_cli: RunCli
) -> None:
    own_steps(flow)
    flow.write({"id": "fail", "uses": "own.steps:fail"})
    done = run_cli("run", flow.file, expect=1)
    assert "step 'fail' FAILED (exception): RuntimeError: no luck today" in done.stdout
    assert 'own/steps.py", line' in run_cli("logs", "fail").stdout
