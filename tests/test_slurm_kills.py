"""kill -9 of the command line at every change that handing over makes, then `resume`.

See `sweep`: each system call of the process that changes something in the project is struck in
turn. sbatch is a process of its own; that its answer is lost is a point between two calls of ours.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweep
from conftest import RunCli, child_environment
from slurm_fixtures import SlurmCluster
from slurm_flows import SlurmFlow
from sweep import Command, Point

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(sweep.why_not() is not None, reason=str(sweep.why_not())),
]


class Submission:
    """`nexa-hpc run --scheduler slurm` of two jobs, killed at one point and resumed."""

    def __init__(self, home: Path, run_cli: RunCli, cluster: SlurmCluster) -> None:
        project = home / "project"
        project.mkdir(parents=True)
        (project / "nexa.yaml").write_text("{}\n")
        self.home = home

        def cli(*args: str | os.PathLike[str], **options: object) -> object:
            return run_cli(*args, cwd=project, env=self.environment(), **options)

        self.flow = SlurmFlow(project, cli, cluster)  # type: ignore[arg-type]
        self.flow.write(
            self.flow.step("a", "echo 1 > $OUT/x", out="out/a"),
            self.flow.step(
                "b",
                "cat $IN_x/x > $OUT/x",
                out="out/b",
                resources={"cpus_per_task": 2},
                **{"in": {"x": "out/a"}},
            ),
        )

    def environment(self) -> dict[str, str]:
        return {**sweep.plain_environment(), "XDG_CACHE_HOME": str(self.home / "cache")}

    def command(self) -> Command:
        words = [sys.executable, "-m", "nexa_hpc", "run", self.flow.file, "--scheduler", "slurm"]
        return Command(words, self.flow.project, child_environment(**self.environment()))

    def kill_at(self, point: Point) -> str:
        """Kill there and resume, or run again where nothing was recorded; return what is odd."""
        killed = self.command().strike(point, sweep.KILL)
        if killed.returncode != -signal.SIGKILL:
            return f"{point}: not reached: {killed.stdout}{killed.stderr}"
        began = (self.flow.project / ".nexa_state/flow/runs/flow-1").exists()
        try:
            if began:
                self.flow.cli("resume", "flow-1")
            else:
                self.flow.submit()
        except AssertionError as error:
            return f"{point}: {error}"
        return ""

    def judge(self, point: Point) -> str:
        """Wait for the end, and return what is wrong, or an empty text."""
        try:
            now = self.flow.settle()
            assert set(now.values()) <= {"COMPLETED", "SKIPPED"}, now
            executed = self.flow.executed()
            assert executed == ["a", "b"], executed
            assert (self.flow.project / "out/b/x").read_text() == "1\n"
        except (AssertionError, OSError) as error:
            return f"{point}: {error}"
        return ""


def handing_over(points: list[Point]) -> Iterator[Point]:
    """Yield the points from the first intent on, where what is changed lies in the project."""
    changes = [point for point in points if point.mutating]
    first = next(n for n, point in enumerate(changes) if "/batches" in point.text)
    yield from changes[first:]


def kill_at_points(
    tmp_path: Path,
    run_cli: RunCli,
    cluster: SlurmCluster,
    most: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dry = Submission(tmp_path / "dry", run_cli, cluster)
    points = list(handing_over(dry.command().points(dry.flow.project)))
    every = -(-len(points) // most)
    struck = []
    wrong = []
    for number, point in enumerate(points[::every]):
        attempt = Submission(tmp_path / f"home-{number:03}", run_cli, cluster)
        odd = attempt.kill_at(point)
        if odd:
            wrong.append(odd)
        else:
            struck.append((attempt, point))
    wrong += [text for attempt, point in struck if (text := attempt.judge(point))]
    with capsys.disabled():
        print(f"\n{len(points)} points, {len(points[::every])} killed, {len(wrong)} wrong", end=" ")
    assert not wrong, "\n".join(wrong)


def test_killed_at_some_points_of_submission_nothing_is_twice_and_nothing_forgotten(
    tmp_path: Path,
    run_cli: RunCli,
    slurm_cluster: SlurmCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kill_at_points(tmp_path, run_cli, slurm_cluster, 3, capsys)


@pytest.mark.slow
def test_killed_at_every_point_of_submission_nothing_is_twice_and_nothing_forgotten(
    tmp_path: Path,
    run_cli: RunCli,
    slurm_cluster: SlurmCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kill_at_points(tmp_path, run_cli, slurm_cluster, 1000, capsys)
