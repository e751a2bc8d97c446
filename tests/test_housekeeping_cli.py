"""`artifacts du`, `gc`, `verify` and `export`, as a user calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import RunCli
from flows import Flow, StepDict
from planned import tree

from nexa_hpc.core.artifacts import open_artifact
from nexa_hpc.core.exporting import export_run
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import find_run
from nexa_hpc.core.settings import read_settings
from nexa_hpc.core.store import stored
from nexa_hpc.errors import ArtifactError, SpecError, UserError


@pytest.fixture
def flow(project: Path) -> Flow:
    return Flow(project)


def steps(flow: Flow, value: int) -> list[StepDict]:
    text = f"mkdir $OUT/deep; echo {value} > $OUT/deep/x; chmod +x $OUT/deep/x"
    return [
        flow.step("make", text, out="out/made"),
        flow.step("read", "cp $IN_input/deep/x $OUT", **{"in": "out/made"}),
    ]


@pytest.fixture
def twice(flow: Flow, run_cli: RunCli) -> Flow:
    """A pipeline that ran with 1 and then with 2, under settings that keep no older run."""
    (flow.project / "nexa.yaml").write_text("retention: {runs_days: 0, artifacts_days: 0}\n")
    for value in (1, 2):
        run_cli("run", flow.write(*steps(flow, value)))
    return flow


def keys(project: Path) -> list[str]:
    return [entry.place.name for entry in stored(ProjectPaths.at(project))]


def test_du_adds_up_and_says_why_each_is_kept_and_what_gc_would_free(
    twice: Flow, run_cli: RunCli
) -> None:
    told = run_cli("artifacts", "du").stdout.splitlines()
    assert told[0].split() == ["PIPELINE", "ARTIFACTS", "SIZE", "NOT", "KEPT"]
    assert told[1].split() == ["flow", "4", "8", "B", "4", "B"]
    assert told[-2:] == ["in the trash: 0 B", "gc would free: 4 B"]
    by_age = run_cli("artifacts", "du", "--by", "age").stdout
    assert by_age.splitlines()[1].startswith("under a day")
    why = run_cli("artifacts", "du", "--why").stdout
    assert why.count("run flow-2 asks for it, the newest of its pipeline") == 2
    assert why.count("(nothing keeps it)") == 2
    found = json.loads(run_cli("artifacts", "du", "--by", "user", "--json").stdout)
    assert [group["artifacts"] for group in found["groups"]] == [4]
    assert found["gc_would_free_bytes"] == 4
    assert {entry["step"] for entry in found["artifacts"]} == {"make", "read"}


def test_du_tells_of_what_is_no_artifact(twice: Flow, run_cli: RunCli) -> None:
    place = next(iter(stored(ProjectPaths.at(twice.project)))).place
    (place / "COMPLETE").unlink()
    assert "left alone: a folder without COMPLETE" in run_cli("artifacts", "du", "--why").stdout
    assert "\n?" in run_cli("artifacts", "du").stdout


def test_gc_first_tells_then_does_and_what_is_asked_again_is_computed_again(
    twice: Flow, run_cli: RunCli
) -> None:
    before = tree(twice.project)
    told = run_cli("artifacts", "gc", "--dry-run").stdout
    assert "would be moved to the trash, for 1 day: 2, 4 B" in told
    assert tree(twice.project) == before
    assert "moved to the trash, for 1 day: 2, 4 B" in run_cli("artifacts", "gc").stdout
    assert run_cli("artifacts", "gc").stdout == "nothing to collect\n"
    assert json.loads(run_cli("artifacts", "du", "--json").stdout)["trash_bytes"] > 4
    assert len(keys(twice.project)) == 2
    twice.executed()
    run_cli("run", twice.write(*steps(twice, 1)))
    assert twice.executed() == ["make", "read"]
    assert (twice.project / "out/made/deep/x").read_text() == "1\n"


def test_gc_keeps_nothing_in_the_trash_where_the_settings_say_so(
    twice: Flow, run_cli: RunCli
) -> None:
    (twice.project / "nexa.yaml").write_text(
        "retention: {runs_days: 0, artifacts_days: 0, trash_days: 0}\n"
    )
    done = json.loads(run_cli("artifacts", "gc", "--json").stdout)
    assert (len(done["moved"]), len(done["removed"])) == (2, 2)
    assert "in the trash: 0 B" in run_cli("artifacts", "du").stdout


def test_gc_puts_back_and_tells_what_it_could_not_do(twice: Flow, run_cli: RunCli) -> None:
    collected = json.loads(run_cli("artifacts", "gc", "--json").stdout)["moved"]
    (twice.project / "nexa.yaml").write_text("retention: {runs_days: 30}\n")
    assert "put back from the trash: 2" in run_cli("artifacts", "gc").stdout
    (twice.project / "nexa.yaml").write_text("retention: {runs_days: 0, artifacts_days: 0}\n")
    for shard in {Path(item["path"]).parent for item in collected}:
        trash = shard / ".trash"
        trash.rmdir()
        trash.touch()
    done = run_cli("artifacts", "gc")
    assert done.stderr.count("left for the next gc: ") == 2


def test_gc_takes_orphans_when_asked(twice: Flow, run_cli: RunCli) -> None:
    for name in os.listdir(twice.project / ".nexa_state"):
        os.rename(twice.project / ".nexa_state" / name, twice.project.parent / name)
    assert run_cli("artifacts", "gc").stdout == "nothing to collect\n"
    told = run_cli("artifacts", "gc", "--orphans").stdout
    assert told.count("no run or record of this project names it") == 4


def test_verify_takes_a_run_and_misses_what_is_gone(twice: Flow, run_cli: RunCli) -> None:
    assert run_cli("artifacts", "verify", "--run", "flow-1").stdout == "2 whole, 0 damaged\n"
    made = Path(os.path.realpath(twice.project / "out/made"))
    (made / "deep/x").unlink()
    assert run_cli("artifacts", "verify", "--run", "flow-1").stdout == "2 whole, 0 damaged\n"
    told = run_cli("artifacts", "verify", "--run", "flow", expect=3)
    assert "step 'make': deep/x is gone" in told.stdout
    assert "1 whole, 1 damaged" in told.stdout
    both = run_cli("artifacts", "verify", "out/made", "--run", "flow", expect=2)
    assert "keep one" in both.stderr


def test_export_copies_real_files_and_overwrites_nothing(
    twice: Flow, run_cli: RunCli, tmp_path: Path
) -> None:
    dest = tmp_path / "results"
    told = run_cli("artifacts", "export", dest).stdout
    assert f"run flow-2: 2 artifacts copied to {dest}, 4 B, all whole" in told
    assert not [path for path in dest.rglob("*") if path.is_symlink()]
    assert (dest / "out/made/deep/x").read_text() == "2\n"
    assert os.access(dest / "out/made/deep/x", os.X_OK)
    assert (dest / "flow/read/x").read_text() == "2\n"
    assert open_artifact(dest / "flow/read").hash
    again = run_cli("artifacts", "export", dest, "--run", "flow-1", expect=2)
    assert "exists; it is not overwritten" in again.stderr
    run_cli("artifacts", "export", tmp_path / "older", "--run", "flow-1")
    assert (tmp_path / "older/out/made/deep/x").read_text() == "1\n"


def test_export_of_what_is_missing_or_damaged_leaves_nothing(
    twice: Flow, run_cli: RunCli, tmp_path: Path
) -> None:
    made = Path(os.path.realpath(twice.project / "out/made"))
    (made / "deep/x").write_text("3\n")
    told = run_cli("artifacts", "export", tmp_path / "to", expect=3)
    assert "deep/x: its content is not what was published" in told.stderr
    assert os.listdir(tmp_path / "to/out") == []
    (made / "deep/x").unlink()
    assert "deep/x is gone" in run_cli("artifacts", "export", tmp_path / "b", expect=3).stderr
    assert not (tmp_path / "b").exists()


def test_export_stays_out_of_the_store_and_inside_dest(
    twice: Flow, run_cli: RunCli, tmp_path: Path
) -> None:
    told = run_cli("artifacts", "export", "artifacts/.store/x", expect=2)
    assert "lies inside the project's own" in told.stderr
    plan = twice.project / ".nexa_state/flow/runs/flow-2/plan.json"
    honest = plan.read_text()
    plan.write_text(honest.replace('"out/made"', '"../made"'))
    told = run_cli("artifacts", "export", tmp_path / "to", expect=2)
    assert "leads out of" in told.stderr
    plan.write_text(honest.replace('"out/made"', '"/elsewhere/made"'))
    run_cli("artifacts", "export", tmp_path / "to")
    assert (tmp_path / "to/elsewhere/made/deep/x").read_text() == "2\n"


def test_export_refuses_an_artifact_that_names_files_outside_of_it(
    twice: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = find_run(ProjectPaths.at(twice.project), "flow-2")
    from nexa_hpc.core import exporting

    def hostile(path: Path) -> object:
        found = open_artifact(path)
        found.meta["files"]["../../x"] = {"bytes": 0, "sha256": ""}  # type: ignore[index]
        return found

    monkeypatch.setattr(exporting, "open_artifact", hostile)
    with pytest.raises(ArtifactError, match="names files outside of it"):
        export_run(run, tmp_path / "to")


def test_export_does_not_replace_what_has_come_meanwhile(
    twice: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = find_run(ProjectPaths.at(twice.project), "flow-2")
    from nexa_hpc.core import atomic

    monkeypatch.setattr(atomic, "rename_folder", lambda source, target: False)
    with pytest.raises(UserError, match="it is not overwritten"):
        export_run(run, tmp_path / "to")
    assert os.listdir(tmp_path / "to/out") == []


@pytest.mark.parametrize("value", ["-1", "x", "true", "[1]"])
def test_days_are_a_number(project: Path, value: str) -> None:
    (project / "nexa.yaml").write_text(f"retention: {{runs_days: {value}}}\n")
    with pytest.raises(SpecError, match=r"retention\.runs_days: expected a number of days"):
        read_settings(project)


def test_retention_may_be_set_and_mistakes_are_named(project: Path) -> None:
    (project / "nexa.yaml").write_text("retention: {runs_days: 0.5}\n")
    found = read_settings(project).retention
    assert (found.runs_days, found.artifacts_days, found.failed_days) == (0.5, 30, 14)
    (project / "nexa.yaml").write_text("retention: {run_days: 1}\npaths: {retention: 1}\n")
    with pytest.raises(SpecError) as caught:
        read_settings(project)
    assert "did you mean 'runs_days'?" in str(caught.value)
    assert "unknown key 'retention'" in str(caught.value)


@pytest.mark.parametrize("name", ["du", "gc", "verify", "export"])
def test_each_command_has_an_example(run_cli: RunCli, name: str) -> None:
    assert f"Example:\n    nexa-hpc artifacts {name}" in run_cli("artifacts", name, "--help").stdout
