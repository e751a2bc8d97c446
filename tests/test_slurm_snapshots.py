"""What a job starts from: the code and the small inputs of its submission, whatever came since."""

from __future__ import annotations

import subprocess

import pytest
from slurm_flows import SlurmFlow

pytestmark = pytest.mark.slurm

HELD = {"slurm": {"extra": {"hold": True}}}


def release(flow: SlurmFlow) -> None:
    """Let the held jobs of the newest run go."""
    for job in set(flow.jobs().values()):
        flow.cluster.ask("scontrol", "release", job)


def test_a_queued_command_runs_the_code_of_its_submission(slurm_flow: SlurmFlow) -> None:
    script = slurm_flow.project / "src/train.sh"
    script.parent.mkdir()
    script.write_text("echo old > $OUT/made\ncat data/beside.txt\n")
    (slurm_flow.project / "data").mkdir()
    (slurm_flow.project / "data/beside.txt").write_text("not in the key\n")
    params = {"command": "bash src/train.sh", "code": ["src/train.sh"]}
    step = {"id": "a", "uses": "runners.command", "params": params, "resources": HELD}
    slurm_flow.write({**step, "out": "out/a"})
    slurm_flow.submit()
    script.write_text("echo new > $OUT/made\n")
    release(slurm_flow)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert (slurm_flow.project / "out/a/made").read_text() == "old\n"
    assert slurm_flow.cli("logs", "a").stdout == "not in the key\n"


def test_a_queued_function_runs_the_source_of_its_submission(slurm_flow: SlurmFlow) -> None:
    module = slurm_flow.project / "work.py"
    module.write_text("def run(out_dir):\n    (out_dir / 'x').write_text('old')\n")
    step = {"id": "a", "uses": "work:run", "out": "out/a", "resources": HELD}
    slurm_flow.write(step)
    slurm_flow.submit()
    module.write_text("def run(out_dir):\n    (out_dir / 'x').write_text('new')\n")
    release(slurm_flow)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert (slurm_flow.project / "out/a/x").read_text() == "old"


def test_a_small_input_is_read_as_it_was_and_a_large_one_must_not_change(
    slurm_flow: SlurmFlow,
) -> None:
    small, large = slurm_flow.project / "small.txt", slurm_flow.project / "large.bin"
    small.write_text("old")
    large.write_bytes(b"x" * (1 << 21))
    read = "cp $IN_x $OUT/x"
    slurm_flow.write(
        slurm_flow.step(
            "small", read, after=[], out="out/s", resources=HELD, **{"in": {"x": "small.txt"}}
        ),
        slurm_flow.step("large", read, after=[], resources=HELD, **{"in": {"x": "large.bin"}}),
    )
    slurm_flow.submit()
    small.write_text("new")
    large.write_bytes(b"y" * (1 << 21))
    release(slurm_flow)
    assert slurm_flow.settle() == {"small": "COMPLETED", "large": "FAILED"}
    assert (slurm_flow.project / "out/s/x").read_text() == "old"
    assert slurm_flow.status()["large"]["reason"] == "input_changed"


def test_snapshot_true_takes_all_that_git_tracks(slurm_flow: SlurmFlow) -> None:
    (slurm_flow.project / "lib.sh").write_text("echo old\n")
    step = slurm_flow.step("a", "bash lib.sh", snapshot=True, resources=HELD)
    slurm_flow.write(step)
    assert "git init" in slurm_flow.submit(expect=2)
    for command in (["init", "-q"], ["add", "lib.sh"]):
        subprocess.run(["git", *command], cwd=slurm_flow.project, check=True)
    slurm_flow.submit()
    (slurm_flow.project / "lib.sh").write_text("echo new\n")
    release(slurm_flow)
    assert slurm_flow.settle() == {"a": "COMPLETED"}
    assert slurm_flow.cli("logs", "a").stdout == "old\n"


def test_a_step_whose_turn_comes_later_runs_the_code_of_the_first_submission(
    slurm_flow: SlurmFlow,
) -> None:
    (slurm_flow.project / "late.sh").write_text("echo old\n")
    params = {"command": "bash late.sh", "code": ["late.sh"]}
    slurm_flow.write(
        slurm_flow.step("first", resources=HELD, scheduler="slurm"),
        slurm_flow.step("light", light=True, scheduler="local"),
        {"id": "late", "uses": "runners.command", "params": params, "scheduler": "slurm"},
    )
    slurm_flow.cli("run", slurm_flow.file)
    (slurm_flow.project / "late.sh").write_text("echo new\n")
    slurm_flow.cluster.ask("scontrol", "release", slurm_flow.jobs()["first"])
    slurm_flow.until(lambda now: now["late"] == "COMPLETED")
    assert slurm_flow.cli("logs", "late").stdout == "old\n"
