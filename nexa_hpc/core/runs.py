"""Runs: what was asked, what was decided, and which attempts belong to the present round.

A run's folder appears whole, by one rename, under the next free number. A *round* is the run's own
beginning or one `resume`: it notes the newest ended attempt of each key that it may try, so that a
failure from before it is tried again, and one since then is an answer. Called by `advance`,
`status` and the other commands. Standard library alone.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic, rounds
from nexa_hpc.core.endpoints import readers_of
from nexa_hpc.core.instances import RUN, Instance, secrets_of
from nexa_hpc.core.paths import PipelinePaths, ProjectPaths, RunPaths
from nexa_hpc.core.points import Point
from nexa_hpc.core.reading import list_names, read_json, read_json_or_none
from nexa_hpc.core.records import newest_claimed, newest_number, now
from nexa_hpc.core.results import find_result
from nexa_hpc.core.rounds import Part, numbered
from nexa_hpc.core.sharing import require_own, user_name
from nexa_hpc.core.stops import Stops
from nexa_hpc.errors import StateError, UnknownNameError, nearest

FORMAT = 1
_NUMBER = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class Run:
    """One submission of a pipeline, as recorded."""

    paths: ProjectPaths
    place: RunPaths
    planned: Mapping[str, Instance] | None = None
    """The plan's instances, where the caller has them at hand; else they are read when needed."""

    @cached_property
    def id(self) -> str:
        """The run's id, `<pipeline>-<number>`."""
        return self.place.run_id

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self.place.pipeline.name

    @cached_property
    def request(self) -> Mapping[str, Any]:
        """What was asked: `file`, its digest, the document, `scheduler`, who, where and when."""
        request: Mapping[str, Any] = read_json(self.place.request)
        return request

    @cached_property
    def instances(self) -> Mapping[str, Instance]:
        """The plan's instances by step id, in graph order."""
        return read_instances(self.place) if self.planned is None else self.planned

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Instance]]:
        """Step that serves -> the instances that read its server."""
        return readers_of(self.instances)

    @cached_property
    def shared_elements(self) -> Mapping[str, str]:
        """Step -> the one that serves, in whose element it runs in Slurm; the other steps have
        their own.
        """
        return {step: i.element for step, i in self.instances.items() if i.element}

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The points of the sweep, in their order; empty for a plain run."""
        return tuple(Point.from_json(value) for value in self.request.get("points", ()))

    def views(self, instance: Instance) -> list[Path]:
        """Return the folders below which the points that `instance` serves have their `out`s."""
        return [
            self.paths.point_view(self.pipeline, self._labels[name]) for name in instance.points
        ]

    @cached_property
    def keys_at_points(self) -> Mapping[tuple[str, str], str]:
        """Step id and point -> the key of the result that the point asks for."""
        return {(i.step_id, p): i.key for i in self.instances.values() for p in i.points}

    @cached_property
    def _labels(self) -> Mapping[str, str]:
        return {point.name: point.label for point in self.points}

    @cached_property
    def secrets(self) -> frozenset[str]:
        """See `secrets_of`."""
        return secrets_of(self.instances.values())

    def attempts_before(self) -> Mapping[str, int]:
        """Return key -> the newest attempt that had ended before the present round, of what that
        does not take for cached.
        """
        number = rounds.present_round(self.place)
        before: Mapping[str, int] = rounds.read_round(self.place, number)["attempts_before"]
        return before

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has left its marker since the present round began."""
        return self.place.cancelled.name in list_names(self.place.folder)

    @property
    def stopped(self) -> Mapping[str, str]:
        """The instances stopped singly in the present round -> why, in words."""
        return self._stops.now()

    @cached_property
    def _stops(self) -> Stops:
        return Stops(self.place)


def create_run(
    paths: ProjectPaths, pipeline: str, request: Mapping[str, Any], instances: Iterable[Instance]
) -> Run:
    """Record a new run, whole, under the next free number."""
    home = paths.pipeline(pipeline)
    planned = list(instances)
    staged = RunPaths(atomic.temporary_beside(home.runs / pipeline))
    try:
        atomic.make_folder(staged.folder)
        _write_run(staged, paths, request, planned)
        number = max(_numbers(home), default=0) + 1
        while not atomic.rename_folder(staged.folder, home.run(f"{pipeline}-{number}").folder):
            number += 1
    finally:
        atomic.remove_tree(staged.folder)
    return Run(paths, home.run(f"{pipeline}-{number}"), {i.step: i for i in planned})


def _write_run(
    staged: RunPaths, paths: ProjectPaths, request: Mapping[str, Any], planned: Sequence[Instance]
) -> None:
    content = {
        "format": FORMAT,
        "created_at": now(),
        "user": user_name(),
        "host": socket.gethostname(),
        "paths": paths.to_json(),
        **request,
    }
    atomic.write_json(staged.request, content)
    plan = {"format": FORMAT, "instances": [instance.to_json() for instance in planned]}
    atomic.write_json(staged.plan, plan)
    to_run = (instance for instance in planned if instance.action == RUN)
    rounds.write_round(staged, 1, _newest_attempts(paths, to_run))


def open_run(folder: Path) -> Run:
    """Return the run recorded in `folder`, with the paths that it was planned with."""
    place = RunPaths(folder)
    return Run(ProjectPaths.from_json(read_json(place.request)["paths"]), place)


def begin_round(run: Run, part: Part | None = None) -> None:
    """Begin another round of `run`: what failed or was cancelled so far may be tried again.

    With a `part`, only what that chose: all else stands as it did, and what it leaves out is not
    started in this round.
    """
    require_own(run.place.folder, "the run in")
    before = dict(run.attempts_before()) if part is not None else {}
    chosen = (i for i in run.instances.values() if part is None or i.step in part.chosen)
    # What was taken for cached may have been purged, and tried in vain.
    tried = [i for i in chosen if i.action == RUN or find_result(i, run.paths).artifact is None]
    number = rounds.present_round(run.place) + 1
    # What a cancelled run has open is on its way out, whoever comes to record its end.
    is_cancelled = run.cancelled
    while not rounds.write_round(
        run.place, number, before | _newest_attempts(run.paths, tried, open_=is_cancelled), part
    ):
        number += 1
    run.place.cancelled.unlink(missing_ok=True)


def mark_cancelled(run: Run, why: str = "") -> bool:
    """Leave the marker that ends the present round; False when it was there."""
    require_own(run.place.folder, "the run in")
    content = {"at": now(), "by": user_name(), "from": socket.gethostname(), "why": why}
    return atomic.create_once(run.place.cancelled, content)


def read_instances(place: RunPaths) -> dict[str, Instance]:
    """Return the instances of a run's plan by step id."""
    plan = read_json(place.plan)
    if plan.get("format") != FORMAT:
        raise StateError(
            f"{place.plan}: written in format {plan.get('format')}; this version reads {FORMAT}",
            hint="run the pipeline again: results are found by their keys",
        )
    found = [Instance.from_json(value) for value in plan["instances"]]
    return {instance.step: instance for instance in found}


def run_ids(pipeline: PipelinePaths) -> list[str]:
    """Return the ids of the runs of `pipeline`, oldest first."""
    return [f"{pipeline.name}-{number}" for number in _numbers(pipeline)]


def newest_run(paths: ProjectPaths, pipeline: str) -> Run | None:
    """Return the newest run of `pipeline`, or None when it has not run here."""
    ids = run_ids(paths.pipeline(pipeline))
    return Run(paths, paths.pipeline(pipeline).run(ids[-1])) if ids else None


def is_asked(newest: Run | None, instance: Instance) -> bool:
    """Return whether the pipeline's newest run, if it is another one, asks for this very result.

    A point of a sweep has a place of its own: only that point with another result takes it, and a
    point takes none of a plain run.
    """
    if newest is None:
        return True
    if instance.points:
        asked = (newest.keys_at_points.get((instance.step_id, p)) for p in instance.points)
        return all(key in (None, instance.key) for key in asked)
    same = newest.instances.get(instance.step)
    if newest.points and (same is None or same.points):
        return True
    return same is not None and same.key == instance.key


def all_runs(paths: ProjectPaths) -> list[Run]:
    """Return every run of the project, the newest of each pipeline last."""
    return [
        Run(paths, pipeline.run(run_id))
        for pipeline in paths.pipelines()
        for run_id in run_ids(pipeline)
    ]


def find_run(paths: ProjectPaths, name: str | None) -> Run:
    """Return the run that a user's word names: a run id, a pipeline, a file, or None for the
    newest.

    Raises UnknownNameError, naming the nearest run.
    """
    newest = [run for p in paths.pipelines() if (run := newest_run(paths, p.name)) is not None]
    if name is None:
        if not newest:
            raise UnknownNameError(
                f"nothing has run in {paths.root}", hint="nexa-hpc pipeline run FILE"
            )
        return max(newest, key=_created_at)
    pipeline, _, number = name.rpartition("-")
    place = paths.pipeline(pipeline or name).run(name)
    if _NUMBER.fullmatch(number) and place.plan.is_file():
        return Run(paths, place)
    for run in newest:
        if name == run.pipeline or is_file_of(run, name):
            return run
    known = [run.pipeline for run in newest] + [run.id for run in newest]
    raise UnknownNameError(
        f"no run, pipeline or file that has run here: {name}" + nearest(name, known),
        hint="nexa-hpc pipeline list",
    )


def _created_at(run: Run) -> str:
    try:
        return str(run.request["created_at"])
    except (StateError, OSError, KeyError):
        # One damaged run must not hide all others; named by its id, it says what is wrong.
        return ""


def is_file_of(run: Run, name: str) -> bool:
    """Return whether `name`, from here or from the root, is the file that `run` came from."""
    try:
        file = run.request.get("file")
    except (StateError, OSError):
        return False
    if file is None:
        return False
    recorded = os.path.realpath(run.paths.root / file)
    return recorded in (os.path.realpath(name), os.path.realpath(run.paths.root / name))


def rerun_counts(pipeline: PipelinePaths) -> dict[str, int]:
    """Return step id -> how often a `rerun --from` has reached it."""
    folder = pipeline.reruns("x").parent
    numbers = {step: numbered(pipeline.reruns(step)) for step in list_names(folder)}
    return {step: found[-1] for step, found in numbers.items() if found}


def raise_rerun_count(pipeline: PipelinePaths, step: str, count: int) -> None:
    """Raise the rerun count of `step` to `count`, unless somebody else just did."""
    content = {"at": now(), "by": user_name()}
    atomic.create_once(pipeline.reruns(step) / f"{count}.json", content)


def _numbers(pipeline: PipelinePaths) -> list[int]:
    prefix = f"{pipeline.name}-"
    names = [name.removeprefix(prefix) for name in list_names(pipeline.runs)]
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def _newest_attempts(
    paths: ProjectPaths, instances: Iterable[Instance], *, open_: bool = False
) -> dict[str, int]:
    """Return key -> its newest attempt that has ended, or with `open_` its newest one."""
    newest = newest_claimed if open_ else newest_number
    found = {i.key: newest(paths.records(i.key)) for i in instances}
    return {key: number for key, number in found.items() if number}


def last_cancel(run: Run) -> Mapping[str, Any] | None:
    """Return who cancelled the present round, when and from where, or None."""
    marker: Mapping[str, Any] | None = read_json_or_none(run.place.cancelled)
    return marker
