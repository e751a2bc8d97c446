"""What `test_crash_sweep` strikes: each way in which the core changes the disk, as a scenario.

As a program it serves a `sweep.Nursery` with two tasks, each in a fresh process: `act NAME HOME`
does it, and `judge NAME HOME CODE` tells what a later process finds wrong, after exit code CODE.

A scenario's `act` is what a caller would do again after a crash: it looks first. `check` holds at
every moment, for any reader; `done` holds once `act` has come to its end. Standard library alone,
for a quick start without site-packages.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sweep

from nexa_hpc import worker
from nexa_hpc.core import artifacts, atomic, checkpoints, drivers, links, records, runs, standings
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.projection import write_projection
from nexa_hpc.core.publishing import Publication, create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Reason, Standing, State

KEY, OTHER = "ab" * 32, "cd" * 32


class Scenario:
    """One thing that is done to `home`, a folder that `prepare` has filled."""

    def prepare(self, home: Path) -> None:
        """Make what was there before; never struck."""

    def act(self, home: Path) -> None:
        """Do it; what is there already of an earlier try is taken into account."""
        raise NotImplementedError

    def check(self, home: Path) -> None:
        """Assert what must hold at every moment."""
        raise NotImplementedError

    def done(self, home: Path) -> None:
        """Assert that it was done."""
        raise NotImplementedError


# ---------------------------------------------------------------------------------------- records


class Attempting(Scenario):
    """Claims, starts and ends the next attempt, closing one that was left behind."""

    def folder(self, home: Path) -> Path:
        return ProjectPaths.at(home).records(KEY)

    def act(self, home: Path) -> None:
        attempts = records.read_attempts(self.folder(home))
        newest = attempts[-1] if attempts else None
        if newest is not None and newest.end is None:
            records.end(
                self.folder(home), newest.number, State.FAILED, reason=Reason.LOST, message="gone"
            )
        number = newest.number + 1 if newest else 1
        assert records.claim(self.folder(home), number, {"run": "r-1"})
        assert records.start(self.folder(home), number, {"pid": 1})
        assert records.end(self.folder(home), number, State.COMPLETED)

    def check(self, home: Path) -> None:
        attempts = records.read_attempts(self.folder(home))
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        for attempt in attempts:
            assert attempt.claim["claimed_at"], "a claim is whole"
            assert attempt.start is None or attempt.start["started_at"]
            assert attempt.end is None or attempt.end["ended_at"]
        assert all(a.end is not None for a in attempts[:-1]), "n+1 only when n has ended"

    def done(self, home: Path) -> None:
        assert records.read_attempts(self.folder(home))[-1].state is State.COMPLETED


class Fencing(Attempting):
    """The same, where a process that is gone has left attempt 1 without an end."""

    def prepare(self, home: Path) -> None:
        records.claim(self.folder(home), 1, {"run": "r-1"})
        records.start(self.folder(home), 1, {"pid": 1})

    def done(self, home: Path) -> None:
        super().done(home)
        first = records.read_attempts(self.folder(home))[0]
        assert first.end is not None and first.end["reason"] == "lost"
        assert not records.end(self.folder(home), 1, State.COMPLETED), "a late end changes nothing"


# ------------------------------------------------------------------------------------- publishing


def fill(folder: Path) -> None:
    """Write a payload of three files, one of them empty and one below a folder."""
    (folder / "deep").mkdir()
    (folder / "weights").write_bytes(b"w" * 100_000)
    (folder / "deep/config").write_text("{}")
    (folder / "empty").touch()


def check_artifact(path: Path, purged_before: bool = False) -> None:
    """Assert that COMPLETE at `path` stands over every byte, and is never taken for more."""
    finding = artifacts.look(path)
    if (path / "COMPLETE").exists() and not purged_before:
        assert finding.artifact is not None, f"COMPLETE over {finding.reason}"
    if finding.artifact is not None:
        assert artifacts.verify(finding.artifact) == []
        assert len(finding.artifact.meta["files"]) == 3


class Publishing(Scenario):
    """Publishes one artifact."""

    purged = False

    def act(self, home: Path) -> None:
        create_artifact(home / "store/x", fill, kind="model")

    def check(self, home: Path) -> None:
        check_artifact(home / "store/x", self.purged)

    def done(self, home: Path) -> None:
        check_artifact(home / "store/x")
        artifacts.open_artifact(home / "store/x")


class Replacing(Publishing):
    """Publishes where a purged artifact stands."""

    purged = True

    def prepare(self, home: Path) -> None:
        create_artifact(home / "store/x", fill, kind="model")
        (home / "store/x/weights").unlink()


class Adopting(Publishing):
    """Publishes where somebody else's result appears meanwhile; theirs stays."""

    def prepare(self, home: Path) -> None:
        create_artifact(home / "theirs", fill, kind="theirs")

    def act(self, home: Path) -> None:
        publication = Publication.begin(home / "store/x")
        try:
            fill(publication.folder)
            if (home / "theirs").exists():
                os.rename(home / "theirs", home / "store/x")
            publication.publish(kind="ours")
        finally:
            publication.discard()

    def done(self, home: Path) -> None:
        super().done(home)
        kind = artifacts.open_artifact(home / "store/x").meta["kind"]
        assert kind == "theirs" or (home / "theirs").exists()


class Naive(Publishing):
    """Publishes in place, COMPLETE first, and passes over errors: what the sweep must catch."""

    def act(self, home: Path) -> None:
        create_artifact(home / "store/y", fill, kind="model")
        place = home / "store/x"
        place.mkdir(parents=True, exist_ok=True)
        for name in ("COMPLETE", "meta.json", "empty", "deep/config", "weights"):
            (place / name).parent.mkdir(exist_ok=True)
            try:
                (place / name).write_bytes((home / "store/y" / name).read_bytes())
            except OSError:
                continue


# ------------------------------------------------------------------------------------ whole steps


def make_instance(**changes: Any) -> Instance:
    """Return an instance as a plan would hold it."""
    fields: dict[str, Any] = {
        "step": "s", "key": KEY, "uses": "mine.Handler", "kind": "artifact", "backend": None,
        "scheduler": "local", "effect": False, "params": {}, "inputs": {}, "sources": {},
        "outputs": {"out": "out/s"}, "parents": (), "env": {}, "resources": {}, "labels": {},
        "document": {"rerun": 0, "code": {}}, "resolved": {}, "action": "RUN", "reason": "",
    }  # fmt: skip
    return Instance(**{**fields, **changes})


class Handler:
    """Fills each output as `fill` does."""

    effect = False

    def run(self, task: Any) -> None:
        for folder in task.outputs.values():
            fill(folder)


class Working(Scenario):
    """Makes an attempt with two outputs as the worker does, and links both."""

    instance = make_instance(outputs={"a": "out/a", "b": "out/b"})

    def prepare(self, home: Path) -> None:
        runs.create_run(ProjectPaths.at(home), "demo", {"file": None}, [self.instance])

    def run_of(self, home: Path) -> Run:
        paths = ProjectPaths.at(home)
        return Run(paths, paths.pipeline("demo").run("demo-1"))

    def act(self, home: Path) -> None:
        worker.find_handler = lambda uses, root: Handler()  # type: ignore[assignment]
        run = self.run_of(home)
        folder = run.paths.records(KEY)
        attempts = records.read_attempts(folder)
        if attempts and attempts[-1].end is None:
            records.end(folder, attempts[-1].number, State.FAILED, reason=Reason.LOST)
        number = len(attempts) + 1
        if attempts and attempts[-1].state is State.COMPLETED:
            number -= 1
        else:
            assert records.claim(folder, number, {"run": run.id})
            state = worker.execute(run, "s", number)
            assert state is State.COMPLETED, "told as the step's failure"
        for changed in links.link_outputs(self.instance, run.paths):
            atomic.sync_folder(changed)

    def check(self, home: Path) -> None:
        paths = ProjectPaths.at(home)
        for place in self.instance.artifact_paths(paths).values():
            check_artifact(place)
        for link in (home / "out").glob("[ab]"):
            artifacts.open_artifact(link)
        attempts = records.read_attempts(paths.records(KEY))
        assert all(a.end is not None for a in attempts[:-1])
        if attempts and attempts[-1].end and attempts[-1].end["state"] == "COMPLETED":
            assert all(p.exists() for p in self.instance.artifact_paths(paths).values())

    def done(self, home: Path) -> None:
        run = self.run_of(home)
        truth = standings.fold(run, self.instance, {}, drivers.Watch(run.paths.state))
        assert truth.standing.state is State.COMPLETED
        for name in "ab":
            artifacts.open_artifact(home / "out" / name)


# ------------------------------------------------------------------------------------------ links


class Linking(Scenario):
    """Points `out` at another result than before."""

    before = True

    def prepare(self, home: Path) -> None:
        paths = ProjectPaths.at(home)
        for key in (OTHER, KEY):
            create_artifact(paths.artifact(key), fill)
        if self.before:
            links.link_outputs(make_instance(key=OTHER), paths)

    def act(self, home: Path) -> None:
        for changed in links.link_outputs(make_instance(), ProjectPaths.at(home)):
            atomic.sync_folder(changed)

    def check(self, home: Path) -> None:
        link = home / "out/s"
        if self.before or os.path.lexists(link):
            assert link.is_symlink() and artifacts.open_artifact(link)
            assert os.path.basename(os.readlink(link)) in (KEY, OTHER)

    def done(self, home: Path) -> None:
        assert (home / "out/s").resolve() == ProjectPaths.at(home).artifact(KEY)


class LinkingFirst(Linking):
    """Makes the first link of an `out`."""

    before = False


class LinkingInTheWay(Linking):
    """Would link where a file of the user's stands: whatever happens, that is left alone."""

    before = False

    def prepare(self, home: Path) -> None:
        super().prepare(home)
        (home / "out").mkdir()
        (home / "out/s").write_text("years of work")

    def act(self, home: Path) -> None:
        try:
            links.link_outputs(make_instance(), ProjectPaths.at(home))
        except links.ArtifactError:
            return
        raise AssertionError("linked over the user's file")

    def check(self, home: Path) -> None:
        assert (home / "out/s").read_text() == "years of work"

    def done(self, home: Path) -> None:
        self.check(home)


# ------------------------------------------------------------------------------------------- runs


class CreatingARun(Scenario):
    """Records a run; a try that was cut short may leave its number unused, never a part."""

    def prepare(self, home: Path) -> None:
        runs.create_run(ProjectPaths.at(home), "demo", {"file": None}, [make_instance()])

    def act(self, home: Path) -> None:
        runs.create_run(ProjectPaths.at(home), "demo", {"file": None}, [make_instance()])

    def check(self, home: Path) -> None:
        paths = ProjectPaths.at(home)
        for run in runs.all_runs(paths):
            assert run.request["user"] and run.instances["s"].key == KEY
            assert run.attempts_before() == {}

    def done(self, home: Path) -> None:
        assert len(runs.run_ids(ProjectPaths.at(home).pipeline("demo"))) >= 2


class Resuming(Scenario):
    """Begins a round of a run that was cancelled, after a failed attempt."""

    def prepare(self, home: Path) -> None:
        paths = ProjectPaths.at(home)
        run = runs.create_run(paths, "demo", {"file": None}, [make_instance()])
        records.claim(paths.records(KEY), 1, {"run": run.id})
        records.end(paths.records(KEY), 1, State.FAILED, reason=Reason.EXCEPTION)
        runs.mark_cancelled(run)

    def run_of(self, home: Path) -> Run:
        run = runs.newest_run(ProjectPaths.at(home), "demo")
        assert run is not None
        return run

    def act(self, home: Path) -> None:
        runs.begin_round(self.run_of(home))

    def check(self, home: Path) -> None:
        assert self.run_of(home).attempts_before() in ({}, {KEY: 1})

    def done(self, home: Path) -> None:
        assert self.run_of(home).attempts_before() == {KEY: 1}
        assert not self.run_of(home).cancelled


class Cancelling(Resuming):
    """Leaves the marker of `cancel`, and raises a rerun count."""

    def prepare(self, home: Path) -> None:
        runs.create_run(ProjectPaths.at(home), "demo", {"file": None}, [make_instance()])

    def act(self, home: Path) -> None:
        runs.mark_cancelled(self.run_of(home))
        runs.raise_rerun_count(self.run_of(home).place.pipeline, "s", 1)

    def check(self, home: Path) -> None:
        run = self.run_of(home)
        assert not run.cancelled or runs.last_cancel(run)

    def done(self, home: Path) -> None:
        assert self.run_of(home).cancelled
        assert runs.rerun_counts(self.run_of(home).place.pipeline) == {"s": 1}


class Projecting(Resuming):
    """Replaces the projections."""

    def prepare(self, home: Path) -> None:
        paths = ProjectPaths.at(home)
        run = runs.create_run(paths, "demo", {"file": None}, [make_instance()])
        write_projection(run, {"s": Standing(State.PENDING)})

    def act(self, home: Path) -> None:
        write_projection(self.run_of(home), {"s": Standing(State.COMPLETED)})

    def shown(self, home: Path) -> list[str]:
        place = self.run_of(home).place
        texts = [file.read_text() for file in (place.state, place.pipeline.state)]
        return [json.loads(text)["steps"]["s"]["status"] for text in texts]

    def check(self, home: Path) -> None:
        assert set(self.shown(home)) <= {"PENDING", "COMPLETED"}

    def done(self, home: Path) -> None:
        assert self.shown(home) == ["COMPLETED", "COMPLETED"]


class Beating(Resuming):
    """Begins and ends the heartbeat of a driver."""

    def act(self, home: Path) -> None:
        run = self.run_of(home)
        driver = drivers.Driver.this_process(run.place.drivers, run.paths.state)
        with drivers.Heartbeat(driver, run.paths.state, run.place.cancelled, lambda: None):
            beats = list(run.place.drivers.glob("*.json"))
            assert beats and all(json.loads(beat.read_text())["beat"] == 0 for beat in beats)

    def check(self, home: Path) -> None:
        for beat in self.run_of(home).place.drivers.glob("*.json"):
            json.loads(beat.read_text())

    def done(self, home: Path) -> None:
        self.check(home)


# --------------------------------------------------------------------------------------- registry


class Registering(Scenario):
    """Registers an artifact unless it is registered, as the step does."""

    def prepare(self, home: Path) -> None:
        create_artifact(home / "store/x", fill)

    def registry(self, home: Path) -> Registry:
        return Registry(home / "registry")

    def act(self, home: Path) -> None:
        artifact = artifacts.open_artifact(home / "store/x")
        if self.registry(home).find_version("m", artifact.hash) is None:
            self.registry(home).register("m", artifact.path, {"accuracy": 0.5})

    def check(self, home: Path) -> None:
        if (home / "registry/m/versions").exists():
            known = self.registry(home).models()
            assert not known or [version.number for version in self.versions(home)] == [1]

    def versions(self, home: Path) -> list[Any]:
        found = self.registry(home).versions("m")
        for version in found:
            self.registry(home).open(version)
        return found

    def done(self, home: Path) -> None:
        assert [version.number for version in self.versions(home)] == [1]


class Promoting(Registering):
    """Moves a tag from version 1 to version 2."""

    wanted = 2

    def prepare(self, home: Path) -> None:
        super().prepare(home)
        for _ in range(3):
            self.registry(home).register("m", home / "store/x")
        self.registry(home).promote("m", 1, "prod")

    def act(self, home: Path) -> None:
        self.registry(home).promote("m", 2, "prod")

    def check(self, home: Path) -> None:
        assert self.registry(home).resolve("m@prod").number in (1, 2)
        history = self.registry(home).history("m", "prod")
        assert [move.sequence for move in history] == list(range(1, len(history) + 1))

    def done(self, home: Path) -> None:
        assert self.registry(home).resolve("m@prod").number == self.wanted


class RollingBack(Promoting):
    """Moves a tag back."""

    wanted = 1

    def prepare(self, home: Path) -> None:
        super().prepare(home)
        self.registry(home).promote("m", 2, "prod")

    def act(self, home: Path) -> None:
        if self.registry(home).resolve("m@prod").number == 2:
            self.registry(home).rollback("m", "prod")


class Deleting(Promoting):
    """Deletes a version, and ends a tag."""

    def prepare(self, home: Path) -> None:
        super().prepare(home)
        self.registry(home).promote("m", 2, "old")

    def act(self, home: Path) -> None:
        registry = self.registry(home)
        if any(version.number == 3 for version in registry.versions("m")):
            registry.delete("m", 3)
        if "old" in registry.tags("m"):
            registry.remove_tag("m", "old")

    def check(self, home: Path) -> None:
        super().check(home)
        assert self.registry(home).tags("m")["prod"] == 1

    def done(self, home: Path) -> None:
        assert self.registry(home).tags("m") == {"prod": 1}
        assert [version.number for version in self.registry(home).versions("m")] == [1, 2]


# ------------------------------------------------------------------------------------ checkpoints


class Sealing(Scenario):
    """Writes and seals the next checkpoint; the last sealed one stays until then."""

    def prepare(self, home: Path) -> None:
        self.save(home, 1)

    def act(self, home: Path) -> None:
        self.save(home, 2)

    def save(self, home: Path, number: int) -> None:
        folder = home / f"checkpoint-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("weights", "optimizer"):
            (folder / name).write_text(str(number) * 50_000)
        checkpoints.seal(home, folder)

    def content(self, home: Path) -> set[str]:
        found = checkpoints.newest([home])
        assert found is not None, "a sealed checkpoint is there"
        return {(found.path / name).read_text() for name in ("weights", "optimizer")}

    def check(self, home: Path) -> None:
        assert self.content(home) in ({"1" * 50_000}, {"2" * 50_000})

    def done(self, home: Path) -> None:
        assert self.content(home) == {"2" * 50_000}


class Snapshotting(Sealing):
    """Snapshots files that their writer replaces by renaming; the oldest snapshot goes."""

    def prepare(self, home: Path) -> None:
        for _ in range(2):
            self.save(home, 1)

    def save(self, home: Path, number: int) -> None:
        files = [home / "weights", home / "optimizer"]
        for file in files:
            file.with_suffix(".tmp").write_text(str(number) * 50_000)
            os.replace(file.with_suffix(".tmp"), file)
        checkpoints.snapshot(home, files)


SCENARIOS: dict[str, Scenario] = {
    cls.__name__: cls()
    for cls in (
        Attempting, Fencing, Publishing, Replacing, Adopting, Working, Linking, LinkingFirst,
        LinkingInTheWay, CreatingARun, Resuming, Cancelling, Projecting, Beating, Registering,
        Promoting, RollingBack, Deleting, Sealing, Snapshotting,
    )
}  # fmt: skip
CONTROLS: dict[str, Scenario] = {"Naive": Naive()}


def perform(verb: str, name: str, home: str, code: str = "0") -> str:
    """Do a task of the `Nursery`."""
    scenario = {**SCENARIOS, **CONTROLS}[name]
    if verb == "judge":
        return judge(scenario, Path(home), int(code))
    scenario.act(Path(home))
    return ""


def judge(scenario: Scenario, home: Path, code: int) -> str:
    """Return what is wrong after a struck `act` that ended with `code`, or an empty text."""
    steps: list[tuple[str, Callable[[Path], None]]] = [("invariant", scenario.check)]
    if code == 0:
        steps.append(("silent success", scenario.done))
    steps += [("rerun", scenario.act), ("after the rerun", scenario.check)]
    for what, step in [*steps, ("after the rerun", scenario.done)]:
        try:
            step(home)
        except Exception:
            return f"{what}: {traceback.format_exc(limit=-3)}"
    return ""


if __name__ == "__main__":
    sweep.serve(perform)
