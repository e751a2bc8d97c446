"""A step in an environment of its own: venv, conda, interpreter, modules, setup, container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from flows import Flow, Process, alive, pids_in, until
from planned import command, instance, plan

from nexa_hpc.core import environments
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.errors import SpecError, UnsupportedError
from nexa_hpc.schedulers.launching import (
    describe_exit,
    needs_process,
    worker_command,
    worker_environment,
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

TELLS = (
    '"$PYTHON" -c "import importlib.util, json, os, sys; json.dump({'
    "'prefix': sys.prefix, 'yaml': bool(importlib.util.find_spec('yaml')), "
    "'env': dict(os.environ)}, open(os.environ['OUT'] + '/told.json', 'w'))\""
)


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it: neither nexa_hpc nor anything that it asks for."""
    folder = tmp_path_factory.mktemp("environments") / "venv with space"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def told(flow: Flow, run_cli: RunCli, env: dict[str, Any], **of_process: str) -> dict[str, Any]:
    """Run a step in `env` that tells which Python it has, and return that."""
    run_cli("run", flow.write(flow.step("a", TELLS, out="out/a", env=env)), env=of_process)
    found: dict[str, Any] = json.loads((flow.project / "out/a/told.json").read_text())
    return found


# ------------------------------------------------------------------------------------- interpreters


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_step_runs_in_its_venv_which_needs_nothing_of_ours(
    flow: Flow, run_cli: RunCli, venv: Path, jobs: str
) -> None:
    steps = [
        # What is found of ours must have been brought along, not handed down.
        flow.step(
            "inside", TELLS, out="out/inside", env={"venv": str(venv), "setup": "unset PYTHONPATH"}
        ),
        flow.step("outside", TELLS, out="out/outside"),
    ]
    run_cli("run", flow.write(*steps), "--jobs", jobs)
    inside, outside = (
        json.loads((flow.project / f"out/{name}/told.json").read_text())
        for name in ("inside", "outside")
    )
    assert (inside["prefix"], inside["yaml"]) == (str(venv), False)
    assert inside["env"]["VIRTUAL_ENV"] == str(venv)
    assert inside["env"]["PATH"].split(":")[0] == f"{venv}/bin"
    assert (outside["prefix"], outside["yaml"]) == (sys.prefix, True)
    assert flow.states() == {"inside": "COMPLETED", "outside": "COMPLETED"}


def test_a_handler_of_the_project_runs_in_the_venv_with_its_modules(
    flow: Flow, run_cli: RunCli, venv: Path
) -> None:
    (flow.project / "steps.py").write_text(
        "def work(out_dir, progress):\n"
        "    import only_there\n"
        "    progress(1, 2)\n"
        "    (out_dir / 'x').write_text(only_there.WORD)\n"
    )
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "only_there.py").write_text("WORD = 'found'")
    step = {"id": "w", "uses": "steps:work", "out": "out/w", "env": {"venv": str(venv)}}
    lines = run_cli("run", flow.write(step), "--json").stdout.splitlines()
    assert (flow.project / "out/w/x").read_text() == "found"
    (progress,) = [e for e in map(json.loads, lines) if e["event"] == "progress"]
    assert (progress["done"], progress["total"]) == (1, 2)


def test_another_release_of_ours_in_the_environment_is_not_the_one_that_runs(
    flow: Flow, run_cli: RunCli, venv: Path
) -> None:
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "nexa_hpc").mkdir(exist_ok=True)
    (site / "nexa_hpc/__init__.py").write_text("raise RuntimeError('an old one')\n")
    try:
        env = {"venv": str(venv), "setup": "unset PYTHONPATH"}
        assert told(flow, run_cli, env)["prefix"] == str(venv)
    finally:
        shutil.rmtree(site / "nexa_hpc")


def test_a_conda_environment_is_entered_by_path_and_by_name(
    flow: Flow, run_cli: RunCli, venv: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "envs/train"
    script(prefix / "bin/python", f'exec "{venv}/bin/python" "$@"')
    script(prefix / "etc/conda/activate.d/b.sh", 'export ACTIVATED="$CONDA_PREFIX"; false')
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta/state").write_text(json.dumps({"env_vars": {"KEPT": "by conda"}}))
    by_path = told(flow, run_cli, {"conda": str(prefix)})["env"]
    assert (by_path["ACTIVATED"], by_path["KEPT"]) == (str(prefix), "by conda")
    assert (by_path["CONDA_PREFIX"], by_path["CONDA_DEFAULT_ENV"]) == (str(prefix), "train")
    flow.write(flow.step("a", TELLS, out="out/a", env={"conda": "train"}, cache_hint=1))
    run_cli("run", flow.file, env={"CONDA_ENVS_DIRS": str(tmp_path / "envs")})
    by_name = json.loads((flow.project / "out/a/told.json").read_text())["env"]
    assert by_name["ACTIVATED"] == str(prefix)


def test_an_interpreter_is_taken_by_path_or_by_name(
    flow: Flow, run_cli: RunCli, venv: Path, tmp_path: Path
) -> None:
    (flow.project / "tools").symlink_to(venv)
    assert told(flow, run_cli, {"python": "tools/bin/python"})["yaml"] is False
    script(tmp_path / "bin/mypython", f'exec "{venv}/bin/python" "$@"')
    flow.write(flow.step("a", TELLS, out="out/a", env={"python": "mypython"}, cache_hint=1))
    run_cli("run", flow.file, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert json.loads((flow.project / "out/a/told.json").read_text())["prefix"] == str(venv)


def test_setup_is_literal_runs_first_and_may_bring_the_python(
    flow: Flow, run_cli: RunCli, venv: Path, tmp_path: Path
) -> None:
    sourced = script(tmp_path / "site.sh", "false\ntrue")
    text = f"""\
    . '{sourced}'   # fails within, as such files do, and succeeds
    export QUOTED='it''s ${{not.ours}} $(id -u x 2>/dev/null)' HERE=$(cat <<'END'
    it's "here"
    END
    )
    if true; then
      . '{venv}/bin/activate'
    fi
    """
    found = told(flow, run_cli, {"setup": textwrap.dedent(text)})
    assert found["prefix"] == str(venv)
    assert found["env"]["QUOTED"] == "its ${not.ours} $(id -u x 2>/dev/null)"
    assert found["env"]["HERE"] == 'it\'s "here"'


def test_setup_that_brings_no_python_leaves_ours(flow: Flow, run_cli: RunCli) -> None:
    found = told(flow, run_cli, {"setup": ["export ONE=1", "export TWO=2"]})
    assert found["prefix"] == sys.prefix
    assert (found["env"]["ONE"], found["env"]["TWO"]) == ("1", "2")


def test_variables_are_there_while_the_environment_is_entered(flow: Flow, run_cli: RunCli) -> None:
    env = {"setup": "export SEEN=$FLAVOUR", "variables": {"FLAVOUR": "two words; $x"}}
    assert told(flow, run_cli, env)["env"]["SEEN"] == "two words; $x"


# ------------------------------------------------------------------------------------------ modules

MODULES = """\
module() {
  case $2 in
    good/1) export MODULE_GOOD=1; PATH="$GOOD_BIN:$PATH" ;;
    *) echo "Lmod has detected the following error: unknown $2" >&2; return 1 ;;
  esac
}
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell on a site with modules: `module` is a function of login shells."""
    init = tmp_path / "modules/init/bash"
    init.parent.mkdir(parents=True)
    init.write_text(MODULES)
    return {"MODULESHOME": str(tmp_path / "modules"), "GOOD_BIN": str(tmp_path / "good")}


def test_modules_are_loaded_where_only_login_shells_have_module(
    flow: Flow, run_cli: RunCli, site: dict[str, str], venv: Path
) -> None:
    found = told(flow, run_cli, {"modules": ["good/1"]}, **site)
    assert (found["env"]["MODULE_GOOD"], found["prefix"]) == ("1", sys.prefix)
    # A module that brings a Python is loaded for it.
    script(Path(site["GOOD_BIN"]) / "python3", f'exec "{venv}/bin/python" "$@"')
    flow.write(flow.step("a", TELLS, out="out/a", env={"modules": ["good/1"]}, cache_hint=1))
    run_cli("run", flow.file, env=site)
    assert json.loads((flow.project / "out/a/told.json").read_text())["prefix"] == str(venv)


def test_what_cannot_be_entered_fails_the_step_and_says_why(
    flow: Flow, run_cli: RunCli, site: dict[str, str]
) -> None:
    envs: dict[str, dict[str, Any]] = {
        "env.modules: `module load bad/2` failed": {"modules": ["good/1", "bad/2"]},
        "env.setup: exit code 1 from: test -e /nowhere": {"setup": "test -e /nowhere"},
        "env.setup: exit code 1 from: . /nowhere": {"setup": ["true", ". /nowhere", "true"]},
        "env.conda: no environment 'zz' was found, and there is no `conda`": {
            "conda": "zz",
            "setup": "true",
        },
    }
    steps = [flow.step(f"s{n}", env=env, after=[]) for n, env in enumerate(envs.values())]
    run_cli("run", flow.write(*steps), env=site, expect=1)
    told_ = [entry["message"] for entry in flow.steps().values()]
    assert told_ == [f"its environment could not be entered: {words}" for words in envs]
    assert "unknown bad/2" in run_cli("logs", "s0").stdout
    assert flow.executed() == []


# ----------------------------------------------------------------------------------------- planning


def problems(project: Path, env: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(SpecError) as found:
        plan(project, command("s", env=env, **fields))
    return str(found.value)


def test_what_this_host_lacks_is_a_mistake_at_planning(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    old = script(tmp_path / "old/python", "echo 3 9")
    broken = script(tmp_path / "broken", "echo 'libpython3.so: not found' >&2; exit 127")
    assert f"env.venv: there is no interpreter {project}/v/bin/python" in problems(
        project, {"venv": "v"}
    )
    assert "env.conda: no conda environment is named 'zz'" in problems(project, {"conda": "zz"})
    assert "env.python: no 'python9' is on PATH" in problems(project, {"python": "python9"})
    assert f"{old} is Python 3.9; a step takes 3.10 or later" in problems(
        project, {"python": str(old)}
    )
    assert f"{broken} does not run: libpython3.so: not found" in problems(
        project, {"python": str(broken)}
    )
    assert "env.container: no such image: x.sif" in problems(project, {"container": "x.sif"})
    if not shutil.which("apptainer") and not shutil.which("singularity"):
        assert "neither apptainer nor singularity is on PATH" in problems(
            project, {"container": "docker://python:3.12"}
        )
    assert "env.setup: bash cannot read it" in problems(project, {"setup": "if true; then"})
    assert "env.venv: a container brings its own Python" in problems(
        project, {"container": "docker://x", "venv": "v"}
    )


def test_what_the_nodes_may_have_is_a_warning(project: Path) -> None:
    found = dict(environments.missing({"venv": "v"}, project))
    assert set(found) == {"env.venv"}
    step = command("s", env={"venv": "v"}, scheduler="slurm")
    try:
        warnings = plan(project, step).warnings
    except UnsupportedError:
        pytest.skip("this version has no scheduler but `local`")
    assert any("env.venv: there is no interpreter" in warning for warning in warnings)


def test_what_modules_may_bring_is_not_missed_at_planning(
    project: Path, site: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environments._has_module.cache_clear()
    monkeypatch.setenv("MODULESHOME", site["MODULESHOME"])
    for brought in ({"python": "python9"}, {"conda": "zz"}, {"container": "docker://x"}):
        assert plan(project, command("s", env={"modules": ["m"], **brought}))
    environments._has_module.cache_clear()


def test_a_python_too_old_for_a_step_is_named_where_planning_could_not_ask(
    flow: Flow, run_cli: RunCli, tmp_path: Path
) -> None:
    # What an old Python does with the same words: it fails at the first of them.
    old = tmp_path / "old"
    old.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "code = sys.argv[2]; sys.argv = sys.argv[2:]\n"
        "sys.version_info = (3, 6, 8); sys.version = '3.6.8 (default)'; sys.executable = __file__\n"
        "exec(code)\n"
    )
    old.chmod(0o755)
    step = flow.step("a", env={"python": str(old), "setup": "true"})
    run_cli("run", flow.write(step), expect=1)
    message = flow.steps()["a"]["message"]
    assert message == (
        f"its environment could not be entered: {old} is Python 3.6.8; a step takes 3.10 or later"
    )


def test_params_that_only_the_environments_library_knows_are_checked_in_it(
    flow: Flow, run_cli: RunCli, venv: Path
) -> None:
    (site,) = venv.glob("lib/python*/site-packages")
    fake = site / "transformers"
    fake.mkdir(exist_ok=True)
    (fake / "__init__.py").touch()
    (fake / "training_args.py").write_text(
        "class TrainingArguments:\n    strange_rate: float = 0.1\n"
    )
    yaml = Path(pytest.importorskip("yaml").__file__).parent
    if not (site / "yaml").exists():
        (site / "yaml").symlink_to(yaml)
    (flow.project / "m").mkdir()
    (flow.project / "m/x").touch()
    try:
        params = {"model": "m", "dataset": "m", "strange_rat": 1, "max_length": "no"}
        step = {"id": "t", "uses": "runners.train", "params": params, "env": {"venv": str(venv)}}
        refused = run_cli("run", flow.write(step), expect=2).stderr
        assert "params.max_length: expected a whole number above 0" in refused
        assert "strange" not in refused
        del params["max_length"]
        run_cli("run", flow.write(step), expect=1)
        message = flow.steps()["t"]["message"]
        assert message == "params.strange_rat: unknown name 'strange_rat'; did you mean " + (
            "'strange_rate'?"
        )
    finally:
        shutil.rmtree(fake)
        (site / "yaml").unlink()


# ------------------------------------------------------------------------------- keys and processes


def test_the_environment_is_not_in_the_key_and_why_shows_that_it_changed(
    flow: Flow, run_cli: RunCli, venv: Path
) -> None:
    flow.write(flow.step("a", "true", out="out/a"))
    run_cli("run", flow.file)
    flow.write(flow.step("a", "true", out="out/a", env={"venv": str(venv)}))
    run_cli("run", flow.file)
    assert flow.states() == {"a": "SKIPPED"}
    flow.write(flow.step("a", "true", out="out/a", env={"venv": str(venv)}, cache_hint=2))
    run_cli("run", flow.file)
    flow.write(flow.step("a", "true", out="out/a", env={"setup": "true"}, cache_hint=3))
    assert f"not in the key: env.venv: removed (was {venv})"[:50] in run_cli("why", "a").stdout


def test_with_one_job_all_steps_run_one_after_the_other(
    flow: Flow, run_cli: RunCli, venv: Path
) -> None:
    note = "touch on.{n}; ls on.* | wc -l >> seen; sleep 0.2; rm on.{n}"
    steps = [
        flow.step(f"s{n}", note.format(n=n), after=[], env={"venv": str(venv)} if n % 2 else {})
        for n in range(4)
    ]
    run_cli("run", flow.write(*steps))
    assert (flow.project / "seen").read_text().split() == ["1"] * 4
    assert flow.executed() == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_step_in_an_environment_outlives_its_driver(
    flow: Flow, run_cli: RunCli, venv: Path, number: int
) -> None:
    pids = flow.project / "pids"
    step = flow.step("a", f"echo $$ >> {pids}; sleep 60", env={"venv": str(venv)})
    driver = Process(flow.project, "run", flow.write(step))
    until(lambda: pids_in(pids))
    driver.send(number)
    driver.wait(expect=None)
    until(lambda: not alive(pids_in(pids)))
    if number != signal.SIGKILL:
        assert flow.states() == {"a": "CANCELLED"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_environment_that_was_being_entered(
    flow: Flow, run_cli: RunCli, number: int
) -> None:
    pids = flow.project / "pids"
    setup = f"echo $$ >> {pids}; sleep 1.5; touch {flow.project}/entered"
    driver = Process(flow.project, "run", flow.write(flow.step("a", env={"setup": setup})))
    until(lambda: pids_in(pids))
    driver.send(number)
    driver.wait(expect=None)
    until(lambda: not alive(pids_in(pids)))
    time.sleep(0.1)
    assert flow.executed() == []


# --------------------------------------------------------------------------------------- containers

# Parses what apptainer does; what is not bound is not there, and the rest runs on the host.
APPTAINER = """\
#!{python}
import os, sys
arguments = sys.argv[1:]
assert arguments.pop(0) == "exec", sys.argv
binds, options = [], []
while arguments[0].startswith("-"):
    option = arguments.pop(0)
    if option == "--nv":
        options.append(option)
        continue
    value = arguments.pop(0)
    if option == "--bind":
        source, target, *flags = value.split(":")
        assert source == target and os.path.exists(source) and flags in ([], ["ro"]), value
        binds.append(source)
    else:
        assert option == "--pwd", option
        os.chdir(value)
image, *inner = arguments
with open(os.environ["SEEN"], "a") as seen:
    seen.write(" ".join([image, *options]) + "\\n")
for word in inner[3:]:
    path = word.partition("#")[0]
    if path.startswith("/") and not any(
        (path + "/").startswith(bind + "/") or (bind + "/").startswith(path + "/")
        for bind in binds
    ):
        sys.exit("not in the container: " + path)
os.environ["APPTAINER_CONTAINER"] = image
inner[0] = os.environ["INNER"] if inner[0] == "python3" else inner[0]
os.execv(inner[0], inner)
"""


@pytest.fixture
def apptainer(tmp_path: Path, venv: Path) -> dict[str, str]:
    program = tmp_path / "programs/apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER.format(python=sys.executable))
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "SEEN": str(tmp_path / "seen"),
        "INNER": str(venv / "bin/python"),
    }


def test_a_step_runs_inside_its_container(
    flow: Flow, run_cli: RunCli, apptainer: dict[str, str], venv: Path
) -> None:
    (flow.project / "image.sif").touch()
    outside = flow.project.parent / "data.txt"
    outside.write_text("x")
    step = flow.step(
        "a",
        TELLS,
        out="out/a",
        env={"container": "image.sif", "variables": {"ONE": "1"}},
        resources={"gpus_per_node": 1},
        **{"in": {"data": str(outside)}},
    )
    run_cli("run", flow.write(step), env=apptainer)
    found = json.loads((flow.project / "out/a/told.json").read_text())
    assert (found["prefix"], found["env"]["ONE"]) == (str(venv), "1")
    assert Path(apptainer["SEEN"]).read_text() == f"{flow.project}/image.sif --nv\n"


def test_a_container_sees_the_project_the_store_and_our_package(tmp_path: Path) -> None:
    paths = ProjectPaths.at(tmp_path / "p", store=str(tmp_path / "elsewhere"))
    inputs = {"in": {"path": str(tmp_path / "d")}, "below": {"path": str(tmp_path / "p/d")}}
    made = instance(env={"container": "docker://python:3.12"}, inputs=inputs)
    (_, _, text) = worker_command("ref#s#1", made, paths)
    binds = [word for word in text.split() if word.startswith(str(tmp_path)) and ":" in word]
    assert binds[: len(binds) // 2] == [
        f"{tmp_path}/p:{tmp_path}/p",
        f"{tmp_path}/elsewhere:{tmp_path}/elsewhere",
        f"{tmp_path}/d:{tmp_path}/d:ro",
    ]
    assert "nexa_hpc:ro --pwd" in text
    assert "docker://python:3.12 python3 -c" in text
    assert "--nv" not in text
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_that_cannot_be_bound_fails_the_step(
    flow: Flow, run_cli: RunCli, apptainer: dict[str, str]
) -> None:
    odd = flow.project.parent / "a:b"
    odd.write_text("x")
    step = flow.step("a", env={"container": "docker://x"}, **{"in": {"odd": str(odd)}})
    run_cli("run", flow.write(step), env=apptainer, expect=1)
    assert f"the name of {odd} holds ':' or ','" in flow.steps()["a"]["message"]


# --------------------------------------------------------------------------------------- signatures


def test_a_step_without_an_environment_needs_no_process_and_gets_this_python(
    tmp_path: Path,
) -> None:
    plain = instance(env={"variables": {"A": "1"}, "secrets": ["B"]})
    paths = ProjectPaths.at(tmp_path)
    assert not needs_process(plain)
    assert worker_command("ref", plain, paths)[:2] == [sys.executable, "-c"]
    assert worker_environment(plain, paths) == {}
    assert needs_process(instance(env={"setup": ["true"]}))


def test_values_of_variables_are_in_no_argv(tmp_path: Path) -> None:
    made = instance(env={"setup": ["true"], "variables": {"A": "hidden-value"}})
    paths = ProjectPaths.at(tmp_path)
    assert not any("hidden-value" in word for word in worker_command("ref", made, paths))
    assert worker_environment(made, paths) == {"A": "hidden-value"}


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(3) == "its worker process exited with 3"
    assert describe_exit(-9) == "its worker process was killed by SIGKILL (out of memory?)"
    assert describe_exit(78, "error: no module\n") == (
        "its environment could not be entered: no module"
    )
