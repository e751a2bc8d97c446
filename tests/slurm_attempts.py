"""What befalls the attempts of a `SlurmFlow` on the real cluster, and what they leave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from slurm_fixtures import wait_until
from slurm_flows import SlurmFlow

from nexa_hpc.core.records import Attempt, read_attempts

COUNTING = """\
n=0
if [ -n "$RESUME" ]; then n=$(cat "$RESUME/n"); fi
echo $n >> {begun}
while [ $n -lt {count} ] || [ $(wc -l < {begun}) -lt {starts} ]; do
    sleep 0.2
    n=$((n + 1))
    echo $n > $WORK/new
    mv $WORK/new $WORK/n
done
echo $n > $OUT/n
"""
"""Counts from its checkpoint; notes where it began."""


class Counting:
    """A command step with checkpoints, that counts up to `count`, five in a second.

    It goes on counting until it was started `starts` times.
    """

    def __init__(self, flow: SlurmFlow, count: int, id_: str = "count", *, starts: int = 1) -> None:
        self.flow = flow
        self.id = id_
        self.count = count
        self.starts = starts
        self._begun = flow.project.parent / f"{id_}.begun"

    def step(self, **fields: Any) -> dict[str, Any]:
        """Return the step."""
        command = COUNTING.format(begun=self._begun, count=self.count, starts=self.starts)
        params = {"checkpoint": {"glob": "n"}}
        return self.flow.step(self.id, command, params=params, out=f"out/{self.id}", **fields)

    def begun(self) -> list[int]:
        """Return where each attempt began to count."""
        return [int(line) for line in self._begun.read_text().split()]

    def wait_for_checkpoint(self) -> None:
        """Return when the newest attempt has sealed a checkpoint."""
        number = attempts(self.flow, self.id)[-1].number
        seals = work_of(self.flow, self.id) / str(number) / "sealed"
        wait_until(lambda: list(seals.glob("*.json")), 60, f"a checkpoint in {seals}")

    def assert_went_on(self, attempts_made: int) -> None:
        """Assert that each attempt went on where the last one had saved, and all is there."""
        begun = self.begun()
        assert len(begun) == attempts_made, begun
        assert begun[0] == 0 and begun == sorted(set(begun)), begun
        counted = int((assert_one_result(self.flow, self.id) / "n").read_text())
        assert counted == self.count or (self.starts > 1 and counted > self.count)


def key_of(flow: SlurmFlow, step: str) -> str:
    """Return the step key."""
    return str(flow.status()[step]["cache_key"])


def attempts(flow: SlurmFlow, step: str) -> list[Attempt]:
    """Return the attempts recorded at a step, oldest first."""
    key = key_of(flow, step)
    return read_attempts(flow.project / f".nexa_state/records/{key[:2]}/{key}")


def work_of(flow: SlurmFlow, step: str) -> Path:
    """Return the folder of the work of all attempts at a step."""
    key = key_of(flow, step)
    return flow.project / f".nexa_state/work/{key[:2]}/{key}"


def ends(flow: SlurmFlow, step: str) -> list[tuple[str, str | None]]:
    """Return state and reason of each attempt at a step that has ended, oldest first."""
    return [(a.end["state"], a.end["reason"]) for a in attempts(flow, step) if a.end is not None]


def assert_one_result(flow: SlurmFlow, step: str) -> Path:
    """Assert that one attempt COMPLETED and nothing half-made is there; return its artifact."""
    assert [state for state, _ in ends(flow, step)].count("COMPLETED") == 1
    key = key_of(flow, step)
    shelf = flow.project / f"artifacts/.store/{key[:2]}"
    assert [place.name for place in shelf.glob(f"{key}*")] == [key]
    assert (shelf / key / "COMPLETE").is_file()
    return shelf / key


def wait_for_start(flow: SlurmFlow, step: str, number: int = 1) -> str:
    """Return the job of attempt `number` at a step when it has started."""

    def started() -> bool:
        made = attempts(flow, step)
        return len(made) >= number and made[number - 1].start is not None

    wait_until(started, 90, f"attempt {number} at '{step}' to start")
    return str(attempts(flow, step)[number - 1].job)


def wait_for_run(flow: SlurmFlow, step: str, number: int = 1) -> str:
    """Return the job of attempt `number` at a command step when the command itself runs."""
    job = wait_for_start(flow, step, number)
    wait_until(lambda: flow.count(step) >= number, 30, f"attempt {number} at '{step}' to be made")
    return job


def slurm_state(flow: SlurmFlow, job: str) -> str:
    """Return Slurm's own word for a job."""
    return flow.cluster.ask("squeue", "--states=all", "-h", "-j", job, "-o", "%T").strip()


def unpause(flow: SlurmFlow, job: str) -> None:
    """Have a requeued job start now; Slurm would let it wait for two minutes.

    Not in the second in which the last start was ended, nor the one after it: slurmd would take the
    new one for that, and refuse it ("Job credential revoked").
    """
    asked = ("squeue", "--states=all", "-h", "-j", job, "-o", "%T %r %V")

    def is_paused() -> bool:
        state, reason, since = flow.cluster.ask(*asked).split()
        ago_s = time.time() - time.mktime(time.strptime(since, "%Y-%m-%dT%H:%M:%S"))
        return (state, reason) == ("PENDING", "BeginTime") and ago_s > 2

    wait_until(is_paused, 90, f"job {job} to be requeued")
    flow.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def preempt(flow: SlurmFlow, job: str) -> None:
    """Have Slurm preempt a job that has its node for itself, and start it again."""
    node = flow.cluster.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    asked = ("-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    flow.cluster.ask("sbatch", "--parsable", "-J", "preempts", *asked)
    unpause(flow, job)


def settle_unpaused(flow: SlurmFlow, step: str, timeout_s: float = 400) -> dict[str, str]:
    """Return step -> state when all have settled, with requeued starts of `step` sped up."""
    deadline = time.monotonic() + timeout_s
    while (entry := flow.status()[step])["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline, entry
        if entry["message"].startswith("requeued"):
            unpause(flow, entry["job"])
        time.sleep(0.5)
    return flow.settle()
