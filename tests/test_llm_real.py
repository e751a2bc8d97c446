"""The whole story of a language model, its driver killed at each step in turn: by axolotl and vLLM.

Runs where `NEXA_TEST_LLM` is set, after `make axolotl vllm` and the downloads of `make demo-llm`;
six and a half minutes on two cores with nothing else to do.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunCli
from flows import Process
from served import processes_of
from slurm_fixtures import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "NEXA_TEST_LLM" not in os.environ,
        reason="needs NEXA_TEST_LLM, and what `make demo-llm` made",
    ),
]
SHORTER = (
    "steps.train.params.max_steps=12",
    "steps.train.params.save_steps=4",
    "steps.train.params.eval_steps=12",
    "steps.answers.params.max_rows=4",
)
LONG = ("chats", "smollm2", "before", "train", "evaluate", "serve", "answers")
"""The steps that take so long that they are met while they run."""


def copy_pipeline(project: Path) -> None:
    """Copy what the pipeline reads."""
    for folder in ("pipelines", "configs"):
        shutil.copytree(REPOSITORY / folder, project / folder)
    (project / "data").mkdir()
    (project / "data/downloads").symlink_to(REPOSITORY / "data/downloads")


def kill_at(project: Path, step: str, *args: str) -> None:
    """Run `nexa-hpc ARGS` until the next attempt at `step` has begun, and kill it."""
    logs = project / ".nexa_state/llm_e2e/runs/llm_e2e-1/logs"

    def attempts() -> int:
        return len([*logs.glob(f"{step}.*.log")])

    before = attempts()
    driver = Process(project, *args)
    wait_until(lambda: attempts() > before or not driver.running(), 120, f"{step} to begin")
    assert driver.running(), driver.text()
    driver.kill()


def successes(project: Path, key: str) -> int:
    """Return how many attempts at `key` have succeeded."""
    records = project / f".nexa_state/records/{key[:2]}/{key}"
    ends = [json.loads(file.read_text()) for file in records.glob("*.end.json")]
    return [end["state"] for end in ends].count("COMPLETED")


def test_it_is_resumed_from_each_of_its_steps(project: Path, run_cli: RunCli) -> None:
    copy_pipeline(project)
    whole = ("run", "pipelines/llm_e2e.yaml", *SHORTER)
    for number, step in enumerate(LONG):
        kill_at(project, step, *(("resume", "llm_e2e-1") if number else whole))
    told = run_cli("resume", "llm_e2e-1", timeout_s=900).stdout
    state = json.loads((project / ".nexa_state/llm_e2e/pipeline_state.json").read_text())
    steps = state["steps"]
    assert {step["status"] for step in steps.values()} <= {"COMPLETED", "SKIPPED"}, told
    # The server ended with the driver that was killed while `answers` asked it.
    once = {step: successes(project, steps[step]["cache_key"]) for step in steps if step != "serve"}
    assert set(once.values()) == {1}, once
    (model,) = json.loads(run_cli("models", "list", "--json").stdout)
    assert model["versions"] == 2 and model["tags"] == {"base": 1, "production": 2}
    assert processes_of("", project / ".nexa_state/serve") == []
    again = run_cli(*whole).stdout
    assert "SKIPPED" in again and "COMPLETED" not in again
