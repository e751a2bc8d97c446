"""What a step costs a shared filesystem: fsyncs, inodes, growing files. Counted, never timed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunCli, child_environment

MAX_FSYNCS = 4
MAX_INODES = 5


def write_pipeline(project: Path, steps: int) -> None:
    lines = [
        f"    - {{id: s{n}, uses: runners.command, after: [], params: {{command: ':', n: {n}}}}}"
        for n in range(steps)
    ]
    (project / "p.yaml").write_text(
        "\n".join(["pipeline:", "  name: many", "  steps:", *lines, ""])
    )


def inodes(folder: Path) -> int:
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def fsyncs(project: Path, steps: int) -> int:
    for made in (".nexa_state", "artifacts"):
        shutil.rmtree(project / made, ignore_errors=True)
    write_pipeline(project, steps)
    counts = project / "strace.txt"
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-s", "4096", "-o", str(counts)),
            *("-e", "trace=fsync,fdatasync,rename,renameat,renameat2"),
            *(sys.executable, "-m", "nexa_hpc", "run", "p.yaml"),
        ],
        cwd=project,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    text = counts.read_text()
    # A projection is written once a second, however many steps end in it: the file and its folder.
    projections = len(re.findall(r"\brename.*/(?:pipeline_)?state\.json\"", text))
    assert projections > 0
    return len(re.findall(r"\b(?:fsync|fdatasync)\(", text)) - 2 * projections


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_step_takes_at_most_four_fsyncs(project: Path) -> None:
    few, many = fsyncs(project, 5), fsyncs(project, 25)
    assert few > 0
    assert (many - few) / 20 <= MAX_FSYNCS


def test_a_step_takes_at_most_five_inodes_of_state_and_logs(project: Path, run_cli: RunCli) -> None:
    write_pipeline(project, 5)
    run_cli("run", "p.yaml")
    few = inodes(project / ".nexa_state")
    shutil.rmtree(project / ".nexa_state")
    shutil.rmtree(project / "artifacts")
    write_pipeline(project, 45)
    run_cli("run", "p.yaml")
    assert (inodes(project / ".nexa_state") - few) / 40 <= MAX_INODES


def test_a_cached_run_adds_no_records_and_writes_its_files_a_fixed_number_of_times(
    project: Path, run_cli: RunCli
) -> None:
    write_pipeline(project, 30)
    run_cli("run", "p.yaml")
    records = inodes(project / ".nexa_state/records")
    run_cli("run", "p.yaml")
    assert inodes(project / ".nexa_state/records") == records
    added = project / ".nexa_state/many/runs/many-2"
    assert inodes(added) <= 8
    assert len(json.loads((added / "plan.json").read_text())["instances"]) == 30
