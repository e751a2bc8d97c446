"""What the earlier runs of a pipeline had: the last result of each step, to compare a new key with.

Called by `decisions` and by the command `why`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nexa_hpc.core.artifacts import look
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import PipelinePaths, ProjectPaths
from nexa_hpc.core.runs import read_instances, run_ids
from nexa_hpc.errors import ArtifactError, StateError

_RUNS_SEARCHED = 20


class History:
    """The plans of a pipeline's newest runs, read only as far back as is asked for."""

    def __init__(self, pipeline: PipelinePaths, paths: ProjectPaths) -> None:
        self._paths = paths
        self._plans = self._read_plans(pipeline)
        self._read: list[Mapping[str, Instance]] = []

    def last(self, step: str, *, other_than: str) -> Instance | None:
        """Return the newest instance of `step` with another key that has had a result, or None."""
        for plan in self._newest_first():
            instance = plan.get(step)
            if instance is None or instance.key == other_than:
                continue
            if self._had_result(instance):
                return instance
        return None

    def _had_result(self, instance: Instance) -> bool:
        # A purged result counts as well: its document tells what was there.
        places = instance.artifact_paths(self._paths).values()
        try:
            return any(look(path).presence.value in ("complete", "purged") for path in places)
        except ArtifactError:
            return False  # It may not be read: it only served to explain.

    def _newest_first(self) -> Iterator[Mapping[str, Instance]]:
        yield from self._read
        for plan in self._plans:
            self._read.append(plan)
            yield plan

    @staticmethod
    def _read_plans(pipeline: PipelinePaths) -> Iterator[Mapping[str, Instance]]:
        for run_id in reversed(run_ids(pipeline)[-_RUNS_SEARCHED:]):
            try:
                yield read_instances(pipeline.run(run_id))
            except (OSError, StateError):
                continue  # Of another format, or half removed: it only served to explain.
