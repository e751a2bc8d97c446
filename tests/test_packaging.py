"""What is installed: every file of the package, the command, light dependencies, one version."""

from __future__ import annotations

import configparser
import importlib.util
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunCli

import nexa_hpc

FOLDERS = ("nexa_hpc", "sbatch_templates", "configs")
PLUGINS = "nexa_hpc/_hydra_plugins/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this checkout."""
    pytest.importorskip("hatchling", reason="the dev extra brings it")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (built,) = folder.iterdir()
    return zipfile.ZipFile(built)


def _read(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = [name for name in wheel.namelist() if name.endswith(ending)]
    return wheel.read(name).decode()


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    names = tracked.stdout.splitlines()
    assert packed == {place for name in names if (place := _installed(name)) is not None}
    assert "nexa_hpc/sbatch_templates/pipeline.sbatch" in packed
    assert "nexa_hpc/py.typed" in packed


def _installed(name: str) -> str | None:
    """Return where the wheel installs a file of the repository; None where it leaves it out."""
    if name.startswith(PLUGINS):
        below = name.removeprefix(PLUGINS)
        # Hydra's namespace package is shared: it has no `__init__.py`.
        return f"hydra_plugins/{below}" if "/" in below else None
    if name.startswith("configs/"):
        return f"nexa_hpc/_{name}"
    return name if name.startswith("nexa_hpc") else f"nexa_hpc/{name}"


def test_the_command_and_its_license_are_declared(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(_read(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"nexa-hpc": "nexa_hpc.cli.main:main"}
    assert "Apache License" in _read(wheel, "licenses/LICENSE")
    metadata = Parser().parsestr(_read(wheel, ".dist-info/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    assert metadata["Version"] == nexa_hpc.__version__


def test_the_core_is_light_and_the_rest_are_extras(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(_read(wheel, ".dist-info/METADATA"))
    required = metadata.get_all("Requires-Dist") or []
    core = {re.split(r"[<>=\[ ;]", line)[0] for line in required if "extra ==" not in line}
    assert core == {"click", "rich", "pyyaml", "pydantic", "submitit", "hydra-core"}
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "axolotl", "demo", "dev", "hf", "serve", "vllm",
    }  # fmt: skip


def test_every_dependency_says_why_it_is_there() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    tables = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line for line in tables.splitlines() if line.startswith('    "')]
    assert len(lines) > 20
    assert [line for line in lines if "#" not in line and "nexa-hpc[" not in line] == []


def test_the_change_log_has_a_place_for_what_comes() -> None:
    log = (REPOSITORY / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in log


@pytest.mark.parametrize("module", ["nexa_hpc", "nexa_hpc.cli.orchestrate"])
def test_the_modules_are_the_same_program_as_the_command(
    module: str, run_cli: RunCli, project: Path
) -> None:
    assert importlib.util.find_spec(module) is not None
    by_module = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_module.stdout == run_cli("--version").stdout
    assert nexa_hpc.__version__ in by_module.stdout
