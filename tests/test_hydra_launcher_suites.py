"""Hydra's own tests of launchers, run with ours on the real cluster."""

from __future__ import annotations

import pytest
from hydra import version
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra_apps import LAUNCHER, hydra_launcher, plugin_folder

__all__ = ["hydra_launcher", "plugin_folder"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.usefixtures("hydra_launcher"),
    # Hydra's tests call it as apps of Hydra 1.1 did, and it says so.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def _no_version_base() -> None:
    """Start as in a new process: these tests name no `version_base`, and others do."""
    version.VersionBase.instance().version_base = version._UNSPECIFIED_


@pytest.mark.parametrize("launcher_name, overrides", [("nexa_slurm", [])])
class TestAsALauncher(LauncherTestSuite):
    """`hydra.test_utils`: what any launcher must do."""


@pytest.mark.parametrize(
    "launcher_name, overrides", [("nexa_slurm", ["hydra.sweeper.max_batch_size=2"])]
)
class TestWithBatches(BatchedSweeperTestSuite):
    """The same for a sweeper that launches several batches."""


@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", LAUNCHER])])
class TestOfWholeApps(IntegrationTestSuite):
    """The same for apps that are processes of their own."""
