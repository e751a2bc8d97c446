"""What a command of a `runners.command` step finds in its environment, and how its end is told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from flows import Flow


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def dumped(flow: Flow, run_cli: RunCli, **fields: Any) -> dict[str, str]:
    """Run a step that writes its whole environment into its result, and return it."""
    dump = '"$PYTHON" -c "import json, os; print(json.dumps(dict(os.environ)))" > $OUT/env.json'
    run_cli("run", flow.write(flow.step("a", dump, out="out/a", **fields)))
    found: dict[str, str] = json.loads((flow.project / "out/a/env.json").read_text())
    return found


def test_params_arrive_as_variables(flow: Flow, run_cli: RunCli) -> None:
    params = {
        "text": "two words, 'quoted' \"twice\" $HOME ${HOME} `id`",
        "empty": "",
        "count": 3,
        "rate": 2e-5,
        "large": 123456789012345678901234567890,
        "yes": True,
        "nothing": None,
        "nested": {"layers": [1, 2, {"name": "é"}], "on": False},
        "with-dash.and dot": "odd",
        "2nd": "digit",
        "größe": "umlaut",
    }
    env = dumped(flow, run_cli, params=params)
    assert env["PARAM_text"] == params["text"]
    assert env["PARAM_empty"] == ""
    assert env["PARAM_count"] == "3"
    assert float(env["PARAM_rate"]) == 2e-5
    assert env["PARAM_large"] == "123456789012345678901234567890"
    assert env["PARAM_yes"] == "true"
    assert env["PARAM_nothing"] == "null"
    assert json.loads(env["PARAM_nested"]) == params["nested"]
    assert env["PARAM_with_dash_and_dot"] == "odd"
    assert env["PARAM_2nd"] == "digit"
    assert env["PARAM_gr__e"] == "umlaut"
    assert "PARAM_command" not in env


def test_the_folders_of_the_step_and_its_inputs_are_named(flow: Flow, run_cli: RunCli) -> None:
    (flow.project / "data").mkdir()
    (flow.project / "data/x").touch()
    env = dumped(flow, run_cli, **{"in": {"raw-data": "data", "one": "data/x"}})
    assert env["IN_raw_data"] == str(flow.project / "data")
    assert env["IN_one"] == str(flow.project / "data/x")
    assert env["OUT"].startswith(str(flow.project / "artifacts/.store"))
    assert env["WORK"].startswith(str(flow.project / ".nexa_state/work"))
    assert env["RESUME"] == ""
    assert env["PYTHON"] == sys.executable
    assert env["PWD"] == str(flow.project)


def test_declared_variables_of_the_environment_arrive(flow: Flow, run_cli: RunCli) -> None:
    assert dumped(flow, run_cli, env={"variables": {"SEED": "7 $x"}})["SEED"] == "7 $x"


def test_the_text_of_a_command_is_literal(flow: Flow, run_cli: RunCli) -> None:
    command = """\
    name=world
    echo "hello ${name}" '${not.ours}' '{{nor}}' '%(this)s' "it's" '"x"' > $OUT/x
    cat >> $OUT/x <<'END'
    ${oc.env:HOME} $(id)
END
    """
    run_cli("run", flow.write(flow.step("a", command, out="out/a")))
    expected = 'hello world ${not.ours} {{nor}} %(this)s it\'s "x"\n    ${oc.env:HOME} $(id)\n'
    assert (flow.project / "out/a/x").read_text() == expected


def test_a_command_that_fails_says_how(flow: Flow, run_cli: RunCli) -> None:
    ends = {
        "exit 7": "the command exited with 7",
        "false | true": "the command exited with 1",
        "false\ntrue": "the command exited with 1",
        "nosuchprogram": "the command exited with 127",
        "kill -SEGV $$": "the command was killed by SIGSEGV",
        "kill -KILL $$": "the command was killed by SIGKILL, most likely for want of memory",
    }
    steps = [flow.step(f"s{n}", command, after=[]) for n, command in enumerate(ends)]
    run_cli("run", flow.write(*steps), expect=1)
    assert [entry["message"] for entry in flow.steps().values()] == list(ends.values())


def test_what_a_command_leaves_in_the_background_ends_with_it(flow: Flow, run_cli: RunCli) -> None:
    left = flow.project.parent / "left"
    straggler = f"(sleep 1; echo late > $OUT/late; touch {left}) &"
    run_cli("run", flow.write(flow.step("a", f"{straggler}\necho x > $OUT/x", out="out/a")))
    assert sorted(p.name for p in (flow.project / "out/a").iterdir()) == [
        "COMPLETE",
        "meta.json",
        "x",
    ]
    run_cli("artifacts", "verify")
    assert not left.exists()


def test_a_changed_file_of_code_gives_a_new_result(flow: Flow, run_cli: RunCli) -> None:
    script = flow.project / "scripts/count.sh"
    script.parent.mkdir()
    script.write_text("echo 1 > $OUT/x\n")
    file = flow.write(
        flow.step("a", "sh scripts/count.sh", out="out/a", params={"code": ["scripts"]})
    )
    run_cli("run", file)
    run_cli("run", file)
    assert flow.executed() == ["a"]
    script.write_text("echo 2 > $OUT/x\n")
    assert "code scripts changed" in run_cli("plan", file).stdout
    run_cli("run", file)
    assert flow.executed() == ["a"]
    assert (flow.project / "out/a/x").read_text() == "2\n"


def test_a_script_that_the_key_would_not_notice_is_warned_of(flow: Flow, run_cli: RunCli) -> None:
    (flow.project / "count.sh").write_text("true\n")
    done = run_cli("plan", flow.write(flow.step("a", "sh count.sh")))
    assert "step 'a': the command names count.sh, which is not in the key" in done.stderr


def test_wrong_params_are_refused_by_name(flow: Flow, run_cli: RunCli) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "params.command: is missing": {"command": 5},
        "params.code: expected a list": {"code": "x.py"},
        "params.code: no such file or folder: nowhere.py": {"code": ["nowhere.py"]},
        "params.code: ../up lies outside the project": {"code": ["../up"]},
        "params.checkpoint: expected {glob": {"checkpoint": {"globb": "*"}},
        "params.checkpoint.sig: unknown key; did you": {"checkpoint": {"glob": "*", "sig": 1}},
        "no such signal: USR9": {"checkpoint": {"glob": "*", "signal": "USR9"}},
        "params.checkpoint.glob: must stay below $WORK": {"checkpoint": {"glob": "../*"}},
        "params.a_b: becomes $PARAM_a_b, as 'a-b' does": {"a-b": 1, "a_b": 2},
    }
    steps = [flow.step(f"s{n}", params=params) for n, params in enumerate(wrong.values())]
    told = run_cli("plan", flow.write(*steps), expect=2).stderr
    for number, problem in enumerate(wrong):
        assert re.search(rf"step 's{number}': .*{re.escape(problem)}", told), told


def test_a_nul_in_the_command_is_a_problem_and_no_crash(project: Path, run_cli: RunCli) -> None:
    text = "echo \\0 > $OUT/x"
    step = f'{{id: a, uses: runners.command, params: {{command: "{text}"}}}}'
    (project / "p.yaml").write_text(f"pipeline: {{name: p, steps: [{step}]}}\n")
    told = run_cli("plan", "p.yaml", expect=2).stderr
    assert "holds a NUL character" in told and "Traceback" not in told
