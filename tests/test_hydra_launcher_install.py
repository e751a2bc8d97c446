"""The launcher as pip installs it: from a wheel and from a checkout, at no cost to other apps."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hydra_apps import LAUNCHER, HydraApp, hydra_app, hydra_launcher, plugin_folder

__all__ = ["hydra_app", "hydra_launcher", "plugin_folder"]

# What pip calls to build either; it is unpacked as pip unpacks it.
BUILD = "from hatchling import build; print(build.build_{kind}({folder!r}))"
PLAIN = """
import sys, hydra

@hydra.main(version_base=None)
def main(cfg):
    print(*sorted(sys.modules))

main()
"""


@pytest.fixture(scope="module", params=["wheel", "editable"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What has nexa_hpc installed, as PYTHONPATH."""
    pytest.importorskip("hatchling", reason="the dev extra brings it")
    folder = tmp_path_factory.mktemp(request.param)
    program = BUILD.format(kind=request.param, folder=str(folder))
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    added = [line for file in site.glob("*.pth") for line in file.read_text().splitlines()]
    assert bool(added) == (request.param == "editable")
    return os.pathsep.join([str(site), *added])


def _run(path: str, cwd: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "app.py", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_another_app_of_hydra_pays_for_a_light_import_alone(path: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PLAIN)
    loaded = set(_run(path, tmp_path).split())
    assert "hydra_plugins.nexa_launcher.launcher" in loaded
    assert not {m.partition(".")[0] for m in loaded} & {
        "nexa_hpc", "submitit", "pydantic", "cloudpickle", "click", "rich",
    }  # fmt: skip


@pytest.mark.slurm
@pytest.mark.slow
def test_an_app_runs_in_slurm_with_what_is_installed(path: str, hydra_app: HydraApp) -> None:
    _run(path, hydra_app.folder, "-m", LAUNCHER, "+x=1,2", "hydra.sweep.dir=s")
    assert hydra_app.ran() == ["1", "2"]
