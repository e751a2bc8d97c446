"""`artifacts gc`: takes away what nothing keeps, at any moment, beside anything that runs.

An artifact is renamed into the trash, and a link to it is left at its place; then runs and registry
are looked at AGAIN, and what is asked for now is put back. A run names every key in its plan before
it looks whether the result is there. So either it finds the link, which counts as no result, and
computes; or its plan is found here. Whoever had begun to use the artifact reads on through the
link, for names change places (on NFS, which cannot do that, with a gap of microseconds). What has
lain in the trash for `trash_days` is looked up once more and removed, link and COMPLETE first, so
that nothing half removed is ever taken for whole.

Killed anywhere, the next call goes on. What cannot be removed (another user's, or held open
elsewhere as `.nfs…`) is told and met again next time. Standard library alone.
"""

from __future__ import annotations

import itertools
import os
import time

from nexa_hpc.core import atomic, exchange
from nexa_hpc.core.artifacts import COMPLETE, is_thrown_away
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.publishing import move_to_trash
from nexa_hpc.core.retention import UNKNOWN, Keeper, days
from nexa_hpc.core.settings import Retention
from nexa_hpc.core.sharing import require_own
from nexa_hpc.core.store import Stored, Thrown, key_of, size_below, size_of, stored, thrown_away
from nexa_hpc.core.sweeping import Collection, Item, Sweeper, is_whole


def collect(
    paths: ProjectPaths,
    retention: Retention,
    *,
    dry_run: bool = False,
    orphans: bool = False,
    now: float | None = None,
) -> Collection:
    """Take away what nothing keeps, and return what was done; a `dry_run` only says it.

    `orphans` includes what no run and no record of this project names. `now` is in seconds since
    1970. Any number of processes may collect at once. Raises StateError when a plan or version that
    counts cannot be read; nothing is taken away after that. Raises UserError in another user's
    project.
    """
    if not dry_run:
        require_own(paths.state, "the state folder")
    moment = time.time() if now is None else now
    keeper = Keeper(paths, retention, moment)
    keeper.look()
    done = Collection(dry_run)
    collector = _Collector(paths, keeper, moment, done, orphans)
    collector.throw_away()
    collector.empty_trash(retention.trash_days)
    Sweeper(paths, retention, keeper, moment, done).sweep()
    return done


class _Collector:
    """Collects artifacts, and notes in `done` what became of them."""

    def __init__(
        self, paths: ProjectPaths, keeper: Keeper, now: float, done: Collection, orphans: bool
    ) -> None:
        self._paths = paths
        self._keeper = keeper
        self._now = now
        self._done = done
        self._orphans = orphans

    def throw_away(self) -> None:
        """Move every artifact that nothing keeps into the trash, and back what is asked for now.

        Looking again is quick, but not for free: as much time goes into moving as into looking.
        """
        ours = (entry for entry in stored(self._paths) if entry.is_ours)
        groups = [list(g) for _, g in itertools.groupby(ours, key=lambda entry: entry.key)]
        waiting = [group for group in reversed(groups) if self._is_loose(group)]
        while waiting and not self._done.dry_run:
            self._throw_some(waiting)
        self._done.moved += [self._item(entry) for group in reversed(waiting) for entry in group]

    def _throw_some(self, waiting: list[list[Stored]]) -> None:
        began = time.monotonic()
        self._keeper.look_again()
        looked_s = time.monotonic() - began
        moved: list[tuple[Item, Thrown]] = []
        while waiting and (not moved or time.monotonic() - began < 2 * looked_s):
            group = waiting.pop()
            if self._is_loose(group):
                items = [(self._item(entry), entry) for entry in group]
                moved += [(item, thrown) for item, e in items if (thrown := self._throw(e))]
        self._keeper.look_again()
        for item, thrown in moved:
            if (why := self._why_asked(thrown)) is not None:
                self._put_back(thrown, why)
            else:
                self._done.moved.append(item)

    def empty_trash(self, trash_days: float) -> None:
        """Put back what is asked for and a killed gc left in the trash; remove what is old."""
        trash = [*thrown_away(self._paths.store), *thrown_away(self._paths.work)]
        # Where there is still a link, another gc is about to put the artifact; or it was killed.
        arriving = {thrown for thrown in trash if thrown.path.is_symlink()}
        self._keeper.look_again()
        for thrown in trash:
            age = self._keeper.age_days(thrown.at)
            if thrown in arriving and age < 1:
                continue
            if (why := self._why_asked(thrown)) is not None:
                self._put_back(thrown, why)
            elif age >= trash_days:
                if not self._done.dry_run:
                    self._unlink(thrown)
                    atomic.remove_file(thrown.path / COMPLETE)
                self._done.remove(thrown.path, f"in the trash for {days(age)}")

    def _is_loose(self, group: list[Stored]) -> bool:
        """Return whether nothing keeps the outputs of a step, which go together or not at all."""
        why = self._keeper.reason(group[0].key or "")
        return why is None or (why == UNKNOWN and self._orphans)

    def _throw(self, entry: Stored) -> Thrown | None:
        try:
            moved = move_to_trash(entry.place, self._now, leave_link=True)
        except OSError as error:
            self._done.trouble(entry.place, error)
            return None
        return Thrown(moved, entry.place, self._now) if os.path.lexists(moved) else None

    def _why_asked(self, thrown: Thrown) -> str | None:
        """Return why something in the trash is asked for, if it is whole and its place is empty."""
        key = key_of(thrown.place.name)
        why = self._keeper.reason(key) if key is not None else None
        is_taken = os.path.lexists(thrown.place) and not is_thrown_away(thrown.place)
        if why in (None, UNKNOWN) or is_taken or not is_whole(thrown.path):
            return None
        return why

    def _unlink(self, thrown: Thrown) -> None:
        """Remove the link that `thrown` left at its place, unless something else is there."""
        if is_thrown_away(thrown.place) and thrown.path.name in os.readlink(thrown.place):
            atomic.remove_file(thrown.place)

    def _put_back(self, thrown: Thrown, why: str) -> None:
        """Move `thrown` back to its place, unless that has been taken meanwhile."""
        item = Item(thrown.place, size_below(thrown.path), why)
        if not self._done.dry_run:
            try:
                if not _move_back(thrown):
                    return
            except FileNotFoundError:
                return  # Another gc put it back, or removed it.
            except OSError as error:
                self._done.trouble(thrown.path, error)
                return
            if not is_whole(thrown.place):
                # Another gc had begun to remove it.
                move_to_trash(thrown.place, self._now)
                return
        self._done.restored.append(item)

    def _item(self, entry: Stored) -> Item:
        why = self._keeper.reason(entry.key or "") or "no run, version or link asks for it"
        return Item(entry.place, size_of(entry), why)


def _move_back(thrown: Thrown) -> bool:
    moved = exchange.replace_left_link(thrown.path, thrown.place)
    return moved or atomic.rename_folder(thrown.path, thrown.place)
