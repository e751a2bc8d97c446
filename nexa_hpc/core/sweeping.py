"""What attempts, drivers and publications left behind and nobody needs: found, and removed by age.

    <store>/<hh>/<key>.tmp.<unique>/           of a publication: after a day, without a live attempt
    .nexa_state/work/<hh>/<key>/               once published; of other attempts after `failed_days`
    *.tmp.<unique>, runs/<pipeline>.tmp.…/     whose writer was killed: after a day
    <pipeline>/runs/<run>/drivers/<id>.json    heartbeats of drivers that were killed: after a day

A part of `artifacts gc`, called by `collecting`. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.artifacts import look
from nexa_hpc.core.paths import ProjectPaths, sharded
from nexa_hpc.core.publishing import move_to_trash
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.retention import Keeper, days
from nexa_hpc.core.settings import Retention
from nexa_hpc.core.store import changed_at, changed_below, size_below, unfinished
from nexa_hpc.errors import ArtifactError

_LEFTOVER_DAYS = 1.0


@dataclass(frozen=True)
class Item:
    """One thing that is taken away, moved or put back, and why."""

    path: Path
    size_bytes: int
    why: str


@dataclass
class Collection:
    """What a gc did; of a dry run, what it would do."""

    dry_run: bool = False
    moved: list[Item] = field(default_factory=list)
    """Artifacts that went into the trash."""
    restored: list[Item] = field(default_factory=list)
    """Artifacts that came back from it."""
    removed: list[Item] = field(default_factory=list)
    """What is gone for good: old trash, work folders, half-made and temporary files."""
    troubles: list[str] = field(default_factory=list)
    """What could not be moved or removed, and why; the next gc tries again."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        lists = {"moved": self.moved, "restored": self.restored, "removed": self.removed}
        return {
            "dry_run": self.dry_run,
            **{name: [asdict(i) | {"path": str(i.path)} for i in lists[name]] for name in lists},
            "troubles": self.troubles,
        }

    def remove(self, path: Path, why: str, *, shown: Path | None = None) -> None:
        """Remove a folder, file or link, or note what kept it; `shown` is where people know it."""
        size_bytes = size_below(path)
        error = None if self.dry_run else _remove(path)
        if error is None:
            self.removed.append(Item(shown or path, size_bytes, why))
        else:
            self.trouble(path, error)

    def trouble(self, path: Path, error: OSError) -> None:
        """Note that `path` could not be moved or removed."""
        self.troubles.append(f"{error.filename or path}: {error.strerror}")


class Sweeper:
    """Sweeps a project, and notes in `done` what it removed; `keeper` has looked."""

    def __init__(
        self,
        paths: ProjectPaths,
        retention: Retention,
        keeper: Keeper,
        now: float,
        done: Collection,
    ) -> None:
        self._paths = paths
        self._retention = retention
        self._keeper = keeper
        self._now = now
        self._done = done

    def sweep(self) -> None:
        """Remove all that is left behind."""
        self._sweep_publications()
        self._sweep_work()
        self._sweep_temporaries()
        self._sweep_heartbeats()

    def _sweep_publications(self) -> None:
        for path, key in list(unfinished(self._paths)):
            if self._is_old(changed_below(path)) and not (key and self._keeper.is_live(key)):
                self._done.remove(path, "left behind by an attempt that has ended")

    def _sweep_work(self) -> None:
        for folder in list(sharded(self._paths.work)):
            why = self._why_work_goes(folder)
            if why is None or self._keeper.is_live(folder.name):
                continue
            if self._done.dry_run:
                self._done.remove(folder, why)
            else:
                self._remove_work(folder, why)

    def _why_work_goes(self, folder: Path) -> str | None:
        """Return why nobody needs an instance's work folder any more, or None."""
        records = self._paths.records(folder.name)
        attempts = read_attempts(records)
        has_succeeded = bool(attempts) and attempts[-1].state.succeeded
        if has_succeeded or is_whole(self._paths.artifact(folder.name)):
            return "its result has been published"
        age = self._keeper.age_days(max(changed_below(folder), changed_at(records)))
        if age >= self._retention.failed_days:
            return f"its last attempt ended {days(age)} ago, without a result"
        return None

    def _remove_work(self, folder: Path, why: str) -> None:
        """Rename `folder` into the trash, look at its records again, and remove it or put it back.

        An attempt is claimed before it looks for what earlier ones left.
        """
        try:
            aside = move_to_trash(folder, self._now)
        except OSError as error:
            self._done.trouble(folder, error)
            return
        if self._keeper.is_live(folder.name):
            atomic.rename_folder(aside, folder)
        else:
            self._done.remove(aside, why, shown=folder)

    def _sweep_temporaries(self) -> None:
        for path in list(self._temporaries()):
            if self._is_old(changed_at(path)):
                self._done.remove(path, "left behind by a process that has ended")

    def _temporaries(self) -> Iterator[Path]:
        """Yield the temporary files and folders that we make outside the store."""
        for root in (self._paths.state, self._paths.registry):
            yield from self._temporaries_below(root)
        for folder in {link.parent for link in self._keeper.links}:
            for name in list_names(folder):
                target = atomic.target_of_temporary(name)
                if target is not None and folder / target in self._keeper.links:
                    yield folder / name

    def _temporaries_below(self, root: Path) -> Iterator[Path]:
        elsewhere = {str(self._paths.store), str(self._paths.work)}
        for parent, folders, files in os.walk(root):
            names = [*files, *folders]
            ours = {name for name in names if atomic.target_of_temporary(name) is not None}
            yield from (Path(parent, name) for name in ours)
            folders[:] = [
                name
                for name in folders
                if name not in ours and os.path.join(parent, name) not in elsewhere
            ]

    def _sweep_heartbeats(self) -> None:
        for pipeline in self._paths.pipelines():
            for run_id in list_names(pipeline.runs):
                drivers = pipeline.run(run_id).drivers
                beats = {drivers / n for n in list_names(drivers) if n.endswith(".json")}
                for beat in sorted(beats - self._keeper.heartbeats):
                    if self._is_old(changed_at(beat)):
                        self._done.remove(beat, "the heartbeat of a driver that has ended")

    def _is_old(self, changed: float) -> bool:
        return self._keeper.age_days(changed) >= _LEFTOVER_DAYS


def _remove(path: Path) -> OSError | None:
    is_folder = path.is_dir() and not path.is_symlink()
    return atomic.remove_tree(path) if is_folder else atomic.remove_file(path)


def is_whole(path: Path) -> bool:
    """Return whether a complete artifact is at `path`; one that may not be read is not."""
    try:
        return look(path).artifact is not None
    except ArtifactError:
        return False
