"""Multiruns of Hydra apps on the real cluster: what fails, what is resumed, what is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from hydra_apps import PATIENCE_S, HydraApp, hydra_app, hydra_launcher, plugin_folder
from slurm_fixtures import wait_until

__all__ = ["hydra_app", "hydra_launcher", "plugin_folder"]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WAITS = "while not (here / 'go').exists(): time.sleep(0.1)"
IN_S = "hydra.sweep.dir=s"
RESUME = "hydra.launcher.resume=s"


def test_one_failed_job_loses_nothing_of_the_others_and_is_the_only_one_run_again(
    hydra_app: HydraApp,
) -> None:
    hydra_app.write("if cfg.x == 2: raise ValueError('two is wrong')")
    out = hydra_app.sweep("+x=1,2,3", IN_S, expect=1)
    assert "1 of 3 jobs failed" in out
    assert "ValueError: two is wrong" in out
    assert f'File "{hydra_app.folder}/app.py", line 10, in main' in out, "where in the job"
    (job,) = hydra_app.jobs(out)
    hydra_app.assert_ended(job, "COMPLETED 0:0", "FAILED 1:0", "COMPLETED 0:0")
    assert (hydra_app.folder / "s/2/.hydra/config.yaml").is_file()

    hydra_app.write("print('mended')")
    out = hydra_app.sweep("+x=1,2,3", RESUME)
    assert out.count("(done before)") == 2
    assert hydra_app.ran() == ["1", "2", "2", "3"]
    assert sorted(p.name for p in (hydra_app.folder / "s").iterdir()) == [
        ".nexa_slurm", "0", "1", "2", "multirun.yaml",
    ]  # fmt: skip
    assert not (hydra_app.folder / "multirun").exists(), "a resumed sweep has no folder of its own"
    states = {step: entry["status"] for step, entry in hydra_app.status("s").items()}
    assert states == {"job_0": "SKIPPED", "job_1": "COMPLETED", "job_2": "SKIPPED"}
    assert "submitted" not in hydra_app.sweep("+x=1,2,3", RESUME), "nothing is left to do"
    # More points than before: they get numbers of their own.
    hydra_app.sweep("+x=5,1,2,3", RESUME)
    assert (hydra_app.folder / "s/3/.hydra/overrides.yaml").read_text() == "- +x=5\n"
    assert hydra_app.ran() == ["1", "2", "2", "3", "5"]


def test_a_detached_multirun_returns_at_once_and_is_collected_later(hydra_app: HydraApp) -> None:
    hydra_app.write(WAITS)
    out = hydra_app.sweep("+x=1,2", IN_S, "hydra.launcher.detach=true")
    assert RESUME.split("=")[0] in out
    (job,) = hydra_app.jobs(out)
    assert {entry["job"] for entry in hydra_app.status("s").values()} == {f"{job}_0", f"{job}_1"}
    process = hydra_app.start("+x=1,2", RESUME)
    (hydra_app.folder / "go").touch()
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert "submitted" not in out
    assert hydra_app.ran() == ["1", "2"]


def test_a_killed_multirun_is_completed_and_its_jobs_run_on(hydra_app: HydraApp) -> None:
    hydra_app.write(f"if cfg.x == 2:\n    {WAITS}")
    process = hydra_app.start("+x=1,2,3", IN_S, "hydra.launcher.array_parallelism=2")
    wait_until(lambda: hydra_app.ran() == ["1", "2", "3"], PATIENCE_S, "the jobs to start")
    process.kill()
    process.communicate()
    (hydra_app.folder / "go").touch()
    out = hydra_app.sweep("+x=1,2,3", RESUME)
    assert "submitted" not in out
    assert hydra_app.ran() == ["1", "2", "3"]


def test_ctrl_c_leaves_the_jobs_to_slurm_and_says_how_to_go_on(hydra_app: HydraApp) -> None:
    hydra_app.write(WAITS)
    process = hydra_app.start("+x=1,2", IN_S)
    wait_until(lambda: hydra_app.ran() == ["1", "2"], PATIENCE_S, "the jobs to start")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, out
    assert "2 steps are in Slurm's hands" in out
    assert f"hydra.launcher.resume={hydra_app.folder / 's'}" in out
    assert "Traceback" not in out
    (hydra_app.folder / "go").touch()
    assert "submitted" not in hydra_app.sweep("+x=1,2", RESUME)


def test_what_ended_a_job_from_outside_is_told_with_its_id(hydra_app: HydraApp) -> None:
    hydra_app.write(f"if cfg.x == 2:\n    {WAITS}")
    process = hydra_app.start("+x=1,2", IN_S)
    wait_until(lambda: "2" in hydra_app.ran(), PATIENCE_S, "the job to start")
    job = next(e["job"] for e in hydra_app.status("s").values() if e["status"] == "RUNNING")
    hydra_app.cluster.ask("scancel", job)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, out
    assert f"#1 CANCELLED, job {job}: its job was cancelled in Slurm" in out
    assert "Traceback" not in out
    (hydra_app.folder / "go").touch()
    hydra_app.sweep("+x=1,2", RESUME)
    assert hydra_app.ran() == ["1", "2", "2"]


def test_a_failure_is_tried_again_as_often_as_is_said(hydra_app: HydraApp) -> None:
    hydra_app.write("if hydra_app_ran() < 2: raise OSError('not yet')".replace(
        "hydra_app_ran()", "len((here / 'ran.txt').read_text().split())"
    ))  # fmt: skip
    out = hydra_app.sweep("+x=1", IN_S, "hydra.launcher.retry.exception=1")
    # Who submits it once more, this process or the advance job, is who sees it first.
    assert "#0 COMPLETED" in out
    assert hydra_app.ran() == ["1", "1"]


def test_what_fails_of_a_detached_multirun_is_tried_again_though_nobody_waits(
    hydra_app: HydraApp,
) -> None:
    hydra_app.write("if not (here / 'go').exists(): raise OSError('not yet')")
    hydra_app.sweep("+x=1", IN_S, "hydra.launcher.detach=true", "hydra.launcher.retry.exception=1")
    wait_until(lambda: hydra_app.ran() == ["1"], PATIENCE_S, "the job to start")
    (hydra_app.folder / "go").touch()
    wait_until(lambda: hydra_app.ran() == ["1", "1"], PATIENCE_S, "it to be tried again")


def test_one_that_was_killed_before_it_had_submitted_anything_is_begun_in_its_folder(
    hydra_app: HydraApp,
) -> None:
    hydra_app.sweep("+x=1", IN_S, "hydra.launcher.nodes=0", expect=1)
    assert [p.name for p in (hydra_app.folder / "s").iterdir()] == ["multirun.yaml"]
    out = hydra_app.sweep("+x=1", RESUME)
    assert "is it the same command" not in out
    assert (hydra_app.folder / "s/0").is_dir()


def test_points_that_an_earlier_multirun_did_not_have_are_warned_of(hydra_app: HydraApp) -> None:
    hydra_app.sweep("+x=1", IN_S)
    assert "is it the same command" in hydra_app.sweep("+x=2", RESUME)


def test_at_its_time_limit_an_app_may_save_and_goes_on_in_the_same_folder(
    hydra_app: HydraApp,
) -> None:
    hydra_app.write(
        "from hydra.core.hydra_config import HydraConfig\n"
        "saved = pathlib.Path(HydraConfig.get().runtime.output_dir) / 'saved'\n"
        "try:\n"
        "    while not saved.exists(): time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n"
        "    saved.touch()\n"
        "    raise"
    )
    process = hydra_app.start("+x=1", IN_S, "hydra.launcher.max_num_timeout=1")
    wait_until(lambda: hydra_app.ran() == ["1"], PATIENCE_S, "the job to start")
    (entry,) = hydra_app.status("s").values()
    job = entry["job"]
    # What Slurm sends when the limit is near.
    hydra_app.cluster.ask("scancel", "--signal=USR2", job)
    asked = ("squeue", "--states=all", "-h", "-j", job, "-o", "%T %r")
    paused = "PENDING BeginTime"
    wait_until(lambda: hydra_app.cluster.ask(*asked).strip() == paused, 60, "the requeue")
    time.sleep(2)  # slurmd would take a start in the same second for the one that it has ended.
    hydra_app.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert hydra_app.ran() == ["1", "1"]
    hydra_app.assert_ended(job, "COMPLETED 0:0")


def test_of_several_tasks_one_writes_what_hydra_writes_and_all_run_the_app(
    hydra_app: HydraApp,
) -> None:
    hydra_app.write("(here / f'rank-{os.environ[\"RANK\"]}').touch()")
    hydra_app.sweep("+x=1", IN_S, "hydra.launcher.tasks_per_node=2")
    assert {p.name for p in hydra_app.folder.glob("rank-*")} == {"rank-0", "rank-1"}
    assert hydra_app.ran() == ["1"]


def test_the_config_is_the_one_of_the_submission_however_late_the_job_starts(
    hydra_app: HydraApp,
) -> None:
    app = (hydra_app.folder / "app.py").read_text()
    (hydra_app.folder / "app.py").write_text(
        app.replace("config_path=None", "config_path='conf', config_name='c'")
    )
    (hydra_app.folder / "conf").mkdir()
    (hydra_app.folder / "conf/c.yaml").write_text("x: 1\n")
    held = "hydra.launcher.slurm.extra={hold: true}"
    out = hydra_app.sweep(IN_S, "hydra.launcher.detach=true", held)
    (hydra_app.folder / "conf/c.yaml").write_text("x: 2\n")
    (job,) = hydra_app.jobs(out)
    hydra_app.cluster.ask("scontrol", "release", job)
    hydra_app.assert_ended(job, "COMPLETED 0:0")
    assert hydra_app.ran() == ["1"]


def test_what_cannot_be_is_refused_without_a_traceback_and_nothing_is_submitted(
    hydra_app: HydraApp,
) -> None:
    for args, told in (
        (["hydra.launcher.partition=mian"], "hydra.launcher.partition: no partition 'mian'"),
        (["hydra.launcher.nodes=0"], "hydra.launcher.nodes: expected more than 0"),
        (["hydra.launcher.slurm.extra={array: 1-3}"], "slurm.extra.array: is not yours to set"),
        (["hydra.launcher.retry.timeout=often"], "hydra.launcher.retry.timeout: expected"),
        (["hydra.launcher.resume=nowhere"], "nowhere: no such folder"),
        (["hydra.launcher.resume=."], "nothing was submitted there"),
        (["hydra.sweep.dir='100%'"], "Slurm gives %"),
    ):
        out = hydra_app.sweep("+x=1,2", *args, expect=1)
        assert told in out
        assert "hint: " in out
        assert "Traceback" not in out
    assert not list(hydra_app.folder.glob("**/.nexa_slurm/.nexa_state"))


def test_an_app_that_cannot_be_sent_to_its_jobs_is_refused(hydra_app: HydraApp) -> None:
    text = (hydra_app.folder / "app.py").read_text()
    text = text.replace("import hydra\n", "import hydra, threading\nlock = threading.Lock()\n")
    (hydra_app.folder / "app.py").write_text(text.replace("    return", "    lock; return"))
    out = hydra_app.sweep("+x=1,2", IN_S, expect=1)
    assert "the app cannot be sent to its jobs: TypeError" in out
    assert "Traceback" not in out


def test_a_result_that_cannot_be_sent_back_is_missed_and_the_work_is_not_lost(
    hydra_app: HydraApp,
) -> None:
    hydra_app.write("import threading; return threading.Lock()")
    out = hydra_app.sweep("+x=1", IN_S)
    assert "#0: the return value, of type lock, cannot be pickled" in out


def test_a_result_that_cannot_be_loaded_any_more_is_told_and_the_others_are_not_lost(
    hydra_app: HydraApp,
) -> None:
    module = hydra_app.folder / "kinds.py"
    module.write_text("class Kind: pass\n")
    hydra_app.write("if cfg.x == 1:\n    import kinds\n    return kinds.Kind()")
    hydra_app.sweep("+x=1,2", IN_S)
    module.unlink()
    out = hydra_app.sweep("+x=1,2", RESUME, expect=1)
    assert "#0 is done, and what it returned cannot be loaded: No module named 'kinds'" in out
    assert "Traceback" not in out
    assert hydra_app.ran() == ["1", "2"]


def test_an_app_is_shown_and_ended_like_any_run(hydra_app: HydraApp) -> None:
    hydra_app.write(f"print('I am', cfg.x)\n{WAITS}")
    hydra_app.sweep("+x=1,2", IN_S, "hydra.launcher.detach=true")
    wait_until(lambda: hydra_app.ran() == ["1", "2"], PATIENCE_S, "the jobs to start")
    command = [sys.executable, "-m", "nexa_hpc", "--project", "s/.nexa_slurm"]
    told = hydra_app.cluster.ask(*command, "logs", "job_1")
    assert "I am 2" in told
    why = subprocess.run([*command, "why", "job_1"], capture_output=True, text=True)
    assert "is a multirun of a Hydra app, and has no pipeline document" in why.stderr
    hydra_app.cluster.ask(*command, "cancel")
    wait_until(
        lambda: {e["status"] for e in hydra_app.status("s").values()} == {"CANCELLED"},
        30,
        "the end",
    )
    (hydra_app.folder / "go").touch()
    hydra_app.sweep("+x=1,2", RESUME)
    assert os.path.isdir(hydra_app.folder / "s/1")
