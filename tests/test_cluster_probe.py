"""`cluster probe` and `cluster show`, on the real cluster: what is asked, written and kept."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from conftest import RunCli
from slurm_fixtures import BentSlurm, SlurmCluster

from nexa_hpc.core.cluster import Partition, read_cluster
from nexa_hpc.schedulers.slurm.probe import cluster_name, gpus, minutes, probe

FILE = "configs/cluster/mini.yaml"


@pytest.mark.slurm
def test_probing_writes_what_the_cluster_says_and_a_second_time_nothing(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    shown = run_cli("cluster", "probe", "--dry-run")
    assert not (project / "configs").exists()
    assert f"{FILE}: would be written" in shown.stderr
    told = run_cli("cluster", "probe").stdout
    assert f"{FILE}: written" in told
    assert (project / FILE).read_text() == shown.stdout
    cluster = read_cluster(project, slurm_cluster.name)
    assert (cluster.max_array_size, cluster.min_job_age_s, cluster.aftercorr_chunk) == (
        1001,
        30,
        10,
    )
    assert (cluster.accounting, cluster.requeue, cluster.preemption) == (True, True, "REQUEUE")
    assert (cluster.kill_invalid_depend, cluster.max_submit) == (False, None)
    assert cluster.partition(None) == Partition(
        default=True, nodes=4, cpus_per_node=8, mem_gb_per_node=15.6, gpus_per_node=2
    )
    assert cluster.partitions["short"].max_time_min == 2
    before = (project / FILE).stat()
    assert f"{FILE}: nothing has changed" in run_cli("cluster", "probe").stdout
    after = (project / FILE).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slurm
def test_each_fact_in_the_file_has_a_comment_and_its_mode_is_that_of_other_sources(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli, umask: object
) -> None:
    umask(0o022)  # type: ignore[operator]
    run_cli("cluster", "probe")
    lines = (project / FILE).read_text().splitlines()
    facts = [line for line in lines if line[:1].isalpha() and line != "partitions:"]
    assert len(facts) >= 8
    assert [line for line in facts if "# " not in line] == []
    assert stat.S_IMODE((project / FILE).stat().st_mode) == 0o644
    assert stat.S_IMODE((project / FILE).parent.stat().st_mode) == 0o755


@pytest.mark.slurm
def test_probing_again_keeps_what_people_wrote_and_tells_what_changed(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    run_cli("cluster", "probe")
    text = (project / FILE).read_text()
    text = text.replace("# login_policy: warn  ", "login_policy: refuse  # as agreed\n#")
    text = text.replace("requeue: true", "requeue: true   # ask Kim")
    text = text.replace("min_job_age_s: 30  ", "min_job_age_s: 300  # keep: at night\n#")
    text += "  old: {nodes: 2}\n\n# The end.\n"
    text += "defaults:\n  account: nlp\n  # and a comment\n  mem_gb: 4\n"
    (project / FILE).write_text(text)
    os.chmod(project / FILE, 0o664)
    bent_slurm.bend(
        replace={
            "scontrol": {
                r"^MaxArraySize .*": "MaxArraySize = 4001",
                r"^DependencyParameters .*": "DependencyParameters = kill_invalid_depend",
                r"^SchedulerParameters .*": "SchedulerParameters = correspond_after_task_cnt=50",
                r"^PreemptType .*": "PreemptType = preempt/none",
                r"MaxTime=00:02:00": "MaxTime=1-12:00:00",
            }
        }
    )
    told = run_cli("cluster", "probe").stdout.splitlines()
    assert [line.strip() for line in told] == [
        "max_array_size: 1001 → 4001",
        "aftercorr_chunk: 10 → 50",
        "min_job_age_s: kept at 300; the cluster says 30",
        "kill_invalid_depend: false → true",
        "preemption: REQUEUE → -",
        "partitions.short: max_time_min: 2, nodes: 4, cpus_per_node: 8, mem_gb_per_node: 15.6, "
        "gpus_per_node: 2 → max_time_min: 2160, nodes: 4, cpus_per_node: 8, "
        "mem_gb_per_node: 15.6, gpus_per_node: 2",
        "partitions.old: nodes: 2 → -",
        f"{FILE}: written",
    ]
    cluster = read_cluster(project, "mini")
    assert (cluster.login_policy, cluster.min_job_age_s) == ("refuse", 300)
    assert (cluster.defaults.account, cluster.defaults.mem_gb) == ("nlp", 4)
    assert cluster.partitions["short"].max_time_min == 2160
    text = (project / FILE).read_text()
    for kept in ("# as agreed", "# ask Kim", "\n\n# The end.\n", "  # and a comment\n"):
        assert kept in text
    assert stat.S_IMODE((project / FILE).stat().st_mode) == 0o664
    bent_slurm.bend()
    run_cli("cluster", "probe")
    assert read_cluster(project, "mini").preemption == "REQUEUE"
    assert "# as agreed" in (project / FILE).read_text()


@pytest.mark.slurm
@pytest.mark.parametrize(
    "text",
    [
        "login_policy: allow\n",
        "# ours\nlogin_policy: allow # here\npartitions:\n    main: {nodes: 1}  # four columns\n",
        "partitions:\n  # big\n  main:\n    default: true\n\n    nodes: 3\nlogin_policy: allow",
        "name: mini\nlogin_policy: allow\npartitions: {}\n",
    ],
)
def test_a_file_that_people_began_is_completed(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli, text: str
) -> None:
    (project / FILE).parent.mkdir(parents=True)
    (project / FILE).write_text(text)
    if "{}" in text:
        told = run_cli("cluster", "probe", expect=2).stderr
        assert "cannot be renewed line by line" in told
        assert (project / FILE).read_text() == text
        return
    run_cli("cluster", "probe")
    cluster = read_cluster(project, "mini")
    assert (cluster.login_policy, cluster.min_job_age_s) == ("allow", 30)
    assert [p.nodes for p in cluster.partitions.values()] == [4, 4, 4]
    assert "nothing has changed" in run_cli("cluster", "probe").stdout


@pytest.mark.slurm
def test_a_wrong_file_is_told_of_and_left_as_it_is(
    slurm_cluster: SlurmCluster, project: Path, run_cli: RunCli
) -> None:
    (project / FILE).parent.mkdir(parents=True)
    (project / FILE).write_text("login_polcy: allow\n")
    told = run_cli("cluster", "probe", expect=2).stderr
    assert f"{FILE}:1: login_polcy: unknown key 'login_polcy'; did you mean 'login_policy'?" in told
    assert (project / FILE).read_text() == "login_polcy: allow\n"


@pytest.mark.slurm
def test_accounting_that_is_away_is_told_from_accounting_that_is_not_there(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    bent_slurm.bend(database_away=True)
    told = run_cli("cluster", "probe").stderr
    assert "note: accounting is configured, and does not answer now" in told
    assert read_cluster(project, "mini").accounting is False
    bent_slurm.bend()
    assert "accounting: false → true" in run_cli("cluster", "probe").stdout
    bent_slurm.bend(database_away=True)
    assert "nothing has changed" in run_cli("cluster", "probe").stdout
    bent_slurm.bend(no_accounting=True)
    assert "accounting: true → false" in run_cli("cluster", "probe").stdout


@pytest.mark.slurm
def test_the_submit_limit_is_the_least_that_is_enforced(bent_slurm: BentSlurm) -> None:
    assert probe().facts["max_submit"] is None
    enforced = {r"^AccountingStorageEnforce .*": "AccountingStorageEnforce = associations,limits"}
    limits = {
        r"^\|(.*?)\|(.*?)\|(.*)$": r"|\1|900|\3",
        r"^root\|(.*?)\|(.*?)\|(.*)$": r"root|500|\2|\3",
        r"^normal\|.*": "normal|400|1000|",
    }
    bent_slurm.bend(replace={"scontrol": enforced, "sacctmgr": limits})
    assert probe().facts["max_submit"] == 400
    del limits[r"^normal\|.*"]
    bent_slurm.bend(replace={"scontrol": enforced, "sacctmgr": limits})
    assert probe().facts["max_submit"] == 500
    bent_slurm.bend(replace={"scontrol": enforced})
    assert probe().facts["max_submit"] is None


@pytest.mark.slurm
def test_probing_asks_a_handful_of_times(
    bent_slurm: BentSlurm, project: Path, run_cli: RunCli
) -> None:
    run_cli("cluster", "probe")
    assert len(bent_slurm.calls()) <= 7


@pytest.mark.slurm
def test_the_name_is_asked_of_the_controller_and_read_where_it_is_away(
    bent_slurm: BentSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster_name() == "mini"
    assert len(bent_slurm.calls()) == 1
    bent_slurm.bend(controller_away=True)
    assert cluster_name() == "mini"
    monkeypatch.setenv("SLURM_CONF", "/nonexistent")
    assert cluster_name() is None


def test_without_slurm_there_is_no_name_and_probing_says_so(
    project: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cluster_name() is None
    told = run_cli("cluster", "probe", expect=4).stderr
    assert "there is no scontrol on this machine" in told
    assert not (project / "configs").exists()


def test_what_is_in_force_is_shown_with_its_place(project: Path, run_cli: RunCli) -> None:
    (project / "configs/cluster").mkdir(parents=True)
    (project / "configs/cluster/far.yaml").write_text(
        "login_policy: refuse\npartitions:\n  gpu: {default: true, gpus_per_node: 4}\n"
    )
    (project / "configs/scheduler").mkdir()
    (project / "configs/scheduler/slurm.yaml").write_text("max_running: 7\n")
    told = json.loads(run_cli("cluster", "show", "far", "--json").stdout)
    rows = {row["key"]: (row["value"], row["from"]) for row in told["values"]}
    assert rows["cluster.login_policy"] == ("refuse", "configs/cluster/far.yaml:1")
    assert rows["cluster.partitions.gpu"][1] == "configs/cluster/far.yaml:3"
    assert rows["cluster.max_array_size"] == (1001, "default")
    assert rows["policy.max_running"] == (7, "configs/scheduler/slurm.yaml:1")
    table = run_cli("cluster", "show", "far").stdout
    assert "cluster.login_policy" in table
    assert "default: true, gpus_per_node: 4" in table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None),
        ("00:02:00", 2),
        ("02:00", 2),
        ("00:00:30", 1),
        ("1-12:00:00", 2160),
        ("7-00:00:00", 10080),
        ("2-12", 3600),
        ("100-00:00:00", 144000),
    ],
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1),nvme:1", 4),
        ("gpu:a100:4(S:0-1),gpu:v100:2(S:0)", 6),
        ("gpu:1g.5gb:7", 7),
        ("shard:gpu:8", 0),
    ],
)
def test_gpus_are_counted_in_the_gres_of_a_node(gres: str, expected: int) -> None:
    assert gpus(gres) == expected
