"""Why each artifact of the store is kept, in words; what nothing keeps, `collecting` may take.

A step key, and with it all its outputs, is kept while
- a version that is not deleted is registered for it;
- the newest run of a pipeline asks for it, or a run that was begun or resumed within `runs_days`,
  is being driven, is about to begin, or has an attempt that has not ended;
- an attempt at it has not ended;
- a server that has not ended serves it;
- an `out` link of a recorded run points at it, and either was made within `artifacts_days`;
- no run and no record of this project names it, for then it may be another project's.
What a run asks for are the keys of its steps and the artifacts that their inputs are paths to.
Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core.artifacts import COMPLETE
from nexa_hpc.core.drivers import Driver, Life, Watch
from nexa_hpc.core.links import out_links, target_in
from nexa_hpc.core.paths import PipelinePaths, ProjectPaths, RunPaths, sharded
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.records import Attempt, unended_attempts
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.runs import Run, run_ids
from nexa_hpc.core.servers import Servers
from nexa_hpc.core.settings import Retention
from nexa_hpc.core.store import Stored, changed_at, key_of, size_of, stored
from nexa_hpc.errors import StateError

DAY_S = 86400.0
UNKNOWN = "no run or record of this project names it"


@dataclass(frozen=True)
class _Asked:
    """What the plan of a run names."""

    keys: frozenset[str]
    links: frozenset[Path]


class Keeper:
    """Knows why a key is kept: `look` first, then `look_again` as often as something may be new.

    What has been kept once stays kept. Raises StateError when a file that counts cannot be read,
    for then nobody can say what it asks for.
    """

    def __init__(self, paths: ProjectPaths, retention: Retention, now: float) -> None:
        self._paths = paths
        self._retention = retention
        self._now = now
        self._registry = Registry(paths.registry, project=paths.root)
        self._store = Path(os.path.realpath(paths.store))
        self._reasons: dict[str, str] = {}
        self._known: set[str] = set()
        self._plans: dict[Path, _Asked] = {}
        self._kept_runs: set[Path] = set()
        self._open_runs: set[str] = set()
        self.links: set[Path] = set()
        """Where the `out`s of all recorded runs are."""
        self.live: dict[str, str] = {}
        """Key -> the run whose attempt at it has not ended."""
        self.heartbeats: set[Path] = set()
        """The heartbeat files of the drivers of those attempts."""

    def reason(self, key: str) -> str | None:
        """Return why `key` is kept, or None when nothing keeps it."""
        if key not in self._reasons and key not in self._known:
            return UNKNOWN
        return self._reasons.get(key)

    def look(self) -> None:
        """Read the registry, the runs, the records of all attempts, and the links."""
        self._look_at_attempts()
        self.look_again()
        for pipeline in self._paths.pipelines():
            for run_id in run_ids(pipeline):
                self._note_old_plan(pipeline.run(run_id))
        for link in self.links:
            self._look_at_link(link)

    def look_again(self) -> None:
        """Read the registry and the runs for what has come since: versions, runs and rounds.

        A new attempt needs no look: its run, or the round that resumed it, has come before.
        """
        for model in self._registry.models():
            for version in self._registry.versions(model):
                self._keep(self._keys_at([version.path]), f"{version} is registered")
        for pipeline in self._paths.pipelines():
            self._look_at_pipeline(pipeline)
        self._look_at_servers()

    def is_live(self, key: str) -> bool:
        """Return whether an attempt at `key` has not ended; reads its records anew."""
        return any(map(self._is_live, unended_attempts(self._paths.records(key))))

    def age_days(self, changed: float) -> float:
        """Return how long ago `changed`, in seconds since 1970, was."""
        return (self._now - changed) / DAY_S

    def _keep(self, keys: Iterable[str], reason: str) -> None:
        for key in keys:
            self._reasons.setdefault(key, reason)

    def _keys_at(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yield the keys of the places in the store that `paths` lie in."""
        for path in paths:
            for store in (self._store, self._paths.store):
                if path != store and path.is_relative_to(store):
                    parts = path.relative_to(store).parts
                    key = key_of(parts[1]) if len(parts) > 1 else None
                    if key is not None:
                        yield key

    def _look_at_servers(self) -> None:
        # A job that waits, or is requeued, reads its model when it starts.
        servers = Servers(self._paths.servers)
        for name in servers.names():
            handle = servers.find(name)
            if handle is not None and servers.condition(handle)[0].lives:
                served = map(Path, handle.folders)
                self._keep(self._keys_at(served), f"server '{name}' serves it")

    def _look_at_attempts(self) -> None:
        for folder in sharded(self._paths.all_records):
            key = folder.name
            self._known.add(key)
            for attempt in filter(self._is_live, unended_attempts(folder)):
                run = str(attempt.claim.get("run"))
                self.live[key] = run
                self._open_runs.add(run)
                self._keep([key], f"run {run} has an attempt at it that has not ended")
                if "driver" in attempt.claim:
                    self.heartbeats.add(self._paths.state / attempt.claim["driver"]["heartbeat"])

    def _is_live(self, attempt: Attempt) -> bool:
        """Return whether `attempt`, which has no end record, may still be under way."""
        if "driver" not in attempt.claim:
            return True
        driver = Driver.from_json(attempt.claim["driver"])
        life = Watch(self._paths.state).life(driver)
        if life is not Life.UNKNOWN:
            return life is Life.ALIVE
        # On another machine: its heart beats every ten seconds, and a day is patience enough.
        return self.age_days(changed_at(self._paths.state / driver.heartbeat)) < 1

    def _look_at_pipeline(self, pipeline: PipelinePaths) -> None:
        # First those about to begin: one that begins at this moment is then met under its new name.
        for name in list_names(pipeline.runs):
            if ".tmp." in name and (plan := self._plan(pipeline.run(name))) is not None:
                self._keep(
                    plan.keys, f"a run of {pipeline.name} that is about to begin asks for it"
                )
        ids = run_ids(pipeline)
        for run_id in ids:
            place = pipeline.run(run_id)
            if place.folder in self._kept_runs:
                continue
            why = self._why_run(place, is_newest=run_id == ids[-1])
            if why is not None and (plan := self._plan(place)) is not None:
                self._kept_runs.add(place.folder)
                self._keep(plan.keys, f"run {run_id} asks for it, {why}")

    def _why_run(self, place: RunPaths, *, is_newest: bool) -> str | None:
        """Return why what a run asks for is kept, or None."""
        if is_newest:
            return "the newest of its pipeline"
        beats = [place.drivers / name for name in list_names(place.drivers)]
        if place.run_id in self._open_runs:
            return "and has an attempt that has not ended"
        if any(self.age_days(changed_at(beat)) < 1 for beat in beats):
            return "and is being driven"
        rounds = [place.rounds / name for name in list_names(place.rounds)]
        begun = max(map(changed_at, [place.plan, *rounds]))
        if self.age_days(begun) < self._retention.runs_days:
            return f"begun {days(self.age_days(begun))} ago"
        return None

    def _plan(self, place: RunPaths) -> _Asked | None:
        """Return what a run's plan names; None when the run is gone, or not whole yet."""
        if place.folder not in self._plans:
            try:
                asked = self._asked(Run(self._paths, place))
            except FileNotFoundError:
                return None
            except (OSError, LookupError, TypeError, AttributeError) as error:
                raise StateError(
                    f"{place.plan} cannot be read ({error!r}), so nobody can say what it asks for",
                    hint="mend or remove that run; until then nothing is collected",
                ) from error
            self._plans[place.folder] = asked
            self._known |= asked.keys
            self.links |= asked.links
        return self._plans[place.folder]

    def _note_old_plan(self, place: RunPaths) -> None:
        try:
            self._plan(place)
        except StateError:
            pass  # It counts no more: all that is lost is which keys and links it knew.

    def _asked(self, run: Run) -> _Asked:
        keys: set[str] = set()
        links: set[Path] = set()
        for instance in run.instances.values():
            if not instance.effect:
                keys.add(instance.key)
            handed = (value.get("path") for value in instance.inputs.values())
            keys.update(self._keys_at(Path(path) for path in handed if path))
            links.update(
                link
                for of in out_links(instance, run.paths, run.views(instance)).values()
                for link in of
            )
        return _Asked(frozenset(keys), frozenset(links))

    def _look_at_link(self, link: Path) -> None:
        target = target_in(link, self._paths.store) or target_in(link, self._store)
        if target is None:
            return
        age = self.age_days(max(changed_at(link), changed_at(target / COMPLETE)))
        if age < self._retention.artifacts_days:
            shown = self._paths.relative(link)
            self._keep(self._keys_at([target]), f"{shown}, made {days(age)} ago, is a link to it")


@dataclass(frozen=True)
class Holding:
    """A place in the store, with what people ask about it."""

    entry: Stored
    size_bytes: int
    kept: str | None
    """Why it is kept, in words; None when nothing keeps it."""


def holdings(paths: ProjectPaths, retention: Retention, now: float) -> list[Holding]:
    """Return what is in the store and why each is kept, in the order of keys.

    Raises StateError when a plan or version that counts cannot be read.
    """
    keeper = Keeper(paths, retention, now)
    keeper.look()
    return [Holding(entry, size_of(entry), _why(keeper, entry)) for entry in stored(paths)]


def _why(keeper: Keeper, entry: Stored) -> str | None:
    if not entry.is_ours or entry.key is None:
        return f"left alone: {entry.finding.reason or 'its name is no step key'}"
    return keeper.reason(entry.key)


def days(number: float) -> str:
    """Return a number of days in words."""
    if number < 1:
        return "less than a day"
    return "1 day" if number < 2 else f"{int(number)} days"
