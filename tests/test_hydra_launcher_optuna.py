"""Optuna's sweeper with our launcher, where it is installed: it needs the results of each batch."""

from __future__ import annotations

import pytest
from hydra_apps import PATIENCE_S, HydraApp, hydra_app, hydra_launcher, plugin_folder
from slurm_fixtures import wait_until

__all__ = ["hydra_app", "hydra_launcher", "plugin_folder"]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEARCH = (
    "hydra/sweeper=optuna", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=7",
    "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", "+x=interval(-3,3)",
)  # fmt: skip


@pytest.fixture(autouse=True)
def optuna() -> None:
    """Skips where the sweeper is not installed."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no hydra-optuna-sweeper")


def test_a_killed_search_goes_on_where_it_was(hydra_app: HydraApp) -> None:
    hydra_app.write("if (here / 'wait').exists(): time.sleep(3600)")
    whole = hydra_app.sweep(*SEARCH, "hydra.sweep.dir=whole")
    expected = hydra_app.ran()
    assert len(expected) == 6
    (hydra_app.folder / "ran.txt").unlink()

    hydra_app.write("if len((here / 'ran.txt').read_text().split()) == 4:\n    time.sleep(2)")
    process = hydra_app.start(*SEARCH, "hydra.sweep.dir=s")
    wait_until(lambda: len(hydra_app.ran()) >= 4, PATIENCE_S, "the second batch")
    process.kill()
    process.communicate()
    hydra_app.sweep(*SEARCH, "hydra.launcher.resume=s")
    assert hydra_app.ran() == expected, "each trial ran once"
    results = [hydra_app.folder / s / "optimization_results.yaml" for s in ("whole", "s")]
    assert results[0].read_text() == results[1].read_text()
    assert "Best value" in whole


def test_a_search_cannot_be_detached(hydra_app: HydraApp) -> None:
    out = hydra_app.sweep(*SEARCH, "hydra.launcher.detach=true", expect=1)
    assert "the sweeper OptunaSweeper chooses its next points by the results" in out
    assert "Traceback" not in out
